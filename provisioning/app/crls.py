"""CRLs for the owner's commands: what is published, and a new one by hand."""

from collections.abc import Mapping, Sequence

from provisioning import crls, revoking
from provisioning.app.compose import compose
from provisioning.config import Config, DataDirectory
from provisioning.issuance.revocation import parse_crl
from wire.codec import rfc3339

OWNER = "owner"


def published(directory: DataDirectory) -> Sequence[Mapping[str, object]]:
    """The CRLs as they lie there. Not proven: that they are authentic. Raises: OSError, ValueError."""
    return [_described(path.stem, path.read_bytes()) for path in sorted(directory.ca.glob("*.crl"))]


async def sign_now(
    directory: DataDirectory, config: Config, name: str, revoke: str, reason: str
) -> Mapping[str, object]:
    """Sign an authority's next CRL, with one more CA certificate in it where `revoke` names one.

    Raises: NotFound, StateConflict, SigningUnavailable, StorageUnavailable, ConfigurationRefused, HsmError.
    """
    with compose(directory, config) as service:
        authority = service.authorities.named(name)
        if revoke:
            await revoking.revoke_authority(service, revoke, reason, by=OWNER)
        return _described(name, await crls.sign_by_hand(service, authority))


def _described(name: str, der: bytes) -> Mapping[str, object]:
    crl = parse_crl(der)
    until = crl.parsed.next_update_utc
    return {
        "authority": name,
        "number": crl.number,
        "this_update": rfc3339(crl.parsed.last_update_utc),
        "next_update": None if until is None else rfc3339(until),
        "entries": len(crl.parsed),
    }
