"""The migrations and the declared tables say the same; a database of another version is named, not opened."""

import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import SQLModel

from provisioning.config import ConfigurationRefused
from provisioning.db import schema, tables
from provisioning.db.store import open_sqlite


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "muster.db"
    schema.migrate(path)
    return path


def test_the_migrations_make_exactly_the_declared_tables(database):
    assert tables.Device.__tablename__ == "device"
    engine = open_sqlite(database, read_only=False)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    engine.dispose()


def test_a_database_of_this_version_is_taken(database):
    schema.verify_schema(database)
    assert schema.version_of(database) == schema.newest()


def test_a_newer_database_is_refused_with_its_cure(database):
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(ConfigurationRefused, match="newer Muster"):
        schema.verify_schema(database)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "muster.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigurationRefused, match="is no Muster database"):
        schema.verify_schema(path)
