"""The operator listener's routes for what rolls over (`rollover`): the handlers and the bodies that they take."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from provisioning.http.exchange import query
from provisioning.refusals import RequestMalformed
from provisioning.rollover import bundles, change, prepare, status
from wire.binding import key_id
from wire.codec import Cap

if TYPE_CHECKING:
    from provisioning.db.devices import Record
    from provisioning.http.operator import Asked

PAGE = 500
Der = Annotated[bytes, Cap(16 * 1024)]


@dataclass(frozen=True, slots=True)
class NewAuthority:
    """`kind`: root, issuing, command, log, trust."""

    kind: Annotated[str, Cap(32)]


@dataclass(frozen=True, slots=True)
class NewKey:
    """`key`: a label in the service's token, or a PKCS#11 URI. `public_key` where the service does not reach it."""

    key: Annotated[str, Cap(512)]
    public_key: Annotated[bytes, Cap(2048)] | None = None


@dataclass(frozen=True, slots=True)
class NewSignature:
    """A root's signature over a CA certificate that waits for it."""

    signature: Annotated[bytes, Cap(1024)]


@dataclass(frozen=True, slots=True)
class NewChain:
    """An outside CA's certificate for the key, and those above it up to its root, DER."""

    chain: Annotated[tuple[Der, ...], Cap(9)]


@dataclass(frozen=True, slots=True)
class Change:
    """`force`: although devices depend on what was."""

    force: bool = False


@dataclass(frozen=True, slots=True)
class Rotations:
    """`most`: so many devices at once."""

    most: int = 1000


async def show(asked: "Asked") -> object:
    """Everything, and what may be done next."""
    return await status.show(asked.call.service)


async def show_one(asked: "Asked") -> object:
    """Who depends on one, a page at a time."""
    fields = query(asked.call.request, "certificates", "without_bundle")
    after = (fields.get("certificates", "")[:128], fields.get("without_bundle", "")[:128])
    return await status.dependents(asked.call.service, asked.name, *after, PAGE)


async def begin(asked: "Asked") -> object:
    """Prepare the next one of a kind."""
    return _shown(await prepare.prepare(asked.call.service, asked.body.kind, by=asked.operator.name))


async def note_key(asked: "Asked") -> object:
    """Say which key it is."""
    body, service = asked.body, asked.call.service
    return _shown(await prepare.note_key(service, asked.name, body.key, body.public_key, by=asked.operator.name))


async def tasks(asked: "Asked") -> object:
    """What waits for a root's signature."""
    return {"tasks": await prepare.tasks(asked.call.service, asked.name)}


async def take_signature(asked: "Asked") -> object:
    """One of these signatures; the path names the certificate's serial."""
    return _shown(await prepare.take_signature(asked.call.service, asked.name, asked.body.signature))


async def request(asked: "Asked") -> object:
    """The request for an outside CA, PKCS #10 in DER."""
    return {"request": await prepare.request_of(asked.call.service, asked.name)}


async def take_outside(asked: "Asked") -> object:
    """What the outside CA made of it."""
    chain = asked.body.chain
    if not chain:
        raise RequestMalformed(expected="a certificate, and those above it", actual="none")
    return _shown(await prepare.take_outside(asked.call.service, asked.name, chain, by=asked.operator.name))


async def note_published(asked: "Asked") -> object:
    """The trust repository has a new bundle: put it on record, and tell the devices."""
    version = await bundles.note_published(asked.call.service, asked.operator.name)
    return {"version": asked.call.service.authorities.bundle_version, "new": version is not None}


async def activate(asked: "Asked") -> object:
    """It signs from now on."""
    force = asked.body.force
    return _shown(await change.activate(asked.call.service, asked.name, force=force, by=asked.operator.name))


async def retire(asked: "Asked") -> object:
    """It signs nothing any more."""
    force = asked.body.force
    return _shown(await change.retire(asked.call.service, asked.name, force=force, by=asked.operator.name))


async def rotate(asked: "Asked") -> object:
    """Have devices rotate whose certificate is of one that retires."""
    if asked.body.most < 1:
        raise RequestMalformed(expected="at least 1", actual=asked.body.most)
    ordered = await change.rotate(asked.call.service, asked.name, asked.body.most, by=asked.operator.name)
    return {"name": asked.name, "ordered": ordered}


def _shown(row: "Record") -> object:
    return {
        "name": row.name,
        "kind": row.kind,
        "state": row.state,
        "place": row.key or None,
        "key": key_id(row.public_key) if row.public_key else None,
        "certificate": bool(row.certificate),
    }
