"""The tables of `explain`: evidence that was refused, and the values that devices showed last; who is judged again.

Declared as in `tables`. Used nowhere but in `db`.
"""

from sqlalchemy import Column, Index, LargeBinary
from sqlmodel import Field, SQLModel

from provisioning.db.columns import blob, moment


class RefusedEvidence(SQLModel, table=True):
    """What a device showed and was refused for, with its logs. Only its newest ones are kept (`evidence`)."""

    __tablename__ = "refused_evidence"
    __table_args__ = (Index("refused_evidence_of", "device_id", "at"),)
    refusal_id: str = Field(primary_key=True)
    device_id: str
    at: int = moment(nullable=False)
    policy_id: int
    ak_public: bytes = blob(nullable=False)
    evidence: bytes = blob(nullable=False)
    boot_log: bytes | None = blob()
    ima_log: bytes | None = blob()


class JudgeAgain(SQLModel, table=True):
    """A device whose policy changed while it was refused: is it accepted now? Gone once that is known."""

    __tablename__ = "judge_again"
    device_id: str = Field(primary_key=True)


class Shown(SQLModel, table=True):
    """One value that a device showed last. Its key is the table's order: the devices with one value stand together."""

    __table_args__ = (Index("shown_of", "device_id"), {"sqlite_with_rowid": False})
    model: str = Field(primary_key=True)
    value: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    """A hash of what it is and the value (`explanation.value_key`)."""
    device_id: str = Field(primary_key=True)
