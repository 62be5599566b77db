"""The text of `muster.toml` that a ceremony's answers make."""

import json
from collections.abc import Mapping

from hsm.uri import Pkcs11Uri
from provisioning.app.ceremony_plan import ROOT, SERVICE, TRUST_ROLES, Ceremony
from provisioning.config import Config, Hsm, Lifetimes, Listen, parse_config
from wire.codec import to_json


def configuration_of(ceremony: Ceremony, name: str) -> Config:
    """The configuration that the installation will have. Raises: ConfigurationRefused, with the line."""
    return parse_config(configuration_text(ceremony), name)


def configuration_text(ceremony: Ceremony, settings: str = "") -> str:
    """`muster.toml`: where the listeners are, and what differs from the defaults."""
    answers = ceremony.answers
    names = ("device_port", "operator_port", "public_port", "mqtt_port")
    assert all(hasattr(Listen(), name) for name in names)  # noqa: S101  a renamed field must not go unnoticed
    listen: dict[str, object] = {"host": answers.host, "advertised_host": answers.advertised_host or answers.host}
    listen |= dict(zip(names, answers.ports, strict=True)) | {"public_url": answers.public_url}
    tokens = {token.role: token.uri or token.label for token in ceremony.tokens}
    hsm = {"token": tokens[SERVICE], "root_token": tokens.get(ROOT, Hsm().root_token)}
    pins = {token.label: token.pin for token in ceremony.tokens if token.pin and not token.keeps_pin}
    text = f"service_name = {toml(answers.service_name)}\n"
    text += _table("listen", {key: value for key, value in listen.items() if value != ""})
    text += _table("hsm", {key: value for key, value in hsm.items() if value != getattr(Hsm(), key)})
    text += _table("hsm.pins", pins)
    trust = [token for token in ceremony.tokens if token.role in TRUST_ROLES]
    named = {token.role: token.uri or str(Pkcs11Uri(token=token.label)) for token in trust}
    text += _table("hsm.tokens", {role: uri for role, uri in named.items() if uri != str(Pkcs11Uri(token=role))})
    for module, described in answers.modules.items():
        text += _table(f"hsm.modules.{toml(module)}", to_json(described))
    root, issuing = answers.root, answers.issuing
    days = {"root_days": root.days, "root_crl_days": root.crl_days, "issuing_days": issuing.days}
    default = Lifetimes()
    return text + (settings or _table("lifetimes", {key: n for key, n in days.items() if n != getattr(default, key)}))


def _table(name: str, values: Mapping[str, object]) -> str:
    lines = [f"{toml(key) if '.' in name else key} = {toml(value)}\n" for key, value in values.items()]
    return f"\n[{name}]\n{''.join(lines)}" if lines else ""


def toml(value: object) -> str:
    """A value as TOML writes it; a basic string takes the escapes of JSON."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(key)} = {toml(each)}' for key, each in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)
