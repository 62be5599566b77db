"""A light device: the real protocol spoken by software keys, for load. No TPM, no agent, under a millisecond each.

It builds what a TPM would (TPMT_PUBLIC, TPMS_ATTEST, TPMT_SIGNATURE) and opens what only a TPM should. It shares no
code with the verifier. Its keys guard nothing: whoever accepts such a device (`software_tpm = true`) accepts a
program.

TCG TPM 2.0 Library Specification: Part 1, 11.4.10, 16, 24, B.10; Part 2, 10.12, 11.3, 12.2.
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from wire.binding import Flow, activation_proof, binding
from wire.messages import (
    Attestation,
    Challenge,
    EnrollmentRequest,
    Evidence,
    Pcrs,
    PcrSelection,
    PlatformEvidence,
)

_SHA256 = 0x000B
_NULL = 0x0010
_ECDSA = 0x0018
_ECC = 0x0023
_P256 = 0x0003
_GENERATED = 0xFF544347
_CERTIFY = 0x8017
_QUOTE = 0x8018
_ENDORSEMENT = 0x4000000B
# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign; the AK is restricted as well
_DEVICE_ATTRIBUTES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 18
_AK_ATTRIBUTES = _DEVICE_ATTRIBUTES | 1 << 16
_FIRMWARE = 0x20260101_00000000
_PCRS = 24

_ECDSA_SHA256 = ec.ECDSA(hashes.SHA256())
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")


@dataclass(frozen=True, slots=True)
class LightKey:
    """A P-256 key as a TPM would show it: its public area and its Name."""

    private: ec.EllipticCurvePrivateKey
    public: bytes
    name: bytes

    @property
    def qualified_name(self) -> bytes:
        """As a primary key of the endorsement hierarchy: nameAlg ‖ H(handle ‖ Name)."""
        return _named(_ENDORSEMENT.to_bytes(4, "big") + self.name)


def make_ak(private: ec.EllipticCurvePrivateKey | None = None) -> LightKey:
    """An attestation key: restricted, with its scheme in the template."""
    return _make_key(private, _AK_ATTRIBUTES, struct.pack(">HH", _ECDSA, _SHA256))


def make_device_key() -> LightKey:
    """A device key: signs anything, its scheme chosen by the caller."""
    return _make_key(None, _DEVICE_ATTRIBUTES, struct.pack(">H", _NULL))


def _make_key(private: ec.EllipticCurvePrivateKey | None, attributes: int, scheme: bytes) -> LightKey:
    """TPMT_PUBLIC of a signing key (Part 2, 12.2.4)."""
    private = private or ec.generate_private_key(ec.SECP256R1())
    point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    public = b"".join(
        (
            struct.pack(">HHIHH", _ECC, _SHA256, attributes, 0, _NULL),
            scheme,
            struct.pack(">HH", _P256, _NULL),
            _sized(point[1:33]),
            _sized(point[33:]),
        )
    )
    return LightKey(private, public, _named(public))


@dataclass(frozen=True, slots=True)
class LightBoot:
    """What the device booted: SHA-256 values of PCRs, and the event log that leads to them."""

    pcrs: Mapping[int, bytes]
    log: bytes


@dataclass(slots=True)
class LightDevice:
    """One device. `ek` is RSA-2048; `ek_certificate` is DER. Resets and clock are those of a TPM that never slept."""

    serial: str
    ek: rsa.RSAPrivateKey
    ek_certificate: bytes
    boot: LightBoot
    ak: LightKey = field(default_factory=make_ak)
    clock_ms: int = 3_600_000
    device_key: LightKey | None = None
    _csr: bytes = b""

    def request(self) -> EnrollmentRequest:
        """Step 1."""
        return EnrollmentRequest(
            ak_public=self.ak.public, pcr_banks=("sha256",), ek_certificate=self.ek_certificate, serial=self.serial
        )

    def prepare(self) -> None:
        """Make the next device key and its request, as an agent does before it asks."""
        self.device_key = make_device_key()
        self._csr = _csr(self.device_key.private)

    def warm_up(self) -> None:
        """Use each key once: OpenSSL makes its tables and blinding then, which costs as much as the use itself."""
        self.ek.decrypt(self.ek.public_key().encrypt(b"", _OAEP), _OAEP)
        self.ak.private.sign(b"", _ECDSA_SHA256)

    def answer(self, challenge: Challenge, flow: Flow = "enroll", *, log_by_hash: bool = False) -> Evidence:
        """Step 2, or the answer to a rotate command: a new device key, unless `prepare` made one.

        `log_by_hash`: the boot log travels by another road (by MQTT it is too long).
        Raises: ValueError, where the credential is for another EK or AK.
        """
        if self.device_key is None or not self._csr:
            self.prepare()
        key, csr = self.device_key, self._csr
        assert key is not None  # noqa: S101  prepare made it; for mypy
        self._csr = b""  # the next answer is about the next key
        secret = self.open_credential(challenge)
        bound = {part: self._bound(flow, part, challenge, csr) for part in ("quote", "certify", "activate")}
        log = self.boot.log if challenge.boot_log != "none" else None
        return Evidence(
            csr=csr,
            device_public=key.public,
            certify=self._certify(key, bound["certify"]),
            quote=self._quote(challenge.pcr_selection, bound["quote"]),
            pcrs=self._pcrs(challenge.pcr_selection),
            activation_proof=activation_proof(secret, bound["activate"]),
            boot_log=None if log_by_hash else log,
            boot_log_sha256=hashlib.sha256(log).digest() if log_by_hash and log is not None else None,
        )

    def attest(self, challenge: Challenge, *, log_by_hash: bool = False) -> PlatformEvidence:
        """The answer to an attest command. Raises: ValueError, as `answer`."""
        secret = self.open_credential(challenge)
        log = self.boot.log if challenge.boot_log != "none" else None
        return PlatformEvidence(
            quote=self._quote(challenge.pcr_selection, self._bound("attest", "quote", challenge, b"")),
            pcrs=self._pcrs(challenge.pcr_selection),
            activation_proof=activation_proof(secret, self._bound("attest", "activate", challenge, b"")),
            boot_log=None if log_by_hash else log,
            boot_log_sha256=hashlib.sha256(log).digest() if log_by_hash and log is not None else None,
        )

    def open_credential(self, challenge: Challenge) -> bytes:
        """TPM2_ActivateCredential in software (Part 1, 24). Raises: ValueError."""
        seed = self.ek.decrypt(challenge.encrypted_secret[2:], _OAEP)
        integrity, identity = challenge.credential_blob[4:36], challenge.credential_blob[36:]
        hmac_key = _kdfa(seed, b"INTEGRITY\0", b"", 256)
        if not hmac.compare_digest(hmac.digest(hmac_key, identity + self.ak.name, "sha256"), integrity):
            raise ValueError("the credential is for another AK")
        decryptor = Cipher(AES(_kdfa(seed, b"STORAGE\0", self.ak.name, 128)), CFB(bytes(16))).decryptor()
        return (decryptor.update(identity) + decryptor.finalize())[2:]

    def _bound(self, flow: Flow, part: str, challenge: Challenge, csr: bytes) -> bytes:
        return binding(
            flow,
            part,  # type: ignore[arg-type]  # one of the three that the callers name
            audience=challenge.audience,
            nonce=challenge.nonce,
            csr=csr,
            ak_name=self.ak.name,
            enrollment_id=challenge.enrollment_id,
        )

    def _quote(self, selection: PcrSelection, extra_data: bytes) -> Attestation:
        digest = hashlib.sha256(b"".join(self.boot.pcrs[pcr] for pcr in sorted(selection.pcrs))).digest()
        bits = sum(1 << pcr for pcr in set(selection.pcrs)).to_bytes(3, "little")
        return self._attest(_QUOTE, extra_data, struct.pack(">IHB", 1, _SHA256, 3) + bits + _sized(digest))

    def _certify(self, key: LightKey, extra_data: bytes) -> Attestation:
        return self._attest(_CERTIFY, extra_data, _sized(key.name) + _sized(_named(self.ak.name + key.name)))

    def _attest(self, kind: int, extra_data: bytes, attested: bytes) -> Attestation:
        """TPMS_ATTEST (Part 2, 10.12.12), signed by the AK."""
        self.clock_ms += 1
        attest = b"".join(
            (
                struct.pack(">IH", _GENERATED, kind),
                _sized(self.ak.qualified_name),
                _sized(extra_data),
                struct.pack(">QIIBQ", self.clock_ms, 1, 0, 1, _FIRMWARE),
                attested,
            )
        )
        r, s = decode_dss_signature(self.ak.private.sign(attest, _ECDSA_SHA256))
        signature = struct.pack(">HH", _ECDSA, _SHA256) + _sized(r.to_bytes(32, "big")) + _sized(s.to_bytes(32, "big"))
        return Attestation(attest, signature)

    def _pcrs(self, selection: PcrSelection) -> Pcrs:
        return {selection.bank: {str(pcr): self.boot.pcrs[pcr] for pcr in sorted(set(selection.pcrs))}}


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request whose name says nothing: the service takes the key alone."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    builder = x509.CertificateSigningRequestBuilder(subject_name=subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _named(public: bytes) -> bytes:
    """A Name, or a qualified name: nameAlg ‖ H(…)."""
    return _SHA256.to_bytes(2, "big") + hashlib.sha256(public).digest()


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """SP 800-108 counter mode, one block of SHA-256 (Part 1, 11.4.10.2)."""
    message = (1).to_bytes(4, "big") + label + context + bits.to_bytes(4, "big")
    return hmac.digest(key, message, "sha256")[: bits // 8]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


if __name__ == "__main__":
    import sys

    from lab.light_cli import main

    sys.exit(main())
