"""Keys, quotes and credentials by ESAPI. Every transient object is flushed before the next one is needed."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_RH, TPM2_SE, TPM2_ST
from tpm2_pytss.cryptography import tpm_ecc_private_key
from tpm2_pytss.TSS2_Exception import TSS2_Exception
from tpm2_pytss.tsskey import TSSPrivKey
from tpm2_pytss.types import (
    TPM2B_ATTEST,
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPML_PCR_SELECTION,
    TPMS_ATTEST,
    TPMS_PCR_SELECTION,
    TPMS_SCHEME_HASH,
    TPMT_SIG_SCHEME,
    TPMT_TK_HASHCHECK,
    TPMU_SIG_SCHEME,
)
from tpm2_pytss.utils import NVReadEK, create_ek_template

from device_agent.tpm import templates
from device_agent.tpm.access import DeviceKey, Endorsement, TpmAccess
from device_agent.tpm.errors import (
    DeviceKeyUnusable,
    NoEndorsementKey,
    PcrsKeepChanging,
    TpmRefused,
    TpmUnreachable,
)
from wire.messages import Attestation, PcrSelection

logging.getLogger("tpm2_pytss").setLevel(logging.CRITICAL)  # its messages repeat what the exceptions say

MAX_INTERMEDIATES = 4
QUOTE_ATTEMPTS = 5
_PCR_READS_MOST = 16
_OWNER_PARENT = int(TPM2_RH.OWNER)
_BANKS = {TPM2_ALG.SHA1: "sha1", TPM2_ALG.SHA256: "sha256", TPM2_ALG.SHA384: "sha384", TPM2_ALG.SHA512: "sha512"}


@contextmanager
def connect(access: TpmAccess) -> Iterator[ESAPI]:
    """An ESAPI context with the authorisations set. Raises: TpmUnreachable."""
    try:
        context = ESAPI(access.tcti)
    except (TSS2_Exception, RuntimeError, ValueError) as error:
        raise TpmUnreachable(f"no TPM at {access.tcti}: {error}") from error
    with context:
        if access.owner_auth:
            context.tr_set_auth(ESYS_TR.OWNER, access.owner_auth)
        if access.endorsement_auth:
            context.tr_set_auth(ESYS_TR.ENDORSEMENT, access.endorsement_auth)
        yield context


@contextmanager
def named(operation: str, cure: str = "") -> Iterator[None]:
    """Turns an error of the TSS into a refusal that names the operation. Raises: TpmRefused."""
    try:
        yield
    except TSS2_Exception as error:
        raise TpmRefused(operation, str(error), cure) from error


class Tpm:
    """An open TPM. `esapi` is for this package only."""

    def __init__(self, esapi: ESAPI) -> None:
        self.esapi = esapi

    def endorsements(self) -> tuple[Endorsement, ...]:
        """Every EK that has a certificate in NV: RSA first, then ECC. Raises: NoEndorsementKey, TpmRefused."""
        with named("reading EK certificates"):
            present = self._nv_indices()
            read = NVReadEK(self.esapi)
            chain = b"".join(read(index) for index in present if _is_ek_chain(index))
            found = [
                (kind, _one_certificate(read(index))) for index, kind in templates.EK_KINDS.items() if index in present
            ]
        if not found:
            raise NoEndorsementKey(
                "the TPM holds no EK certificate (NV 0x1c00002 and following): ask its manufacturer for one"
            )
        intermediates = tuple(_certificates(chain))[:MAX_INTERMEDIATES]
        kinds = sorted(found, key=lambda pair: "RSA" not in pair[0])
        return tuple(Endorsement(kind, certificate, intermediates) for kind, certificate in kinds)

    def bare_endorsements(self) -> tuple[Endorsement, ...]:
        """The EKs of the standard templates by their public areas, for a TPM that holds no certificate of any.

        A service takes one only where the factory registered that very key. Raises: TpmRefused.
        """
        found: list[Endorsement] = []
        refusal: TpmRefused | None = None
        for kind in templates.BARE_EK_KINDS:
            try:
                found.append(self._bare_endorsement(kind))
            except TpmRefused as refused:  # not every TPM knows both algorithms
                refusal = refused
        if refusal is not None and not found:
            raise refusal
        return tuple(found)

    def pcr_banks(self) -> tuple[str, ...]:
        """The banks that have PCRs allocated, by name. SHA-1 never counts: it is named so that a refusal can say so."""
        with named("reading the PCR banks"):
            _, capability = self.esapi.get_capability(TPM2_CAP.PCRS, 0, 16)
            selections = capability.data.assignedPCR
        return tuple(_BANKS[one.hash] for one in selections if one.hash in _BANKS and any(bytes(one.pcrSelect)))

    def create_device_key(self) -> DeviceKey:
        """A new signing key, under the persistent SRK or else the owner's primary. Raises: TpmRefused."""
        with self._parent(self.storage_parent()) as (parent, handle):
            with named("creating the device key"):
                private, public, _, _, _ = self.esapi.create(parent, None, templates.device_key())
            pem = TSSPrivKey(private, public, empty_auth=True, parent=handle).to_pem()
        return DeviceKey(bytes(pem), public.publicArea.marshal(), public.to_der())

    def storage_parent(self) -> int:
        """0x81000001 where the TPM has a storage key there, else 0x40000001."""
        with named("looking for the storage root key"):
            _, capability = self.esapi.get_capability(TPM2_CAP.HANDLES, templates.SRK_HANDLE, 1)
            handles = list(capability.data.handles)
        return templates.SRK_HANDLE if handles and int(handles[0]) == templates.SRK_HANDLE else _OWNER_PARENT

    def sign(self, pem: bytes, message: bytes) -> bytes:
        """ECDSA with SHA-256 by a device key, DER. Raises: DeviceKeyUnusable, TpmRefused."""
        scheme = TPMT_SIG_SCHEME(
            scheme=TPM2_ALG.ECDSA, details=TPMU_SIG_SCHEME(ecdsa=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256))
        )
        no_ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
        with self.loaded(pem) as handle, named("signing with the device key"):
            return bytes(self.esapi.sign(handle, hashlib.sha256(message).digest(), scheme, no_ticket))

    def certificate_request(self, pem: bytes) -> bytes:
        """A CSR (DER) by a device key. Its subject is empty: the service takes names from its own record."""
        with self.signing_key(pem) as key, named("signing the certificate request"):
            builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            return builder.sign(key, SHA256()).public_bytes(Encoding.DER)

    @contextmanager
    def signing_key(self, pem: bytes) -> Iterator[ec.EllipticCurvePrivateKey]:
        """A device key as what `cryptography`'s builders sign with. Raises: DeviceKeyUnusable, TpmRefused."""
        with self.loaded(pem) as handle:
            yield tpm_ecc_private_key(self.esapi, handle)

    @contextmanager
    def loaded(self, pem: bytes) -> Iterator[ESYS_TR]:
        """The handle of a device key, loaded. Raises: DeviceKeyUnusable, TpmRefused."""
        try:
            key = TSSPrivKey.from_pem(pem)
        except (TSS2_Exception, ValueError, TypeError) as error:
            raise DeviceKeyUnusable(f"the device key's file is damaged: {error}") from error
        if int(key.parent) == templates.SRK_HANDLE != self.storage_parent():
            raise DeviceKeyUnusable("the device key's parent is gone, the TPM was cleared: enroll again")
        with self._parent(int(key.parent)) as (parent, _):
            try:
                handle = self.esapi.load(parent, key.private, key.public)
            except TSS2_Exception as error:
                raise DeviceKeyUnusable(
                    f"the device key is not of this TPM, or the TPM was cleared ({error}): enroll again"
                ) from error
        with handle:
            yield handle

    @contextmanager
    def attestation_key(self, unique: bytes) -> Iterator["AttestationKey"]:
        """The AK: a primary of the endorsement hierarchy, the same each time. Raises: TpmRefused."""
        template = templates.attestation_key(unique)
        with named("making the attestation key", "set endorsement_auth in agent.toml if that hierarchy has one"):
            handle, public, _, _, _ = self.esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        with handle:
            yield AttestationKey(self.esapi, handle, public)

    @contextmanager
    def persistent_key(self, handle: int) -> Iterator["AttestationKey"]:
        """An attestation key that the device's maker left at a handle. Raises: TpmRefused."""
        with named(f"opening the attestation key {handle:#x}", "check iak_handle in agent.toml"):
            key = self.esapi.tr_from_tpmpublic(handle)
            public, _, _ = self.esapi.read_public(key)
        try:
            yield AttestationKey(self.esapi, key, public)
        finally:
            self.esapi.tr_close(key)

    def certificates_at(self, index: int) -> tuple[bytes, ...]:
        """The certificates (DER) in an NV index, one behind the other. Raises: TpmRefused."""
        with named(f"reading certificates at NV {index:#x}", "check the index in agent.toml"):
            return tuple(_certificates(NVReadEK(self.esapi)(index)))

    @contextmanager
    def _parent(self, handle: int) -> Iterator[tuple[ESYS_TR, int]]:
        if handle != _OWNER_PARENT:
            with named(f"opening the parent key {handle:#x}"):
                parent = self.esapi.tr_from_tpmpublic(handle)
            yield parent, handle
            return
        cure = "make a persistent storage root key at 0x81000001 if the owner hierarchy has an authorisation"
        with named("making the parent key", cure):
            parent, _, _, _, _ = self.esapi.create_primary(None, templates.storage_parent(), ESYS_TR.OWNER)
        with parent:
            yield parent, handle

    def _bare_endorsement(self, kind: str) -> Endorsement:
        with named(f"making the {kind}", "set endorsement_auth in agent.toml if that hierarchy has one"):
            _, template = create_ek_template(kind, NVReadEK(self.esapi))
            ek, public, _, _, _ = self.esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
            with ek:
                return Endorsement(kind, None, (), public.publicArea.marshal())

    def _nv_indices(self) -> list[int]:
        first, found = templates.EK_KINDS_FIRST, []
        more = True
        while more:
            more, capability = self.esapi.get_capability(TPM2_CAP.HANDLES, first, 64)
            handles = [int(handle) for handle in capability.data.handles]
            found += handles
            first = handles[-1] + 1 if handles else first
            more = more and bool(handles)
        return found


class AttestationKey:
    """A loaded AK: it quotes, certifies and opens credentials."""

    def __init__(self, esapi: ESAPI, handle: ESYS_TR, public: TPM2B_PUBLIC) -> None:
        self._esapi = esapi
        self._handle = handle
        self.public: bytes = public.publicArea.marshal()
        self.name: bytes = bytes(public.get_name())
        scheme = public.publicArea.parameters.asymDetail.scheme
        self._hash = _BANKS.get(scheme.details.anySig.hashAlg, "sha256")

    def activate(self, kind: str, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """The secret that the service put into a credential for this EK and this AK. Raises: TpmRefused."""
        with named("opening the credential", "it was made for another EK or AK"):
            _, template = create_ek_template(kind, NVReadEK(self._esapi))
            blob, _ = TPM2B_ID_OBJECT.unmarshal(credential_blob)
            secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
            ek, _, _, _, _ = self._esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
            with ek:
                if "HIGH" in kind:
                    return bytes(self._esapi.activate_credential(self._handle, ek, blob, secret))
                # The low-range templates have no userWithAuth: their policy is PolicySecret(endorsement).
                with self._policy_session() as session:
                    return bytes(self._esapi.activate_credential(self._handle, ek, blob, secret, session2=session))

    def quote(self, qualifying: bytes, selection: PcrSelection) -> tuple[Attestation, dict[str, bytes]]:
        """A quote over the selected PCRs and their values, which are those that the quote covers.

        Raises: PcrsKeepChanging, TpmRefused.
        """
        wanted = _selection(selection.bank, selection.pcrs)
        with named("quoting the PCRs"):
            for _ in range(QUOTE_ATTEMPTS):
                values = self._read_pcrs(selection)
                attest, signature = self._esapi.quote(self._handle, wanted, TPM2B_DATA(qualifying))
                covered = b"".join(values[str(pcr)] for pcr in sorted(selection.pcrs))
                digest = hashlib.new(self._hash, covered).digest()  # Part 3, 18.4: by the hash of the key's scheme
                if bytes(_quoted(attest)) == digest:
                    return Attestation(bytes(attest), signature.marshal()), values
        raise PcrsKeepChanging("the PCRs changed during each of five quotes: something is still measuring")

    def certify(self, key: ESYS_TR, qualifying: bytes) -> Attestation:
        """The AK's statement that this loaded key is in its TPM. Raises: TpmRefused."""
        no_scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
        with named("certifying the device key"):
            attest, signature = self._esapi.certify(key, self._handle, TPM2B_DATA(qualifying), no_scheme)
        return Attestation(bytes(attest), signature.marshal())

    def _read_pcrs(self, selection: PcrSelection) -> dict[str, bytes]:
        """One TPM2_PCR_Read gives at most eight digests, and says which."""
        values: dict[str, bytes] = {}
        for _ in range(_PCR_READS_MOST):
            left = [pcr for pcr in sorted(selection.pcrs) if str(pcr) not in values]
            if not left:
                return values
            _, given, digests = self._esapi.pcr_read(_selection(selection.bank, tuple(left)))
            numbers = [pcr for pcr in left if any(_holds(one, pcr) for one in given)]
            if not numbers:
                break
            values |= {str(pcr): bytes(digest) for pcr, digest in zip(numbers, digests, strict=True)}
        raise TpmRefused("reading the PCRs", f"bank {selection.bank} does not give all that the policy asks for")

    @contextmanager
    def _policy_session(self) -> Iterator[ESYS_TR]:
        session = self._esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256)
        with session:
            self._esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
            yield session


def _selection(bank: str, pcrs: tuple[int, ...]) -> TPML_PCR_SELECTION:
    return TPML_PCR_SELECTION.parse(f"{bank}:{','.join(map(str, sorted(pcrs)))}")


def _quoted(attest: TPM2B_ATTEST) -> TPM2B_DIGEST:
    body, _ = TPMS_ATTEST.unmarshal(bytes(attest))
    return body.attested.quote.pcrDigest


def _holds(selection: TPMS_PCR_SELECTION, pcr: int) -> bool:
    octets = bytes(selection.pcrSelect)
    return pcr // 8 < len(octets) and bool(octets[pcr // 8] & 1 << pcr % 8)


def _is_ek_chain(index: int) -> bool:
    return templates.EK_CHAIN_FIRST <= index <= templates.EK_CHAIN_LAST


def _certificates(octets: bytes) -> Iterator[bytes]:
    """The DER sequences at the start of the octets; NV areas are padded."""
    while octets[:1] == b"\x30":
        certificate = _one_certificate(octets)
        yield certificate
        octets = octets[len(certificate) :]


def _one_certificate(octets: bytes) -> bytes:
    """The first DER sequence, without the padding behind it; malformed octets are left to the service to refuse."""
    if octets[:2] == b"\x30\x82" and len(octets) >= 4:  # noqa: PLR2004  a sequence with two length octets
        return octets[: 4 + int.from_bytes(octets[2:4], "big")]
    return octets
