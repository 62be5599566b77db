"""Devices and stations with software keys and real certificates of an installation: for TLS, MQTT and routes."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from provisioning import factory
from provisioning.db import devices, enrollments, revocations
from provisioning.issuance.profile import Ldevid
from provisioning.issuing import Order, issue
from provisioning.service import Service
from tests.support.service import NAME, csr


@dataclass(frozen=True)
class Member:
    """A key and its certificate chain, as files."""

    name: str
    serial: str
    key: ec.EllipticCurvePrivateKey
    certificate_file: Path
    key_file: Path

    def context(self, root: Path) -> ssl.SSLContext:
        """A client's TLS context with this identity."""
        context = ssl.create_default_context(cafile=root)
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context


def anonymous(root: Path) -> ssl.SSLContext:
    """A client's TLS context without an identity."""
    return ssl.create_default_context(cafile=root)


def _pem(der: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(der)


def member(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, issued, service: Service) -> Member:
    plain = name.replace(":", "-")
    certificate_file, key_file = folder / f"{plain}-{issued.serial}.pem", folder / f"{plain}-{issued.serial}.key"
    certificate_file.write_text(_pem(issued.der) + _pem(service.authorities.active.der))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Member(name, issued.serial, key, certificate_file, key_file)


async def device(service: Service, folder: Path, name: str) -> Member:
    """An active device with an LDevID over a software key. Called again, it gets one more certificate."""
    row = {
        "id": name,
        "serial": f"sn-{name}",
        "model": "gateway",
        "ek_id": f"{abs(hash(name)):064x}",
        "ek_certificate": b"no TPM",
        "station": "line-1",
        "state": "active",
        "registered_at": 0,
    }
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def add(tx) -> None:
        if devices.by_id(tx, name) is None:
            devices.add(tx, [row])

    await service.ledger.write(add)
    order = Order(Ldevid(name, f"sn-{name}", NAME, spki), name, 30, name)
    return member(folder, name, key, await issue(service, order, lambda _tx, _issued: None), service)


async def station(service: Service, folder: Path, name: str, budget: int = 100) -> Member:
    """A factory station with its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = await factory.add_station(service, name, budget, csr(key), by="test")
    return member(folder, f"station:{name}", key, issued, service)


async def set_state(service: Service, member: Member, state: str) -> None:
    """Put a certificate into a state, as its life would."""
    at = int(service.clock().timestamp())
    if state == "revoked":
        await service.ledger.write(lambda tx: revocations.revoke(tx, member.serial, at=at, reason="unspecified"))
    else:
        await service.ledger.write(lambda tx: enrollments.supersede(tx, member.name, but="", revoke_at=at + 3600))
