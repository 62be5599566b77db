"""A publisher's own folder: signing tokens, and the image repository. None of it is the service's.

`tokens/` and `secrets/` hold SoftHSM2 tokens with their PINs; keys in another HSM are named by PKCS#11 URIs instead.
`image/` is the TUF repository as it is uploaded.
"""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hsm.ceremony import check_protection
from hsm.errors import UriRefused
from hsm.key import HsmEcKey
from hsm.module import ModuleSettings
from hsm.softhsm import create_token, settings, write_configuration
from hsm.token import Token
from hsm.uri import Pkcs11Uri, parse_uri
from ota.files import replace_file
from ota.publishing import init_image_repository
from provisioning.cli.failures import Failed, Mistaken

ROOT_TOKENS = ("image-1", "image-2", "image-3")
ROOT_KEY, ROOT_THRESHOLD = "image-root", 2
PUBLISHER_TOKEN = "publisher"  # noqa: S105  a token's label
TARGETS_KEY, ONLINE_KEY = "image-targets", "image-online"
PIN_BYTES = 18
_LOCAL_KEYS = (
    *((token, ROOT_KEY) for token in ROOT_TOKENS),
    (PUBLISHER_TOKEN, TARGETS_KEY),
    (PUBLISHER_TOKEN, ONLINE_KEY),
)


@dataclass(frozen=True, slots=True)
class Publisher:
    """Where each thing lies in a publisher's folder."""

    root: Path

    @property
    def image(self) -> Path:
        """The image repository."""
        return self.root / "image"

    @property
    def tokens(self) -> Path:
        """SoftHSM2's tokens."""
        return self.root / "tokens"

    @property
    def root_file(self) -> Path:
        """The repository's first root, for the service's trust bundle."""
        return self.image / "metadata" / "1.root.json"

    def pin(self, token: str) -> Path:
        """The PIN's file of a local token."""
        return self.root / "secrets" / f"{token}.pin"

    def verify_made(self) -> None:
        """Is there a repository? Raises: Failed."""
        if not (self.image / "metadata").is_dir():
            raise Failed(f"{self.root}: holds no image repository; make one: muster ota init")


def now() -> datetime:
    """The system's clock, UTC."""
    return datetime.now(UTC)


def make(publisher: Publisher) -> None:
    """Tokens, keys and an empty repository, whole or not at all. Raises: Failed, HsmError, UpdateRefused, OSError."""
    place = publisher.root
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise Failed(f"{place}: is there already and not empty; take another --repository")
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        _fill(Publisher(made))
        if place.exists():
            place.rmdir()
        made.rename(place)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    write_configuration(publisher.tokens)


def _fill(publisher: Publisher) -> None:
    (publisher.root / "secrets").mkdir(mode=0o700)
    with ExitStack() as opened:
        keys: dict[tuple[str, str], HsmEcKey] = {}
        for label in (*ROOT_TOKENS, PUBLISHER_TOKEN):
            pin = secrets.token_urlsafe(PIN_BYTES)
            replace_file(publisher.pin(label), pin.encode(), mode=0o600)
            # The security officer's PIN is forgotten: nobody resets the user's PIN of these tokens.
            create_token(publisher.tokens, label, pin, secrets.token_urlsafe(PIN_BYTES))
        for label in (*ROOT_TOKENS, PUBLISHER_TOKEN):
            token = Token(settings(publisher.tokens), label, pin_reader(publisher.pin(label)), sessions=1)
            opened.enter_context(token)
            for of, name in _LOCAL_KEYS:
                if of == label:
                    keys[of, name] = token.generate_ec_key(name)
            check_protection(token)
        roots = [keys[label, ROOT_KEY] for label in ROOT_TOKENS]
        targets, online = keys[PUBLISHER_TOKEN, TARGETS_KEY], keys[PUBLISHER_TOKEN, ONLINE_KEY]
        init_image_repository(
            publisher.image,
            root_keys=[key.public_key() for key in roots],
            root_threshold=ROOT_THRESHOLD,
            targets_key=targets.public_key(),
            online_key=online.public_key(),
            signers=(*roots[:ROOT_THRESHOLD], targets, online),
            now=now(),
        )


@contextmanager
def opened_keys(publisher: Publisher, uris: Sequence[str]) -> Iterator[list[HsmEcKey]]:
    """The keys that sign: those of the URIs, or all local ones whose PIN is there. Raises: Failed, HsmError."""
    wanted = [_named(publisher, uri) for uri in uris] if uris else list(_local(publisher))
    with ExitStack() as opened:
        tokens: dict[tuple[Path, str, str | None], Token] = {}
        keys = []
        for key in wanted:
            place = (key.module.path, key.token, key.serial)
            if place not in tokens:
                token = Token(key.module, key.token, key.read_pin, sessions=1, serial=key.serial)
                tokens[place] = opened.enter_context(token)
            keys.append(tokens[place].ec_key(key.label))
        yield keys


def pin_reader(path: Path) -> Callable[[], str]:
    """A reader of a PIN file. It refuses one that others can read. Raises: Failed, OSError."""
    if path.stat().st_mode & 0o077:
        raise Failed(f"{path}: others may read this PIN; mend it: chmod 600 {path}")
    return lambda: path.read_text(encoding="utf-8").strip()


@dataclass(frozen=True, slots=True)
class _Key:
    module: ModuleSettings
    token: str
    serial: str | None
    label: str
    read_pin: Callable[[], str]


def _local(publisher: Publisher) -> Iterator[_Key]:
    """Root keys are offline between ceremonies: a token whose PIN is kept elsewhere does not sign."""
    if not publisher.tokens.is_dir():
        raise Failed(f"{publisher.root}: holds no tokens; name the keys: --key 'pkcs11:token=…;object=…?pin-source=…'")
    write_configuration(publisher.tokens)
    for token, label in _LOCAL_KEYS:
        if publisher.pin(token).is_file():
            yield _Key(settings(publisher.tokens), token, None, label, pin_reader(publisher.pin(token)))


def _named(publisher: Publisher, text: str) -> _Key:
    try:
        uri = parse_uri(text)
    except UriRefused as error:
        raise Mistaken(f"--key: {error}; write pkcs11:token=…;object=…?pin-source=file:/…") from error
    if uri.token is None or uri.object is None or uri.id or uri.manufacturer or uri.model or uri.module_name:
        raise Mistaken("--key: name token and object, and nothing else but serial, pin-source and module-path")
    return _Key(_module(publisher, uri), uri.token, uri.serial, uri.object, _pin(publisher, uri, uri.token))


def _pin(publisher: Publisher, uri: Pkcs11Uri, token: str) -> Callable[[], str]:
    if uri.pin_source is not None and uri.pin_path() is None:
        from provisioning.app.pins import pin_reader as reader_of

        return reader_of(uri.pin_source, token)
    pin = uri.pin_path()
    path = publisher.pin(token) if pin is None else Path(pin)
    if not path.is_file():
        raise Failed(f"{path}: no PIN of token {token!r} there; name it in the URI: ?pin-source=file:/…")
    return pin_reader(path)


def _module(publisher: Publisher, uri: Pkcs11Uri) -> ModuleSettings:
    module = None if uri.module_path is None else Path(uri.module_path)
    if module is not None and "softhsm" not in module.name:
        # p11-kit-client takes C_Initialize(NULL) only.
        return ModuleSettings(module, locking="null" if module.name.startswith("p11-kit-client") else "os")
    write_configuration(publisher.tokens)
    return settings(publisher.tokens, module)
