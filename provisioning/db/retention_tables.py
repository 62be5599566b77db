"""The tables that say what retention removed. As in `tables`."""

from sqlmodel import Field, SQLModel

from provisioning.db.columns import blob, moment


class RemovedAttestation(SQLModel, table=True):
    """Evidence that passed, earned a certificate and was removed: what `fsck` holds against the log's leaf."""

    __tablename__ = "removed_attestation"
    id: str = Field(primary_key=True)
    device_id: str = Field(index=True)
    flow: str
    at: int = moment(nullable=False)
    evidence_sha256: bytes = blob(nullable=False)
    removed_at: int = moment(nullable=False)


class Removed(SQLModel, table=True):
    """How much of one device's evidence was removed in all, and when last."""

    device_id: str = Field(primary_key=True)
    attestations: int = 0
    attestations_until: int | None = moment()
    """The time of the newest of them."""
    refused: int = 0
    logs: int = 0
    """Bodies of logs that its bound took."""
    removed_at: int = moment(nullable=False)
