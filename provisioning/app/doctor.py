"""`muster doctor`: is this installation fit to serve, and for how long? Each finding says how to mend it.

Nothing is changed. A check that cannot be carried out has failed, with its reason; it never ends the examination.
"""

import importlib.metadata
import os
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from hsm.errors import HsmError
from ota.bundle import published_bundle
from ota.files import read_at_most
from ota.refusals import UpdateRefused
from ota.repository import offline_expiry
from ota.source import NotFoundAtSource
from ota.verify import Floor, verify_repository, verify_roots
from provisioning.app.blocklists import weak_keys
from provisioning.app.broker import broker_socket
from provisioning.app.compose import clock
from provisioning.app.doctor_ca import authorities_of, authority, crl, opened
from provisioning.app.doctor_hsm import offline_keys, tokens
from provisioning.app.endpoints import Endpoints
from provisioning.app.findings import FAIL, OK, SOON, WARN, Finding, Findings, expiry
from provisioning.config import Config, ConfigurationRefused, DataDirectory, load_config
from provisioning.db.schema import verify_schema
from wire.codec import MalformedMessage, decode, rfc3339
from wire.messages import Anchor

ONLINE_SOON = timedelta(days=1)
DISK_LEAST, DISK_LITTLE = 64 * 1024 * 1024, 1024 * 1024 * 1024
"""Bytes free, below which nothing can be written, and below which somebody should look."""
WAIT_SECONDS = 3.0
FILE_MOST = 4 * 1024 * 1024
TPM_NODE = Path("/dev/tpmrm0")
_LEAST_PACKAGES = (
    ("cryptography", 50),
    ("aiohttp", 3),
    ("tuf", 7),
    ("sqlmodel", 0),
    ("python-pkcs11", 0),
    ("paho-mqtt", 2),
)
"""Distribution and least major version, beyond what the lock says."""


def examine(directory: DataDirectory) -> list[Finding]:
    """Every finding, in the order in which a person would look. Raises nothing that a check can meet."""
    found = [*_guarded("packages", _packages), *_guarded("TPM", _tpm)]
    try:
        config = load_config(directory)
    except (ConfigurationRefused, OSError) as error:
        return [*found, Finding("configuration", FAIL, _words(error), "" if ";" in str(error) else "muster init")]
    found.append(Finding("configuration", OK, f"{directory.config}: service {config.service_name}"))
    now = clock()
    checks: tuple[tuple[str, Callable[[], Findings]], ...] = (
        ("permissions", lambda: _permissions(directory)),
        ("HSM", lambda: tokens(directory, config)),
        ("offline keys", lambda: offline_keys(directory, config)),
        ("CA", lambda: authority(directory, config, now)),
        ("TLS", lambda: _tls(directory, config, now)),
        ("weak keys", lambda: weak_keys(directory, config)),
        ("database", lambda: _database(directory, config)),
        ("findings", lambda: _findings(directory, config)),
        ("disk", lambda: _disk(directory)),
        ("clock", lambda: _clock(directory, config, now)),
        ("CRL", lambda: crl(directory, config, now)),
        ("trust", lambda: _trust(directory, now)),
        ("trust keys", lambda: _trust_keys(directory, now)),
        ("image repository", lambda: _image(directory, now)),
        ("service", lambda: _service(directory, config)),
    )
    for name, check in checks:
        found += _guarded(name, check)
    return found


def _guarded(name: str, check: Callable[[], Findings]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except (ConfigurationRefused, HsmError, UpdateRefused, OSError, ValueError, sqlite3.Error) as error:
        found.append(Finding(name, FAIL, _words(error), _cure_of(error)))
    return found


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'system'}: {error.strerror}"
    return str(error) or type(error).__name__


def _cure_of(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "restore it from a backup"
    if isinstance(error, PermissionError):
        return "run as the owner of the data directory"
    return "" if ";" in str(error) else "restore it from a backup, or look at the file"


# --- the machine ------------------------------------------------------------------------------------------------------


def _packages() -> Findings:
    for name, least in _LEAST_PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", FAIL, f"{name} is not installed", "pip install 'muster[server]'")
            continue
        if int(version.split(".")[0]) < least:
            yield Finding(
                "packages", FAIL, f"{name} {version} is older than {least}", "pip install -U 'muster[server]'"
            )
    broker = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if broker is None:
        yield Finding("packages", FAIL, "mosquitto is not installed", "apt install mosquitto")
    else:
        yield _broker_version(broker)
    yield Finding("packages", OK, f"OpenSSL of Python: {ssl.OPENSSL_VERSION}")


def _broker_version(broker: str) -> Finding:
    # mosquitto -h prints its version and ends with status 1 or 3, by version.
    said = subprocess.run([broker, "-h"], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False).stdout
    version = re.match(r"mosquitto version (\d+)\.(\d+)", said)
    if version is None or int(version[1]) < 2:  # noqa: PLR2004  per-listener ACLs and Unix sockets need 2.0
        return Finding("packages", FAIL, f"{broker}: is no mosquitto 2", "apt install mosquitto")
    return Finding("packages", OK, f"{broker}: version {version[1]}.{version[2]}")


def _tpm() -> Findings:
    if not TPM_NODE.exists():
        yield Finding("TPM", OK, "none on this machine; the service needs none, its devices do")
    elif os.access(TPM_NODE, os.R_OK | os.W_OK):
        yield Finding("TPM", OK, f"{TPM_NODE} can be used")
    else:
        yield Finding("TPM", WARN, f"{TPM_NODE} is closed to this user", "for an agent here: usermod -aG tss USER")


def _disk(directory: DataDirectory) -> Findings:
    free = shutil.disk_usage(directory.root).free
    says = f"{free // 2**20} MiB free at {directory.root}"
    if free < DISK_LEAST:
        yield Finding("disk", FAIL, says, "free some space: nothing can be issued without")
    else:
        yield Finding(
            "disk", OK if free >= DISK_LITTLE else WARN, says, "" if free >= DISK_LITTLE else "free some space"
        )


def _clock(directory: DataDirectory, config: Config, now: datetime) -> Findings:
    begun = authorities_of(directory, config).active.certificate.not_valid_before_utc
    with closing(opened(directory, config)) as database:
        row = database.execute("select max(at) from leaf").fetchone()
    newest = begun if row is None or row[0] is None else datetime.fromtimestamp(row[0], UTC)
    if now < max(begun, newest):
        yield Finding(
            "clock", FAIL, f"{rfc3339(now)} is before the last record, {rfc3339(newest)}", "set the clock; use NTP"
        )
    else:
        yield Finding("clock", OK, f"{rfc3339(now)}, after the last record")


# --- files ------------------------------------------------------------------------------------------------------------


def _permissions(directory: DataDirectory) -> Findings:
    secret = [
        directory.secrets,
        directory.tokens,
        directory.tls / "service.key",
        directory.database(load_config(directory)),
    ]
    secret += sorted(directory.secrets.iterdir())
    secret += sorted(directory.tokens.rglob("*"))
    secret += sorted((directory.root / "stations").glob("*/key.pem"))
    open_ones = [path for path in secret if path.stat().st_mode & 0o077 and not _sheltered(path, directory.root)]
    foreign = [path for path in secret if path.stat().st_uid != os.geteuid() and os.geteuid() != 0]
    for path in open_ones:
        mode = path.stat().st_mode & 0o777
        wanted = "700" if path.is_dir() else "600"
        yield Finding("permissions", FAIL, f"{path}: mode {mode:o}, others may read it", f"chmod {wanted} {path}")
    for path in foreign:
        yield Finding("permissions", FAIL, f"{path}: belongs to another user", "run as the owner of the data directory")
    if not open_ones and not foreign:
        yield Finding("permissions", OK, f"{len(secret)} secret files and folders are closed to others")


def _sheltered(path: Path, root: Path) -> bool:
    """Is a folder above it closed to others? A secret's own file is judged all the same."""
    if path.suffix in (".pin", ".token", ".key", ".pem"):
        return False
    return any(not above.stat().st_mode & 0o077 for above in path.parents if above == root or root in above.parents)


def _database(directory: DataDirectory, config: Config) -> Findings:
    path = directory.database(config)
    path.stat()
    verify_schema(path)
    with closing(opened(directory, config)) as database:
        said = [row[0] for row in database.execute("pragma quick_check(5)")]
    if said == ["ok"]:
        yield Finding("database", OK, f"{path}: whole, of this version's schema")
    else:
        yield Finding("database", FAIL, f"{path}: {said[0]}", "stop the service and restore a backup")


def _findings(directory: DataDirectory, config: Config) -> Findings:
    """Is there something about a device that nobody has looked at?"""
    with closing(opened(directory, config)) as database:
        found = database.execute("select kind, count(*) from finding where closed_at is null group by kind").fetchall()
    if found:
        says = "open: " + ", ".join(f"{count} {kind}" for kind, count in sorted(found))
        yield Finding("findings", WARN, says, "look at them, and close them: muster findings list")
    else:
        yield Finding("findings", OK, "none about any device is open")


# --- keys and certificates --------------------------------------------------------------------------------------------


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]  # any public key


def _tls(directory: DataDirectory, config: Config, now: datetime) -> Findings:
    cure = "make a new one: muster init --renew-tls"
    certificate = x509.load_pem_x509_certificate((directory.tls / "service.pem").read_bytes())
    key = load_pem_private_key((directory.tls / "service.key").read_bytes(), None)
    if _spki(key.public_key()) != _spki(certificate.public_key()):
        yield Finding("TLS", FAIL, f"{directory.tls}: key and certificate do not belong together", cure)
        return
    issuers = {one.certificate.subject: one.certificate for one in authorities_of(directory, config)}
    certificate.verify_directly_issued_by(issuers.get(certificate.issuer, certificate))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    if missing := {config.service_name, config.listen.advertised_host} - known:
        yield Finding("TLS", FAIL, f"the certificate does not name {', '.join(sorted(missing))}", cure)
    yield expiry("TLS", certificate.not_valid_after_utc, now, SOON, cure)


# --- what devices fetch -----------------------------------------------------------------------------------------------


def _trust(directory: DataDirectory, now: datetime) -> Findings:
    try:
        anchor = decode(Anchor, directory.anchor.read_bytes(), limit=FILE_MOST)
    except MalformedMessage as error:
        yield Finding("trust", FAIL, f"{directory.anchor}: {error}", "restore it from a backup")
        return
    found = _repository("trust", directory.trust, anchor.trust_root, now, "start the service, or: muster trust publish")
    yield found
    if found.status == FAIL:
        return
    version = published_bundle(directory.trust).version
    yield Finding("trust", OK, f"bundle {version}, verified from {directory.anchor.name} as a device does")


def _trust_keys(directory: DataDirectory, now: datetime) -> Findings:
    """Until when the offline keys signed: once that is over no device enrolls, nor comes back."""
    cure = "bring 2 of the 3 offline keys, which sign for another year: muster trust publish"
    try:
        yield expiry("trust keys", offline_expiry(directory.trust), now, SOON, cure)
    except UpdateRefused as refused:
        yield Finding("trust keys", FAIL, str(refused), "restore the trust repository from a backup")


def _image(directory: DataDirectory, now: datetime) -> Findings:
    root = published_bundle(directory.trust).image_root
    if root is None:
        yield Finding("image repository", OK, "none is trusted yet: no device takes an update")
    elif not (directory.image / "metadata").is_dir():
        yield Finding("image repository", WARN, "trusted, and nothing was published yet", "muster ota publish")
    else:
        yield _repository(
            "image repository", directory.image, root, now, "the publisher signs again: muster ota publish"
        )


def _repository(what: str, folder: Path, root: bytes, now: datetime, cure: str) -> Finding:
    def fetch(path: str, most: int) -> bytes:
        content = read_at_most(folder / path, most)
        if content is None:
            raise NotFoundAtSource(path)
        return content

    try:
        expires = verify_repository(verify_roots(root, fetch), fetch, (Floor(),), now).expires
    except UpdateRefused as refused:
        return Finding(what, FAIL, f"{folder}: a device would refuse it: {refused}", cure)
    return expiry(what, expires, now, ONLINE_SOON, cure)


# --- the service, where it runs ---------------------------------------------------------------------------------------


def _service(directory: DataDirectory, config: Config) -> Findings:
    if not directory.endpoints.is_file():
        yield Finding("service", OK, "is not running; start it: muster serve")
        return
    try:
        endpoints = decode(Endpoints, directory.endpoints.read_bytes(), limit=FILE_MOST)
    except MalformedMessage as error:
        yield Finding("service", FAIL, f"{directory.endpoints}: {error}", "start it again: muster serve")
        return
    context = ssl.create_default_context(cafile=str(directory.ca / "roots.pem"))
    for name, url in (("device", endpoints.device), ("operator", endpoints.operator), ("broker", endpoints.mqtt)):
        yield _listener(name, url, context, config.service_name)
    if not broker_socket(directory).exists():
        yield Finding("broker", FAIL, f"{broker_socket(directory)}: is gone", "start the service again: muster serve")


def _listener(name: str, url: str, context: ssl.SSLContext, service_name: str) -> Finding:
    host, _, port = url.partition("://")[2].rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=service_name) as secured,
        ):
            return Finding(name, OK, f"{url} answers with {secured.version()} as {service_name}")
    except ssl.SSLCertVerificationError as error:
        return Finding(name, FAIL, f"{url}: {error.verify_message}", "is another program on that port? muster serve")
    except OSError as error:
        return Finding(name, FAIL, f"{url}: {error.strerror or error}", "start it again: muster serve")
