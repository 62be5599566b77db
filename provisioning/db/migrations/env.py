"""Alembic's entry: migrations run on the writing engine of one database."""

from alembic import context
from sqlmodel import SQLModel

from provisioning.db import (  # noqa: F401  (they declare the tables)
    ca_tables,
    evidence_tables,
    finding_tables,
    log_tables,
    retention_tables,
    tables,
)
from provisioning.db.store import open_sqlite

engine = open_sqlite(context.config.attributes["path"], read_only=False)
with engine.begin() as connection:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
    context.run_migrations()
engine.dispose()
