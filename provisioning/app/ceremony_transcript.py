"""What a ceremony leaves on paper: who, when, which tokens, keys and certificates. Pure: records, text, comparison.

The JSON is what a program verifies; the text, made of it and nothing else, is what people sign. The log holds the
SHA-256 of both.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.app.ceremony_answers import Person
from provisioning.app.ceremony_plan import PROMPT, Ceremony, PlannedToken, asked_at
from provisioning.refusals import Finding, TranscriptRefused
from wire.codec import Cap, MalformedMessage, decode, encode, rfc3339

TRANSCRIPT_MOST = 256 * 1024
KIND: Literal["muster key ceremony transcript, version 1"] = "muster key ceremony transcript, version 1"
ATTRIBUTES = ("SENSITIVE", "not EXTRACTABLE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL", "PRIVATE")
"""What `hsm.ceremony.check_protection` has demanded of every key that stands in a transcript."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token, as it described itself."""

    role: str
    label: str
    serial: str
    manufacturer: str
    model: str
    hardware: str
    firmware: str
    module: str
    offline: bool
    place: str
    """The folder of a SoftHSM2 token, relative to the data directory; else empty."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key pair. `sha256` is over the SubjectPublicKeyInfo (DER), lower hex."""

    token: str
    label: str
    kind: str
    purpose: str
    sha256: str
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A CA certificate. `sha256` is over its DER, `key_sha256` over its SubjectPublicKeyInfo."""

    name: str
    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    sha256: str
    key_sha256: str


@dataclass(frozen=True, slots=True)
class CrlRecord:
    """A CRL that was signed at the ceremony."""

    name: str
    number: int
    next_update: datetime
    sha256: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """The whole of it."""

    kind: Literal["muster key ceremony transcript, version 1"]
    program: str
    service_name: str
    plan_sha256: str
    started_at: datetime
    ended_at: datetime
    machine: str
    user: str
    people: Annotated[tuple[Person, ...], Cap(32)]
    commands: tuple[str, ...]
    tokens: tuple[TokenRecord, ...]
    keys: tuple[KeyRecord, ...]
    certificates: tuple[CertificateRecord, ...]
    crls: tuple[CrlRecord, ...]
    anchor_sha256: str


@dataclass(frozen=True, slots=True)
class Present:
    """What the installation holds today, for comparison."""

    certificates: dict[str, bytes]
    """DER by the authority's name."""
    keys: dict[str, frozenset[str]]
    """SHA-256 of the SubjectPublicKeyInfo of the keys that devices trust, by the label of the first."""
    logged: frozenset[tuple[str, str]]
    """What leaves of kind `ceremony` say: SHA-256 of the JSON and of the text."""


def certificate_record(name: str, der: bytes) -> CertificateRecord:
    """The record of a CA certificate."""
    certificate = x509.load_der_x509_certificate(der)
    return CertificateRecord(
        name,
        certificate.subject.rfc4514_string(),
        certificate.issuer.rfc4514_string(),
        format(certificate.serial_number, "x"),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        hashlib.sha256(der).hexdigest(),
        key_sha256(certificate.public_key()),
    )


def key_sha256(public_key: object) -> str:
    """SHA-256 of a public key's SubjectPublicKeyInfo, lower hex."""
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]  # any public key
    return hashlib.sha256(spki).hexdigest()


def transcript_bytes(transcript: Transcript) -> bytes:
    """The JSON, canonical."""
    return encode(transcript)


def parse_transcript(data: bytes) -> Transcript:
    """The transcript in these bytes; nothing of it is verified. Raises: TranscriptRefused."""
    try:
        return decode(Transcript, data, limit=TRANSCRIPT_MOST)
    except MalformedMessage as error:
        raise TranscriptRefused(expected="a transcript (JSON)", actual=error) from error


def digests(transcript: Transcript) -> tuple[str, str]:
    """SHA-256 of the JSON and of the text, as the log holds them."""
    json, text = transcript_bytes(transcript), transcript_text(transcript).encode()
    return hashlib.sha256(json).hexdigest(), hashlib.sha256(text).hexdigest()


def verify_transcript(data: bytes, present: Present) -> Transcript:
    """Is this the transcript whose hash the log holds, and are the CA certificates and keys those of today?

    Not proven: that what it says of people and tokens was so: they signed the paper. Raises: TranscriptRefused, with
    every difference as a finding.
    """
    transcript = parse_transcript(data)
    findings = [
        Finding(what, wanted, actual)
        for what, wanted, actual in _differences(data, transcript, present)
        if wanted != actual
    ]
    if findings:
        told = ", ".join(finding.what for finding in findings)
        raise TranscriptRefused(expected="what the log and the CA say", actual=told, findings=tuple(findings))
    return transcript


def _differences(data: bytes, transcript: Transcript, present: Present) -> Iterator[tuple[str, str, str]]:
    sha256, (json, text) = hashlib.sha256(data).hexdigest(), digests(transcript)
    yield "its bytes are the canonical ones", json, sha256
    yield "its hash is a leaf of the log", "yes", "yes" if (json, text) in present.logged else "no"
    for record in transcript.certificates:
        der = present.certificates.get(record.name)
        yield f"certificate {record.name}", record.sha256, "none" if der is None else hashlib.sha256(der).hexdigest()
    by_name = {record.name: record for record in transcript.certificates}
    for key in transcript.keys:
        if key.label in by_name:
            yield f"key of certificate {key.label}", by_name[key.label].key_sha256, key.sha256
        if key.label in present.keys:
            trusted = "trusted" if key.sha256 in present.keys[key.label] else "not trusted"
            yield f"key {key.label} in the trust bundle", "trusted", trusted


# --- text -------------------------------------------------------------------------------------------------------------


def plan_text(ceremony: Ceremony, sha256: str) -> str:
    """The plan, for the people in the room."""
    answers = ceremony.answers
    lines = [f"Key ceremony of {answers.service_name}", f"plan SHA-256 {sha256}", "", "PEOPLE"]
    lines += _table(_people(answers.people))
    lines += ["", "TOKENS"]
    lines += _table((token.role, _made(token), f"PIN: {pin_words(token)}", _stays(token)) for token in ceremony.tokens)
    lines += ["", "KEYS (made inside the token; cannot be read or taken out)"]
    lines += _table((f"{key.token}/{key.label}", key.kind, key.purpose) for key in ceremony.keys)
    lines += ["", "CERTIFICATES"]
    for each in ceremony.certificates:
        length = "" if each.path_length is None else f", path length {each.path_length}"
        by = "an outside CA, which decides dates and names" if each.issuer == "outside" else f"{each.issuer}"
        lines.append(f"  {each.name}: CN={each.common_name}, {each.days} days{length}, signed by {by}")
        permitted = [*each.permitted_dns, *each.permitted_uri, *each.permitted_ip]
        if permitted:
            names = (("DNS", each.permitted_dns), ("URI", each.permitted_uri), ("IP", each.permitted_ip))
            lines.append(
                "    may name only " + "; ".join(f"{kind} {', '.join(those)}" for kind, those in names if those)
            )
    lines.append(f"  what was revoked, and who signed, is asked at {asked_at(answers)}: it stands in all of them")
    lines += ["", "ALSO"]
    if ceremony.root_crl_days is not None:
        lines.append(f"  the root's first CRL, good for {ceremony.root_crl_days} days")
    count = sum(token.role.startswith("trust-") for token in ceremony.tokens)
    lines.append(f"  the trust repository, the Director's root and the first bundle, {ceremony.threshold} of {count}")
    lines.append("  the data directory: configuration, database, the service's certificate, the owner's token")
    lines += ["", "NEEDED NOW", f"  the holders of the PINs of {', '.join(token.role for token in ceremony.tokens)}"]
    if ceremony.outside:
        lines.append("  and again when the outside CA's certificate is there, to go on")
    lines += ["", "NEEDED LATER"]
    if not ceremony.outside:
        lines.append("  root: for each new issuing CA, and for its CRL before that ends")
    lines.append(f"  {ceremony.threshold} of the trust tokens: for each new trust bundle, once a year at least")
    return "\n".join(lines) + "\n"


def pin_words(token: PlannedToken) -> str:
    """Where the PIN of this token is read from, for a person."""
    if not token.pin:
        return f"a random one in secrets/{token.label}.pin"
    if token.keeps_pin:
        return f"asked now, and written to secrets/{token.label}.pin for the service"
    return "asked on the terminal" if token.pin == PROMPT else token.pin


def transcript_text(transcript: Transcript) -> str:
    """The transcript as people sign it on paper."""
    span = f"{rfc3339(transcript.started_at)} to {rfc3339(transcript.ended_at)}"
    lines = [f"TRANSCRIPT of the key ceremony of {transcript.service_name}", "", f"  when     {span}"]
    lines += [f"  where    {transcript.machine}, as {transcript.user}, muster {transcript.program}"]
    lines += [f"  plan     SHA-256 {transcript.plan_sha256}"]
    lines += [f"  command  {command}" for command in transcript.commands]
    lines += ["", "TOKENS"]
    for token in transcript.tokens:
        lines.append(f"  {token.role}: {token.label!r}, serial {token.serial}, {token.manufacturer} {token.model}")
        lines.append(f"    hardware {token.hardware}, firmware {token.firmware}, by {token.module}")
        stays = "offline: take it away" if token.offline else "stays with the service"
        lines.append(f"    {stays}{f', folder {token.place}' if token.place else ''}")
    lines += ["", "KEYS"]
    for key in transcript.keys:
        lines += [f"  {key.token}/{key.label}: {key.kind}, {key.purpose}", f"    SHA-256 {key.sha256}"]
        lines.append(f"    {', '.join(key.attributes)}")
    lines += ["", "CERTIFICATES"]
    for each in transcript.certificates:
        lines += [f"  {each.name}: {each.subject}", f"    signed by {each.issuer}, serial {each.serial}"]
        lines.append(f"    {rfc3339(each.not_before)} to {rfc3339(each.not_after)}")
        lines.append(f"    SHA-256 {each.sha256}")
    for crl in transcript.crls:
        lines.append(f"  CRL {crl.number} of {crl.name}, next update {rfc3339(crl.next_update)}")
        lines.append(f"    SHA-256 {crl.sha256}")
    lines += ["", "TRUST", f"  first root of the trust repository: SHA-256 {transcript.anchor_sha256}"]
    lines += ["", f"transcript.json: SHA-256 {hashlib.sha256(transcript_bytes(transcript)).hexdigest()}", ""]
    lines += ["We were there, and it was so."]
    for person in transcript.people or (Person("", ""),):
        who = f"{person.name} ({person.role})" if person.name else ""
        lines += ["", f"  {who:<56} {'_' * 30}", f"  {'':<56} signature, date"]
    return "\n".join(lines) + "\n"


def _people(people: Sequence[Person]) -> Iterable[tuple[str, str]]:
    return [(person.name, person.role) for person in people] or [("nobody is named", "the transcript has one line")]


def _made(token: PlannedToken) -> str:
    return token.uri or f"{token.label!r}, SoftHSM2, made now"


def _stays(token: PlannedToken) -> str:
    return "offline afterwards" if token.offline else "stays with the service"


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  " + "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
