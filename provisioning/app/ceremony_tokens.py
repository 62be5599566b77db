"""The tokens of a ceremony: examined before anything is made, opened, and their keys made together or not at all."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.ceremony import Making, check_protection, kinds_not_made, remove_keys, token_facts
from hsm.errors import HsmError, KeyNotProtected
from hsm.key import HsmKey
from hsm.kinds import KeyKind, kind_of
from hsm.softhsm import PIN_CHARACTERS, create_token, find_module
from hsm.token import Token
from hsm.uri import Pkcs11Uri, parse_uri
from ota.files import replace_file
from provisioning.app.ceremony_plan import Ceremony, PlannedToken
from provisioning.app.ceremony_transcript import ATTRIBUTES, KeyRecord, TokenRecord, key_sha256
from provisioning.app.pins import pin_reader
from provisioning.app.places import closed_token, token_place
from provisioning.config import Config, ConfigurationRefused, DataDirectory

PIN_BYTES = 18


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked at before anything is made: one line, and what is wrong with it."""

    what: str
    fault: str = ""


def examine(ceremony: Ceremony, config: Config) -> list[Looked]:
    """Everything about the tokens that can be found out without writing. A wrong PIN is tried once."""
    with tempfile.TemporaryDirectory() as scratch:  # for what a module wants to be configured by
        return list(_looked(DataDirectory(Path(scratch)), config, ceremony))


def _looked(directory: DataDirectory, config: Config, ceremony: Ceremony) -> Iterator[Looked]:
    for token in ceremony.tokens:
        who = f"token {token.role} ({token.label})"
        try:
            yield from [Looked(f"{who}: {what}") for what in _looked_at(directory, config, ceremony, token)]
        except (HsmError, ConfigurationRefused, OSError) as error:
            yield Looked(who, str(error))


def _looked_at(directory: DataDirectory, config: Config, ceremony: Ceremony, planned: PlannedToken) -> Iterator[str]:
    keys = [key for key in ceremony.keys if key.token == planned.role]
    if planned.is_made:
        yield f"SoftHSM2, {find_module()}"
        if planned.pin:
            characters = len(pin_reader(planned.pin, planned.label)())
            if characters not in PIN_CHARACTERS:
                raise ConfigurationRefused(
                    f"the PIN has {characters} characters, not {PIN_CHARACTERS.start} to {PIN_CHARACTERS.stop - 1}"
                )
            yield "its PIN can be read"
        return
    with _closed(directory, config, planned) as token:
        facts = token_facts(token)
        yield f"logged in; {facts.manufacturer} {facts.model}, serial {facts.serial}, firmware {facts.firmware}"
        if missing := kinds_not_made(token, {KeyKind(key.kind) for key in keys}):
            raise HsmError(f"it makes no key of kind {', '.join(missing)}")
        there = check_protection(token)
        taken = sorted({key.label for key in there} & {key.label for key in keys})
        if taken:
            raise HsmError(f"it has a key {', '.join(map(repr, taken))} already: remove it, or take another token")
        yield f"no key {', '.join(key.label for key in keys)} is there yet"


@contextmanager
def opened(directory: DataDirectory, config: Config, ceremony: Ceremony, *, make: bool) -> Iterator[dict[str, Token]]:
    """The tokens by their roles, logged in. `make`: those that the plan makes are made now.

    Raises: HsmError, ConfigurationRefused, OSError.
    """
    with ExitStack() as stack:
        tokens: dict[str, Token] = {}
        for planned in ceremony.tokens:
            if make and planned.is_made:
                _make(directory, planned)
            if make and planned.keeps_pin:
                pin = pin_reader(planned.pin, planned.label)
                replace_file(directory.pin(planned.label), pin().encode(), mode=0o600)
            tokens[planned.role] = stack.enter_context(_closed(directory, config, planned))
        yield tokens


@contextmanager
def made_keys(ceremony: Ceremony, tokens: dict[str, Token]) -> Iterator[dict[str, HsmKey]]:
    """The keys by their labels (`trust-1` is the trust key of that token); destroyed, where what follows fails.

    Raises: KeyNotProtected, which names every key that could leave its token; HsmError.
    """
    with Making() as making:
        keys = {
            _name(planned.token, planned.label): making.make(
                tokens[planned.token], planned.label, KeyKind(planned.kind)
            )
            for planned in ceremony.keys
        }
        refuse_unprotected(tokens)
        yield keys


def found_keys(ceremony: Ceremony, tokens: dict[str, Token]) -> dict[str, HsmKey]:
    """The same keys, made earlier. Raises: KeyNotFound, KeyNotProtected, HsmError."""
    refuse_unprotected(tokens)
    return {_name(key.token, key.label): tokens[key.token].key(key.label) for key in ceremony.keys}


def refuse_unprotected(tokens: dict[str, Token]) -> None:
    """Every key of every token must be protected. Raises: KeyNotProtected, with all that are not."""
    faults = []
    for token in tokens.values():
        try:
            check_protection(token)
        except KeyNotProtected as error:
            faults.append(str(error))
    if faults:
        raise KeyNotProtected("; ".join(faults))


def token_records(directory: DataDirectory, ceremony: Ceremony, tokens: dict[str, Token]) -> tuple[TokenRecord, ...]:
    """What the transcript says of the tokens."""
    records = []
    for planned in ceremony.tokens:
        facts = token_facts(tokens[planned.role])
        place = _folder(directory, facts.serial) if planned.is_made else ""
        records.append(
            TokenRecord(
                planned.role,
                facts.label,
                facts.serial,
                facts.manufacturer,
                facts.model,
                facts.hardware,
                facts.firmware,
                facts.module,
                planned.offline,
                place,
            )
        )
    return tuple(records)


def key_records(ceremony: Ceremony, keys: dict[str, HsmKey]) -> tuple[KeyRecord, ...]:
    """What the transcript says of the keys, whose protection was checked."""
    records = []
    for planned in ceremony.keys:
        public = keys[_name(planned.token, planned.label)].public_key()
        record = KeyRecord(
            planned.token, planned.label, kind_of(public), planned.purpose, key_sha256(public), ATTRIBUTES
        )
        if record.kind != planned.kind:
            raise HsmError(f"token {planned.token!r} made a key {planned.label!r} of kind {record.kind}")
        records.append(record)
    return tuple(records)


def key_uri(planned: PlannedToken, label: str) -> str:
    """A key of this token, for who finds it later (RFC 7512)."""
    uri = Pkcs11Uri(token=planned.label) if planned.is_made else parse_uri(planned.uri)
    return str(replace(uri, object=label))


def destroy_keys(ceremony: Ceremony, config: Config) -> list[str]:
    """Destroy the ceremony's keys in tokens that were there before it. What was destroyed.

    Raises: HsmError, ConfigurationRefused, OSError.
    """
    gone = []
    with tempfile.TemporaryDirectory() as scratch:
        for planned in ceremony.tokens:
            if not planned.is_made:
                with _closed(DataDirectory(Path(scratch)), config, planned) as token:
                    labels = [key.label for key in ceremony.keys if key.token == planned.role]
                    gone += [f"{planned.label}/{label}" for label in labels if remove_keys(token, label)]
    return gone


def _closed(directory: DataDirectory, config: Config, planned: PlannedToken) -> Token:
    if planned.keeps_pin and not planned.is_made:
        # The configuration names the file that the service will read; here and now the person is asked.
        pins = {**config.hsm.pins, planned.label: planned.pin}
        config = replace(config, hsm=replace(config.hsm, pins=pins))
    return closed_token(token_place(directory, config, planned.uri or planned.label), config)


def _make(directory: DataDirectory, planned: PlannedToken) -> None:
    """A SoftHSM2 token. The security officer's PIN is forgotten: a user PIN that is lost is lost with its keys."""
    so_pin = secrets.token_urlsafe(PIN_BYTES)
    if not planned.pin:
        pin = secrets.token_urlsafe(PIN_BYTES)
        replace_file(directory.pin(planned.label), pin.encode(), mode=0o600)
        create_token(directory.tokens, planned.label, pin, so_pin)
        return
    create_token(directory.tokens, planned.label, pin_reader(planned.pin, planned.label)(), so_pin)


def _folder(directory: DataDirectory, serial: str) -> str:
    """SoftHSM2 names a token's folder by a UUID whose last digits are the serial number."""
    for folder in sorted((directory.tokens / "tokens").iterdir()):
        if folder.name.replace("-", "").endswith(serial):
            return str(folder.relative_to(directory.root))
    return ""


def public_bytes(key: HsmKey) -> bytes:
    """SubjectPublicKeyInfo of a key's public half, DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _name(role: str, label: str) -> str:
    return role if role.startswith("trust-") else label
