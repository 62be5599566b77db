"""How long it takes to write an LDevID's to-be-signed bytes, and to check them before signing.

`limit` is what cryptography's builder needs for the same certificate without its signature, in the same run.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from statistics import median

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.issuance.check import check_tbs
from provisioning.issuance.extensions import key_id_of
from provisioning.issuance.profile import Issuer, Ldevid, build, device_uri
from provisioning.issuance.tbs import serial_of

ROUNDS = 9
TIMES = 500
NOW = datetime(2026, 11, 21, tzinfo=UTC)
LIFE = {"not_before": NOW, "not_after": NOW + timedelta(days=30), "serial": serial_of(bytes(range(16)))}


def figures() -> Iterator[dict[str, str | float]]:
    """One figure a dictionary: name, value, unit, limit, ratio."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench issuing CA")])
    urls = (
        "http://muster.example/crl/issuing.crl",
        "http://muster.example/ca/issuing.crt",
        "http://muster.example/ocsp",
    )
    issuer = Issuer(name.public_bytes(), bytes(20), NOW + timedelta(days=3650), *urls)
    wanted = Ldevid("device-0001", "serial-0001", "muster.example", public)
    tbs = build(wanted, issuer, **LIFE)
    algorithm = ec.ECDSA(hashes.SHA256())
    signing, builder, written, checked = _microseconds(
        lambda: key.sign(tbs.der, algorithm),
        lambda: _by_builder(key, name, public),
        lambda: build(wanted, issuer, **LIFE),
        lambda: check_tbs(tbs, wanted, issuer),
    )
    for label, value in (("ldevid_build", written), ("ldevid_check", checked)):
        limit = builder - signing
        yield {
            "name": label,
            "value": round(value, 1),
            "unit": "µs",
            "limit": round(limit, 1),
            "ratio": round(value / limit, 2),
        }


def _by_builder(key: ec.EllipticCurvePrivateKey, issuer: x509.Name, public: bytes) -> x509.Certificate:
    off = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    off |= dict.fromkeys(("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "device-0001"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "serial-0001"),
        ]
    )
    uri = x509.UniformResourceIdentifier(device_uri("muster.example", "device-0001"))
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), LIFE["serial"])
        .not_valid_before(LIFE["not_before"])
        .not_valid_after(LIFE["not_after"])
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **off), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(key_id_of(public)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(bytes(20), None, None), critical=False)
        .sign(key, hashes.SHA256())
    )


def _microseconds(*works: Callable[[], object]) -> list[float]:
    """The median of each, in turn, so that a noisy machine slows all of them alike."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for times, work in zip(taken, works, strict=True):
            start = time.perf_counter()
            for _ in range(TIMES):
                work()
            times.append((time.perf_counter() - start) / TIMES * 1e6)
    return [median(times) for times in taken]
