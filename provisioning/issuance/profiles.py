"""Certificate profiles: what an operator may decide about each kind of certificate, as TOML.

What a kind of certificate *is* (its extensions and where its names come from) stands in `profile` and cannot be
configured: everything in a certificate comes from the record and from here, and of a request only its key. A profile
decides which keys are good enough, how long the certificate lasts, and whether EST waits for an approval.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Annotated

from provisioning.issuance.defaults import DEFAULTS
from provisioning.issuance.extensions import DNS_NAME
from provisioning.issuance.keys import RSA_BITS_MOST, KeyKind
from provisioning.issuance.tbs import Profile
from provisioning.refusals import Finding, ProfileMalformed
from wire.codec import Cap, MalformedMessage, load

PROFILE_MOST = 16 * 1024
"""Characters of a profile, at most."""
RSA_BITS_LEAST = 2048
_CA_RSA_BITS_LEAST = 3072
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_DEVICES = frozenset({Profile.LDEVID, Profile.GATEWAY, Profile.QUARANTINE})
DEVICE_KINDS = _DEVICES | {Profile.IDEVID}
"""The kinds that a device's record may name, or that it leaves the factory with."""
CA_KINDS = frozenset({Profile.ROOT_CA, Profile.ISSUING_CA})
_SIGNERS = CA_KINDS | {Profile.OCSP_RESPONDER}
"""They sign with one of the algorithms of `algorithms`: no P-521, no RSA below 3072 bits."""
_DAYS_MOST: Mapping[Profile, int] = {
    Profile.ROOT_CA: 10958,
    Profile.ISSUING_CA: 7305,
    Profile.IDEVID: 10958,
    Profile.LDEVID: 3660,
    Profile.GATEWAY: 3660,
    Profile.QUARANTINE: 366,
    Profile.STATION: 3660,
    Profile.OPERATOR: 1830,
    Profile.SERVICE_TLS: 1830,
    Profile.OCSP_RESPONDER: 92,
}
"""What no profile of that kind may exceed. Nobody asks whether a responder is revoked: it lives shortly."""


@dataclass(frozen=True, slots=True)
class CertificateProfile:
    """The rules for one profile. `lifetime` is None where the certificate has no end; for a CA it is the most.

    `rsa_bits_least` counts where `keys` hold RSA. `dns_domain`, where given, makes `<device id>.<dns_domain>` a name of
    a gateway. `version` and `row` say where it stands in the database: 0 and None where it is the built-in one.
    """

    name: str
    kind: Profile
    keys: frozenset[KeyKind]
    rsa_bits_least: int
    lifetime: timedelta | None
    approval: bool
    dns_domain: str | None = None
    version: int = 0
    row: int | None = None


@dataclass(frozen=True, slots=True)
class _ProfileText:
    name: Annotated[str, Cap(63)]
    kind: Annotated[str, Cap(32)]
    keys: Annotated[tuple[Annotated[str, Cap(16)], ...], Cap(8)]
    rsa_bits_least: int = _CA_RSA_BITS_LEAST
    lifetime_days: int = 0
    lifetime_hours: int = 0
    no_end: bool = False
    approval: bool = False
    dns_domain: Annotated[str, Cap(200)] = ""


@lru_cache(maxsize=256)
def parse_profile(text: str, source: str) -> CertificateProfile:
    """A profile out of TOML. `source` is what the text is called in refusals: a file, or a row.

    Not proven: that it is wise. Raises: ProfileMalformed, with every fault as a finding that names source and line.
    """
    if len(text) > PROFILE_MOST:
        raise _malformed(source, [(1, "the profile", f"has {len(text)} characters", f"at most {PROFILE_MOST}")])
    try:
        parsed = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number without end
        at = re.search(r"at line (\d+)", str(error))
        line = int(at[1]) if at else max(len(text.splitlines()), 1)
        raise _malformed(source, [(line, "the text", f"is not TOML: {error}", "correct that line")]) from error
    try:
        written = load(_ProfileText, parsed)
    except MalformedMessage as error:
        cure = "take the fields that docs/operations.md names, each in its type"
        line = _line_of(text, error.where)
        raise _malformed(source, [(line, error.where, error.why, cure)]) from error
    faults = [(_line_of(text, where), where, why, cure) for where, why, cure in _faults(written)]
    if faults:
        raise _malformed(source, faults)
    return _profile(written)


@lru_cache(maxsize=32)
def builtin(kind: Profile) -> CertificateProfile:
    """The profile of that kind that comes with the program."""
    return parse_profile(DEFAULTS[kind], f"built-in profile {kind}")


def numbered(profile: CertificateProfile, version: int, row: int) -> CertificateProfile:
    """The same rules, as that version in that row of the database."""
    return replace(profile, version=version, row=row)


def _profile(written: _ProfileText) -> CertificateProfile:
    lifetime = timedelta(days=written.lifetime_days, hours=written.lifetime_hours)
    return CertificateProfile(
        name=written.name,
        kind=Profile(written.kind),
        keys=frozenset(map(KeyKind, written.keys)),
        rsa_bits_least=written.rsa_bits_least,
        lifetime=None if written.no_end else lifetime,
        approval=written.approval,
        dns_domain=written.dns_domain or None,
    )


def _faults(written: _ProfileText) -> list[tuple[str, str, str]]:
    """Every rule beyond shape that does not hold: field, what is wrong, what mends it."""
    if written.kind not in set(Profile):
        return [("kind", f"{written.kind!r} is no kind of certificate", f"take one of {', '.join(Profile)}")]
    kind = Profile(written.kind)
    name = ("name", "is not 1 to 63 characters of a-z 0-9 . -", "begin with a letter or digit")
    faults = [] if _NAME.fullmatch(written.name) else [name]
    if written.name in set(Profile) and written.name != kind:
        faults.append(("name", f"is that of the kind {written.name}, and the kind is {kind}", "take another name"))
    faults += _faults_of_keys(written, kind) + _faults_of_lifetime(written, kind)
    if written.approval and kind not in _DEVICES:
        faults.append(("approval", "is for certificates that devices ask for by EST", "leave it out"))
    if written.dns_domain and kind is not Profile.GATEWAY:
        faults.append(("dns_domain", f"means nothing in a profile of kind {kind}", "leave it out"))
    elif written.dns_domain and not DNS_NAME.fullmatch(written.dns_domain):
        faults.append(("dns_domain", "is no DNS name in lower case", "write it like gateways.example.org"))
    return faults


def _faults_of_keys(written: _ProfileText, kind: Profile) -> list[tuple[str, str, str]]:
    unknown = [key for key in written.keys if key not in set(KeyKind)]
    if unknown or not written.keys:
        what = f"names {', '.join(unknown)}" if unknown else "is empty: no key would be good enough"
        return [("keys", what, f"take some of {', '.join(KeyKind)}")]
    faults = []
    if kind in _SIGNERS and KeyKind.P521 in written.keys:
        faults.append(("keys", f"names P-521, with which no {kind} signs", "leave it out"))
    least = _CA_RSA_BITS_LEAST if kind in _SIGNERS else RSA_BITS_LEAST
    if not least <= written.rsa_bits_least <= RSA_BITS_MOST:
        faults.append(("rsa_bits_least", f"is {written.rsa_bits_least}", f"take {least} to {RSA_BITS_MOST}"))
    return faults


def _faults_of_lifetime(written: _ProfileText, kind: Profile) -> list[tuple[str, str, str]]:
    given = [name for name in ("lifetime_days", "lifetime_hours", "no_end") if getattr(written, name)]
    if len(given) != 1:
        what = "is missing" if not given else f"stands beside {' and '.join(given[:-1])}"
        where = given[-1] if given else "lifetime_days"
        return [(where, what, "give exactly one of lifetime_days, lifetime_hours and no_end")]
    if written.no_end:
        wrong = ("no_end", f"is not for the kind {kind}", "give lifetime_days; only an IDevID may have no end")
        return [] if kind is Profile.IDEVID else [wrong]
    most = _DAYS_MOST[kind]
    if not 0 < written.lifetime_days * 24 + written.lifetime_hours <= most * 24:
        return [(given[0], "is no lifetime for this kind", f"take more than 0 and at most {most} days")]
    return []


def _malformed(source: str, faults: list[tuple[int, str, str, str]]) -> ProfileMalformed:
    lines = [f"{source}: line {line}: {where} {why}; {cure}" for line, where, why, cure in faults]
    findings = tuple(Finding(f"{source}: line {line}: {where}", cure, why, cure) for line, where, why, cure in faults)
    return ProfileMalformed(expected="a certificate profile", actual=" | ".join(lines), findings=findings)


def _line_of(text: str, where: str) -> int:
    """The line that sets the field, or 1: a missing field is nowhere. A profile has no tables."""
    key = re.split(r"[.\[]", where, maxsplit=1)[0]
    sets = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]|\s*\[+\s*[\"']?{re.escape(key)}\b")
    return next((number for number, line in enumerate(text.splitlines(), 1) if sets.match(line)), 1)
