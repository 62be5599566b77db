"""A TPM manufacturer in a test: certificates right in every field, of which a test changes one."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
YEAR = timedelta(days=365)
MANUFACTURER, MODEL, VERSION = (ObjectIdentifier(f"2.23.133.2.{n}") for n in (1, 2, 3))
EK_PURPOSE = ObjectIdentifier("2.23.133.8.1")
TPM = {MANUFACTURER: "id:494E5443", MODEL: "PTT", VERSION: "id:00020000"}


@cache
def rsa_key(bits=2048):
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(curve=ec.SECP256R1, number=0):  # number: another key of the same curve
    return ec.generate_private_key(curve())


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def key_usage(**set_to):
    fields = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{field: set_to.get(field, False) for field in fields})


def tpm_name(attributes):
    """The SAN of an EK certificate: one directory name of three attributes."""
    names = [x509.RelativeDistinguishedName([x509.NameAttribute(oid, value)]) for oid, value in attributes.items()]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(names))])


def pem(*ders):
    return "\n".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode() for der in ders)


@dataclass
class Authority:
    """A certificate authority: its key, its certificate (DER), its name."""

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    der: bytes
    title: str

    def issue(self, title, key, extensions, *, begin=NOW - YEAR, end=NOW + YEAR, algorithm=None, issuer=None):
        """Any certificate: `extensions` are pairs of value and critical."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(title))
            .issuer_name(name(issuer or self.title))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        return builder.sign(self.key, algorithm or hashes.SHA256()).public_bytes(Encoding.DER)

    def intermediate(self, title, *, key=None, path_length=0, ca=True, usage=None, **given):
        key = key or ec_key(number=title)
        constraints = x509.BasicConstraints(ca=ca, path_length=path_length if ca else None)
        usage = key_usage(key_cert_sign=True) if usage is None else usage
        extensions = [(constraints, True), (usage, True), *given.pop("more", [])]
        return Authority(key, self.issue(title, key, extensions, **given), title)

    def ek(self, key=None, *, replace=None, more=(), **given):
        """An EK certificate. `replace` exchanges an extension by its class, or takes it out with None."""
        key = key or rsa_key()
        usage = "key_encipherment" if isinstance(key, rsa.RSAPrivateKey) else "key_agreement"
        values = {
            x509.BasicConstraints: x509.BasicConstraints(ca=False, path_length=None),
            x509.KeyUsage: key_usage(**{usage: True}),
            x509.ExtendedKeyUsage: x509.ExtendedKeyUsage([EK_PURPOSE]),
            x509.SubjectAlternativeName: tpm_name(TPM),
            **(replace or {}),
        }
        critical = (x509.BasicConstraints, x509.KeyUsage, x509.SubjectAlternativeName)
        extensions = [(value, kind in critical) for kind, value in values.items() if value is not None]
        return self.issue("EK", key, [*extensions, *more], **given)


def root(title="Root", key=None, **given):
    key = key or ec_key(number=title)
    return Authority(key, b"", title).intermediate(title, key=key, path_length=given.pop("path_length", 2), **given)


def resigned(der, tbs, key):
    """The certificate with other to-be-signed bytes, truly signed: for encodings that no builder writes."""
    old = x509.load_der_x509_certificate(der)
    signature = key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    assert old.signature_algorithm_oid.dotted_string == "1.2.840.10045.4.3.2"
    return element(0x30, tbs + algorithm + element(0x03, b"\0" + signature))


def element(tag, content):
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = (len(content).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(content).to_bytes(size, "big") + content
