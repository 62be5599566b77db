"""What the service shows to others: its TLS key and certificate, renewed before they end and when the CA changes.

Two files that belong together cannot be replaced at once: the key is replaced first, and the one before it stays beside
until the certificate is there (`settle`), so that a crash in between leaves a pair that fits.
"""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from sqlalchemy import Connection

from ota.files import read_at_most, remove_file, replace_file
from provisioning.authorities import ROOT, State
from provisioning.db import enrollments
from provisioning.issuance.profile import ServiceTls
from provisioning.issuing import IssuedCertificate, Order, issue
from provisioning.service import Service

PEM_MOST = 256 * 1024
LEFT_DIVISOR = 3
"""It is renewed when less than this part of its lifetime is left."""
KEY, CERTIFICATE, BEFORE = "service.key", "service.pem", "service.key.before"
GRACE = timedelta(hours=1)
"""How long the certificate before stays good: workers take the new one within seconds."""

_log = structlog.get_logger()


async def renew_service_certificate(service: Service) -> None:
    """A new TLS key and certificate for the listeners and the broker, by the active CA; the pair before is superseded.

    Raises: SigningUnavailable, StorageUnavailable, OSError.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    listen, now = service.config.listen, service.clock()
    hosts = tuple(host for host in (listen.advertised_host, listen.host) if host not in ("0.0.0.0", "::"))  # noqa: S104  it is left out here
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    wanted = ServiceTls(service.config.service_name, hosts, spki)
    order = Order(wanted, service.config.service_name)

    def supersede(tx: Connection, certificate: IssuedCertificate) -> None:
        end = int((now + GRACE).timestamp())
        enrollments.supersede_profile(tx, "service-tls", but=certificate.serial, revoke_at=end)

    issued = await issue(service, order, supersede)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    await asyncio.to_thread(_replace, service.directory.tls, text, chain_pem(service, issued.issuer, issued.der))


def chain_pem(service: Service, issuer: str, leaf: bytes) -> bytes:
    """What is shown in a handshake: the certificate, what stands between it and its root, and cross-certificates.

    A peer that trusts only the root before finds its way by those of the new one.
    """
    authority = service.authorities.named(issuer)
    above = list(authority.chain[:-1])
    roots = service.authorities.of_kind(ROOT)
    still = {one.certificate.subject for one in roots if one.state is not State.RETIRED}
    for root in roots:
        if root.der == authority.chain[-1]:
            above += [der for der in root.others if x509.load_der_x509_certificate(der).issuer in still]
    return b"".join(map(_pem, (leaf, *above)))


async def look_after(service: Service) -> bool:
    """Renew the certificate where it is time, or where another CA signs now; was anything replaced?

    Where only the way to the root is another one (a new root, the same issuing CA), the chain alone is replaced.
    Raises: as `renew_service_certificate`.
    """
    folder, active = service.directory.tls, service.authorities.active
    data = await asyncio.to_thread(read_at_most, folder / CERTIFICATE, PEM_MOST)
    shown = None if data is None else _parsed(data)
    if data is None or shown is None or not is_current(shown, active.issuer.name, service.clock()):
        await renew_service_certificate(service)
        _log.info("tls.renewed", authority=active.name)
        return True
    wanted = chain_pem(service, active.name, shown.public_bytes(Encoding.DER))
    if wanted == data:
        return False
    await asyncio.to_thread(replace_file, folder / CERTIFICATE, wanted)
    _log.info("tls.chained_anew", authority=active.name)
    return True


def is_current(certificate: x509.Certificate, issuer: bytes, now: datetime) -> bool:
    """Is it by that CA (its name, DER), and not near its end?"""
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    left = certificate.not_valid_after_utc - now
    return certificate.issuer.public_bytes() == issuer and left > lifetime / LEFT_DIVISOR


def settle(folder: Path) -> bool:
    """Bring the key before back where a crash came between key and certificate. Was it so?"""
    certificate, key, before = (read_at_most(folder / name, PEM_MOST) for name in (CERTIFICATE, KEY, BEFORE))
    if before is None:
        return False
    if certificate is not None and not _fit(certificate, key) and _fit(certificate, before):
        replace_file(folder / KEY, before, mode=0o600)
        _log.warning("tls.key_restored")
        return True
    remove_file(folder / BEFORE)
    return False


def _replace(folder: Path, key: bytes, chain: bytes) -> None:
    before = read_at_most(folder / KEY, PEM_MOST)
    if before is not None:
        replace_file(folder / BEFORE, before, mode=0o600)
    replace_file(folder / KEY, key, mode=0o600)
    replace_file(folder / CERTIFICATE, chain)
    remove_file(folder / BEFORE)


def _fit(certificate: bytes, key: bytes | None) -> bool:
    shown = _parsed(certificate)
    if shown is None or key is None:
        return False
    try:
        return load_pem_private_key(key, None).public_key() == shown.public_key()
    except (ValueError, TypeError):
        return False


def _parsed(data: bytes) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        return None


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
