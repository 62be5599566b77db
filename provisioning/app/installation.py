"""`muster init`: everything that an installation has, made in a folder beside, then put in place at once."""

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sqlalchemy import Connection

from hsm.ceremony import check_protection
from hsm.key import HsmEcKey
from hsm.softhsm import create_token
from ota.bundle import create_trust
from ota.director import create_director_root
from ota.files import replace_file
from ota.signing import Role, Roles, online_role
from provisioning.access import Role as OperatorRole
from provisioning.app.compose import clock, compose, open_database
from provisioning.app.keys import SERVICE_KEYS, open_token
from provisioning.authorities import ISSUING, ROOT, State, authority_row, write_files
from provisioning.config import (
    DEMO_MARKER,
    UP_MARKER,
    Config,
    ConfigurationRefused,
    DataDirectory,
    Listen,
    parse_config,
)
from provisioning.db import authorities, devices, enrollments
from provisioning.db.schema import migrate
from provisioning.issuance.check import check_tbs
from provisioning.issuance.profile import Issuer, IssuingCa, RootCa, ServiceTls, Wanted, build, issuer_of
from provisioning.issuance.tbs import ToBeSigned, assemble, serial_of, serial_text
from provisioning.issuing import Order, issue, verify_signature
from provisioning.revoking import sign_due_crl
from provisioning.service import Service
from wire.binding import key_id
from wire.codec import encode
from wire.messages import Anchor, TrustBundle

TRUST_TOKENS = ("trust-1", "trust-2", "trust-3")
TRUST_THRESHOLD = 2
TRUST_KEY, ROOT_KEY = "trust", "root"
TRUST_ROOT_LIFETIME = timedelta(days=3650)
TRUST_TARGETS_LIFETIME = timedelta(days=365)
ONLINE_LIFETIME = timedelta(days=7)
DIRECTOR_LIFETIME = timedelta(days=1)
PIN_BYTES = 18


@dataclass(frozen=True, slots=True)
class Installation:
    """What the caller of `muster init` decides."""

    service_name: str
    host: str
    advertised_host: str
    ports: tuple[int, int, int, int]
    """Device, operator, public, MQTT."""
    settings: str = ""
    """More lines of `muster.toml`."""


def initialize(directory: DataDirectory, wanted: Installation) -> None:
    """Make an installation; where a step fails nothing is left behind.

    Folders of the demo and of `muster simulate --up` that stand in the directory already stay there.

    Raises: ConfigurationRefused, HsmError, OSError.
    """
    _refuse_occupied(directory)
    stay = sorted(directory.root.iterdir()) if directory.root.exists() else []
    directory.root.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{directory.root.name}.", dir=directory.root.parent))
    try:
        _fill(DataDirectory(made), wanted)
        _move(stay, made)
        if directory.root.exists():
            directory.root.rmdir()
        made.rename(directory.root)
    except BaseException:
        if stay:
            directory.root.mkdir(mode=0o700, exist_ok=True)
        _move([made / folder.name for folder in stay], directory.root)
        shutil.rmtree(made, ignore_errors=True)
        raise


def _refuse_occupied(directory: DataDirectory) -> None:
    if directory.config.is_file():
        msg = f"{directory.root}: is a Muster data directory already; remove it, or take another --data-dir"
        raise ConfigurationRefused(msg)
    if directory.root.exists() and not (directory.root.is_dir() and all(map(_is_labs, directory.root.iterdir()))):
        msg = f"{directory.root}: holds something else; take an empty or new --data-dir"
        raise ConfigurationRefused(msg)


def _is_labs(folder: Path) -> bool:
    """Did the demo, or a fleet in a laptop, make this folder, so that an installation may stand around it?"""
    return not folder.is_symlink() and any((folder / marker).is_file() for marker in (DEMO_MARKER, UP_MARKER))


def _move(folders: Sequence[Path], into: Path) -> None:
    for folder in folders:
        if folder.exists():
            folder.rename(into / folder.name)


def _fill(directory: DataDirectory, wanted: Installation) -> None:
    for folder in (directory.root, directory.secrets, directory.tokens, directory.ca, directory.run, directory.tls):
        folder.mkdir(mode=0o700, exist_ok=True)
    text = _configuration_text(wanted)
    config = parse_config(text, str(directory.config))
    for label in (config.hsm.token, config.hsm.root_token, *TRUST_TOKENS):
        make_token(directory.tokens, directory.pin(label), label)
    with ExitStack() as opened:
        tokens = {
            label: opened.enter_context(open_token(directory, config, label))
            for label in (config.hsm.token, config.hsm.root_token, *TRUST_TOKENS)
        }
        keys = {label: tokens[config.hsm.token].generate_ec_key(label) for label in SERVICE_KEYS}
        root = tokens[config.hsm.root_token].generate_ec_key(ROOT_KEY)
        trust = [tokens[label].generate_ec_key(TRUST_KEY) for label in TRUST_TOKENS]
        for token in tokens.values():
            check_protection(token)
        now = clock()
        certificates, rows = _authorities(config, root, keys["issuing"], now)
        anchor = _repositories(directory, config, keys, trust, rows[0], now)
    replace_file(directory.anchor, encode(anchor))
    migrate(directory.database(config))
    _first_records(directory, config, certificates, rows)
    replace_file(directory.config, text.encode(), mode=0o600)


def make_token(tokens: Path, pin_file: Path, label: str) -> None:
    """A SoftHSM2 token with a random PIN in a file of its own. The security officer's PIN is forgotten."""
    pin = secrets.token_urlsafe(PIN_BYTES)
    replace_file(pin_file, pin.encode(), mode=0o600)
    create_token(tokens, label, pin, secrets.token_urlsafe(PIN_BYTES))


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def free_port(host: str, preferred: int | None) -> int:
    """The preferred port if nobody holds it, else a free one below the range of outgoing connections."""
    candidates = [preferred] if preferred else []
    candidates += [20_000 + secrets.randbelow(12_000) for _ in range(50)]
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                    msg = f"{host}: is no IPv4 address or name of this machine; correct --host"
                    raise ConfigurationRefused(msg) from error
                continue
            return port
    msg = f"{host}: no free port found; name ports with --ports"
    raise ConfigurationRefused(msg)


def _configuration_text(wanted: Installation) -> str:
    defaults = Listen()
    names = ("device_port", "operator_port", "public_port", "mqtt_port")
    lines = [f'service_name = "{wanted.service_name}"', "", "[listen]", f'host = "{wanted.host}"']
    lines += [f'advertised_host = "{wanted.advertised_host}"']
    lines += [f"{name} = {port}" for name, port in zip(names, wanted.ports, strict=True)]
    assert all(hasattr(defaults, name) for name in names)  # noqa: S101  a renamed field must not go unnoticed
    return "\n".join(lines) + "\n" + wanted.settings


def _authorities(
    config: Config, root: HsmEcKey, issuing: HsmEcKey, now: datetime
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The root signs itself and the issuing CA; returned as rows: certificates, authorities."""
    name = config.service_name
    top = RootCa(f"{name} root CA"[:64], public_bytes(root.public_key()))
    below = IssuingCa(f"{name} issuing CA"[:64], public_bytes(issuing.public_key()))
    root_row, root_der = _sign(top, None, root, now, config.lifetimes.root_days)
    issuing_row, issuing_der = _sign(below, issuer_of(root_der), root, now, config.lifetimes.issuing_days)
    chain = (issuing_der, root_der)
    # The root's key lies in a token of its own, which may be unplugged.
    key = f"pkcs11:token={config.hsm.root_token};object={ROOT_KEY}"
    above = authority_row(ROOT, ROOT, key, chain[1:], state=State.ACTIVE, now=now)
    active = authority_row(ISSUING, ISSUING, "issuing", chain, state=State.ACTIVE, now=now)
    return [root_row, issuing_row], [above, active]


def _sign(
    wanted: RootCa | IssuingCa, issuer: Issuer | None, key: HsmEcKey, now: datetime, days: int
) -> tuple[dict[str, Any], bytes]:
    tbs = build(
        wanted,
        issuer,
        serial=serial_of(os.urandom(16)),
        not_before=now - timedelta(minutes=5),
        not_after=now + timedelta(days=days),
    )
    check_tbs(tbs, wanted, issuer)
    signature = key.sign(tbs.der, ec.ECDSA(hashes.SHA256()))
    verify_signature(key.public_key(), tbs.der, signature)
    return _row(wanted, tbs, signature, now), assemble(tbs.der, signature)


def _row(wanted: Wanted, tbs: ToBeSigned, signature: bytes, now: datetime) -> dict[str, Any]:
    return {
        "serial": serial_text(tbs.serial),
        "issuer": "root",
        "profile": tbs.profile.value,
        "subject": getattr(wanted, "common_name", ""),
        "key_id": key_id(wanted.public_key),
        "tbs": tbs.der,
        "signature": signature,
        "state": "issued",
        "not_before": int(tbs.not_before.timestamp()),
        "not_after": int(tbs.not_after.timestamp()),
        "reserved_at": int(now.timestamp()),
    }


def _repositories(
    directory: DataDirectory,
    config: Config,
    keys: dict[str, HsmEcKey],
    trust: Sequence[HsmEcKey],
    root: dict[str, Any],
    now: datetime,
) -> Anchor:
    """The Director's root, and the trust repository with its first bundle: 2 of 3 offline keys sign both."""
    offline = tuple(key.public_key() for key in trust)
    root_role = Role(offline, TRUST_THRESHOLD, TRUST_ROOT_LIFETIME)
    director_online = online_role(keys["director-online"].public_key(), DIRECTOR_LIFETIME)
    director = create_director_root(
        Roles(root_role, director_online, director_online, director_online), trust[:TRUST_THRESHOLD], now
    )
    (directory.director / "metadata").mkdir(parents=True)
    replace_file(directory.director / "metadata" / "1.root.json", director)
    bundle = TrustBundle(
        version=1,
        service_name=config.service_name,
        ca_roots=(root["certificate"],),
        command_keys=(public_bytes(keys["command"].public_key()),),
        log_keys=(public_bytes(keys["log"].public_key()),),
        director_root=director,
    )
    online = online_role(keys["trust-online"].public_key(), ONLINE_LIFETIME)
    roles = Roles(root_role, Role(offline, TRUST_THRESHOLD, TRUST_TARGETS_LIFETIME), online, online)
    return create_trust(directory.trust, roles, bundle, (*trust[:TRUST_THRESHOLD], keys["trust-online"]), now)


def _first_records(
    directory: DataDirectory, config: Config, certificates: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> None:
    """The service's own certificate, the first CRL, the first operator: by the same roads as all later ones."""
    token = secrets.token_urlsafe(32)
    replace_file(directory.operator_token, token.encode(), mode=0o600)
    hashed, at = hash_token(token), int(clock().timestamp())

    def write(tx: Connection) -> None:
        for row in certificates:
            enrollments.add_certificate(tx, row)
        for row in rows:
            authorities.add(tx, row)
        devices.add_operator(tx, name="owner", role=OperatorRole.ADMIN.value, token_sha256=hashed, now=at)

    with ExitStack() as parts:
        open_database(directory, config, parts)[1].write_now(write)
    with compose(directory, config) as service:
        write_files(directory.ca, service.authorities)
        asyncio.run(_first_signatures(service))


async def _first_signatures(service: Service) -> None:
    await renew_service_certificate(service)
    signed = await sign_due_crl(service)
    if signed is not None:
        replace_file(service.directory.ca / "issuing.crl", signed[0])


async def renew_service_certificate(service: Service) -> None:
    """A new TLS key and certificate for the listeners and the broker; the pair is replaced key first."""
    key = ec.generate_private_key(ec.SECP256R1())
    listen = service.config.listen
    hosts = tuple(host for host in (listen.advertised_host, listen.host) if host not in ("0.0.0.0", "::"))  # noqa: S104  it is left out here
    wanted = ServiceTls(service.config.service_name, hosts, public_bytes(key.public_key()))
    order = Order(wanted, service.config.service_name, service.config.lifetimes.service_days)
    issued = await issue(service, order, lambda _tx, _certificate: None)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(service.directory.tls / "service.key", text, mode=0o600)
    chain = pem(issued.der) + pem(service.authorities.named(issued.issuer).der)
    replace_file(service.directory.tls / "service.pem", chain)


def hash_token(token: str) -> str:
    """How a bearer token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def pem(der: bytes) -> bytes:
    """A certificate in PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
