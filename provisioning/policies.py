"""What operators decide about policies. JSON-ready values; no row leaves."""

from datetime import UTC, datetime

from sqlalchemy import Connection

from provisioning import ek_roots
from provisioning.attestation.policy import parse_policy
from provisioning.db import leaves, policies
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import NotFound
from provisioning.service import Service
from wire.codec import rfc3339

Json = dict[str, object]


async def set_policy(service: Service, text: str, *, by: str) -> Json:
    """The next version of a model's policy. Raises: PolicyMalformed."""
    policy = parse_policy(text)
    await service.ek_roots.refresh(service.store)  # another worker may have imported it a moment ago
    ek_roots.verify_named(text, service.ek_roots.store)
    now = service.clock()
    entry = leaf(service, "policy", now, model=policy.model, text=text, by=by)

    def write(tx: Connection) -> Json:
        version = policies.add_policy(tx, model=policy.model, text=text, now=int(now.timestamp()), by=by)
        leaves.add(tx, entry)
        return {"model": policy.model, "version": version}

    return await service.ledger.write(write)


async def list_policies(service: Service) -> list[Json]:
    """The policy in force of every model."""
    return [_policy(row) for row in await service.store.read(policies.in_force)]


async def show_policy(service: Service, model: str) -> Json:
    """One model's policy, whole. Raises: NotFound."""
    row = await service.store.read(lambda tx: policies.newest_policy(tx, model, None))
    if row is None:
        raise NotFound(expected="a model with a policy", actual=model)
    return {**_policy(row), "toml": row.text}


def _policy(row: Record) -> Json:
    created = rfc3339(datetime.fromtimestamp(row.created_at, UTC))
    return {"model": row.model, "version": row.version, "created": created, "by": row.created_by}
