"""Light devices by the thousand: their EKs, a manufacturer that certifies them, the CSV that a station registers.

An RSA key takes a TPM seconds and OpenSSL 70 ms; a fleet is therefore made of a few dozen primes, each pair of which
is one EK. Whoever knows two such EKs can compute both private keys: these devices are for load, and guard nothing.
"""

import base64
import csv
import json
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations, islice
from pathlib import Path
from time import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from lab.firmware import make_image
from lab.light import LightBoot, LightDevice, make_ak
from ota.firmware import event_log, measure

EXPONENT = 65537
MANUFACTURER = "id:4D535452"  # "MSTR": registered by nobody
SELECTED_PCRS = (0, 2, 4, 7, 8, 9)
FLEET_MOST = 3000
REGISTRATION_MOST = 1000
_EK_PURPOSE = x509.ObjectIdentifier("2.23.133.8.1")
_TPM_ATTRIBUTES = (
    ("2.23.133.2.1", MANUFACTURER),
    ("2.23.133.2.2", "light (simulator)"),
    ("2.23.133.2.3", "id:00010000"),
)
_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class FleetFiles:
    """What a fleet's folder holds. `registrations` are the CSV files, at most 1,000 rows each."""

    directory: Path

    @property
    def keys(self) -> Path:
        """One JSON object a device: serial, EK and AK (PKCS#8), EK certificate. Mode 0600."""
        return self.directory / "fleet.jsonl"

    @property
    def ek_root(self) -> Path:
        """The manufacturer's certificate, PEM."""
        return self.directory / "ek-root.pem"

    @property
    def policy(self) -> Path:
        """The policy of the fleet's model."""
        return self.directory / "policy.toml"

    @property
    def registrations(self) -> list[Path]:
        """In the order to register them."""
        return sorted(self.directory.glob("devices-*.csv"))


def make_fleet(directory: Path, count: int, *, model: str = "light", prefix: str = "light") -> FleetFiles:
    """Make `count` devices (at most 3,000) in a new or empty folder, and write what registering them takes.

    Raises: ValueError, OSError.
    """
    if not 1 <= count <= FLEET_MOST:
        raise ValueError(f"a fleet has 1 to {FLEET_MOST} devices, not {count}")
    files = FleetFiles(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    root = _ek_root(ca_key)
    rows = []
    with os.fdopen(os.open(files.keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as keys:
        for number, ek in enumerate(islice(_eks(count), count)):
            serial = f"{prefix}-{number:05d}"
            certificate = _base64(_ek_certificate(ek, ca_key, root))
            ak = ec.generate_private_key(ec.SECP256R1())
            entry = {"serial": serial, "ek": _private(ek), "ak": _private(ak), "certificate": certificate}
            keys.write(json.dumps(entry) + "\n")
            rows.append((serial, model, certificate))
    for first in range(0, count, REGISTRATION_MOST):
        with (directory / f"devices-{first:05d}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("serial", "model", "ek_certificate"))
            writer.writerows(rows[first : first + REGISTRATION_MOST])
    files.ek_root.write_bytes(root.public_bytes(Encoding.PEM))
    files.policy.write_text(policy_text(model, root), encoding="utf-8")
    return files


def load_fleet(directory: Path, first: int = 0, count: int = FLEET_MOST) -> list[LightDevice]:
    """Devices of a folder, in its order, each with its AK. Their clocks go on from run to run, as a TPM's would.

    Raises: OSError, ValueError.
    """
    boot, clock_ms = light_boot(), int(time() * 1000)
    devices = []
    for line in FleetFiles(directory).keys.read_text(encoding="ascii").splitlines()[first : first + count]:
        entry = json.loads(line)
        ek, ak = (
            load_der_private_key(base64.b64decode(entry[name]), None, unsafe_skip_rsa_key_validation=True)
            for name in ("ek", "ak")
        )
        if not isinstance(ek, rsa.RSAPrivateKey) or not isinstance(ak, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{entry['serial']} has keys of another kind")  # noqa: TRY004  a bad file
        certificate = base64.b64decode(entry["certificate"])
        devices.append(LightDevice(entry["serial"], ek, certificate, boot, make_ak(ak), clock_ms))
    return devices


def light_boot() -> LightBoot:
    """What every light device booted: the lab's firmware, release 1."""
    image = make_image()
    return LightBoot(measure(image).pcrs, event_log(image))


def policy_text(model: str, ek_root: x509.Certificate, manufacturer: str = MANUFACTURER) -> str:
    """A policy for software TPMs that booted `light_boot`, with a boot log asked for."""
    values = light_boot().pcrs
    pcrs = "\n".join(f'"{pcr}" = ["{values[pcr].hex()}"]' for pcr in SELECTED_PCRS)
    pem = ek_root.public_bytes(Encoding.PEM).decode()
    return (
        f'model = "{model}"\nsoftware_tpm = true\nbanks = ["sha256"]\nboot_log = "required"\n'
        f"enrollments_per_day = 1000\n\n"
        f'[[ek_roots]]\ncertificate = """\n{pem}"""\nmanufacturers = ["{manufacturer}"]\n\n[pcrs.sha256]\n{pcrs}\n'
    )


def _eks(count: int) -> Iterator[rsa.RSAPrivateKey]:
    """Distinct RSA-2048 keys out of the fewest primes that have so many pairs."""
    needed = 2
    while math.comb(needed, 2) < count:
        needed += 1
    primes: list[int] = []
    while len(primes) < needed:
        numbers = rsa.generate_private_key(EXPONENT, 2048).private_numbers()
        primes += [numbers.p, numbers.q]
    for p, q in combinations(primes, 2):
        d = pow(EXPONENT, -1, math.lcm(p - 1, q - 1))
        public = rsa.RSAPublicNumbers(EXPONENT, p * q)
        # p, q and e come from OpenSSL's own keys: its primality tests (70 ms) would find nothing new.
        yield rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key(
            unsafe_skip_rsa_key_validation=True
        )


def _ek_root(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Muster Light EK Root CA")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), secrets.randbits(127) + 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _ek_certificate(ek: rsa.RSAPrivateKey, ca_key: ec.EllipticCurvePrivateKey, root: x509.Certificate) -> bytes:
    """An EK certificate by the TCG EK Credential Profile (3.2): empty subject, who made what in the SAN."""
    maker = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in _TPM_ATTRIBUTES])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        x509.CertificateBuilder(root.subject, x509.Name([]), ek.public_key(), secrets.randbits(127) + 1)
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("key_encipherment"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_EK_PURPOSE]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(maker)]), critical=True)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


def _usage(only: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name == only for name in _KEY_USAGES})


def _private(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return _base64(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
