"""The service's keys: in the HSM, used from threads of their own, with a deadline."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hsm.errors import HsmError
from hsm.key import HsmEcKey
from hsm.module import ModuleSettings
from hsm.softhsm import find_module, settings, write_configuration
from hsm.token import Token
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.db.lane import Job, Lane, LaneFull
from provisioning.refusals import SigningUnavailable

CLOSING_SECONDS = 1.0
SERVICE_KEYS = ("issuing", "command", "log", "trust-online", "director-online")


class HsmKeys:
    """`service.Keys` over one token. Each signature is a call into the module on one of a few threads."""

    def __init__(self, token: Token, deadline_seconds: float, threads: int) -> None:
        self.token = token
        self._deadline = deadline_seconds
        self._lanes = [Lane(f"hsm {number}", _sign) for number in range(threads)]
        self._keys: dict[str, HsmEcKey] = {label: token.ec_key(label) for label in SERVICE_KEYS}

    async def sign(self, label: str, message: bytes) -> bytes:
        """An ECDSA-SHA-256 signature (DER). Raises: SigningUnavailable."""
        lane = min(self._lanes, key=lambda lane: lane.waiting)
        try:
            async with asyncio.timeout(self._deadline):
                return cast("bytes", await lane.do((self._keys[label], message)))
        except (TimeoutError, LaneFull) as error:
            raise SigningUnavailable(expected=f"a signature in {self._deadline} s", actual="none") from error
        except HsmError as error:
            raise SigningUnavailable(expected="a signature", actual=error) from error

    def public(self, label: str) -> ec.EllipticCurvePublicKey:
        """The public key of that label."""
        return self._keys[label].public_key()

    def key(self, label: str) -> ec.EllipticCurvePrivateKey:
        """The key itself, for a library that signs with it: call that library on a thread."""
        return self._keys[label]

    def close(self) -> None:
        """Log out. A signature that hangs in the module is left behind with its thread."""
        for lane in self._lanes:
            lane.close(CLOSING_SECONDS)
        self.token.close()


def _sign(group: Sequence[Job]) -> None:
    for job in group:
        key, message = job.work
        try:
            job.result = key.sign(message, ec.ECDSA(hashes.SHA256()))
        except BaseException as error:  # noqa: BLE001  it goes to the caller whose signature it was
            job.error = error


def read_pin(path: Path) -> Callable[[], str]:
    """A reader of a PIN file. It refuses one that others can read."""

    def read() -> str:
        if path.stat().st_mode & 0o077:
            msg = f"{path}: others may read this PIN; mend it: chmod 600 {path}"
            raise ConfigurationRefused(msg)
        return path.read_text(encoding="utf-8").strip()

    return read


def open_token(directory: DataDirectory, config: Config, label: str) -> Token:
    """A token of this data directory, logged in. Raises: HsmError, ConfigurationRefused, OSError."""
    token = Token(
        module_settings(directory, config), label, read_pin(directory.pin(label)), sessions=config.hsm.sessions
    )
    token.open()
    return token


def module_settings(directory: DataDirectory, config: Config) -> ModuleSettings:
    """The PKCS#11 module of this installation: the configured one, or SoftHSM2 with the tokens in the directory."""
    configured = Path(config.hsm.module) if config.hsm.module else None
    if configured is not None and "softhsm" not in configured.name:
        return ModuleSettings(find_module(configured), locking="null" if config.hsm.locking == "null" else "os")
    write_configuration(directory.tokens)
    return settings(directory.tokens, configured)
