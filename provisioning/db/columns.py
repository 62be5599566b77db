"""What every table is declared with."""

from typing import Any

from sqlalchemy import BigInteger, Column, LargeBinary, Table, Text
from sqlmodel import Field, SQLModel


def table_of(row: type[SQLModel]) -> Table:
    """The Core table behind a declaration."""
    table: Table = row.__table__  # type: ignore[attr-defined]  # SQLModel adds it at class creation
    return table


def blob(*, nullable: bool = True) -> Any:  # noqa: ANN401  as SQLModel's own Field: a default of any type
    """Bytes."""
    return Field(default=None, sa_column=Column(LargeBinary, nullable=nullable))


def moment(*, nullable: bool = True) -> Any:  # noqa: ANN401  as above
    """Unix seconds in UTC, or another number of 64 bits."""
    return Field(default=None, sa_column=Column(BigInteger, nullable=nullable))


def text(*, nullable: bool = True) -> Any:  # noqa: ANN401  as above
    """Text of any length."""
    return Field(default=None, sa_column=Column(Text, nullable=nullable))
