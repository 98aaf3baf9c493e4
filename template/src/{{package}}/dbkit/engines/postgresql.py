"""asyncpg's connection, which does not take a ROLLBACK for a COMMIT."""

import re
from importlib import import_module
from typing import Any

from sqlalchemy.exc import InvalidRequestError

from .session_state import POSTGRESQL_SKIPPED
from .sqlstates import IN_ABORTED, sqlstate
from .transactions import BLANKS, REFUSED, Failure, aborted

ROLLBACK = re.compile(r"\b(?:rollback|abort)\b", re.IGNORECASE)
END = r"(COMMIT|END|ABORT|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b(?!\s+PREPARED)"
ENDS = re.compile(BLANKS + END, re.IGNORECASE | re.DOTALL)
ENDS_WITHIN = re.compile(rf"(?:^|;)[\s']*{END}(?P<more>[^;]*;[\s']*[^\s'])?", re.IGNORECASE)
"""The same in several statements, where comments and texts have become ''."""
OWN = {"COMMIT;", "ROLLBACK;"}
"""How asyncpg itself ends its transactions, and SQLAlchemy by it."""
UNANSWERED = """\
{name}: this way to COMMIT does not say whether the transaction was committed or rolled back
  1. use asyncpg's own: `async with connection.transaction():`;
  2. or `await connection.execute("COMMIT")`, which raises if it was rolled back."""

Driver: Any = object
"""Stands for asyncpg's, which is not there where all databases are others."""


class CheckedConnection(Driver):
    """A connection whose transactions do not end undone in silence."""

    database_name: str
    _top_xact: Any
    """asyncpg's: the transaction that it has begun for somebody, who will end it."""
    failure: Failure | None = None
    """The latest statement of this transaction that failed, but for those refused because of
    another: so it is what aborted the transaction, if that is aborted."""
    is_undone = False
    """Only the server knows: it refuses all that comes after, and says so at the COMMIT."""

    def note_failure(self, original: BaseException, failure: Failure) -> None:
        """Note a statement that failed."""
        in_transaction = not self.is_closed() and self.is_in_transaction()
        if in_transaction and is_servers(original) and sqlstate(original) != IN_ABORTED:
            self.failure = failure

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run statements: with asyncpg and SQLAlchemy, each BEGIN, COMMIT and ROLLBACK."""
        parent: Any = super()
        if query not in OWN and not self.is_closed() and self.is_in_transaction():
            script = query if args else POSTGRESQL_SKIPPED.sub("''", query)
            for found in ENDS_WITHIN.finditer(script):
                self._refuse_to_end(found, drops_answer=bool(found["more"]))
        if query == "COMMIT;" and not self.is_closed() and not self.is_in_transaction():
            raise aborted(self.database_name, self.failure)
        try:
            status: str = await parent.execute(query, *args, timeout=timeout)
        except Exception as error:
            if query.startswith("RELEASE ") and sqlstate(error) == IN_ABORTED:
                undone = aborted(self.database_name, self.failure, "savepoint")
                raise undone from undone.__cause__
            self.note_failure(error, Failure(query, error))
            raise
        # An aborted transaction answers so to COMMIT.
        if status == "ROLLBACK" and not ROLLBACK.search(query):
            raise aborted(self.database_name, self.failure)
        if not self.is_in_transaction():
            self.failure = None
        return status

    def _get_statement(self, query: str, *args: Any, **options: Any) -> Any:
        """Prepare a statement: `fetch`, `cursor`, all of SQLAlchemy's."""
        if (found := ENDS.match(query)) and self.is_in_transaction():
            self._refuse_to_end(found, drops_answer=True)
        parent: Any = super()
        return parent._get_statement(query, *args, **options)  # noqa: SLF001 -- ours

    def _refuse_to_end(self, found: re.Match[str], *, drops_answer: bool) -> None:
        """Refuse text that ends what asyncpg or SQLAlchemy has begun, or does not say how."""
        word = found[1].upper()
        if self._top_xact is not None:
            raise InvalidRequestError(REFUSED.format(name=self.database_name, statement=word))
        if drops_answer and word in {"COMMIT", "END"}:
            raise InvalidRequestError(UNANSWERED.format(name=self.database_name))

    async def _do_execute(self, query: str, *args: Any, **options: Any) -> Any:
        parent: Any = super()
        try:
            return await parent._do_execute(query, *args, **options)  # noqa: SLF001 -- ours
        except Exception as error:
            self.note_failure(error, Failure(query, error))
            raise


def connection_class(name: str) -> type[CheckedConnection]:
    """Make the class of connections to database `name`."""
    asyncpg = import_module("asyncpg")
    members = {"database_name": name}
    return type("CheckedConnection", (CheckedConnection, asyncpg.Connection), members)


def is_servers(error: BaseException | None) -> bool:
    """Whether the server has sent an error: what asyncpg refuses to send aborts nothing."""
    while error is not None and getattr(error, "severity_en", None) is None:
        error = error.__cause__
    return error is not None
