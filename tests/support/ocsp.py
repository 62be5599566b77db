"""OCSP in tests: requests of every shape, and the linter over answers."""

import hashlib
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkilint import loader, pkix
from pkilint.pkix import extension, name, ocsp
from pkilint.validation import ValidationFindingSeverity

from provisioning.issuance import der

SHA1, SHA256 = "1.3.14.3.2.26", "2.16.840.1.101.3.4.2.1"
NONCE = "1.3.6.1.5.5.7.48.1.2"
NULL = b"\x05\x00"


def cert_id(issuer: x509.Certificate, serial: int, kind: str = SHA1, parameters: bytes = NULL) -> bytes:
    """A CertID. A negative serial is written as one."""
    new = {SHA1: hashlib.sha1, SHA256: hashlib.sha256}[kind]
    point = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    hashed = (new(content).digest() for content in (issuer.subject.public_bytes(), point))
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
    return der.sequence(
        der.sequence(der.oid(kind), parameters),
        *(der.tlv(der.OCTET_STRING, one) for one in hashed),
        der.tlv(der.INTEGER, octets),
    )


def nonce(value: bytes, *, critical: bool = False) -> bytes:
    """The extension (RFC 9654 section 2.1)."""
    return der.extension(NONCE, der.tlv(der.OCTET_STRING, value), critical=critical)


def request(
    *asked: bytes, extensions: bytes = b"", single: bytes = b"", before: bytes = b"", behind: bytes = b""
) -> bytes:
    """An OCSPRequest. `extensions`, and `single` for each certificate, are Extension values one after the other."""
    mine = der.tlv(0xA0, der.sequence(single)) if single else b""
    wanted = der.sequence(*(der.sequence(one, mine) for one in asked))
    theirs = der.tlv(0xA2, der.sequence(extensions)) if extensions else b""
    return der.sequence(der.sequence(before, wanted, theirs), behind)


def lint(response: bytes) -> list[str]:
    """What pkilint finds wrong with an OCSP response (DER), of warning or worse."""
    document = loader.RFC6960OCSPResponseDocumentLoader().load_der_document(response, "response")
    return [
        f"{described.finding.severity.name} {described.finding.code} {described.message or ''}".strip()
        for result in _linter().validate(document.root)
        for described in result.finding_descriptions
        if described.finding.severity <= ValidationFindingSeverity.WARNING
    ]


@cache
def _linter():
    return ocsp.create_pkix_ocsp_response_validator_container(
        [
            ocsp.create_response_decoder(),
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [],
    )
