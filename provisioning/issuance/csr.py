"""What the CA takes from a certificate request: its key, and the proof that the requester holds it. Nothing else."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID

from provisioning.issuance.keys import SPKI_P256, SPKI_P384, SPKI_P521, header
from provisioning.refusals import CsrKeyNotCertified, CsrRefused, KeyPointRefused
from wire.messages import CSR_MOST

_ECDSA = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ec.ECDSA(hashes.SHA256()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: ec.ECDSA(hashes.SHA384()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: ec.ECDSA(hashes.SHA512()),
}
_RSA: dict[x509.ObjectIdentifier, hashes.HashAlgorithm] = {
    SignatureAlgorithmOID.RSA_WITH_SHA256: hashes.SHA256(),
    SignatureAlgorithmOID.RSA_WITH_SHA384: hashes.SHA384(),
    SignatureAlgorithmOID.RSA_WITH_SHA512: hashes.SHA512(),
}
_VERSION_OCTETS = len(b"\x02\x01\x00")
_P256_OCTETS = 32
# cryptography raises more than ValueError on hostile requests.
_HOSTILE = (
    *(ValueError, TypeError, UnsupportedAlgorithm, OverflowError),
    *(x509.InvalidVersion, x509.UnsupportedGeneralNameType, x509.DuplicateExtension),
)


@dataclass(frozen=True, slots=True)
class AcceptedCsr:
    """A key whose holder asked for a certificate. `spki` is DER, `der` the request as it was sent.

    Names, extensions and attributes of the request are not here: the server's record decides all of them.
    """

    der: bytes
    spki: bytes


def verify_csr(der: bytes, certified_key_spki: bytes) -> AcceptedCsr:
    """Was this PKCS#10 request (RFC 2986) made by the holder of exactly the certified key? Check 15.

    Raises: CsrRefused, CsrKeyNotCertified.
    """
    accepted = verify_possession(der)
    if accepted.spki != certified_key_spki:
        raise CsrKeyNotCertified(expected=certified_key_spki, actual=accepted.spki)
    return accepted


def verify_possession(der: bytes) -> AcceptedCsr:
    """Was this PKCS#10 request made by the holder of the key in it? Not proven: where that key lives.

    For a factory station, whose software key no TPM certifies. Nor that the key is a strong one: see `weakkeys`.

    Raises: CsrRefused, KeyPointRefused.
    """
    if len(der) > CSR_MOST:
        raise CsrRefused(expected=f"at most {CSR_MOST} bytes", actual=f"{len(der)} bytes")
    try:
        request = x509.load_der_x509_csr(der)
        key = _key_of(request)
        oid, signature, signed = request.signature_algorithm_oid, request.signature, request.tbs_certrequest_bytes
        spki = _spki_of(signed, key)
        if not der.endswith(b"\0" + signature):  # cryptography overlooks a BIT STRING that is not of whole octets
            raise CsrRefused(expected="a signature of whole octets", actual="a rest of bits")
        if oid in _ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, _ECDSA[oid])
        elif isinstance(key, rsa.RSAPublicKey) and oid in _RSA:
            key.verify(signature, signed, padding.PKCS1v15(), _RSA[oid])
        elif isinstance(key, ed25519.Ed25519PublicKey) and oid == SignatureAlgorithmOID.ED25519:
            key.verify(signature, signed)
        else:
            expected = "Ed25519, or ECDSA or RSA with SHA-256, SHA-384 or SHA-512"
            raise CsrRefused(expected=expected, actual=oid.dotted_string)
    except InvalidSignature as error:
        raise CsrRefused(expected="a signature by the key of the request", actual="a signature that is not") from error
    except _HOSTILE as error:
        raise CsrRefused(expected="a PKCS#10 request in DER", actual=type(error).__name__) from error
    return AcceptedCsr(der, spki)


def _spki_of(signed: bytes, key: CertificatePublicKeyTypes) -> bytes:
    """The SubjectPublicKeyInfo, DER, of the key that `cryptography` read out of these bytes.

    Of a P-256 key in the encoding that everybody uses these are the request's own octets: their prefix says each
    length in them. To write them anew takes as long as to read the key did.
    """
    # CertificationRequestInfo ::= SEQUENCE { version INTEGER (0), subject Name, subjectPKInfo, … } (RFC 2986, 4.1)
    begin, _ = header(signed, 0)
    _, at = header(signed, begin + _VERSION_OCTETS)
    if signed.startswith(SPKI_P256, at):
        return signed[at : at + len(SPKI_P256) + 2 * _P256_OCTETS]
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_of(request: x509.CertificateSigningRequest) -> CertificatePublicKeyTypes:
    """The key of a request. Raises: KeyPointRefused, and what `cryptography` raises about hostile ones."""
    try:
        return request.public_key()
    except ValueError as error:
        signed = request.tbs_certrequest_bytes
        if any(prefix in signed for prefix in (SPKI_P256, SPKI_P384, SPKI_P521)):
            raise KeyPointRefused(expected="a point on its curve", actual="one that is not") from error
        raise
