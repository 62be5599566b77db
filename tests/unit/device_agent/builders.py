"""Certificates, keys and commands as a service would make them, with software keys."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
SERVICE = "fleet.example"
DEVICE = "d-0123456789abcdef"


def spki(key):
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def der(certificate):
    return certificate.public_bytes(Encoding.DER)


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def _usage(*, sign=False, ca=False):
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def certificate(subject, key, issuer, issuer_key, extensions, *, start=None, end=None):
    bare = isinstance(key, ec.EllipticCurvePublicKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.subject)
        .public_key(key if bare else key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start or NOW - timedelta(hours=1))
        .not_valid_after(end or NOW + timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key if bare else key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(
            extension, critical=isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        )
    return builder.sign(issuer_key, SHA256())


class Authority:
    """A root and an issuing CA."""

    def __init__(self, path_length=0, name="CA"):
        self.root_key, self.issuing_key = new_key(), new_key()
        ca = x509.BasicConstraints(ca=True, path_length=None)
        self.root = certificate(f"{name} root", self.root_key, None, self.root_key, [ca, _usage(ca=True)])
        below = x509.BasicConstraints(ca=True, path_length=path_length)
        self.issuing = certificate(
            f"{name} issuing", self.issuing_key, self.root, self.root_key, [below, _usage(ca=True)]
        )

    @property
    def chain(self):
        return (der(self.issuing), der(self.root))

    def ldevid(
        self,
        key,
        *,
        device=DEVICE,
        service=SERVICE,
        san=None,
        eku=None,
        ca=False,
        sign=True,
        without=(),
        hosts=(),
        **dates,
    ):
        names = [*map(x509.DNSName, hosts)]
        names.append(x509.UniformResourceIdentifier(san or f"spiffe://{service}/device/{device}"))
        extensions = [
            x509.BasicConstraints(ca=ca, path_length=None),
            _usage(sign=sign, ca=ca),
            x509.ExtendedKeyUsage(eku or [ExtendedKeyUsageOID.CLIENT_AUTH]),
            x509.SubjectAlternativeName(names),
        ]
        kept = [one for one in extensions if not isinstance(one, tuple(without))]
        return certificate(device, key, self.issuing, self.issuing_key, kept, **dates)

    def server(self, key, names=(SERVICE,), **dates):
        extensions = [
            x509.BasicConstraints(ca=False, path_length=None),
            _usage(sign=True),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]),
        ]
        return certificate("service", key, self.issuing, self.issuing_key, extensions, **dates)
