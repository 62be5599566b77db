"""Statements of the hot path: stated in SQLAlchemy Core, compiled once, then handed to the driver as they are.

Core's execution costs several times the statement itself for a single row (measured: an insert 51 against 7 µs, a
look-up 37 against 9). Defaults and types of a column do not apply here: a row is complete, a boolean comes back as the
driver has it. What the driver raises is named by `driver_refusal`.
"""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ClauseElement, Connection, Dialect, Engine, Insert, Select, Table, Update, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.dml import Delete, ReturningUpdate

Compiled = tuple[str, bool, Sequence[tuple[str, Any]]]
"""The text; are its parameters in order, or by name; each parameter with what it is where a row does not name it."""


def _values(in_order: bool, parameters: Sequence[tuple[str, Any]], row: Mapping[str, Any]) -> Any:  # noqa: ANN401, FBT001  PEP 249
    """The parameters as the driver wants them: in order, or by name."""
    if in_order:
        return [row.get(name, fixed) for name, fixed in parameters]
    return {name: row.get(name, fixed) for name, fixed in parameters}


def _compiled(statement: ClauseElement, dialect: Dialect, columns: Sequence[str] | None) -> Compiled:
    compiled = statement.compile(dialect=dialect, column_keys=None if columns is None else list(columns))
    names: list[str] | None = getattr(compiled, "positiontup", None)
    binds = getattr(compiled, "binds", {})
    fixed = {name: None if binds[name].required else value for name, value in compiled.params.items()}
    return str(compiled), names is not None, [(name, fixed.get(name)) for name in names or fixed]


class PreparedSelect:
    """One look-up with named parameters, or a change that returns what it changed. A record is a named tuple."""

    def __init__(self, statement: Select[Any] | ReturningUpdate[Any]) -> None:
        self._statement = statement
        make: Any = namedtuple  # noqa: PYI024  the fields are the statement's
        self._record = make("Record", [str(column.key) for column in statement.exported_columns])
        self._compiled: dict[str, Compiled] = {}

    def all(self, tx: Connection, parameters: Mapping[str, Any]) -> list[Any]:
        """All records found."""
        name = tx.dialect.name
        if name not in self._compiled:
            self._compiled[name] = _compiled(self._statement, tx.dialect, None)
        text, in_order, known = self._compiled[name]
        cursor = tx.connection.cursor()
        cursor.execute(text, _values(in_order, known, parameters))
        records = [self._record._make(row) for row in cursor.fetchall()]
        cursor.close()
        return records

    def first(self, tx: Connection, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401  a record, or None
        """The first record found, or None."""
        found = self.all(tx, parameters)
        return found[0] if found else None


class Prepared:
    """One statement with named parameters; called with a connection and a row, it returns how many rows it touched."""

    def __init__(self, statement: Insert | Update | Delete, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = None if columns is None else list(columns)
        self._compiled: dict[str, Compiled] = {}

    def __call__(self, tx: Connection, row: Mapping[str, Any]) -> int:
        """Execute it. A parameter that the row does not name has the value of the statement, or is null."""
        text, in_order, known = self._of(tx)
        cursor = tx.connection.cursor()
        cursor.execute(text, _values(in_order, known, row))
        touched = int(cursor.rowcount)
        cursor.close()
        return touched

    def many(self, tx: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute it for each row, in one call of the driver."""
        if not rows:
            return
        text, in_order, known = self._of(tx)
        cursor = tx.connection.cursor()
        cursor.executemany(text, [_values(in_order, known, row) for row in rows])
        cursor.close()

    def _of(self, tx: Connection) -> Compiled:
        name = tx.dialect.name
        if name not in self._compiled:
            self._compiled[name] = _compiled(self._statement, tx.dialect, self._columns)
        return self._compiled[name]


def prepared_insert(table: Table) -> Prepared:
    """Insert one whole row. Columns that the database numbers by itself are left out."""
    columns = [column.name for column in table.columns if column is not table.autoincrement_column]
    return Prepared(insert(table), columns)


def driver_refusal(engine: Engine, error: BaseException) -> str | None:
    """The name of the database's own trouble behind an error; None where the statement was wrong, or no database's."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    driver = engine.dialect.loaded_dbapi
    defects = (driver.IntegrityError, driver.ProgrammingError, driver.DataError)
    if not isinstance(cause, driver.Error) or isinstance(cause, defects):
        return None
    return type(cause).__name__
