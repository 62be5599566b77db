"""What the CA takes from a certificate request: its key, and the proof that the requester holds it. Nothing else."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.refusals import CsrKeyNotCertified, CsrRefused
from wire.messages import CSR_MOST

_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
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


def verify_csr(der: bytes, certified_key_spki: bytes | None) -> AcceptedCsr:
    """Was this PKCS#10 request (RFC 2986) made by the holder of exactly the certified key? Check 15.

    None, where no key was certified (a factory station's software key): then possession alone is proven.

    Raises: CsrRefused, CsrKeyNotCertified.
    """
    if len(der) > CSR_MOST:
        raise CsrRefused(expected=f"at most {CSR_MOST} bytes", actual=f"{len(der)} bytes")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise CsrRefused(expected="an ECDSA or RSA key", actual=type(key).__name__)
        if not isinstance(request.signature_hash_algorithm, _HASHES):
            raise CsrRefused(expected="a signature with SHA-256, SHA-384 or SHA-512", actual="another hash")
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if certified_key_spki not in (None, spki):
            raise CsrKeyNotCertified(expected=certified_key_spki, actual=spki)
        proven = request.is_signature_valid
    except _HOSTILE as error:
        raise CsrRefused(expected="a PKCS#10 request in DER", actual=type(error).__name__) from error
    if not proven:
        raise CsrRefused(expected="a signature by the key of the request", actual="a signature that is not")
    return AcceptedCsr(der, spki)
