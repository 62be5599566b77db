"""What follows a change by itself, in the process that holds the lease: files, the record of bundles, the TLS pair."""

import asyncio

import structlog

from ota.refusals import UpdateRefused
from provisioning import service_tls
from provisioning.authorities import write_files
from provisioning.refusals import StorageUnavailable
from provisioning.rollover import bundles
from provisioning.service import Service

_log = structlog.get_logger()


async def look_after(service: Service) -> None:
    """One round; each of its steps may be repeated. Raises: Refusal, OSError."""
    await service.authorities.refresh(service.store)
    await bundles.note_first_keys(service)
    await asyncio.to_thread(write_files, service.directory.ca, service.authorities)
    await service_tls.look_after(service)
    try:
        if (version := await bundles.note_published(service, "service")) is not None:
            _log.info("trust.published", version=version)
    except UpdateRefused as refused:
        raise StorageUnavailable(expected="a trust repository", actual=refused) from refused
