"""The tables of what the service noticed about devices over time. As in `tables`."""

from sqlalchemy import BigInteger, Column, Index
from sqlalchemy import text as expression
from sqlmodel import Field, SQLModel

from provisioning.db.columns import moment, text

_OPEN = expression("closed_at IS NULL")


class Finding(SQLModel, table=True):
    """Something about one device that a person should look at; open until a person closes it."""

    __table_args__ = (
        Index("finding_open", "device_id", "kind", "key", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index("finding_open_newest", "id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    )
    id: int | None = Field(default=None, primary_key=True)
    device_id: str = Field(index=True)
    kind: str
    key: str = ""
    """What tells two findings of one kind apart; one of each is open at a time."""
    detail: str = text(nullable=False)
    """A JSON object: what was seen, in words for a person."""
    at: int = moment(nullable=False)
    last_at: int = moment(nullable=False)
    """When the same was seen last."""
    times: int = 1
    proven: bool = True
    """Did the device itself prove it? A policy answers nothing else."""
    response: str | None = None
    """What the policy's `on_clone` did to the device: `quarantine`, `revoke`, or nothing."""
    closed_at: int | None = moment()
    closed_by: str | None = None


class SessionTrace(SQLModel, table=True):
    """What is known of a device's sessions beside the current one."""

    __tablename__ = "session_trace"
    device_id: str = Field(primary_key=True)
    displaced: str = text(nullable=False)
    """A JSON list of the sessions that another one displaced, the newest last."""
    probe_session: str | None = None
    """The session that was asked whether it is alive."""
    probe_sequence: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    """The sequence of the question: who reports it, or a higher one, got it."""
    probed_at: int = moment(nullable=False)
