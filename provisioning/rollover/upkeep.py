"""What follows a change by itself, in the process that holds the lease.

Files, the record of bundles, the TLS pair, and the end of sessions by a CA that was retired.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from ota.refusals import UpdateRefused
from provisioning import service_tls
from provisioning.authorities import ISSUING, State, write_files
from provisioning.db import authorities
from provisioning.refusals import StorageUnavailable
from provisioning.rollover import bundles
from provisioning.service import Service

_log = structlog.get_logger()


class Upkeep:
    """Keeps up with the table. Each round may be broken off and repeated."""

    def __init__(self, service: Service, end_session: Callable[[str], Awaitable[None]]) -> None:
        """`end_session` throws a device off the broker. Raises: OSError."""
        self._service = service
        self._end_session = end_session
        self._published = 0
        self._ended: set[str] = set()

    async def look_after(self) -> None:
        """One round. Raises: Refusal, OSError."""
        service = self._service
        await service.authorities.refresh(service.store)
        await bundles.note_first_keys(service)
        await asyncio.to_thread(write_files, service.directory.ca, service.authorities)
        await service_tls.look_after(service)
        await self._note_published()
        await self._end_sessions()

    async def _note_published(self) -> None:
        """Only where the repository was written since: reading all of it takes milliseconds."""
        stamp = await asyncio.to_thread(_written, self._service.directory.trust)
        if stamp == self._published:
            return
        try:
            if (version := await bundles.note_published(self._service, "service")) is not None:
                _log.info("trust.published", version=version)
        except UpdateRefused as refused:
            raise StorageUnavailable(expected="a trust repository", actual=refused) from refused
        self._published = stamp

    async def _end_sessions(self) -> None:
        """A session may have been opened by somebody who has the key of a CA that was retired for that."""
        for one in self._service.authorities.of_kind(ISSUING, State.RETIRED):
            if one.name in self._ended:
                continue
            name = one.name
            devices = await self._service.store.read(lambda tx, name=name: authorities.sessions_of_issuer(tx, name))  # type: ignore[misc]  # bound now
            for device in devices:
                await self._end_session(device)
                _log.info("mqtt.session_ended", device=device, authority=name)
            self._ended.add(name)


def _written(repository: Path) -> int:
    return (repository / "metadata" / "timestamp.json").stat().st_mtime_ns
