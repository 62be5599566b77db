"""Which version of the schema a database has, and bringing it to this program's (alembic)."""

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory

from provisioning.config import ConfigurationRefused
from provisioning.refusals import StorageUnavailable

MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(path: Path) -> None:
    """Make the database, or bring it to the newest schema."""
    command.upgrade(_configuration(path), "head")


def verify_schema(path: Path) -> None:
    """Is this database of the version that this program reads? Raises: ConfigurationRefused."""
    found, known = version_of(path), newest()
    if found is None:
        msg = f"{path}: is no Muster database; restore it, or make a new data directory: muster init"
        raise ConfigurationRefused(msg)
    if found == known:
        return
    older = found in {script.revision for script in _scripts().walk_revisions()}
    cure = "bring it up: muster init --migrate" if older else "it is of a newer Muster: update this program"
    msg = f"{path}: has schema {found}, this program {known}; {cure}"
    raise ConfigurationRefused(msg)


def version_of(path: Path) -> str | None:
    """The schema's version as the database says, or None where it is no database of ours.

    Raises: ConfigurationRefused, because of StorageUnavailable, where it cannot be read now (a full disk).
    """
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            row = connection.execute("select version_num from alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # no such table
            return None
        msg = f"{path}: cannot be read ({error}); look at disk and permissions: muster doctor"
        raise ConfigurationRefused(msg) from StorageUnavailable(expected="a readable database", actual=error)
    except sqlite3.DatabaseError:
        return None
    return None if row is None else str(row[0])


def newest() -> str:
    """The version of this program's tables."""
    head = _scripts().get_current_head()
    if head is None:
        msg = "no migration is installed"
        raise ConfigurationRefused(msg)
    return head


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(MIGRATIONS))


def _configuration(path: Path) -> AlembicConfig:
    configuration = AlembicConfig()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    configuration.attributes["path"] = path
    return configuration
