"""The tables. Times are Unix seconds in UTC; hashes and serials are lower hex; structured fields are JSON text.

Used nowhere but in `db`. What leaves is a `Record`: a read-only row with the columns' names.
"""

from typing import Any

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Table, Text, UniqueConstraint
from sqlmodel import Field, SQLModel


def table_of(row: type[SQLModel]) -> Table:
    """The Core table behind a declaration."""
    table: Table = row.__table__  # type: ignore[attr-defined]  # SQLModel adds it at class creation
    return table


def _blob(*, nullable: bool = True) -> Any:
    return Field(default=None, sa_column=Column(LargeBinary, nullable=nullable))


def _time(*, nullable: bool = True) -> Any:
    return Field(default=None, sa_column=Column(BigInteger, nullable=nullable))


def _text(*, nullable: bool = True) -> Any:
    return Field(default=None, sa_column=Column(Text, nullable=nullable))


class Device(SQLModel, table=True):
    """One registered device, and what its TPM last proved."""

    id: str = Field(primary_key=True)
    serial: str = Field(unique=True)
    model: str = Field(index=True)
    assurance: str = "attested"
    """The least that it has to prove for a certificate: `attested`, `idevid`, `token`. The record says it, no route."""
    profile: str = "ldevid"
    """The name of the certificate profile that it gets."""
    needs_approval: bool = False
    """Does an operator approve each certificate that it asks for by EST?"""
    ek_id: str | None = Field(default=None, unique=True)
    """None where the assurance is not `attested`."""
    ek_certificate: bytes | None = _blob()
    ek_public: bytes | None = _blob()
    """TPMT_PUBLIC, where a device without EK certificate was registered with it, or passed with it."""
    ek_trust: str = "certificate"
    """On what the registration rests: the EK's `certificate`, or its bare `key`."""
    station: str = Field(index=True)
    state: str = "registered"
    health: str = "unknown"
    registered_at: int = _time(nullable=False)
    ek_intermediates: str = "[]"
    """The intermediates that came with the EK certificate when it last passed: a list of base64url DER."""
    ak_name: bytes | None = _blob()
    ak_public: bytes | None = _blob()
    approved_until: int | None = _time()
    """Until when one enrollment with another AK, or of a cleared TPM, is accepted."""
    reset_count: int | None = _time()
    restart_count: int | None = _time()
    clock: int | None = _time()
    clock_safe: bool | None = None
    firmware_version: str | None = None
    last_attested_at: int | None = _time()
    last_seen_at: int | None = _time()
    release_target: str | None = None
    """What it committed last, by its name in the image repository."""
    release_version: str | None = None
    release_counter: int = 0
    trust_version: int = 0
    """The trust bundle that it holds, as its last hello said."""
    held_from: str | None = None
    """While it is on hold (`state` is then `revoked`): the state that a release brings back."""


class Station(SQLModel, table=True):
    """A factory station: how many devices it may still vouch for."""

    name: str = Field(primary_key=True)
    certificate_serial: str
    budget: int
    used: int = 0
    created_at: int = _time(nullable=False)


class Policy(SQLModel, table=True):
    """Each version of each model's policy. The highest version is in force."""

    __table_args__ = (UniqueConstraint("model", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    model: str
    version: int
    text: str = _text(nullable=False)
    created_at: int = _time(nullable=False)
    created_by: str


class Enrollment(SQLModel, table=True):
    """An open or answered challenge: the one row that binds EK, AK and nonce (check 8)."""

    id: str = Field(primary_key=True)
    flow: str
    device_id: str = Field(index=True)
    ek_id: str
    ak_public: bytes = _blob(nullable=False)
    ak_name: bytes = _blob(nullable=False)
    nonce: bytes = _blob(nullable=False)
    secret: bytes | None = _blob()
    pcr_bank: str
    pcrs: str
    boot_log: str
    policy_id: int
    created_at: int = _time(nullable=False)
    expires_at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    state: str = "open"
    evidence_sha256: bytes | None = _blob()
    answer: bytes | None = _blob()
    refusal_id: str | None = None


class Certificate(SQLModel, table=True):
    """Every certificate, from before it was signed. The certificate is `assemble(tbs, signature)`."""

    __table_args__ = (Index("certificate_state", "state"),)
    serial: str = Field(primary_key=True)
    issuer: str = "issuing"
    """The authority that signs it, by its name."""
    profile: str
    """Its kind."""
    profile_id: int | None = None
    """The row of the certificate profile under which it was issued. None: the built-in one of its kind."""
    subject: str
    device_id: str | None = Field(default=None, index=True)
    enrollment_id: str | None = Field(default=None, unique=True)
    key_id: bytes = Field(sa_column=Column(LargeBinary, nullable=False, index=True))
    """The 32 bytes: as text it would be a tenth of the row and of all indexes."""
    tbs: bytes = _blob(nullable=False)
    signature: bytes | None = _blob()
    room: bytes | None = _blob()
    """Zeros, until the signature stands: a row that grows when it is signed splits its page, and a tenth is wasted."""
    state: str = "reserved"
    not_before: int = _time(nullable=False)
    not_after: int = _time(nullable=False)
    reserved_at: int = _time(nullable=False)
    revoke_at: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True, index=True))
    """When a superseded certificate is revoked: the end of its grace period."""
    revoked_at: int | None = _time()
    reason: str | None = None


class Attestation(SQLModel, table=True):
    """One evidence that passed, as it was received."""

    id: str = Field(primary_key=True)
    flow: str
    device_id: str = Field(index=True)
    at: int = _time(nullable=False)
    policy_id: int
    ak_public: bytes = _blob(nullable=False)
    evidence: bytes = _blob(nullable=False)
    boot_log_sha256: str | None = None
    findings: str = _text(nullable=False)


class BootLog(SQLModel, table=True):
    """A boot log by its hash, as it was received."""

    sha256: str = Field(primary_key=True)
    device_id: str
    at: int = _time(nullable=False)
    content: bytes = _blob(nullable=False)


class RefusalRow(SQLModel, table=True):
    """One refusal, as the operator sees it."""

    __tablename__ = "refusal"
    id: str = Field(primary_key=True)
    at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    code: str
    flow: str
    device_id: str | None = Field(default=None, index=True)
    serial: str | None = None
    source: str
    own: bool
    """Was the evidence proven to be the device's own? Only then it counts for its health."""
    expected: str = _text(nullable=False)
    actual: str = _text(nullable=False)
    findings: str = _text(nullable=False)


class Command(SQLModel, table=True):
    """The outbox: what is to be said to a device, until it is done."""

    __table_args__ = (Index("command_due", "state", "next_try_at"),)
    message_id: str = Field(primary_key=True)
    device_id: str = Field(index=True)
    kind: str
    body: bytes = _blob(nullable=False)
    state: str = "pending"
    created_at: int = _time(nullable=False)
    expires_at: int = _time(nullable=False)
    next_try_at: int = _time(nullable=False)
    tries: int = 0
    ordered_by: str
    result: str | None = _text()


class MqttSession(SQLModel, table=True):
    """The agent's session, as its last hello said, and the sequences in it."""

    device_id: str = Field(primary_key=True)
    session: str
    session_number: int
    """Rises with each start of the agent, so that an old hello cannot bring an old session back."""
    down_sequence: int
    up_sequence: int
    trust_version: int
    certificate_serial: str
    at: int = _time(nullable=False)


class Release(SQLModel, table=True):
    """A release of the image repository, as its signed metadata says."""

    target: str = Field(primary_key=True)
    version: str
    hardware: str
    release_counter: int
    length: int
    sha256: str
    reference_values: str = _text(nullable=False)
    published_at: int = _time(nullable=False)
    withdrawn: bool = False


class Assignment(SQLModel, table=True):
    """What the Director tells one device to run."""

    device_id: str = Field(primary_key=True)
    target: str
    state: str
    detail: str | None = None
    assigned_at: int = _time(nullable=False)
    updated_at: int = _time(nullable=False)


class DirectorMetadata(SQLModel, table=True):
    """The newest generation of the Director's metadata for one device: a JSON object of file name to text."""

    __tablename__ = "director_metadata"
    device_id: str = Field(primary_key=True)
    version: int = _time(nullable=False)
    files: str = _text(nullable=False)


class Leaf(SQLModel, table=True):
    """A leaf of the log. `number` is None until the duty holder sequenced it."""

    id: int | None = Field(default=None, primary_key=True)
    number: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True, unique=True))
    kind: str = Field(index=True)
    at: int = _time(nullable=False)
    salt: bytes | None = _blob()
    record: bytes | None = _blob()
    hash: bytes = _blob(nullable=False)


class Checkpoint(SQLModel, table=True):
    """A signed tree head."""

    size: int = Field(primary_key=True)
    root: bytes = _blob(nullable=False)
    frontier: bytes = _blob(nullable=False)
    """The compact range of the tree, so that the next leaves need no old ones."""
    note: str = _text(nullable=False)
    at: int = _time(nullable=False)


class Crl(SQLModel, table=True):
    """Each CRL that was signed; the number rises for each authority."""

    authority: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    der: bytes = _blob(nullable=False)
    this_update: int = _time(nullable=False)
    next_update: int = _time(nullable=False)
    covers: int = 0
    """The newest of the `Revocation` rows that it shows."""


class Revocation(SQLModel, table=True):
    """Each change of a certificate's standing, in its order: what CRLs, OCSP and the broker follow. Never changed."""

    __table_args__ = (Index("revocation_issuer", "issuer", "id"),)
    id: int | None = Field(default=None, primary_key=True)
    at: int = _time(nullable=False)
    issuer: str
    serial: str = Field(index=True)
    device_id: str | None = None
    reason: str | None = None
    """RFC 5280's; None where a hold was released."""
    kind: str
    """`order` of an operator, end of a `grace` period, or `adopted`: out of a CRL, its certificate is unknown here."""


class Authority(SQLModel, table=True):
    """A key that devices trust, and its certificate where it is a CA's: what is rolled over.

    `name` stands in a CA's URLs (`/ca/NAME.pem`, `/crl/NAME.crl`).
    """

    name: str = Field(primary_key=True)
    kind: str
    """`root` or `issuing`: a certificate authority; `command`, `log`, `trust`: a key without certificate."""
    state: str
    """`prepared`, `active`, `retiring`, `retired`."""
    key: str
    """Its key: a label in the service's token, or a PKCS#11 URI (RFC 7512). Empty where the key is elsewhere."""
    public_key: bytes = _blob(nullable=False)
    """SubjectPublicKeyInfo, DER."""
    certificate: bytes = _blob(nullable=False)
    """Empty where it has none, or awaits one."""
    chain: str = "[]"
    """What stands above it, nearest first, without itself: a list of base64url DER."""
    others: str = "[]"
    """More certificates over the same key (cross-signed, or from before it was chained anew): the same form."""
    created_at: int = _time(nullable=False)
    activated_at: int | None = _time()
    retired_at: int | None = _time()


class SignatureCount(SQLModel, table=True):
    """How often each key signed, as far as counted: see `app/signatures.py`."""

    __tablename__ = "signature_count"
    key_id: str = Field(primary_key=True)
    key: str
    """What it was called when it signed last."""
    count: int = _time(nullable=False)
    since: int = _time(nullable=False)
    at: int = _time(nullable=False)


class SignatureBatch(SQLModel, table=True):
    """What a CA key signed, about a second of it in one row: the SHA-256 of each message, one after the other."""

    __tablename__ = "signature_batch"
    id: int | None = Field(default=None, primary_key=True)
    key_id: str = Field(index=True)
    at: int = _time(nullable=False)
    digests: bytes = _blob(nullable=False)


class SignatureIntent(SQLModel, table=True):
    """What a CA key is about to sign beside certificates: a `crl`, a `request`. Written before it signs, and kept."""

    __tablename__ = "signature_intent"
    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    """SHA-256 of the to-be-signed bytes."""
    kind: str
    at: int = _time(nullable=False)


class Bundle(SQLModel, table=True):
    """Each trust bundle that was published, as devices hold it."""

    version: int = Field(primary_key=True)
    content: bytes = _blob(nullable=False)
    published_at: int = _time(nullable=False)
    published_by: str


class Profile(SQLModel, table=True):
    """Each version of each certificate profile, in TOML. The highest version is in force."""

    __table_args__ = (UniqueConstraint("name", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    name: str
    version: int
    text: str = _text(nullable=False)
    created_at: int = _time(nullable=False)
    created_by: str


class EstToken(SQLModel, table=True):
    """A one-time token with which one device enrolls by EST; stored as its hash."""

    __tablename__ = "est_token"
    token_sha256: str = Field(primary_key=True)
    device_id: str = Field(index=True)
    profile: str | None = None
    created_at: int = _time(nullable=False)
    expires_at: int = _time(nullable=False)
    used_at: int | None = _time()
    revoked_at: int | None = _time()
    created_by: str


class EstRequest(SQLModel, table=True):
    """A key for which a device asked by EST and which an operator approves, once. Gone when it was used."""

    __tablename__ = "est_request"
    device_id: str = Field(primary_key=True)
    key_id: str = Field(primary_key=True)
    asked_at: int = _time(nullable=False)
    approved_until: int | None = _time()
    approved_by: str | None = None


class EkRoot(SQLModel, table=True):
    """A certificate of a TPM manufacturer that an operator imported. A removed one stays, so that it is known."""

    __tablename__ = "ek_root"
    fingerprint: str = Field(primary_key=True)
    der: bytes = _blob(nullable=False)
    subject: bytes = _blob(nullable=False)
    subject_key: str
    """The same for every encoding of one name (`attestation.names.name_key`)."""
    manufacturer: str = Field(index=True)
    role: str
    source: str = _text(nullable=False)
    """The file that it came in, and its place there."""
    imported_at: int = _time(nullable=False)
    imported_by: str
    removed_at: int | None = _time()
    removed_by: str | None = None
    changed: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    """Rises with each change of the store, over all rows: whoever holds a copy sees that it is old."""


class Operator(SQLModel, table=True):
    """Who may call the operator listener; the token is stored as its hash."""

    name: str = Field(primary_key=True)
    role: str
    token_sha256: str = Field(unique=True)
    created_at: int = _time(nullable=False)


class Lease(SQLModel, table=True):
    """Which process carries out what runs once per installation."""

    name: str = Field(primary_key=True)
    holder: str
    expires_at: int = _time(nullable=False)
