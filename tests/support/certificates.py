"""Certificates as facts: one helper per profile that checks every extension, and the linter over all of them."""

import ipaddress
from datetime import datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from pkilint import loader, pkix
from pkilint.pkix import certificate as pkix_certificate
from pkilint.pkix import crl as pkix_crl
from pkilint.pkix import extension, name
from pkilint.validation import ValidationFindingSeverity

from provisioning.issuance.profile import Issuer, Wanted, build
from provisioning.issuance.tbs import assemble

KNOWN_FINDINGS = (
    # pkilint takes no `spiffe:` URI: it wants a host of the web in it.
    ("pkix.invalid_uri_syntax", "spiffe://"),
    # pkilint wants a dot in a DNS name; RFC 1034 section 3.5, to which RFC 5280 refers, takes a single label.
    ("pkix.invalid_domain_name_syntax", '"localhost"'),
)
"""Code, and what the message must hold."""


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def issue(
    wanted: Wanted,
    issuer: Issuer | None,
    key: ec.EllipticCurvePrivateKey,
    *,
    serial: int,
    not_before: datetime,
    not_after: datetime,
) -> x509.Certificate:
    """A certificate by the production builder, signed by a software key."""
    tbs = build(wanted, issuer, serial=serial, not_before=not_before, not_after=not_after)
    return x509.load_der_x509_certificate(assemble(tbs.der, key.sign(tbs.der, ec.ECDSA(hashes.SHA256()))))


def assert_is_ldevid(
    cert: x509.Certificate, *, device_id: str, serial_number: str, service_name: str, issuer: x509.Certificate
) -> None:
    attributes = [(a.oid, a.value) for a in cert.subject]
    assert attributes == [(NameOID.COMMON_NAME, device_id), (NameOID.SERIAL_NUMBER, serial_number)]
    uri = x509.UniformResourceIdentifier(f"spiffe://{service_name}/device/{device_id}")
    _assert_is_leaf(cert, issuer, ExtendedKeyUsageOID.CLIENT_AUTH, [uri])


def assert_is_station(cert: x509.Certificate, *, station: str, issuer: x509.Certificate) -> None:
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, f"station:{station}")]
    _assert_is_leaf(cert, issuer, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def assert_is_service_tls(
    cert: x509.Certificate, *, service_name: str, hosts: tuple[str, ...], issuer: x509.Certificate
) -> None:
    """`hosts`: what stands behind the service's name, localhost and 127.0.0.1."""
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, service_name)]
    names: list[x509.GeneralName] = [x509.DNSName(service_name), x509.DNSName("localhost"), _address("127.0.0.1")]
    names += [_address(host) if host[0].isdigit() or ":" in host else x509.DNSName(host) for host in hosts]
    _assert_is_leaf(cert, issuer, ExtendedKeyUsageOID.SERVER_AUTH, names)


def assert_is_root_ca(cert: x509.Certificate, *, common_name: str) -> None:
    _assert_is_ca(cert, cert, common_name, None)
    assert _present(cert) == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }


def assert_is_issuing_ca(cert: x509.Certificate, *, common_name: str, issuer: x509.Certificate) -> None:
    _assert_is_ca(cert, issuer, common_name, 0)
    _assert_names_issuer(cert, issuer)
    assert _present(cert) - {ExtensionOID.CRL_DISTRIBUTION_POINTS} == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }


def _assert_is_ca(cert: x509.Certificate, issuer: x509.Certificate, common_name: str, path_length: int | None) -> None:
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, common_name)]
    constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, path_length)
    _assert_usage(cert, {"key_cert_sign", "crl_sign"})
    _assert_common(cert, issuer)


def _assert_is_leaf(
    cert: x509.Certificate,
    issuer: x509.Certificate,
    purpose: x509.ObjectIdentifier,
    names: list[x509.GeneralName] | None,
) -> None:
    constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca is False
    usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert list(usage.value) == [purpose]
    assert not usage.critical
    _assert_usage(cert, {"digital_signature"})
    _assert_common(cert, issuer)
    _assert_names_issuer(cert, issuer)
    expected = {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    if names is not None:
        expected.add(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        alternative = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert list(alternative.value) == names
        assert not alternative.critical
    assert _present(cert) - {ExtensionOID.CRL_DISTRIBUTION_POINTS} == expected


def _assert_usage(cert: x509.Certificate, named: set[str]) -> None:
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    bits = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    assert {bit for bit in (*bits, "key_cert_sign", "crl_sign") if getattr(usage.value, bit)} == named


def _assert_common(cert: x509.Certificate, issuer: x509.Certificate) -> None:
    """Version, serial, algorithm, key, own key id, dates; and the signature is by the issuer."""
    assert cert.version is x509.Version.v3
    assert 2**64 <= cert.serial_number < 2**159
    assert cert.signature_algorithm_oid == x509.SignatureAlgorithmOID.ECDSA_WITH_SHA256
    cert.verify_directly_issued_by(issuer)
    public_key = cert.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert isinstance(public_key.curve, ec.SECP256R1)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    own = cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert own.value.digest == digest.finalize()[:20]
    assert not own.critical
    assert issuer.not_valid_before_utc <= cert.not_valid_before_utc < cert.not_valid_after_utc
    assert cert.not_valid_after_utc <= issuer.not_valid_after_utc


def _assert_names_issuer(cert: x509.Certificate, issuer: x509.Certificate) -> None:
    authority = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    signer = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert authority.value == x509.AuthorityKeyIdentifier(signer, None, None)
    assert not authority.critical


def _present(cert: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return {found.oid for found in cert.extensions}


def _address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


# --- pkilint ------------------------------------------------------------------------------------------------------


def lint_certificate(der: bytes) -> list[str]:
    """What pkilint finds wrong with a certificate (DER), of warning or worse, but for the findings known above."""
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(der, "certificate")
    return _findings(_certificate_linter().validate(document.root))


def lint_crl(der: bytes) -> list[str]:
    """The same for a CRL."""
    document = loader.RFC5280CertificateListDocumentLoader().load_der_document(der, "crl")
    return _findings(_crl_linter().validate(document.root))


def _findings(results) -> list[str]:
    return [
        f"{description.finding.severity.name} {description.finding.code} {description.message or ''}".strip()
        for result in results
        for description in result.finding_descriptions
        if description.finding.severity <= ValidationFindingSeverity.WARNING
        and not any(
            description.finding.code == code and holds in (description.message or "") for code, holds in KNOWN_FINDINGS
        )
    ]


@cache
def _certificate_linter():
    return pkix_certificate.create_pkix_certificate_validator_container(
        pkix_certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            pkix_certificate.create_issuer_validator_container([]),
            pkix_certificate.create_validity_validator_container(),
            pkix_certificate.create_subject_validator_container([]),
            pkix_certificate.create_extensions_validator_container([]),
            pkix_certificate.create_spki_validator_container([]),
        ],
    )


@cache
def _crl_linter():
    return pkix_crl.create_pkix_crl_validator_container(
        [
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [
            pkix_crl.create_issuer_validator_container([]),
            pkix_crl.create_validity_validator_container([]),
            pkix_crl.create_extensions_validator_container([]),
        ],
    )
