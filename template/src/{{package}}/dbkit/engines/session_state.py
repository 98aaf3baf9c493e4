"""Statements that leave something on their connection, known by their text.

What is told by the server costs a round trip, and by then it is too late: so each distinct
statement is read once. What looks as if it left something costs a reset of the connection, and no
more; what a function does inside the server is seen by nobody here.
"""

import re
from collections.abc import Callable
from enum import IntEnum

LONGEST_KEPT = 5_000
"""Characters of a statement whose verdict is remembered."""
MOST_KEPT = 2_000
"""Verdicts that are remembered."""


class Left(IntEnum):
    """What a caller left on a connection, the worse the higher."""

    NOTHING = 0
    STATE = 1
    """Settings, locks, temporary tables: what a reset undoes."""
    ALTERED = 2
    """What only another connection is free of."""


FLAGS = re.IGNORECASE | re.DOTALL
START = r"(?:^|;)[\s']*"  # A comment before it has become ''.

POSTGRESQL_SKIPPED = re.compile(r"--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'", re.DOTALL)
POSTGRESQL_STATE = re.compile(
    START + r"(?:explain\b[^;]*?\b)?(?:"
    r"set\s+(?!local\b|transaction\b|constraints\b)"
    r"|reset\b|listen\b|do\b"
    r"|declare\b[^;]*\bwith\s+hold\b"
    r"|create\s+(?:or\s+replace\s+)?(?:(?:global|local)\s+)?temp(?:orary)?\b(?![^;]*\bon\s+commit\s+drop\b)"
    r"|create\b[^;(]*\bpg_temp\b"
    r")"
    r"|\bset_config\"?\s*\((?![^()]*,\s*true\s*\))"
    r"|\bpg_(?:try_)?advisory_lock(?:_shared)?\b"
    r"|\binto\s+(?:(?:global|local)\s+)?temp(?:orary)?\b"
    r"|\b(?:setseed|dblink_connect\w*)\s*\(",
    FLAGS,
)
POSTGRESQL_ALTERED = re.compile(
    START + r"(?:prepare\s+(?!transaction\b)|deallocate\b|discard\b|load\b)", FLAGS
)

MYSQL_SKIPPED = re.compile(
    r"""--\s[^\n]*|\#[^\n]*|/\*(?![!M]).*?\*/|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`[^`]*`""",
    re.DOTALL,
)
MYSQL_ALTERED = re.compile(
    START + r"(?:"
    r"set\s+(?!statement\b|password\b|global\s+(?![^;]*,)|persist)"
    r"|create\s+(?:or\s+replace\s+)?temporary\b|lock\s+tables?\b|use\b|prepare\b|handler\b|xa\b"
    r"|flush\s+tables?\b|backup\b|execute\s+immediate\b"
    r")"
    r"|\bget_lock\s*\(|\blast_insert_id\s*\(\s*[^\s)]|(?<![@\w])@[\w']+\s*:=|\binto\s+@"
    r"|\bcall\b[^;]*(?<!@)@[\w']|\bload\s+data\b[^;]*@",
    FLAGS,
)

SQLITE_SKIPPED = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
SQLITE_ALTERED = re.compile(
    START + r"(?:"
    r"attach\b|detach\b|create\s+temp(?:orary)?\b|create\b[^;(]*\btemp\s*\."
    r"|pragma\b[^;(]*="
    r"|pragma\s+(?:\w+\.)?(?!table_|index_|foreign_key_|integrity_check|quick_check|wal_checkpoint"
    r"|optimize|incremental_vacuum)[^.;(]+\("
    r")|\bload_extension\s*\(",
    FLAGS,
)


def on_postgresql(statement: str) -> Left:
    """Say what a statement leaves on a connection to PostgreSQL."""
    text = POSTGRESQL_SKIPPED.sub("''", statement)
    if POSTGRESQL_ALTERED.search(text):
        return Left.ALTERED
    return Left.STATE if POSTGRESQL_STATE.search(text) else Left.NOTHING


def on_mysql(statement: str) -> Left:
    """Say what a statement leaves on a connection to MySQL or MariaDB, which no reset undoes."""
    text = MYSQL_SKIPPED.sub("''", statement)
    return Left.ALTERED if MYSQL_ALTERED.search(text) else Left.NOTHING


def on_sqlite(statement: str) -> Left:
    """Say what a statement leaves on a connection to a file of SQLite, which no reset undoes."""
    text = SQLITE_SKIPPED.sub("''", statement)
    return Left.ALTERED if SQLITE_ALTERED.search(text) else Left.NOTHING


class Verdicts(dict[str, Left]):
    """Says what a statement leaves: `verdicts[statement]`, which is read once and remembered."""

    def __init__(self, find: Callable[[str], Left]) -> None:
        self._find = find

    def __missing__(self, statement: str) -> Left:
        """Read a statement."""
        left = self._find(statement)
        if len(statement) <= LONGEST_KEPT:
            if len(self) >= MOST_KEPT:
                self.clear()
            self[statement] = left
        return left


LEAVES = {
    "postgresql": Verdicts(on_postgresql),
    "mysql": Verdicts(on_mysql),
    "sqlite": Verdicts(on_sqlite),
}
"""By the name of a dialect: what its statements leave."""
