"""Certificates as facts: one helper per profile that checks every extension, and the linter over all of them."""

import hashlib
import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from provisioning.app.lint import lint_certificate
from provisioning.issuance.algorithms import algorithm_of, verify
from provisioning.issuance.profile import Issuer, Wanted, build
from provisioning.issuance.tbs import assemble

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign(key: Key, message: bytes) -> bytes:
    """As the service's keys sign: the key decides how."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    return key.sign(message, ec.ECDSA(hashes.SHA384() if key.key_size == 384 else hashes.SHA256()))


def issue(
    wanted: Wanted, issuer: Issuer | None, key: Key, *, serial: int, not_before: datetime, not_after: datetime
) -> x509.Certificate:
    """A certificate by the production builder, signed by a software key, and linted."""
    tbs = build(wanted, issuer, serial=serial, not_before=not_before, not_after=not_after)
    made = assemble(tbs.der, sign(key, tbs.der))
    assert lint_certificate(made) == []
    return x509.load_der_x509_certificate(made)


def assert_is_ldevid(
    cert: x509.Certificate, *, device_id: str, serial_number: str, service_name: str, issuer: x509.Certificate
) -> None:
    _assert_is_device(cert, device_id, serial_number)
    uri = f"spiffe://{service_name}/device/{device_id}"
    _assert_is_leaf(cert, issuer, [ExtendedKeyUsageOID.CLIENT_AUTH], [], uri)


def assert_is_idevid(
    cert: x509.Certificate, *, device_id: str, serial_number: str, service_name: str, issuer: x509.Certificate
) -> None:
    """Of no purpose but enrollment: no extended key usage, and no name of the device in service."""
    _assert_is_device(cert, f"idevid:{device_id}", serial_number)
    _assert_is_leaf(cert, issuer, None, [], f"spiffe://{service_name}/idevid/{device_id}")


def assert_is_quarantine(
    cert: x509.Certificate, *, device_id: str, serial_number: str, service_name: str, issuer: x509.Certificate
) -> None:
    _assert_is_device(cert, device_id, serial_number)
    uri = f"spiffe://{service_name}/quarantine/{device_id}"
    _assert_is_leaf(cert, issuer, [ExtendedKeyUsageOID.CLIENT_AUTH], [], uri)


def assert_is_gateway(
    cert: x509.Certificate,
    *,
    device_id: str,
    serial_number: str,
    service_name: str,
    hosts: tuple[str, ...],
    issuer: x509.Certificate,
) -> None:
    _assert_is_device(cert, device_id, serial_number)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    names = [x509.DNSName(host) for host in hosts]
    _assert_is_leaf(cert, issuer, purposes, names, f"spiffe://{service_name}/device/{device_id}")


def assert_is_station(cert: x509.Certificate, *, station: str, service_name: str, issuer: x509.Certificate) -> None:
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, f"station:{station}")]
    uri = f"spiffe://{service_name}/station/{station}"
    _assert_is_leaf(cert, issuer, [ExtendedKeyUsageOID.CLIENT_AUTH], [], uri)


def assert_is_operator(cert: x509.Certificate, *, operator: str, service_name: str, issuer: x509.Certificate) -> None:
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, f"operator:{operator}")]
    uri = f"spiffe://{service_name}/operator/{operator}"
    _assert_is_leaf(cert, issuer, [ExtendedKeyUsageOID.CLIENT_AUTH], [], uri)


def assert_is_service_tls(
    cert: x509.Certificate, *, service_name: str, hosts: tuple[str, ...], issuer: x509.Certificate
) -> None:
    """`hosts`: what stands behind the service's name, localhost and 127.0.0.1."""
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, service_name)]
    names: list[x509.GeneralName] = [x509.DNSName(service_name), x509.DNSName("localhost"), _address("127.0.0.1")]
    names += [_address(host) if host[0].isdigit() or ":" in host else x509.DNSName(host) for host in hosts]
    _assert_is_leaf(cert, issuer, [ExtendedKeyUsageOID.SERVER_AUTH], names, f"spiffe://{service_name}/service")


def assert_is_ocsp_responder(
    cert: x509.Certificate, *, authority: str, service_name: str, issuer: x509.Certificate
) -> None:
    """Issued by the very CA for which it answers, short, and never asked about itself (RFC 6960 section 4.2.2.2)."""
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, f"ocsp:{authority}")]
    uri = f"spiffe://{service_name}/ocsp/{authority}"
    _assert_is_leaf(cert, issuer, [ExtendedKeyUsageOID.OCSP_SIGNING], [], uri, {ExtensionOID.OCSP_NO_CHECK})
    no_check = cert.extensions.get_extension_for_class(x509.OCSPNoCheck)
    assert not no_check.critical
    assert no_check.value.public_bytes() == b"\x05\x00"
    assert cert.not_valid_after_utc - cert.not_valid_before_utc <= timedelta(days=92)


def assert_is_root_ca(cert: x509.Certificate, *, common_name: str) -> None:
    _assert_is_ca(cert, cert, common_name, None)
    assert _present(cert) == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }


def assert_is_issuing_ca(
    cert: x509.Certificate,
    *,
    common_name: str,
    issuer: x509.Certificate,
    service_name: str = "",
    permitted: x509.NameConstraints | None = None,
) -> None:
    _assert_is_ca(cert, issuer, common_name, 0)
    expected = {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    if service_name:
        expected.add(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        alternative = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert list(alternative.value) == [x509.UniformResourceIdentifier(f"spiffe://{service_name}")]
    if permitted is not None:
        expected.add(ExtensionOID.NAME_CONSTRAINTS)
        constraints = cert.extensions.get_extension_for_class(x509.NameConstraints)
        assert constraints.critical
        assert constraints.value == permitted
    assert _present(cert) == expected | _assert_points_at_issuer(cert, issuer)


def _assert_is_ca(cert: x509.Certificate, issuer: x509.Certificate, common_name: str, path_length: int | None) -> None:
    assert [(a.oid, a.value) for a in cert.subject] == [(NameOID.COMMON_NAME, common_name)]
    constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, path_length)
    _assert_usage(cert, {"key_cert_sign", "crl_sign"})
    _assert_common(cert, issuer)


def _assert_is_device(cert: x509.Certificate, common_name: str, serial_number: str) -> None:
    attributes = [(a.oid, a.value) for a in cert.subject]
    assert attributes == [(NameOID.COMMON_NAME, common_name), (NameOID.SERIAL_NUMBER, serial_number)]


def _assert_is_leaf(
    cert: x509.Certificate,
    issuer: x509.Certificate,
    purposes: list[x509.ObjectIdentifier] | None,
    names: list[x509.GeneralName],
    uri: str,
    more: frozenset[x509.ObjectIdentifier] | set[x509.ObjectIdentifier] = frozenset(),
) -> None:
    constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca is False
    expected = {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    if purposes is not None:
        expected.add(ExtensionOID.EXTENDED_KEY_USAGE)
        usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        assert list(usage.value) == purposes
        assert not usage.critical
    _assert_usage(cert, {"digital_signature"})
    alternative = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(alternative.value) == [*names, x509.UniformResourceIdentifier(uri)]
    assert not alternative.critical
    _assert_common(cert, issuer)
    assert _present(cert) == expected | more | _assert_points_at_issuer(cert, issuer)


def _assert_points_at_issuer(cert: x509.Certificate, issuer: x509.Certificate) -> set[x509.ObjectIdentifier]:
    """Where its CRL, its issuer's certificate and its answers are; what of it there is."""
    _assert_names_issuer(cert, issuer)
    found = set()
    for extension in cert.extensions:
        if isinstance(extension.value, x509.CRLDistributionPoints):
            (point,) = extension.value
            (name,) = point.full_name
            assert name.value.startswith("http://")
            assert name.value.endswith(".crl")
            assert (point.reasons, point.crl_issuer, point.relative_name) == (None, None, None)
        elif isinstance(extension.value, x509.AuthorityInformationAccess):
            method = x509.AuthorityInformationAccessOID
            is_responder = ExtensionOID.OCSP_NO_CHECK in _present(cert)
            wanted = [method.CA_ISSUERS] if is_responder else [method.OCSP, method.CA_ISSUERS]
            assert [each.access_method for each in extension.value] == wanted
            assert all(each.access_location.value.startswith("http://") for each in extension.value)
            assert extension.value[-1].access_location.value.endswith(".crt")
        else:
            continue
        assert not extension.critical
        found.add(extension.oid)
    assert not found or len(found) == 2
    return found


def _assert_usage(cert: x509.Certificate, named: set[str]) -> None:
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    bits = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    assert {bit for bit in (*bits, "key_cert_sign", "crl_sign") if getattr(usage.value, bit)} == named


def _assert_common(cert: x509.Certificate, issuer: x509.Certificate) -> None:
    """Version, serial, algorithm, key, own key id, dates; and the signature is by the issuer."""
    assert cert.version is x509.Version.v3
    assert 2**64 <= cert.serial_number < 2**159
    verify(issuer.public_key(), cert.tbs_certificate_bytes, cert.signature)
    assert cert.signature_algorithm_oid.dotted_string == algorithm_of(issuer.public_key()).oid
    cert.verify_directly_issued_by(issuer)
    public_key = cert.public_key()
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        content = public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    elif isinstance(public_key, rsa.RSAPublicKey):
        content = public_key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    else:
        content = public_key.public_bytes_raw()
    own = cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert own.value.digest == hashlib.sha256(content).digest()[:20]  # RFC 7093 section 2, method 1
    assert not own.critical
    assert issuer.not_valid_before_utc <= cert.not_valid_before_utc < cert.not_valid_after_utc
    endless = cert.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert cert.not_valid_after_utc <= issuer.not_valid_after_utc or endless


def _assert_names_issuer(cert: x509.Certificate, issuer: x509.Certificate) -> None:
    authority = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    signer = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert authority.value == x509.AuthorityKeyIdentifier(signer, None, None)
    assert not authority.critical


def _present(cert: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return {found.oid for found in cert.extensions}


def _address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))
