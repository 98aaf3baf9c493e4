"""SQLite: what Alembic's copy of a table loses.

SQLite alters little of a table, so that Alembic makes another one, copies the rows and renames it.
It takes along what SQLAlchemy can read, which is not all.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Cast, Connection, Engine, Insert, Label, event, insert
from sqlalchemy.exc import DBAPIError

COPY = r'(?:"(_alembic_tmp_[^"]+)"|(_alembic_tmp_\w+))'
BEGINS = re.compile(rf"\s*CREATE TABLE {COPY}")
ENDS = re.compile(rf"\s*ALTER TABLE {COPY} RENAME TO")
INDEX = re.compile(r'\s*(?:CREATE(?: UNIQUE)?|DROP) INDEX (?:"([^"]+)"|(\w+))')
ORDER = re.compile(r"\b(DESC|COLLATE)\b", re.IGNORECASE)
ORIGINAL = """SELECT name FROM sqlite_master
    WHERE type = 'table' AND substr('_alembic_tmp_' || name, 1, 50) = ?"""

EXPRESSION = -2
"""The number of a column, to an index that is on none."""

WORDS = {
    "AUTOINCREMENT": r"\bAUTOINCREMENT\b",
    "STRICT": r"\)[\s\w,]*\bSTRICT\b[^)]*$",
    "WITHOUT ROWID": r"\bWITHOUT\s+ROWID\b",
    "COLLATE": r"\bCOLLATE\b",
    "ON CONFLICT": r"\bON\s+CONFLICT\b",
}
"""What SQLAlchemy does not read of a table."""


class LostByRebuild(Exception):
    """A copy of a table would lack what the table has."""


@dataclass(frozen=True, slots=True)
class Before:
    """A table before its rebuild."""

    table: str
    sql: str
    made_again: dict[str, str]
    """Triggers and indexes on expressions, by name, with the SQL that makes them."""
    sorted: dict[str, str]
    """Indexes with an order or a collation, which SQLAlchemy does not read, by name."""
    views: list[str]
    """Those of the database that can be read."""

    @classmethod
    def of(cls, connection: Connection, table: str) -> "Before":
        """Look at a table, and at the views, which may read it."""
        rows = list(
            connection.exec_driver_sql(
                "SELECT type, name, sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL",
                (table,),
            )
        )
        kept = {
            name: sql
            for kind, name, sql in rows
            if kind == "trigger" or (kind == "index" and has_expression(connection, name))
        }
        sorted_ = {
            name: sql
            for kind, name, sql in rows
            if kind == "index" and name not in kept and ORDER.search(sql)
        }
        views = [name for name in views_of(connection) if is_readable(connection, name)]
        sql = next((sql for kind, _, sql in rows if kind == "table"), "")
        return cls(table, sql, kept, sorted_, views)

    def restore(self, connection: Connection) -> None:
        """Make again what the copy lacks; `LostByRebuild` if that is not possible."""
        for name, sql in self.made_again.items():
            try:
                connection.exec_driver_sql(sql)
            except DBAPIError as error:
                raise LostByRebuild(
                    f"{self.table} is copied to be altered, and {name}, which is on it, cannot be"
                    f" made again ({error.orig}); before that, drop it by op.execute(), and make it"
                    " as it is to be after it"
                ) from error
        after = str(
            connection.exec_driver_sql(
                "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (self.table,)
            ).scalar()
        )
        if lost := sorted(set(features(self.sql)) - set(features(after))):
            raise LostByRebuild(
                f"{self.table} is copied to be altered, and the copy would lose {', '.join(lost)};"
                " write the new table with op.execute(): create it, copy the rows, drop the old"
                " one, rename it"
            )
        for statement in writes(connection, self.table):
            try:
                connection.exec_driver_sql(f"EXPLAIN {statement}").close()
            except DBAPIError as error:
                raise LostByRebuild(
                    f"a trigger on {self.table} ({', '.join(self.made_again)}) uses what it no"
                    f" longer has ({error.orig}); before that, drop it by op.execute(), and make it"
                    " as it is to be after it"
                ) from error
        for name in self.views:
            if not is_readable(connection, name):
                raise LostByRebuild(
                    f"the view {name} reads what {self.table} no longer has; before that, drop it"
                    " by op.execute(), and make it as it is to be after it"
                )


def writes(connection: Connection, table: str) -> Iterator[str]:
    """Write statements that every trigger of a table is for."""
    quote = connection.dialect.identifier_preparer.quote
    columns = connection.exec_driver_sql(
        "SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0", (table,)
    ).scalars()
    same = ", ".join(f"{quote(each)} = {quote(each)}" for each in columns)
    yield f"INSERT INTO {quote(table)} DEFAULT VALUES"
    yield f"UPDATE {quote(table)} SET {same}"  # noqa: S608 -- quoted names, which are there
    yield f"DELETE FROM {quote(table)}"  # noqa: S608 -- a quoted name, which is there


def features(sql: str) -> Iterator[str]:
    """Name what a table's SQL has that SQLAlchemy does not read."""
    yield from (name for name, word in WORDS.items() if re.search(word, sql, re.IGNORECASE))
    # A CHECK that has a name is copied.
    for match in re.finditer(r"(CONSTRAINT\s+\S+\s+)?\bCHECK\s*\(", sql, re.IGNORECASE):
        if not match[1]:
            yield "a CHECK without a name"


def has_expression(connection: Connection, index: str) -> bool:
    """Whether an index is on an expression."""
    parts = connection.exec_driver_sql(
        "SELECT cid FROM pragma_index_xinfo(?) WHERE key", (index,)
    ).scalars()
    return EXPRESSION in parts


def views_of(connection: Connection) -> list[str]:
    """Name the views of a database."""
    rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'view'")
    return list(rows.scalars())


def is_readable(connection: Connection, view: str) -> bool:
    """Whether what a view reads is there."""
    quoted = connection.dialect.identifier_preparer.quote(view)
    try:
        connection.exec_driver_sql(f"SELECT 1 FROM {quoted} LIMIT 0").close()  # noqa: S608 -- a quoted name
    except DBAPIError:
        return False
    return True


def keep_what_a_rebuild_loses(engine: Engine) -> None:
    """Make triggers and indexes on expressions again after each copy; refuse to lose the rest."""
    before: dict[str, Before] = {}
    indexes: dict[str, str] = {}

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def look(
        connection: Connection, _cursor: object, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        if index := INDEX.match(statement):
            as_it_was = indexes.pop(index[1] or index[2], statement)
            statement = statement if "DROP INDEX" in statement else as_it_was
        elif begins := BEGINS.match(statement):
            copy = begins[1] or begins[2]
            table = connection.exec_driver_sql(ORIGINAL, (copy,)).scalar()
            before[copy] = Before.of(connection, str(table))
            indexes.update(before[copy].sorted)
        elif ENDS.match(statement):
            # Else the views that read the table, which is not there just now, are in the way.
            connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")
        return statement, parameters

    @event.listens_for(engine, "after_cursor_execute")
    def restore(connection: Connection, _cursor: object, statement: str, *_: Any) -> None:
        if ends := ENDS.match(statement):
            connection.exec_driver_sql("PRAGMA legacy_alter_table = OFF")
            if found := before.pop(ends[1] or ends[2], None):
                found.restore(connection)

    @event.listens_for(engine, "before_execute", retval=True)
    def leave_out(
        _connection: Connection, statement: Any, several: Any, parameters: Any, _options: Any
    ) -> tuple[Any, Any, Any]:
        if isinstance(statement, Insert) and statement.table.name.startswith("_alembic_tmp_"):
            statement = as_they_are(statement)
        return statement, several, parameters


def as_they_are(statement: Insert) -> Insert:
    """Copy values as they are: CAST AS DATE would leave the year of a date, and of a word 0.

    None of generated columns, which SQLite refuses and Alembic does not know.
    """
    names: list[str] = getattr(statement, "_select_names", None) or []
    select: Any = statement.select
    columns: Any = statement.table.columns
    kept = [
        (name, uncast(value))
        for name, value in zip(names, select.selected_columns, strict=True)
        if columns[name].computed is None
    ]
    values = select.with_only_columns(*(value for _, value in kept))
    return insert(statement.table).inline().from_select([name for name, _ in kept], values)


def uncast(value: Any) -> Any:
    """Return what is cast."""
    kinds: Any = (Label, Cast)
    while isinstance(value, kinds):
        value = value.clause if isinstance(value, Cast) else value.element
    return value
