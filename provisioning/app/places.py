"""Where keys are: labels, PKCS#11 URIs and the configuration made into modules, tokens and keys in them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hsm.errors import ModuleUnusable, PinUnreadable, UriRefused
from hsm.module import ModuleSettings, TokenName
from hsm.softhsm import settings, write_configuration
from hsm.token import Token
from hsm.uri import SCHEME, Pkcs11Uri, parse_uri
from provisioning.app.pins import pin_reader
from provisioning.config import Config, ConfigurationRefused, DataDirectory, Pkcs11Module


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """A token: its module, its name there, and where its PIN is read. It does not say that it is there."""

    module: ModuleSettings
    name: TokenName
    read_pin: Callable[[], str]

    @property
    def identity(self) -> tuple[Path, str, TokenName]:
        """Equal for what is opened once."""
        return self.module.path.resolve(), str(self.module.identity), self.name

    def __str__(self) -> str:
        return f"token {self.name} in {self.module.path}"


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """A key in a token, by label, id, or both."""

    token: TokenPlace
    label: str | None
    id: bytes | None


def token_place(directory: DataDirectory, config: Config, token: str) -> TokenPlace:
    """A token by its name in `hsm.tokens`, by its label in the default module, or by a PKCS#11 URI.

    Raises: ConfigurationRefused, HsmError.
    """
    token = config.hsm.tokens.get(token, token)
    if not token.startswith(SCHEME):
        return _labelled(directory, config, token)
    uri = _parsed(token)
    if uri.object is not None or uri.id is not None:
        raise ConfigurationRefused(f"{token}: names a key, and a token is wanted; leave out object and id")
    return _of_uri(directory, config, uri)


def key_places(directory: DataDirectory, config: Config, key: str) -> list[KeyPlace]:
    """Where this key is, in the order in which it is looked for there.

    `key` stands in the configuration's `hsm.keys`; or it is a label in the service's token; or a PKCS#11 URI, which
    means the service's token where it names none. Such a URI may come out of the database: it names no module that
    the configuration does not describe. Raises: ConfigurationRefused, HsmError.
    """
    described = {config.hsm.module, *(module.path for module in config.hsm.modules.values())}
    places = []
    for text in config.hsm.keys.get(key, (key,)):
        if not text.startswith(SCHEME):
            places.append(KeyPlace(token_place(directory, config, config.hsm.token), text, None))
            continue
        uri = _parsed(text)
        if uri.object is None and uri.id is None:
            raise ConfigurationRefused(f"{text}: names no key; add object=LABEL or id=%..")
        if key not in config.hsm.keys and uri.module_path not in (None, *described):
            raise ConfigurationRefused(f"{text}: the configuration describes no such module; add it to hsm.modules")
        places.append(KeyPlace(_of_uri(directory, config, uri), uri.object, uri.id))
    if not places:
        raise ConfigurationRefused(f"hsm.keys.{key}: names no place; write a PKCS#11 URI, or remove it")
    return places


def token_places(directory: DataDirectory, config: Config) -> list[TokenPlace]:
    """Every token that the configuration names, and those whose PIN lies in the data directory."""
    labels = [config.hsm.token]
    labels += sorted(path.stem for path in directory.secrets.glob("*.pin"))
    found = [token_place(directory, config, label) for label in labels]
    found += [place.token for key in config.hsm.keys for place in key_places(directory, config, key)]
    return list({place.identity: place for place in found}.values())


def module_settings(directory: DataDirectory, config: Config) -> ModuleSettings:
    """The default module: the configured one, or SoftHSM2 with the tokens in the data directory."""
    if config.hsm.module in config.hsm.modules:
        return _configured(directory, config.hsm.modules[config.hsm.module])
    if config.hsm.module:
        return _configured(directory, Pkcs11Module(config.hsm.module, config.hsm.locking))
    write_configuration(directory.tokens)
    return settings(directory.tokens)


def open_token(directory: DataDirectory, config: Config, token: str) -> Token:
    """A token, by label or URI, logged in. Raises: HsmError, ConfigurationRefused, OSError."""
    opened = closed_token(token_place(directory, config, token), config)
    opened.open()
    return opened


def closed_token(place: TokenPlace, config: Config) -> Token:
    """The token of this place, not opened yet."""
    return Token(place.module, place.name, place.read_pin, sessions=config.hsm.sessions)


def _labelled(directory: DataDirectory, config: Config, label: str) -> TokenPlace:
    return TokenPlace(module_settings(directory, config), TokenName(label), _pin(directory, config, label, None))


def _of_uri(directory: DataDirectory, config: Config, uri: Pkcs11Uri) -> TokenPlace:
    if uri.token is None and uri.serial is None:
        if uri.manufacturer or uri.model or uri.module_name or uri.module_path or uri.pin_source:
            raise ConfigurationRefused(f"{uri}: names no token; add token=LABEL or serial=…")
        return token_place(directory, config, config.hsm.token)
    name = TokenName(uri.token, uri.serial, uri.manufacturer, uri.model)
    called = uri.token if uri.token is not None else str(uri.serial)
    return TokenPlace(_module(directory, config, uri), name, _pin(directory, config, called, uri.pin_source))


def _module(directory: DataDirectory, config: Config, uri: Pkcs11Uri) -> ModuleSettings:
    if uri.module_name is not None:
        if uri.module_name not in config.hsm.modules:
            raise ConfigurationRefused(f"{uri}: hsm.modules has no {uri.module_name!r}; describe the module there")
        return _configured(directory, config.hsm.modules[uri.module_name])
    if uri.module_path is None:
        return module_settings(directory, config)
    described = [module for module in config.hsm.modules.values() if module.path == uri.module_path]
    if len(described) > 1:
        raise ConfigurationRefused(f"{uri}: hsm.modules describes this path more than once; say module-name")
    return _configured(directory, described[0] if described else Pkcs11Module(uri.module_path))


def _configured(directory: DataDirectory, module: Pkcs11Module) -> ModuleSettings:
    path, environment = Path(module.path), dict(module.environment)
    if not path.is_file():
        raise ModuleUnusable(f"{path}: there is no such PKCS#11 module; install it, or correct the configuration")
    if "softhsm" in path.name and "SOFTHSM2_CONF" not in environment:
        write_configuration(directory.tokens)
        environment |= settings(directory.tokens, path).environment
    return ModuleSettings(
        path, module.locking, environment, session_copies=module.session_copies, reserved=module.reserved
    )


def _pin(directory: DataDirectory, config: Config, token: str, source: str | None) -> Callable[[], str]:
    said = source or config.hsm.pins.get(token)
    if said is None:
        said = str(directory.pin(token))
    # RFC 7512, section 2.4: pin-source may be a bare path.
    reader = pin_reader(f"file:{said}" if said.startswith("/") else said, token)

    def read() -> str:
        try:
            return reader()
        except ConfigurationRefused as refused:
            raise PinUnreadable(str(refused)) from None

    return read


def _parsed(text: str) -> Pkcs11Uri:
    try:
        return parse_uri(text)
    except UriRefused as refused:
        raise ConfigurationRefused(f"{text.partition('?')[0]}: {refused}; correct the PKCS#11 URI") from refused
