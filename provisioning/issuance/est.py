"""What EST carries (RFC 7030 section 4): base64 in and out, certs-only CMS, CSR attributes, the names of a renewal."""

import base64
import binascii
from collections.abc import Sequence

from cryptography import x509

from provisioning.issuance import der
from provisioning.issuance.keys import KeyKind
from provisioning.issuance.tbs import UNPARSED
from provisioning.refusals import CsrRefused, EstBodyMalformed, Finding, NamesDiffer
from wire.messages import CSR_MOST

BODY_MOST = CSR_MOST * 3 // 2
"""Bytes of a request: a CSR of `CSR_MOST` bytes in base64, with a line break after every few characters."""
LINE = 64
_WHITE_SPACE = b" \t\r\n"
_DATA = "1.2.840.113549.1.7.1"
_SIGNED_DATA = "1.2.840.113549.1.7.2"
_EC_PUBLIC_KEY, _RSA_ENCRYPTION = "1.2.840.10045.2.1", "1.2.840.113549.1.1.1"
_EC: dict[KeyKind, tuple[str, str]] = {
    KeyKind.P256: ("1.2.840.10045.3.1.7", "1.2.840.10045.4.3.2"),
    KeyKind.P384: ("1.3.132.0.34", "1.2.840.10045.4.3.3"),
    KeyKind.P521: ("1.3.132.0.35", "1.2.840.10045.4.3.4"),
}
"""Curve, and the signature algorithm of a request that fits it."""


def parse_request(body: bytes) -> bytes:
    """The DER inside a base64 body, with or without line breaks (RFC 7030 section 4.2.1, RFC 8951 section 3.1).

    Proves nothing about the DER. Raises: EstBodyMalformed.
    """
    text = body.translate(None, _WHITE_SPACE)
    if not text:
        raise EstBodyMalformed(expected="a PKCS#10 request in base64", actual="nothing")
    try:
        found = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise EstBodyMalformed(expected="base64, with or without white space", actual=error) from error
    if base64.b64encode(found) != text:
        raise EstBodyMalformed(expected="canonical base64", actual="stray bits behind the last octet")
    return found


def body_of(content: bytes) -> bytes:
    """DER as the body of an answer: base64 in lines of 64, which `openssl base64 -d` reads as well as others."""
    text = base64.b64encode(content)
    return b"\n".join([text[start : start + LINE] for start in range(0, len(text), LINE)]) + b"\n"


def certs_only(certificates: Sequence[bytes]) -> bytes:
    """Certificates (DER) in a certs-only CMC Simple PKI Response: SignedData without content and signers.

    RFC 5272 section 4.1, RFC 5652 section 5.1. A set has no order: DER sorts it.
    """
    signed = der.sequence(
        der.integer(1),
        der.tlv(der.SET, b""),
        der.sequence(der.oid(_DATA)),
        der.tlv(0xA0, b"".join(sorted(certificates))),
        der.tlv(der.SET, b""),
    )
    return der.sequence(der.oid(_SIGNED_DATA), der.tlv(0xA0, signed))


def csr_attributes(kind: KeyKind, rsa_bits: int) -> bytes:
    """What a request should hold (RFC 7030 section 4.5.2): the kind of key, and how to sign with it.

    No names: the record decides them. `rsa_bits` counts where the kind is RSA.
    """
    if kind in _EC:
        curve, signature = _EC[kind]
        return der.sequence(_attribute(_EC_PUBLIC_KEY, der.oid(curve)), der.oid(signature))
    if kind is KeyKind.RSA:
        return der.sequence(_attribute(_RSA_ENCRYPTION, der.integer(rsa_bits)), der.oid("1.2.840.113549.1.1.11"))
    return der.sequence(der.oid("1.3.101.112"))


def _attribute(kind: str, value: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.tlv(der.SET, value))


def verify_same_names(csr: bytes, presented: bytes) -> None:
    """Does the request name exactly who the presented certificate names (RFC 7030 section 4.2.2)?

    Subject and SubjectAltName, value by value; how a string is encoded does not count (RFC 5280 section 7.1). Both in
    DER; the request's signature is judged elsewhere. Raises: NamesDiffer, with every difference; CsrRefused.
    """
    certificate = x509.load_der_x509_certificate(presented)
    try:
        request = x509.load_der_x509_csr(csr)
        subject = request.subject
        requested = _alternative_names(request.extensions)
    except (*UNPARSED, OverflowError) as error:
        raise CsrRefused(expected="a PKCS#10 request in DER", actual=type(error).__name__) from error
    facts = (
        ("subject", certificate.subject, subject),
        ("subject alternative name", _alternative_names(certificate.extensions), requested),
    )
    if wrong := tuple(Finding(what, str(right), str(actual)) for what, right, actual in facts if right != actual):
        names = " and ".join(finding.what for finding in wrong)
        raise NamesDiffer(expected="the names of the presented certificate", actual=f"another {names}", findings=wrong)


def _alternative_names(extensions: x509.Extensions) -> list[x509.GeneralName]:
    try:
        return list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
