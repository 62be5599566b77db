"""The operator listener's routes for the store of TPM manufacturers' certificates (`ek_roots`)."""

from typing import TYPE_CHECKING

from provisioning import ek_roots
from provisioning.http.exchange import query

if TYPE_CHECKING:
    from provisioning.http.operator import Asked

EkRootImport = ek_roots.EkRootImport
IMPORT_MOST = ek_roots.IMPORT_MOST


async def take(asked: "Asked") -> object:
    """Import, or say what an import would do."""
    return await ek_roots.import_roots(asked.call.service, asked.body, by=asked.operator.name)


async def every(asked: "Asked") -> object:
    """What is in the store."""
    manufacturer = query(asked.call.request, "manufacturer").get("manufacturer")
    return {"roots": await ek_roots.list_roots(asked.call.service, manufacturer)}


async def one(asked: "Asked") -> object:
    """One certificate."""
    return await ek_roots.show_root(asked.call.service, asked.name)


async def remove(asked: "Asked") -> object:
    """Take one out."""
    return await ek_roots.remove_root(asked.call.service, asked.name, by=asked.operator.name)
