"""The agent's configuration: `agent.toml`, complete and frozen after start-up."""

import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from wire.codec import Cap, MalformedMessage, load, rfc3339

FILE = "agent.toml"
IMA_LOG = "/sys/kernel/security/ima/binary_runtime_measurements"
HARDWARE_TCTI = "device:/dev/tpmrm0"
_FILE_MOST = 64 * 1024
_AUTH_MOST = 64
_NV_FIRST, _NV_LAST = 0x01000000, 0x01FFFFFF
_PERSISTENT_FIRST, _PERSISTENT_LAST = 0x81000000, 0x81FFFFFF
"""TPM 2.0 Library Specification, Part 2, 7.5: the handles of these types."""


class ConfigMistake(Exception):
    """The configuration cannot be used; the message is one line: which file, which setting, how to mend it."""


@dataclass(frozen=True, slots=True)
class _Settings:
    service: str
    public: str
    anchor: str
    hardware: Annotated[str, Cap(64)]
    build_time: datetime
    tcti: str = HARDWARE_TCTI
    serial: Annotated[str, Cap(64)] | None = None
    slots: str | None = None
    boot_log: str | None = None
    ima_log: str = IMA_LOG
    openssl_conf: str | None = None
    ek: Literal["rsa", "ecc"] | None = None
    ownership_epoch: int = 0
    owner_auth: str | None = None
    endorsement_auth: str | None = None
    iak_certificate: str | None = None
    idevid_certificate: str | None = None
    iak_handle: int | None = None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`service` and `public` are URLs of the two listeners; paths are absolute.

    `serial` is the name under which the device believes to be registered. `build_time` is the first floor of trusted
    time. `ek` forces one kind of EK. `owner_auth` and `endorsement_auth` name files (mode 0600) with the hierarchies'
    authorisations. `ownership_epoch` rises with each new owner: the AK becomes another one. `iak_certificate` and
    `idevid_certificate` are files, or NV indices, with the device maker's certificates and those above them;
    `iak_handle` is the persistent key that the first is for, where it is not the agent's own.
    """

    data_dir: Path
    service: str
    public: str
    anchor: Path
    hardware: str
    build_time: datetime
    tcti: str
    serial: str | None
    slots: Path | None
    boot_log: Path | None
    ima_log: Path | None
    openssl_conf: Path | None
    ek: Literal["rsa", "ecc"] | None
    ownership_epoch: int
    owner_auth: Path | None
    endorsement_auth: Path | None
    iak_certificate: Path | int | None
    idevid_certificate: Path | int | None
    iak_handle: int | None

    @property
    def state_dir(self) -> Path:
        """Where everything stands that the agent writes."""
        return self.data_dir / "state"


def load_config(data_dir: Path) -> AgentConfig:
    """The configuration of one agent directory. Raises: ConfigMistake."""
    file = data_dir / FILE
    settings = _settings(file)
    _check_url(file, "service", settings.service, ("https",))
    _check_url(file, "public", settings.public, ("http", "https"))
    if settings.iak_certificate is None and (settings.idevid_certificate, settings.iak_handle) != (None, None):
        raise ConfigMistake(f"{file}: iak_certificate: is missing beside idevid_certificate or iak_handle")
    if settings.iak_handle is not None and not _PERSISTENT_FIRST <= settings.iak_handle <= _PERSISTENT_LAST:
        raise ConfigMistake(f"{file}: iak_handle: is no persistent handle, 0x81000000 to 0x81ffffff")
    if settings.ownership_epoch < 0:
        raise ConfigMistake(f"{file}: ownership_epoch: is negative")
    folder = data_dir.resolve()

    def place(name: str | None) -> Path | None:
        return None if name is None else (folder / name).resolve()

    return AgentConfig(
        data_dir=folder,
        service=settings.service.rstrip("/"),
        public=settings.public.rstrip("/"),
        anchor=folder / settings.anchor,
        hardware=settings.hardware,
        build_time=settings.build_time,
        tcti=settings.tcti,
        serial=settings.serial,
        slots=place(settings.slots),
        boot_log=place(settings.boot_log),
        ima_log=place(settings.ima_log),
        openssl_conf=place(settings.openssl_conf),
        ek=settings.ek,
        ownership_epoch=settings.ownership_epoch,
        owner_auth=place(settings.owner_auth),
        endorsement_auth=place(settings.endorsement_auth),
        iak_certificate=_certificate(file, "iak_certificate", settings.iak_certificate),
        idevid_certificate=_certificate(file, "idevid_certificate", settings.idevid_certificate),
        iak_handle=settings.iak_handle,
    )


def _certificate(file: Path, name: str, text: str | None) -> Path | int | None:
    """A file, relative to the agent's folder, or an NV index: `nv:0x1c90000`."""
    if text is None:
        return None
    if not text.startswith("nv:"):
        return (file.parent.resolve() / text).resolve()
    try:
        index = int(text.removeprefix("nv:"), 16)
    except ValueError as error:
        raise ConfigMistake(f"{file}: {name}: is no NV index like nv:0x1c90000") from error
    if not _NV_FIRST <= index <= _NV_LAST:
        raise ConfigMistake(f"{file}: {name}: is no NV index, 0x01000000 to 0x01ffffff")
    return index


def read_authorisation(path: Path | None) -> bytes:
    """A hierarchy's authorisation out of its file, without the line's end; empty where none is named.

    Raises: ConfigMistake.
    """
    if path is None:
        return b""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigMistake(f"{path}: others may read it: chmod 600 {path}")
        secret = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigMistake(f"{path}: {error.strerror}") from error
    if len(secret) > _AUTH_MOST:
        raise ConfigMistake(f"{path}: is longer than {_AUTH_MOST} bytes, which no TPM takes")
    return secret


def _settings(file: Path) -> _Settings:
    try:
        with file.open("rb") as stream:
            content = stream.read(_FILE_MOST + 1)
    except FileNotFoundError as error:
        raise ConfigMistake(f"{file}: is missing: write it, or name its folder with --data-dir") from error
    except OSError as error:
        raise ConfigMistake(f"{file}: {error.strerror}") from error
    if len(content) > _FILE_MOST:
        raise ConfigMistake(f"{file}: is larger than {_FILE_MOST} bytes")
    try:
        parsed = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number without end
        raise ConfigMistake(f"{file}: {error}") from error
    try:
        return load(_Settings, {key: _plain(value) for key, value in parsed.items()})
    except MalformedMessage as error:
        raise ConfigMistake(f"{file}: {error.where}: {_why(error)}") from error


def _why(error: MalformedMessage) -> str:
    return error.why.replace("a field of this message", "a setting of the agent")


def _plain(value: Any) -> Any:  # noqa: ANN401  TOML's own values
    """TOML has times of its own; the codec takes their text."""
    if isinstance(value, datetime):
        return rfc3339(value if value.tzinfo else value.replace(tzinfo=UTC))
    return value


def _check_url(file: Path, name: str, url: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.username or parts.query or parts.fragment:
        raise ConfigMistake(f"{file}: {name}: is not a URL like {schemes[0]}://host:port")
