"""The tables of devices and their evidence, of commands, releases and the log.

Times are Unix seconds in UTC; hashes and serials are lower hex; structured fields are JSON text. Used nowhere but in
`db`. What leaves is a `Record`: a read-only row with the columns' names.
"""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, UniqueConstraint
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel

from provisioning.db.columns import blob, moment, text

_ACTIVE = sql("state = 'active'")


class Device(SQLModel, table=True):
    """One registered device, and what its TPM last proved."""

    __table_args__ = (Index("device_of_model", "model", "id"), Index("device_due", "next_attest_at"))
    id: str = Field(primary_key=True)
    serial: str = Field(unique=True)
    model: str
    group: str | None = None
    """The group of devices, within its model, that it belongs to: the group's policy counts before the model's."""
    assurance: str = "attested"
    """The least that it has to prove for a certificate: `attested`, `idevid`, `token`. The record says it, no route."""
    profile: str = "ldevid"
    """The name of the certificate profile that it gets."""
    needs_approval: bool = False
    """Does an operator approve each certificate that it asks for by EST?"""
    ek_id: str | None = Field(default=None, unique=True)
    """None where the assurance is not `attested`."""
    ek_certificate: bytes | None = blob()
    ek_public: bytes | None = blob()
    """TPMT_PUBLIC, where a device without EK certificate was registered with it, or passed with it."""
    ek_trust: str = "certificate"
    """On what the registration rests: the EK's `certificate`, or its bare `key`; or the device maker's certificate for
    an attestation key (`iak`) or for a device identity (`idevid`), and then no EK is known."""
    identity_id: str | None = Field(default=None, unique=True)
    """The key id of the IAK or IDevID that it was registered by."""
    iak_certificate: bytes | None = blob()
    """Of a device that was registered so: the certificate of its AK, as it last passed."""
    iak_intermediates: str = "[]"
    """Those that came with it, like `ek_intermediates`."""
    idevid_certificate: bytes | None = blob()
    """Where the registration rests on the IDevID: that certificate, as it last passed."""
    station: str = Field(index=True)
    state: str = "registered"
    health: str = "unknown"
    """See `provisioning/health.py`."""
    health_at: int | None = moment()
    """When it last became another, but for the way from unknown to healthy by a pass (`last_attested_at`)."""
    health_event: str | None = None
    health_why: str | None = None
    registered_at: int = moment(nullable=False)
    ek_intermediates: str = "[]"
    """The intermediates that came with the EK certificate when it last passed: a list of base64url DER."""
    ak_name: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True, index=True))
    ak_public: bytes | None = blob()
    approved_until: int | None = moment()
    """Until when one enrollment with another AK, or of a cleared TPM, is accepted."""
    reset_count: int | None = moment()
    restart_count: int | None = moment()
    clock: int | None = moment()
    clock_safe: bool | None = None
    firmware_version: str | None = None
    last_attested_at: int | None = moment()
    next_attest_at: int | None = moment()
    """When it is asked to attest again; None: never."""
    attest_asked: int = 0
    """How often it was due since it passed last."""
    last_seen_at: int | None = moment()
    release_target: str | None = None
    """What it committed last, by its name in the image repository."""
    release_version: str | None = None
    release_counter: int = 0
    trust_version: int = 0
    """The trust bundle that it holds, as its last hello said."""
    shown: bytes | None = blob()
    """A hash of the values that it showed last (`evidence_tables.Shown`): whether they changed."""
    held_from: str | None = None
    """While it is on hold (`state` is then `revoked`): the state that a release brings back."""


class Station(SQLModel, table=True):
    """A factory station: how many devices it may still vouch for."""

    name: str = Field(primary_key=True)
    certificate_serial: str
    budget: int
    used: int = 0
    created_at: int = moment(nullable=False)


class Policy(SQLModel, table=True):
    """Each version of each model's policies. Of one model and group at most one is `active`: it is in force."""

    __table_args__ = (
        UniqueConstraint("model", "version"),
        Index("policy_in_force", "model", "group", unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
    )
    id: int | None = Field(default=None, primary_key=True)
    model: str
    group: str = ""
    """The group that it is for; empty: all devices of the model whose group has none of its own."""
    version: int
    """Counted over all policies of the model, whatever their group: it names one text."""
    text: str = text(nullable=False)
    state: str = "active"
    """`draft`: proposed; `active`: in force; `superseded`: was in force; `overtaken`: a draft that never was."""
    created_at: int = moment(nullable=False)
    created_by: str
    """Who set or proposed it."""
    promoted_at: int | None = moment()
    promoted_by: str | None = None
    """Who put a draft into force: another person than `created_by`."""


class Enrollment(SQLModel, table=True):
    """An open or answered challenge: the one row that binds EK (or the maker's identity), AK and nonce (check 8)."""

    id: str = Field(primary_key=True)
    flow: str
    device_id: str = Field(index=True)
    ek_id: str
    """The EK's key id, or the maker's identity's: neither may be the device key."""
    proof: str = "credential"
    """What shows that an answer is the device's own: the opened `credential`, or the `quote` of a certified AK."""
    identity: str | None = text()
    """The certificates of that AK, for the record if the evidence passes: nobody proved anything yet."""
    findings: str | None = text()
    """What should be known of the certificates that vouch for the TPM, although they pass."""
    ak_public: bytes = blob(nullable=False)
    ak_name: bytes = blob(nullable=False)
    nonce: bytes = blob(nullable=False)
    secret: bytes | None = blob()
    pcr_bank: str
    pcrs: str
    boot_log: str
    ima_log: str = "none"
    policy_id: int
    created_at: int = moment(nullable=False)
    expires_at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    state: str = "open"
    evidence_sha256: bytes | None = blob()
    answer: bytes | None = blob()
    refusal_id: str | None = None
    claims: str | None = text()
    """What the request said of itself that the record does not say: a JSON object. Nothing, until it is proven."""


class Attestation(SQLModel, table=True):
    """One evidence that passed, as it was received. What is long stands last: what is before it is read without it."""

    __table_args__ = (Index("attestation_of", "device_id", "at", "number", "boot_log_sha256", "ima_log_sha256"),)
    number: int | None = Field(default=None, primary_key=True)
    """The order in which they came, also within one second."""
    id: str = Field(unique=True)
    flow: str
    device_id: str
    at: int = moment(nullable=False)
    policy_id: int
    boot_log_sha256: str | None = None
    ima_log_sha256: str | None = None
    ak_public: bytes = blob(nullable=False)
    findings: str = text(nullable=False)
    evidence: bytes = blob(nullable=False)


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
    expected: str = text(nullable=False)
    actual: str = text(nullable=False)
    findings: str = text(nullable=False)


class Command(SQLModel, table=True):
    """The outbox: what is to be said to a device, until it is done."""

    __table_args__ = (Index("command_due", "state", "next_try_at"),)
    message_id: str = Field(primary_key=True)
    device_id: str = Field(index=True)
    kind: str
    body: bytes = blob(nullable=False)
    state: str = "pending"
    created_at: int = moment(nullable=False)
    expires_at: int = moment(nullable=False)
    next_try_at: int = moment(nullable=False)
    tries: int = 0
    ordered_by: str
    result: str | None = text()


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
    at: int = moment(nullable=False)
    hello_id: str | None = None
    """The message id of the last hello, and its sequence: another one of the same sequence is another agent's."""
    hello_sequence: int | None = moment()


class Release(SQLModel, table=True):
    """A release of the image repository, as its signed metadata says."""

    target: str = Field(primary_key=True)
    version: str
    hardware: str
    release_counter: int
    length: int
    sha256: str
    reference_values: str = text(nullable=False)
    published_at: int = moment(nullable=False)
    withdrawn: bool = False


class Assignment(SQLModel, table=True):
    """What the Director tells one device to run."""

    device_id: str = Field(primary_key=True)
    target: str
    state: str
    detail: str | None = None
    assigned_at: int = moment(nullable=False)
    updated_at: int = moment(nullable=False)


class DirectorMetadata(SQLModel, table=True):
    """The newest generation of the Director's metadata for one device: a JSON object of file name to text."""

    __tablename__ = "director_metadata"
    device_id: str = Field(primary_key=True)
    version: int = moment(nullable=False)
    files: str = text(nullable=False)


BULK_LEAVES = ("certificate", "attestation", "revocation")
"""Kinds that are written for each certificate, and only read in their order."""
RARE_LEAF = sql(f"kind NOT IN ({', '.join(map(repr, BULK_LEAVES))})")
"""The others, which are looked up."""


class Leaf(SQLModel, table=True):
    """A leaf of the log. `number` is None until the duty holder sequenced it."""

    __table_args__ = (Index("leaf_rare", "kind", sqlite_where=RARE_LEAF, postgresql_where=RARE_LEAF),)
    id: int | None = Field(default=None, primary_key=True)
    number: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True, unique=True))
    kind: str
    at: int = moment(nullable=False)
    salt: bytes | None = blob()
    record: bytes | None = blob()
    hash: bytes = blob(nullable=False)


class Checkpoint(SQLModel, table=True):
    """A signed tree head."""

    size: int = Field(primary_key=True)
    root: bytes = blob(nullable=False)
    frontier: bytes = blob(nullable=False)
    """The compact range of the tree, so that the next leaves need no old ones."""
    note: str = text(nullable=False)
    at: int = moment(nullable=False)


class EkRoot(SQLModel, table=True):
    """A certificate of a TPM manufacturer that an operator imported. A removed one stays, so that it is known."""

    __tablename__ = "ek_root"
    fingerprint: str = Field(primary_key=True)
    der: bytes = blob(nullable=False)
    subject: bytes = blob(nullable=False)
    subject_key: str
    """The same for every encoding of one name (`attestation.names.name_key`)."""
    manufacturer: str = Field(index=True)
    role: str
    source: str = text(nullable=False)
    """The file that it came in, and its place there."""
    imported_at: int = moment(nullable=False)
    imported_by: str
    removed_at: int | None = moment()
    removed_by: str | None = None
    changed: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    """Rises with each change of the store, over all rows: whoever holds a copy sees that it is old."""


class Operator(SQLModel, table=True):
    """Who may call the operator listener; the token is stored as its hash."""

    name: str = Field(primary_key=True)
    role: str
    token_sha256: str = Field(unique=True)
    created_at: int = moment(nullable=False)


class Lease(SQLModel, table=True):
    """Which process carries out what runs once per installation."""

    name: str = Field(primary_key=True)
    holder: str
    expires_at: int = moment(nullable=False)
