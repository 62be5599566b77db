"""The tables of the CA: authorities, certificates, revocations, signatures, profiles, EST. As in `tables`."""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, UniqueConstraint
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel

from provisioning.db.columns import blob, moment, text

_QUARANTINE = sql("profile = 'quarantine'")
QUARANTINE = sql("certificate.profile = 'quarantine'")
REVOKED = sql("certificate.state = 'revoked'")
"""As text in index and look-up: a database uses a partial index only where it sees that the look-up stays in it."""
_REVOKED, _SUPERSEDED = sql("state = 'revoked'"), sql("revoke_at IS NOT NULL")


class Certificate(SQLModel, table=True):
    """Every certificate, from before it was signed. The certificate is `assemble(tbs, signature)`."""

    __table_args__ = (
        # Partial: what most certificates never become costs them nothing.
        Index("certificate_revoked", "issuer", "serial", sqlite_where=_REVOKED, postgresql_where=_REVOKED),
        Index("certificate_superseded", "revoke_at", sqlite_where=_SUPERSEDED, postgresql_where=_SUPERSEDED),
        Index("certificate_quarantine", "device_id", sqlite_where=_QUARANTINE, postgresql_where=_QUARANTINE),
    )
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
    tbs: bytes = blob(nullable=False)
    signature: bytes | None = blob()
    room: bytes | None = blob()
    """Zeros, until the signature stands: a row that grows when it is signed splits its page, and a tenth is wasted."""
    state: str = "reserved"
    not_before: int = moment(nullable=False)
    not_after: int = moment(nullable=False)
    reserved_at: int = moment(nullable=False)
    revoke_at: int | None = moment()
    """When a superseded certificate is revoked: the end of its grace period."""
    revoked_at: int | None = moment()
    reason: str | None = None
    held_by: str | None = None
    """`health`: it is on hold because its device is in quarantine, and a pass releases it; None: whoever held it."""


class Crl(SQLModel, table=True):
    """Each CRL that was signed; the number rises for each authority."""

    authority: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    der: bytes = blob(nullable=False)
    this_update: int = moment(nullable=False)
    next_update: int = moment(nullable=False)
    covers: int = 0
    """The newest of the `Revocation` rows that it shows."""


class Revocation(SQLModel, table=True):
    """Each change of a certificate's standing, in its order: what CRLs, OCSP and the broker follow. Never changed."""

    __table_args__ = (Index("revocation_issuer", "issuer", "id"),)
    id: int | None = Field(default=None, primary_key=True)
    at: int = moment(nullable=False)
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
    public_key: bytes = blob(nullable=False)
    """SubjectPublicKeyInfo, DER."""
    certificate: bytes = blob(nullable=False)
    """Empty where it has none, or awaits one."""
    chain: str = "[]"
    """What stands above it, nearest first, without itself: a list of base64url DER."""
    others: str = "[]"
    """More certificates over the same key (cross-signed, or from before it was chained anew): the same form."""
    created_at: int = moment(nullable=False)
    activated_at: int | None = moment()
    retired_at: int | None = moment()


class SignatureCount(SQLModel, table=True):
    """How often each key signed, as far as counted: see `app/signatures.py`."""

    __tablename__ = "signature_count"
    key_id: str = Field(primary_key=True)
    key: str
    """What it was called when it signed last."""
    count: int = moment(nullable=False)
    since: int = moment(nullable=False)
    at: int = moment(nullable=False)


class SignatureBatch(SQLModel, table=True):
    """What a CA key signed, about a second of it in one row: the SHA-256 of each message, one after the other."""

    __tablename__ = "signature_batch"
    id: int | None = Field(default=None, primary_key=True)
    key_id: str = Field(index=True)
    at: int = moment(nullable=False)
    digests: bytes = blob(nullable=False)


class SignatureIntent(SQLModel, table=True):
    """What a CA key is about to sign beside certificates: a `crl`, a `request`. Written before it signs, and kept."""

    __tablename__ = "signature_intent"
    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    """SHA-256 of the to-be-signed bytes."""
    kind: str
    at: int = moment(nullable=False)


class Bundle(SQLModel, table=True):
    """Each trust bundle that was published, as devices hold it."""

    version: int = Field(primary_key=True)
    content: bytes = blob(nullable=False)
    published_at: int = moment(nullable=False)
    published_by: str


class Profile(SQLModel, table=True):
    """Each version of each certificate profile, in TOML. The highest version is in force."""

    __table_args__ = (UniqueConstraint("name", "version"),)
    id: int | None = Field(default=None, primary_key=True)
    name: str
    version: int
    text: str = text(nullable=False)
    created_at: int = moment(nullable=False)
    created_by: str


class EstToken(SQLModel, table=True):
    """A one-time token with which one device enrolls by EST; stored as its hash."""

    __tablename__ = "est_token"
    token_sha256: str = Field(primary_key=True)
    device_id: str = Field(index=True)
    profile: str | None = None
    created_at: int = moment(nullable=False)
    expires_at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    used_at: int | None = moment()
    revoked_at: int | None = moment()
    created_by: str


class EstRequest(SQLModel, table=True):
    """A key for which a device asked by EST and which an operator approves, once. Gone when it was used."""

    __tablename__ = "est_request"
    device_id: str = Field(primary_key=True)
    key_id: str = Field(primary_key=True)
    asked_at: int = moment(nullable=False)
    approved_until: int | None = moment()
    approved_by: str | None = None
