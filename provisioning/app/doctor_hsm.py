"""The doctor's look at tokens and keys."""

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.ceremony import protection_faults
from hsm.errors import HsmError, KeyNotFound
from hsm.token import Token
from ota.bundle import published_bundle
from provisioning.app.ceremony_plan import TRUST_ROLES
from provisioning.app.compose import needed_keys
from provisioning.app.doctor_ca import authorities_of
from provisioning.app.findings import FAIL, OK, WARN, Finding, Findings
from provisioning.app.places import KeyPlace, TokenPlace, closed_token, key_places
from provisioning.authorities import COMMAND, ISSUING, LOG, Authorities, State
from provisioning.config import Config, DataDirectory
from wire.messages import TrustBundle

RESTORE = "restore the token that belongs to this data directory"
STANDBY = "look: muster hsm test; until then nothing stands in for the first token"


def tokens(directory: DataDirectory, config: Config) -> Findings:
    """Are the service's keys in their tokens, unable to leave, and the ones that certificates and bundle name?"""
    authorities = authorities_of(directory, config)
    places = {name: key_places(directory, config, name) for name in needed_keys(authorities)}
    of_token: dict[object, tuple[TokenPlace, list[tuple[str, KeyPlace, bool]]]] = {}
    for name, several in places.items():
        for place in several:
            keys = of_token.setdefault(place.token.identity, (place.token, []))[1]
            keys.append((name, place, place is several[0]))
    found: dict[str, bytes] = {}
    for token, keys in of_token.values():
        yield from _token(token, keys, config, found)
    if missing := sorted(set(places) - set(found)):
        yield Finding("HSM", FAIL, f"key {', '.join(missing)} is in no token", RESTORE)
    elif wrong := _misnamed(authorities, found, published_bundle(directory.trust)):
        says = f"key {', '.join(wrong)} is not the one that certificate or bundle names"
        yield Finding("HSM", FAIL, says, RESTORE)


def offline_keys(directory: DataDirectory, config: Config) -> Findings:
    """Do the keys that are to be kept elsewhere lie here?"""
    beside = [label for label in (config.hsm.root_token, *TRUST_ROLES) if directory.pin(label).is_file()]
    if beside:
        says = f"the PINs of {', '.join(beside)} lie beside the service: good for a trial"
        yield Finding(
            "offline keys", WARN, says, f"in production move them off this machine: {directory.secrets}/*.pin"
        )
        return
    yield Finding("offline keys", OK, "the PINs of root and trust keys are not here")


def _token(
    place: TokenPlace, keys: list[tuple[str, KeyPlace, bool]], config: Config, found: dict[str, bytes]
) -> Findings:
    """One token, opened. It only stands by where every key in it is in another one first."""
    stands_by = not any(first for _, _, first in keys)
    token = closed_token(place, config)
    try:
        token.open()
    except HsmError as error:
        if not stands_by:
            raise
        yield Finding("HSM", WARN, f"{place}: {error}", STANDBY)
        return
    with token:
        faults = [f"key {key.label!r} {fault}" for key in token.keys() for fault in protection_faults(key)]  # noqa: SIM118 (no dict)
        if faults:
            # A second token has its keys from the first: a copy was brought in, and could leave the first one once.
            cure = "plan the change of these keys" if not stands_by else "a copy of another token's key is so"
            yield Finding("HSM", WARN if stands_by else FAIL, f"{place}: {'; '.join(faults)}", cure)
        for name, where, _ in keys:
            yield from _key(token, name, where, found)
        if not faults:
            yield Finding("HSM", OK, f"{place}: logged in; {len(token.keys())} keys, none can leave it")


def _key(token: Token, name: str, where: KeyPlace, found: dict[str, bytes]) -> Findings:
    try:
        public = _spki(token.key(where.label, identity=where.id).public_key())
    except KeyNotFound:
        if name in found:
            yield Finding("HSM", WARN, f"{where.token}: has no key {name!r}", STANDBY)
        return
    if found.setdefault(name, public) != public:
        yield Finding("HSM", FAIL, f"{where.token}: its key {name!r} is not that of the first token", RESTORE)


def _misnamed(authorities: Authorities, found: dict[str, bytes], bundle: TrustBundle) -> list[str]:
    issuing = authorities.of_kind(ISSUING, State.ACTIVE)
    wrong = [one.key for one in issuing if one.key and found[one.key] != one.spki]
    named = {COMMAND: bundle.command_keys, LOG: bundle.log_keys}
    keys = {kind: authorities.signing_key(kind) for kind in named}
    return wrong + [keys[kind] for kind, known in named.items() if found[keys[kind]] not in known]


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]  # any public key
