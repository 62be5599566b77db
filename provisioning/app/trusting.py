"""What the owner does where the offline tokens are: keys for what comes next, bundles, the trust root itself.

The service never does any of it. Each function may be called again after a crash, and goes on from what is there.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.ceremony import protection_faults
from hsm.errors import KeyExists, KeyNotFound, KeyNotProtected, PinUnreadable, TokenUnavailable
from hsm.key import HsmEcKey
from hsm.kinds import KeyKind
from hsm.token import Token
from hsm.uri import SCHEME, Pkcs11Uri, parse_uri
from ota.bundle import anchor, publish_bundle, published_bundle, root_key_ids, rotate_trust, successor_roles
from ota.director import rotate_director_root
from ota.files import replace_file
from ota.repository import root_of
from ota.signing import keyid_of
from provisioning.app.ceremony_plan import TRUST_ROLES
from provisioning.app.ceremony_tokens import public_bytes
from provisioning.app.compose import compose
from provisioning.app.places import open_token
from provisioning.authorities import ROOT, TRUST, State, spki_of
from provisioning.config import Config, ConfigurationRefused, DataDirectory
from provisioning.db import authorities
from provisioning.db.devices import Record
from provisioning.issuance.tbs import UNPARSED, unsigned
from provisioning.refusals import ToBeSignedRefused
from provisioning.rollover import bundles, status
from provisioning.service import Service
from wire.binding import key_id
from wire.codec import encode
from wire.messages import TrustBundle

OWNER = "owner"
ONLINE, DIRECTOR = "trust-online", "director-online"
PROTOCOL_KINDS = ("command", "log", "trust", "results")
"""Keys of the agent's own envelope, of TUF, and of attestation results (ES256): P-256, always."""


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key that is there now: what the service is told of it. `public_key`: SubjectPublicKeyInfo, DER."""

    key: str
    public_key: bytes


def make_key(directory: DataDirectory, config: Config, kind: str, name: str, of: KeyKind) -> MadeKey:
    """The key of that name, made if it is not there: in the service's token, beside the root's, in each trust token.

    Of the trust keys the first is returned: the trust repository's root names all of them once they are in force.
    Raises: HsmError, KeyNotProtected, ConfigurationRefused.
    """
    if kind in PROTOCOL_KINDS:
        of = KeyKind.P256
    if kind == TRUST:
        with _trust_tokens(directory, config) as tokens:
            made = [
                MadeKey(str(Pkcs11Uri(token=role, object=name)), _made(token, name, of))
                for role, token in tokens.items()
            ]
        return made[0]
    if kind != ROOT:
        with open_token(directory, config, config.hsm.token) as token:
            return MadeKey(name, _made(token, name, of))
    place = _root_place(directory, config)
    with open_token(directory, config, str(place)) as token:
        return MadeKey(str(replace(place, object=name)), _made(token, name, of))


def _root_place(directory: DataDirectory, config: Config) -> Pkcs11Uri:
    """The token of the active root's key, or where a root's key is to lie."""
    with owner_service(directory, config) as service:
        active = [one.key for one in service.authorities.of_kind(ROOT, State.ACTIVE) if one.key]
    if active:
        return replace(parse_uri(active[0]), object=None, id=None)
    token = config.hsm.tokens.get(config.hsm.root_token, config.hsm.root_token)
    return parse_uri(token) if token.startswith(SCHEME) else Pkcs11Uri(token=token)


def _made(token: Token, name: str, of: KeyKind) -> bytes:
    """SubjectPublicKeyInfo of the key of that name, which cannot leave its token."""
    try:
        key = token.generate_key(name, of)
    except KeyExists:
        key = token.key(name)
    there = token.keys()
    faults = [fault for info in there if info.label == name for fault in protection_faults(info)]
    if faults:
        raise KeyNotProtected(f"token {token.label!r}: key {name!r} " + "; ".join(faults))
    return public_bytes(key)


@contextmanager
def _trust_tokens(directory: DataDirectory, config: Config) -> Iterator[dict[str, Token]]:
    """Every trust token, by its role: new keys are made in all of them. Raises: HsmError, ConfigurationRefused."""
    with ExitStack() as opened:
        yield {role: opened.enter_context(open_token(directory, config, role)) for role in TRUST_ROLES}


@contextmanager
def offline_signers(directory: DataDirectory, config: Config, labels: Sequence[str]) -> Iterator[list[HsmEcKey]]:
    """As many of the newest root's offline keys as it takes; tokens may lie in a safe. Raises: ConfigurationRefused.

    `labels` are what the keys may be called in their tokens: `trust`, `trust-2`, …
    """
    threshold, wanted = root_key_ids(root_of(directory.trust))
    with ExitStack() as opened:
        found: list[HsmEcKey] = []
        missing: list[str] = []
        for role in TRUST_ROLES:
            if len(found) == threshold:
                break
            try:
                token = opened.enter_context(open_token(directory, config, role))
            except (TokenUnavailable, PinUnreadable) as error:
                missing.append(f"{role}: {error}")
                continue
            keys = [token.ec_key(label) for label in labels if _has(token, label)]
            found += [key for key in keys if keyid_of(key.public_key()) in wanted]
        if len(found) < threshold:
            msg = f"of the trust tokens {threshold} must sign, and {len(found)} can"
            raise ConfigurationRefused(f"{msg}: {'; '.join(missing)}; bring the tokens and their PINs")
        yield found


def sign_cas(
    directory: DataDirectory,
    config: Config,
    tasks: Sequence[tuple[str, str, bytes]],
    say: Callable[[str], None],
) -> list[bytes]:
    """The signatures over CA certificates (subject, signer, to-be-signed bytes). Raises: as `sign_ca`."""
    with owner_service(directory, config) as service:
        return [sign_ca(service, subject, signer, tbs, say) for subject, signer, tbs in tasks]


def sign_ca(service: Service, subject: str, signer: str, tbs: bytes, say: Callable[[str], None]) -> bytes:
    """A root's signature over the certificate of a CA of ours, which is said first.

    The service wrote those bytes: it may be somebody else's by now. So they are read here, they must be a CA's, and its
    key must lie in a token of ours, or be that of a root that the trust bundle names. A CA whose key does not lie
    beside the signing root's, where the service has none, makes no further CA (path length 0).
    Raises: ToBeSignedRefused, SigningUnavailable, NotFound.
    """
    by = service.authorities.named(signer) if signer != subject else None
    row = service.store.read_now(lambda tx: authorities.named(tx, subject))
    if row is None:
        raise ToBeSignedRefused(expected="an authority of this installation", actual=subject)
    try:
        shown = x509.load_der_x509_certificate(unsigned(tbs))
        basic = shown.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = _may_name(shown)
        spki = shown.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (*UNPARSED, x509.ExtensionNotFound) as error:
        raise ToBeSignedRefused(expected="a CA's certificate", actual=type(error).__name__) from error
    if not basic.ca or spki != asyncio.run(_own_key(service, row)):
        raise ToBeSignedRefused(
            expected=f"the CA {subject}, whose key is ours", actual=f"key {key_id(spki)}, CA: {basic.ca}"
        )
    if basic.path_length != 0 and by is not None and row.key and not _is_beside(row.key, by.key):
        raise ToBeSignedRefused(expected="a CA of path length 0", actual=basic.path_length)
    say(f"{signer} signs {shown.subject.rfc4514_string()}, until {shown.not_valid_after_utc:%Y-%m-%d}, names: {names}")
    return asyncio.run(service.keys.sign(row.key if by is None else by.key, tbs))


def _may_name(ca: x509.Certificate) -> str:
    """Its name constraints, in words."""
    try:
        found = ca.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return "any"
    only, never = (
        ", ".join(str(name.value) for name in names or ())
        for names in (found.permitted_subtrees, found.excluded_subtrees)
    )
    return "; ".join(words for words in (f"only {only}" if only else "", f"never {never}" if never else "") if words)


def _is_beside(key: str, other: str) -> bool:
    """Do both keys lie in one token? A bare label is the service's token."""
    if not (key.startswith(SCHEME) and other.startswith(SCHEME)):
        return False
    return replace(parse_uri(key), object=None, id=None) == replace(parse_uri(other), object=None, id=None)


async def _own_key(service: Service, row: Record) -> bytes:
    """The key in our token; of a root that is somebody else's, the key that the published bundle names."""
    if row.key:
        return (await service.keys.adopt(row.key)).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    named = published_bundle(service.directory.trust).ca_roots
    return spki_of(row.certificate) if row.certificate in named else b""


@contextmanager
def owner_service(directory: DataDirectory, config: Config) -> Iterator[Service]:
    """The service's parts in this process, with what is on record of keys and bundles."""
    with compose(directory, config) as service:
        asyncio.run(_on_record(service))
        yield service


async def _on_record(service: Service) -> None:
    await bundles.note_first_keys(service)
    await bundles.note_published(service, OWNER)


def publish_changes(
    directory: DataDirectory, config: Config, agree: Callable[[dict[str, Any]], None]
) -> tuple[int, bool]:
    """The next bundle, where it says something else, and who is asked agrees: its version, and whether it is new.

    Raises: ConfigurationRefused, HsmError, UpdateRefused; what `agree` raises.
    """
    with owner_service(directory, config) as service:
        before = published_bundle(directory.trust)
        rows = service.store.read_now(authorities.every)
        wanted = status.difference(before, bundles.wanted_bundle(before, rows))
        if wanted is None:
            return before.version, False
        agree(wanted)
        return _publish_next(directory, config, service), True


def publish(directory: DataDirectory, config: Config, *, image_root: bytes | None = None) -> int:
    """The next bundle, signed by the offline keys and put on record; the devices are told. Its version.

    Raises: ConfigurationRefused, HsmError, UpdateRefused.
    """
    with owner_service(directory, config) as service:
        return _publish_next(directory, config, service, image_root)


def _publish_next(directory: DataDirectory, config: Config, service: Service, image_root: bytes | None = None) -> int:
    before = published_bundle(directory.trust)
    wanted = bundles.wanted_bundle(before, service.store.read_now(authorities.every))
    wanted = replace(wanted, version=before.version + 1, image_root=image_root or before.image_root)
    with offline_signers(directory, config, _generations(service)) as signers:
        _publish(directory, service, wanted, signers, service.clock())
    return wanted.version


def _publish(
    directory: DataDirectory, service: Service, bundle: TrustBundle, signers: Sequence[HsmEcKey], now: datetime
) -> None:
    publish_bundle(directory.trust, bundle, [*signers, service.keys.key(ONLINE)], now)
    asyncio.run(bundles.note_published(service, OWNER))


def rotate_root(directory: DataDirectory, config: Config, name: str) -> int:
    """The trust root with the prepared keys of that name: signed by the old threshold and the new one, everywhere.

    The trust repository's root, then the Director's (the same people hold both), then a bundle that names the
    Director's new root, then the anchor for new devices. Returns the bundle's version.
    Raises: ConfigurationRefused, HsmError, UpdateRefused.
    """
    with owner_service(directory, config) as service, ExitStack() as opened:
        now = service.clock()
        tokens = opened.enter_context(_trust_tokens(directory, config))
        new = [token.ec_key(name) for token in tokens.values()]
        labels = [label for label in _generations(service) if label != name]
        old = [token.ec_key(label) for label in labels for token in tokens.values() if _has(token, label)]
        online, director = service.keys.key(ONLINE), service.keys.key(DIRECTOR)
        public = [key.public_key() for key in new]
        rotate_trust(directory.trust, public, [*old, *new, online], online.public_key(), now)
        path = _newest_director_root(directory)
        roles = successor_roles(path.read_bytes(), public, director.public_key())
        if roles is not None:
            number = int(path.name.split(".")[0]) + 1
            data = rotate_director_root(path.read_bytes(), roles, [*old, *new], now)
            path = path.with_name(f"{number}.root.json")
            replace_file(path, data)
        before = published_bundle(directory.trust)
        if before.director_root != path.read_bytes():
            wanted = bundles.wanted_bundle(before, service.store.read_now(authorities.every))
            wanted = replace(wanted, version=before.version + 1, director_root=path.read_bytes())
            _publish(directory, service, wanted, new, now)
    replace_file(directory.anchor, encode(anchor(directory.trust)))
    return published_bundle(directory.trust).version


def _generations(service: Service) -> list[str]:
    """What the trust keys may be called in their tokens, the oldest first."""
    return [row.name for row in service.store.read_now(lambda tx: authorities.of_kind(tx, TRUST))]


def _has(token: Token, label: str) -> bool:
    try:
        token.key(label)
    except KeyNotFound:
        return False
    return True


def _newest_director_root(directory: DataDirectory) -> Path:
    roots = (directory.director / "metadata").glob("*.root.json")
    return max(roots, key=lambda path: int(path.name.split(".")[0]))
