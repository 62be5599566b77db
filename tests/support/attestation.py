"""An honest device on a software TPM, in pieces: a test swaps one piece for the attack and leaves the rest alone."""

import hashlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.cryptography import tpm_ecc_private_key
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_ECC_PARAMETER,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPML_PCR_SELECTION,
    TPMS_ECC_POINT,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMU_PUBLIC_ID,
)
from tpm2_pytss.utils import NVReadEK, create_ek_template

from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import ek_id_of, verify_endorsement
from provisioning.attestation.evidence import OpenChallenge, verify_activation, verify_evidence
from provisioning.attestation.policy import Policy
from wire.binding import activation_proof, binding
from wire.messages import Attestation, EnrollmentRequest, Evidence, PcrSelection

NOW = datetime.now(UTC) + timedelta(hours=1)
"""Later than any EK certificate that a test makes, however long the tests take."""
KINDS = {"rsa2048": "EK-RSA2048", "ecc384": "EK-HIGH-ECC384"}
AK_ATTRIBUTES = (
    TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
)
KEY_ATTRIBUTES = (
    TPMA_OBJECT.SIGN_ENCRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
)
STORAGE_ATTRIBUTES = (
    TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
)


def policy_text(root_pem: str, pcrs: dict[int, bytes], **changes: str) -> str:
    """A policy for the software TPMs of one lab CA, with exactly these PCR values."""
    fields = {"model": '"gateway"', "software_tpm": "true", "boot_log": '"none"', **changes}
    lines = [f"{name} = {value}" for name, value in fields.items()]
    lines += ["[[ek_roots]]", f'certificate = """{root_pem}"""', 'manufacturers = ["id:00001014"]', "[pcrs.sha256]"]
    lines += [f'"{pcr}" = ["{value.hex()}"]' for pcr, value in pcrs.items()]
    return "\n".join(lines)


@dataclass
class Key:
    handle: ESYS_TR
    public: bytes


class Device:
    """A TPM's keys. `kind` is the EK's: `rsa2048` or `ecc384`."""

    def __init__(self, esapi: ESAPI, certificate: bytes, kind: str = "rsa2048") -> None:
        self.esapi = esapi
        self.certificate = certificate
        self.kind = kind
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _keep(self, handle: ESYS_TR) -> ESYS_TR:
        self.stack.callback(self.esapi.flush_context, handle)
        return handle

    def primary(self, template: TPM2B_PUBLIC, hierarchy: ESYS_TR) -> Key:
        handle, public, *_ = self.esapi.create_primary(None, template, hierarchy)
        return Key(self._keep(handle), public.publicArea.marshal())

    def ak(
        self,
        attributes: int = AK_ATTRIBUTES,
        hierarchy: ESYS_TR = ESYS_TR.ENDORSEMENT,
        alg="ecc:ecdsa-sha256:null",
        unique: str = "muster",
    ) -> Key:
        template = TPM2B_PUBLIC(TPMT_PUBLIC.parse(alg, objectAttributes=attributes))
        if alg.startswith("ecc"):
            unique = TPMS_ECC_POINT(
                x=TPM2B_ECC_PARAMETER(hashlib.sha256(unique.encode()).digest()), y=TPM2B_ECC_PARAMETER(b"")
            )
            template.publicArea.unique = TPMU_PUBLIC_ID(ecc=unique)
        return self.primary(template, hierarchy)

    def key(self, attributes: int = KEY_ATTRIBUTES, alg: str = "ecc:null:null") -> Key:
        """A key created (not primary) under a storage parent of the owner."""
        storage = TPM2B_PUBLIC(TPMT_PUBLIC.parse("ecc:aes128cfb", objectAttributes=STORAGE_ATTRIBUTES))
        parent, *_ = self.esapi.create_primary(None, storage, ESYS_TR.OWNER)
        try:
            template = TPM2B_PUBLIC(TPMT_PUBLIC.parse(alg, objectAttributes=attributes))
            private, public, *_ = self.esapi.create(parent, None, template)
            handle = self.esapi.load(parent, private, public)
        finally:
            self.esapi.flush_context(parent)
        return Key(self._keep(handle), public.publicArea.marshal())

    def csr(self, key: Key) -> bytes:
        private = tpm_ecc_private_key(self.esapi, key.handle)
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(private, SHA256()).public_bytes(Encoding.DER)

    def open(self, ak: Key, blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential."""
        _, template = create_ek_template(KINDS[self.kind], NVReadEK(self.esapi))
        ek, *_ = self.esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        try:
            credential, encrypted = TPM2B_ID_OBJECT.unmarshal(blob)[0], TPM2B_ENCRYPTED_SECRET.unmarshal(secret)[0]
            if "HIGH" in KINDS[self.kind]:
                return bytes(self.esapi.activate_credential(ak.handle, ek, credential, encrypted))
            with self._policy() as session:
                return bytes(self.esapi.activate_credential(ak.handle, ek, credential, encrypted, session2=session))
        finally:
            self.esapi.flush_context(ek)

    @contextmanager
    def _policy(self):
        session = self.esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256)
        try:
            self.esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
            yield session
        finally:
            self.esapi.flush_context(session)

    def quote(self, ak: Key, bound: bytes, selection: PcrSelection) -> Attestation:
        chosen = TPML_PCR_SELECTION.parse(f"{selection.bank}:{','.join(map(str, selection.pcrs))}")
        attest, signature = self.esapi.quote(ak.handle, chosen, TPM2B_DATA(bound))
        return Attestation(bytes(attest), signature.marshal())

    def certify(self, ak: Key, key: Key, bound: bytes) -> Attestation:
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
        attest, signature = self.esapi.certify(key.handle, ak.handle, TPM2B_DATA(bound), scheme)
        return Attestation(bytes(attest), signature.marshal())

    def pcrs(self, selection: PcrSelection) -> dict[str, dict[str, bytes]]:
        values = {}
        for pcr in selection.pcrs:
            _, _, digests = self.esapi.pcr_read(TPML_PCR_SELECTION.parse(f"{selection.bank}:{pcr}"))
            values[str(pcr)] = bytes(digests[0])
        return {selection.bank: values}


def challenge_for(device: Device, ak: Key, pcrs: tuple[int, ...], **changes) -> OpenChallenge:
    """What a server that trusts this AK's words would store. The secret is a fixed one: tests need no randomness."""
    fields = {
        "flow": "enroll",
        "enrollment_id": "enrollment-1",
        "audience": "muster.test",
        "nonce": b"n" * 32,
        "secret": b"s" * 32,
        "ak_public": ak.public,
        "pcr_selection": PcrSelection("sha256", pcrs),
        "boot_log": "none",
        "ek_id": ek_id_of(device.certificate),
    }
    return OpenChallenge(**{**fields, **changes})


def bound(challenge: OpenChallenge, part: str, csr: bytes) -> bytes:
    """The binding as the device computes it: with its own AK Name."""
    algorithm = challenge.ak_public[2:4]
    name = algorithm + hashlib.new({b"\0\x0b": "sha256", b"\0\x0c": "sha384"}[algorithm], challenge.ak_public).digest()
    return binding(
        challenge.flow,
        part,
        audience=challenge.audience,
        nonce=challenge.nonce,
        csr=csr,
        ak_name=name,
        enrollment_id=challenge.enrollment_id,
    )


def proof(challenge: OpenChallenge, csr: bytes) -> bytes:
    return activation_proof(challenge.secret, bound(challenge, "activate", csr))


def answer(device: Device, ak: Key, key: Key, challenge: OpenChallenge, **changes) -> Evidence:
    """Honest evidence for the challenge, but for the pieces that the test hands in."""
    csr = changes.pop("csr", None) or device.csr(key)
    fields = {
        "csr": csr,
        "device_public": key.public,
        "activation_proof": proof(challenge, csr),
        "pcrs": device.pcrs(challenge.pcr_selection),
    }
    if "quote" not in changes:
        fields["quote"] = device.quote(ak, bound(challenge, "quote", csr), challenge.pcr_selection)
    if "certify" not in changes:
        fields["certify"] = device.certify(ak, key, bound(challenge, "certify", csr))
    return Evidence(**{**fields, **changes})


def verify(evidence: Evidence, challenge: OpenChallenge, policy: Policy, **given):
    """Both steps of the server, as the flow calls them."""
    activated = verify_activation(evidence.activation_proof, evidence.csr, challenge)
    return verify_evidence(
        evidence,
        given.get("boot_log"),
        activated,
        policy,
        given.get("previous"),
        given.get("release_values", {}),
    )


def credential_opens(device: Device, ak: Key, policy: Policy, ak_name: bytes) -> bool:
    """Does the TPM open what the server makes for this EK and this Name?"""
    request = EnrollmentRequest(ak_public=ak.public, pcr_banks=("sha256",), ek_certificate=device.certificate)
    trusted = verify_endorsement(request, policy, NOW)
    secret = hashlib.sha256(b"secret").digest()
    return device.open(ak, *make_credential(trusted, ak_name, secret)) == secret
