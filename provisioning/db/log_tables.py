"""The tables of boot logs and IMA logs. As in `tables`.

A log stands once, by its hash, and is the beginning of a body: a kernel's IMA list only grows while it runs, so that
all lists of one boot are one body. The bytes of a body stand apart, so that they are replaced without being written
again, and nobody reads them who only counts.
"""

from sqlalchemy import Index
from sqlmodel import Field, SQLModel

from provisioning.db.columns import blob, moment


class BootLog(SQLModel, table=True):
    """A boot log, or an IMA log, by its hash: the first `size` bytes of its body."""

    __table_args__ = (Index("log_of_body", "body", "size"),)
    sha256: str = Field(primary_key=True)
    device_id: str
    """Who sent it first."""
    at: int = moment(nullable=False)
    size: int = moment(nullable=False)
    body: int


class LogBody(SQLModel, table=True):
    """The bytes that one log or several begin."""

    __tablename__ = "log_body"
    id: int | None = Field(default=None, primary_key=True)
    content: str
    """The hash of the longest log in it: the key of its bytes."""
    size: int = moment(nullable=False)
    removed_at: int | None = moment()
    """When its bytes went because of the bound of the last device that used it, though evidence still names them."""


class LogContent(SQLModel, table=True):
    """Bytes, by their hash, as they were received."""

    __tablename__ = "log_content"
    sha256: str = Field(primary_key=True)
    content: bytes = blob(nullable=False)


class LogUse(SQLModel, table=True):
    """That evidence of a device names logs of a body. All that a device uses counts against its bound."""

    __tablename__ = "log_use"
    __table_args__ = (Index("log_use_of_body", "body", "device_id"), {"sqlite_with_rowid": False})
    device_id: str = Field(primary_key=True)
    body: int = Field(primary_key=True)
    ima: bool
    at: int = moment(nullable=False)
    """When it named a log of this body that it had not named before."""
    removed_at: int | None = moment()
    """When the bound of this device took it. Another device may still use it."""


class Upload(SQLModel, table=True):
    """A log that was uploaded and that nothing on record names yet: it goes when nothing does in time."""

    __table_args__ = (Index("upload_of_device", "device_id", "at"), Index("upload_at", "at"))
    sha256: str = Field(primary_key=True)
    device_id: str
    at: int = moment(nullable=False)
