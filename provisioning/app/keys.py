"""The service's keys: in the HSM, used from threads of their own, with a deadline."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from hsm.errors import HsmError, KeyNotFound
from hsm.key import HsmEcKey, HsmKey, sign_message
from hsm.kinds import PublicKey
from hsm.module import ModuleSettings
from hsm.softhsm import find_module, settings, write_configuration
from hsm.token import Token
from hsm.uri import SCHEME, parse_uri
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.db.lane import Job, Lane, LaneFull
from provisioning.refusals import SigningUnavailable

CLOSING_SECONDS = 1.0
SERVICE_KEYS = ("issuing", "command", "log", "trust-online", "director-online")


class HsmKeys:
    """`service.Keys` over one token. Each call into the module is made on one of a few threads.

    A key is named by its label in the service's token, or by a PKCS#11 URI (RFC 7512).
    """

    def __init__(self, token: Token, deadline_seconds: float, threads: int) -> None:
        self.token = token
        self._deadline = deadline_seconds
        self._lanes = [Lane(f"hsm {number}", _carry_out) for number in range(threads)]
        self._keys: dict[str, HsmKey] = {label: self._find(label) for label in SERVICE_KEYS}

    async def sign(self, key: str, message: bytes) -> bytes:
        """A signature by the key's own algorithm (`hsm.key.sign_message`). Raises: SigningUnavailable."""
        found = self._keys.get(key) or await self._adopted(key)
        return cast("bytes", await self._do(lambda: sign_message(found, message)))

    async def adopt(self, key: str) -> PublicKey:
        """Find a key that appeared after the start; its public half. Raises: SigningUnavailable."""
        return (self._keys.get(key) or await self._adopted(key)).public_key()

    def public(self, key: str) -> PublicKey:
        """The public half of a key that was there at the start, or was adopted."""
        return self._keys[key].public_key()

    def key(self, key: str) -> HsmEcKey:
        """The key itself, where it is on a curve, for a library that signs with it: call that library on a thread."""
        found = self._keys[key]
        if not isinstance(found, HsmEcKey):
            raise KeyError(key)
        return found

    def close(self) -> None:
        """Log out. A signature that hangs in the module is left behind with its thread."""
        for lane in self._lanes:
            lane.close(CLOSING_SECONDS)
        self.token.close()

    async def _adopted(self, key: str) -> HsmKey:
        found: HsmKey = await self._do(lambda: self._find(key))
        self._keys[key] = found
        return found

    def _find(self, key: str) -> HsmKey:
        if not key.startswith(SCHEME):
            return self.token.key(key)
        uri = parse_uri(key)
        if uri.token not in (None, self.token.label):
            raise KeyNotFound(f"the service has no token {uri.token!r}")
        return self.token.key(uri.object, identity=uri.id)

    async def _do(self, work: Callable[[], object]) -> Any:  # noqa: ANN401  the caller knows what its work returns
        lane = min(self._lanes, key=lambda lane: lane.waiting)
        try:
            async with asyncio.timeout(self._deadline):
                return await lane.do(work)
        except (TimeoutError, LaneFull) as error:
            raise SigningUnavailable(expected=f"a signature in {self._deadline} s", actual="none") from error
        except HsmError as error:
            raise SigningUnavailable(expected="a signature", actual=error) from error


def _carry_out(group: Sequence[Job]) -> None:
    for job in group:
        if job.future is not None and job.future.done():
            continue  # its caller has gone: what nobody waits for is not signed
        try:
            job.result = job.work()
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
