"""The configuration: one frozen value, complete after start-up, out of `muster.toml` in the data directory.

Every limit stands here with its unit in its name. This module alone reads the environment.
"""

import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from wire.codec import Cap, MalformedMessage, load

CONFIG_NAME = "muster.toml"
DEFAULT_DATA_DIR = Path(".muster")
DEMO_MARKER, UP_MARKER = ".muster-demo", ".muster-up"
"""Files that stand in a folder which `muster demo`, or `muster simulate --up`, made inside a data directory."""
_SERVICE_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_PUBLIC_URL = re.compile(r"http://[a-z0-9.\[\]:-]{1,120}(/[A-Za-z0-9._~-]{1,32}){0,2}")


class ConfigurationRefused(Exception):
    """The data directory or its configuration cannot be used. One line: file, what, cure."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the listeners bind. `advertised_host` is what devices are told to connect to.

    `public_url` is where strangers reach the public listener: it stands in every certificate (CRL, OCSP, issuer). Empty
    means: the advertised host and the public port as it is bound.
    """

    host: str = "127.0.0.1"
    advertised_host: str = "127.0.0.1"
    device_port: int = 8443
    operator_port: int = 8444
    public_port: int = 8080
    mqtt_port: int = 8883
    public_url: Annotated[str, Cap(200)] = ""


@dataclass(frozen=True, slots=True)
class Pkcs11Module:
    """How one PKCS#11 module is loaded. URIs name it: `?module-name=NAME`."""

    path: Annotated[str, Cap(1024)]
    locking: Literal["os", "null"] = "os"
    """`null`: it takes C_Initialize(NULL) only (p11-kit-client), and is entered by one thread at a time."""
    reserved: Annotated[str, Cap(2048)] = ""
    """The text in CK_C_INITIALIZE_ARGS.pReserved (NSS: where its database lies)."""
    environment: Annotated[dict[str, str], Cap(32)] = field(default_factory=dict)
    """What the module reads from the environment (P11_KIT_SERVER_ADDRESS)."""
    session_copies: bool = True
    """Sign with a copy of the key in a session object, which is faster; `false` where the token refuses copies."""


@dataclass(frozen=True, slots=True)
class Hsm:
    """The service's token, further modules and tokens, and where PINs are read. An empty `module`: find SoftHSM2."""

    module: str = ""
    token: str = "muster"  # noqa: S105  a label
    root_token: str = "root"  # noqa: S105  a label
    locking: Literal["os", "null"] = "os"
    sessions: int = 4
    """Signatures at once in each token, by as many threads."""
    deadline_milliseconds: int = 800
    """How long a caller waits for a signature, a second token included. Then: 503 with Retry-After."""
    modules: Annotated[dict[str, Pkcs11Module], Cap(16)] = field(default_factory=dict)
    pins: Annotated[dict[str, str], Cap(64)] = field(default_factory=dict)
    """Token to where its PIN is: `file:/PATH`, `credential:NAME`, `env:NAME`, `prompt`. Else `secrets/TOKEN.pin`."""
    tokens: Annotated[dict[str, str], Cap(64)] = field(default_factory=dict)
    """Token to its PKCS#11 URI, where it is not of that name in the default module: `trust-1` to `trust-3`."""
    keys: Annotated[dict[str, tuple[str, ...]], Cap(64)] = field(default_factory=dict)
    """Key to the PKCS#11 URIs (RFC 7512) where it is: the first that works signs."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long CAs, CRLs and attestations are good. What end entities get, certificate profiles say."""

    root_days: int = 7300
    issuing_days: int = 3650
    backdate_seconds: int = 300
    """How far notBefore lies in the past, for verifiers whose clock is behind."""
    crl_seconds: int = 7 * 86400
    crl_refresh_seconds: int = 86400
    root_crl_days: int = 365
    """A root's key is not there: its CRL is signed by hand (`muster crl sign`)."""
    ocsp_seconds: int = 3600
    """How long an OCSP answer is good. It is signed again after half of that, and at each change."""
    attestation_seconds: int = 86400
    result_seconds: int = 3600
    """How long an attestation result is good at most; never longer than the attestation that it tells of."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines, caps and rates: what one sender, and all together, may ask for."""

    header_deadline_seconds: int = 10
    body_deadline_seconds: int = 15
    idle_seconds: int = 60
    handshake_deadline_seconds: int = 10
    connections: int = 2000
    connections_per_address: int = 500
    requests_per_second_per_address: int = 2000
    enrollments_per_second: int = 2000
    """Challenges that all senders together may ask one worker for."""
    ocsp_signatures_per_second: int = 500
    """OCSP answers that strangers may have signed for them (with a nonce, about unknown serials), in one worker."""
    ocsp_signatures_per_second_per_address: int = 50
    results_per_second: int = 100
    """Attestation results that one relying party gets of one worker."""
    in_flight_enrollments: int = 512
    challenge_seconds: int = 300
    est_certificates_per_day: int = 20
    """How many certificates one device gets by EST with a certificate of its own."""
    est_token_seconds: int = 86400
    """How long a one-time token may be used where nothing else was asked for."""
    unknown_refusals: int = 10_000
    """Refusals of strangers that are kept for `explain`; older ones are dropped."""


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands over MQTT: how long one may be carried out, how often it is sent again."""

    lifetime_seconds: int = 3600
    retry_seconds: int = 15
    grace_seconds: int = 3600
    """How long a superseded certificate stays good after its successor was put to use."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long evidence is kept, and how much of one device. What something rests on stays (`keeping`)."""

    attestations_days: int = 90
    """Evidence that passed, with the logs that it names."""
    refused_days: int = 90
    """Evidence that was refused; the refusals themselves stay."""
    attestations_per_device: int = 5000
    """What is beyond and not of the last day goes with the next walk through the fleet."""
    logs_per_device: int = 64
    """Boot logs and IMA logs; those of one boot of which one begins the other are one."""
    log_bytes_per_device: int = 32 * 1024 * 1024
    """Bytes of all of them. Both bounds hold at once: the oldest go in the transaction that adds one."""


@dataclass(frozen=True, slots=True)
class Config:
    """All of it."""

    service_name: str
    listen: Listen = field(default_factory=Listen)
    hsm: Hsm = field(default_factory=Hsm)
    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    limits: Limits = field(default_factory=Limits)
    commands: Commands = field(default_factory=Commands)
    retention: Retention = field(default_factory=Retention)
    workers: int = 1
    database: str = "muster.db"
    """A path relative to the data directory."""
    weak_keys: Annotated[tuple[Annotated[str, Cap(512)], ...], Cap(8)] = ()
    """Lists of weak keys as badkeys publishes them (`blocklist.dat`): paths relative to the data directory."""


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Where each thing lies in a data directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def operator_token(self) -> Path:
        return self.secrets / "operator.token"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def ca(self) -> Path:
        return self.root / "ca"

    @property
    def trust(self) -> Path:
        return self.root / "trust"

    @property
    def director(self) -> Path:
        return self.root / "director"

    @property
    def image(self) -> Path:
        return self.root / "image"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def denied(self) -> Path:
        """Devices, one a line, that the broker gives no rights: revoked, and not in its CRL yet."""
        return self.run / "denied"

    @property
    def endpoints(self) -> Path:
        return self.run / "endpoints.json"

    @property
    def tls(self) -> Path:
        return self.root / "tls"

    @property
    def ceremony(self) -> Path:
        return self.root / "ceremony"

    @property
    def anchor(self) -> Path:
        return self.root / "anchor.json"

    def pin(self, token: str) -> Path:
        return self.secrets / f"{token}.pin"

    def database(self, config: Config) -> Path:
        return self.root / config.database


def data_directory(given: Path | None) -> DataDirectory:
    """The data directory that `--data-dir`, else `MUSTER_DATA_DIR`, else the default names."""
    return DataDirectory((given or Path(os.environ.get("MUSTER_DATA_DIR") or DEFAULT_DATA_DIR)).absolute())


def load_config(directory: DataDirectory) -> Config:
    """The configuration of a data directory. Raises: ConfigurationRefused."""
    if not directory.config.is_file():
        if (directory.ceremony / "waiting.json").is_file():
            msg = f"{directory.root}: a ceremony waits here for an outside CA; go on: muster hsm ceremony --import"
            raise ConfigurationRefused(msg)
        msg = f"{directory.root}: is no Muster data directory (no {CONFIG_NAME}); make one: muster init"
        raise ConfigurationRefused(msg)
    try:
        text = directory.config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        msg = f"{directory.config}: is not UTF-8; save it as UTF-8"
        raise ConfigurationRefused(msg) from error
    return parse_config(text, str(directory.config))


def parse_config(text: str, name: str) -> Config:
    """The configuration out of TOML; unknown keys are refused. Raises: ConfigurationRefused."""
    try:
        parsed = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number without end
        msg = f"{name}: is not TOML: {error}; correct that line"
        raise ConfigurationRefused(msg) from error
    try:
        config = load(Config, parsed)
    except MalformedMessage as error:
        key = error.where.rsplit(".", 1)[-1]
        line = next((n for n, row in enumerate(text.splitlines(), 1) if row.strip().startswith(key)), 1)
        msg = f"{name}: line {line}: {error}; correct or remove it"
        raise ConfigurationRefused(msg) from error
    for key in ("requests_per_second_per_address", "enrollments_per_second", "results_per_second"):
        if getattr(config.limits, key) < 1:
            msg = f"{name}: limits.{key}: is less than 1, so that nobody could ask; correct it"
            raise ConfigurationRefused(msg)
    for rule in fields(Retention):
        if getattr(config.retention, rule.name) < 1:
            msg = f"{name}: retention.{rule.name}: is less than 1; correct it"
            raise ConfigurationRefused(msg)
    if not (config.hsm.sessions >= 1 and config.hsm.deadline_milliseconds >= 1):
        msg = f"{name}: hsm: sessions and deadline_milliseconds are 1 or more; correct it"
        raise ConfigurationRefused(msg)
    if _SERVICE_NAME.fullmatch(config.service_name) is None:
        msg = f"{name}: service_name: {config.service_name!r} is no DNS name in lower case; correct it"
        raise ConfigurationRefused(msg)
    if config.listen.public_url and _PUBLIC_URL.fullmatch(config.listen.public_url) is None:
        msg = f"{name}: listen.public_url: is not like http://ca.example or http://ca.example:8080/pki; correct it"
        raise ConfigurationRefused(msg)
    return config


def public_url(config: Config, port: int) -> str:
    """Where strangers reach the public listener on this port: it stands in certificates.

    `port` 0, none is known yet: the standard one. Nothing is signed that does not say where to ask about it, so who
    lets the system choose the public port and needs these addresses to lead somewhere sets `listen.public_url`.
    """
    listen = config.listen
    host = f"[{listen.advertised_host}]" if ":" in listen.advertised_host else listen.advertised_host
    return listen.public_url or f"http://{host}:{port or Listen().public_port}"
