"""The key ceremony, carried out: tokens, keys, CA certificates, trust repository, transcript. `muster init` is one.

What is made was decided by the plan; this module adds keys, the clock and randomness. It writes into a folder that is
nobody's data directory yet (`installation`); where a step fails, the keys that it made are destroyed.
"""

import getpass
import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

from hsm.errors import KeyPairMismatch
from hsm.key import HsmEcKey, HsmKey, sign_message
from hsm.token import Token
from ota.bundle import create_trust
from ota.director import create_director_root
from ota.files import replace_file
from ota.signing import Role, Roles, online_role
from provisioning.app.ceremony_plan import (
    ISSUING_KEY,
    ROOT_KEY,
    TRUST_ROLES,
    Ceremony,
    PlannedCertificate,
    fingerprint,
)
from provisioning.app.ceremony_tokens import (
    found_keys,
    key_records,
    key_uri,
    made_keys,
    opened,
    public_bytes,
    token_records,
)
from provisioning.app.ceremony_transcript import (
    KIND,
    CrlRecord,
    KeyRecord,
    Transcript,
    certificate_record,
    transcript_bytes,
    transcript_text,
)
from provisioning.authorities import ISSUING, ROOT, State, authority_row
from provisioning.config import Config, DataDirectory, public_url
from provisioning.crls import nothing_revoked, sign_offline
from provisioning.issuance.algorithms import verify
from provisioning.issuance.check import check_tbs
from provisioning.issuance.outside import OutsideAuthority, ca_request
from provisioning.issuance.profile import Issuer, IssuingCa, RootCa, build, issuer_of
from provisioning.issuance.tbs import assemble, serial_of, serial_text
from wire.binding import key_id
from wire.codec import encode
from wire.messages import TrustBundle

TRUST_ROOT_LIFETIME = timedelta(days=3650)
TRUST_TARGETS_LIFETIME = timedelta(days=365)
ONLINE_LIFETIME = timedelta(days=7)
DIRECTOR_LIFETIME = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Begun:
    """When a ceremony began, and the commands that were typed for it."""

    at: datetime
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaRows:
    """The CA of an installation as rows of its tables. `crl`: the root's first; None where the root is elsewhere."""

    certificates: list[dict[str, Any]]
    authorities: list[dict[str, Any]]
    crl: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Done:
    """A ceremony that was carried out: what the first records of the installation say."""

    rows: CaRows
    transcript: Transcript


def carry_out(directory: DataDirectory, ceremony: Ceremony, config: Config, begun: Begun, now: datetime) -> Done:
    """The whole of it, where the root is made here.

    Raises: HsmError, ConfigurationRefused, ToBeSignedRefused, OSError.
    """
    with opened(directory, config, ceremony, make=True) as tokens, made_keys(ceremony, tokens) as keys:
        rows = _own_ca(ceremony, config, keys, now)
        return _finish(directory, ceremony, begun, tokens, keys, rows, now)


def make_request(directory: DataDirectory, ceremony: Ceremony, config: Config) -> tuple[bytes, tuple[KeyRecord, ...]]:
    """Tokens and keys, and the request (PKCS #10, PEM) for the outside CA. Raises: as `carry_out`."""
    with opened(directory, config, ceremony, make=True) as tokens, made_keys(ceremony, tokens) as keys:
        request = ca_request(keys[ISSUING_KEY], ceremony.certificate(ISSUING).common_name)
        return request, key_records(ceremony, keys)


def go_on(
    directory: DataDirectory,
    ceremony: Ceremony,
    config: Config,
    begun: Begun,
    known: Sequence[KeyRecord],
    outside: OutsideAuthority,
    now: datetime,
) -> Done:
    """The rest, with the outside CA's certificate, which is verified. `known`: the keys of the first part.

    Raises: KeyPairMismatch, where a token holds another key now; as `carry_out`.
    """
    with opened(directory, config, ceremony, make=False) as tokens:
        keys = found_keys(ceremony, tokens)
        if changed := [
            was.label for was, now_is in zip(known, key_records(ceremony, keys), strict=True) if was != now_is
        ]:
            raise KeyPairMismatch(f"not the key that the ceremony made: {', '.join(changed)}")
        at = [
            authority_row(ROOT, ROOT, "", outside.chain[-1:], state=State.ACTIVE, now=now),
            authority_row(ISSUING, ISSUING, ISSUING_KEY, outside.chain, state=State.ACTIVE, now=now),
        ]
        return _finish(directory, ceremony, begun, tokens, keys, CaRows([], at, None), now)


def _own_ca(ceremony: Ceremony, config: Config, keys: dict[str, HsmKey], now: datetime) -> CaRows:
    """The root signs itself, the issuing CA and its first CRL."""
    url = public_url(config, config.listen.public_port)
    where = {"crl_url": f"{url}/crl/{ROOT}.crl", "ca_url": f"{url}/ca/{ROOT}.crt"}
    planned = ceremony.certificate(ROOT)
    top = RootCa(planned.common_name, public_bytes(keys[ROOT_KEY]))
    root_row, root = _signed(top, None, keys[ROOT_KEY], planned, now)
    planned = ceremony.certificate(ISSUING)
    names = (planned.permitted_dns, planned.permitted_uri, planned.permitted_ip)
    below = IssuingCa(planned.common_name, public_bytes(keys[ISSUING_KEY]), *names, service_name=config.service_name)
    issuing_row, issuing = _signed(below, issuer_of(root, **where), keys[ROOT_KEY], planned, now)
    at = [
        authority_row(ROOT, ROOT, key_uri(ceremony.token(ROOT), ROOT_KEY), (root,), state=State.ACTIVE, now=now),
        authority_row(ISSUING, ISSUING, ISSUING_KEY, (issuing, root), state=State.ACTIVE, now=now),
    ]
    lifetime = timedelta(days=ceremony.root_crl_days or 1)
    crl = sign_offline(nothing_revoked(ROOT, root, now), lambda tbs: sign_message(keys[ROOT_KEY], tbs), now, lifetime)
    return CaRows([root_row, issuing_row], at, crl)


def _signed(
    wanted: RootCa | IssuingCa, issuer: Issuer | None, key: HsmKey, planned: PlannedCertificate, now: datetime
) -> tuple[dict[str, Any], bytes]:
    tbs = build(
        wanted,
        issuer,
        serial=serial_of(os.urandom(16)),
        not_before=now - timedelta(minutes=5),
        not_after=now + timedelta(days=planned.days),
    )
    check_tbs(tbs, wanted, issuer)
    signature = sign_message(key, tbs.der)
    verify(key.public_key(), tbs.der, signature)
    row = {
        "serial": serial_text(tbs.serial),
        "issuer": ROOT,
        "profile": tbs.profile.value,
        "subject": wanted.common_name,
        "key_id": key_id(wanted.public_key),
        "tbs": tbs.der,
        "signature": signature,
        "state": "issued",
        "not_before": int(tbs.not_before.timestamp()),
        "not_after": int(tbs.not_after.timestamp()),
        "reserved_at": int(now.timestamp()),
    }
    return row, assemble(tbs.der, signature)


def _finish(
    directory: DataDirectory,
    ceremony: Ceremony,
    begun: Begun,
    tokens: dict[str, Token],
    keys: dict[str, HsmKey],
    rows: CaRows,
    now: datetime,
) -> Done:
    """What devices trust, and the transcript."""
    anchor = _repositories(directory, ceremony, keys, rows.authorities[0]["certificate"], now)
    crls = []
    if rows.crl is not None:
        next_update = datetime.fromtimestamp(rows.crl["next_update"], now.tzinfo)
        crls = [CrlRecord(ROOT, rows.crl["number"], next_update, hashlib.sha256(rows.crl["der"]).hexdigest())]
    transcript = Transcript(
        kind=KIND,
        program=version("muster"),
        service_name=ceremony.answers.service_name,
        plan_sha256=fingerprint(ceremony),
        started_at=begun.at.replace(microsecond=0),
        ended_at=now.replace(microsecond=0),
        machine=socket.gethostname(),
        user=getpass.getuser(),
        people=ceremony.answers.people,
        commands=begun.commands,
        tokens=token_records(directory, ceremony, tokens),
        keys=key_records(ceremony, keys),
        certificates=tuple(certificate_record(row["name"], row["certificate"]) for row in rows.authorities),
        crls=tuple(crls),
        anchor_sha256=hashlib.sha256(anchor).hexdigest(),
    )
    replace_file(directory.ceremony / "transcript.json", transcript_bytes(transcript))
    replace_file(directory.ceremony / "transcript.txt", transcript_text(transcript).encode())
    return Done(rows, transcript)


def _repositories(
    directory: DataDirectory, ceremony: Ceremony, keys: dict[str, HsmKey], root: bytes, now: datetime
) -> bytes:
    """The Director's root, and the trust repository with its first bundle; its root's bytes are returned.

    As many of the offline keys sign both as the threshold says.
    """
    trust = [_on_curve(keys, role) for role in TRUST_ROLES]
    signers = trust[: ceremony.threshold]
    root_role = Role(tuple(key.public_key() for key in trust), ceremony.threshold, TRUST_ROOT_LIFETIME)
    director_online = online_role(_on_curve(keys, "director-online").public_key(), DIRECTOR_LIFETIME)
    director = create_director_root(Roles(root_role, director_online, director_online, director_online), signers, now)
    (directory.director / "metadata").mkdir(parents=True)
    replace_file(directory.director / "metadata" / "1.root.json", director)
    bundle = TrustBundle(
        version=1,
        service_name=ceremony.answers.service_name,
        ca_roots=(root,),
        command_keys=(public_bytes(keys["command"]),),
        log_keys=(public_bytes(keys["log"]),),
        director_root=director,
        issuing_keys=(public_bytes(keys[ISSUING_KEY]),),
    )
    online_key = _on_curve(keys, "trust-online")
    online = online_role(online_key.public_key(), ONLINE_LIFETIME)
    targets = Role(root_role.keys, ceremony.threshold, TRUST_TARGETS_LIFETIME)
    anchor = create_trust(
        directory.trust, Roles(root_role, targets, online, online), bundle, (*signers, online_key), now
    )
    replace_file(directory.anchor, encode(anchor))
    return anchor.trust_root


def _on_curve(keys: dict[str, HsmKey], name: str) -> HsmEcKey:
    """A key of the protocol's own: the plan has made it P-256."""
    key = keys[name]
    assert isinstance(key, HsmEcKey)  # noqa: S101  for mypy: the plan decides it
    return key
