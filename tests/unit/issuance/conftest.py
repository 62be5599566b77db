from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.issuance.profile import Issuer, IssuingCa, RootCa, issuer_of
from provisioning.issuance.tbs import serial_of
from tests.support.certificates import issue, spki

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Hierarchy:
    """Root and issuing CA with software keys, made by the production profiles."""

    root_key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    issuing_key: ec.EllipticCurvePrivateKey
    issuing: x509.Certificate
    issuer: Issuer


@pytest.fixture(scope="session")
def hierarchy() -> Hierarchy:
    root_key = ec.generate_private_key(ec.SECP256R1())
    issuing_key = ec.generate_private_key(ec.SECP256R1())
    life = {"not_before": NOW - timedelta(days=1), "not_after": NOW + timedelta(days=7300)}
    root = issue(RootCa("Example root CA", spki(root_key)), None, root_key, serial=serial_of(bytes(16)), **life)
    wanted = IssuingCa("Example issuing CA", spki(issuing_key))
    root_issuer = issuer_of(root.public_bytes(Encoding.DER))
    issuing = issue(wanted, root_issuer, root_key, serial=serial_of(bytes(range(16))), **life)
    return Hierarchy(root_key, root, issuing_key, issuing, issuer_of(issuing.public_bytes(Encoding.DER)))
