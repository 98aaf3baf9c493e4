"""SQLSTATE codes: the one name that an error has on every server.

Source: PostgreSQL's appendix A, "PostgreSQL Error Codes". SQLite has codes of its own, and
MySQL and MariaDB have numbers that say more than their SQLSTATEs: both are translated to the
SQLSTATE that PostgreSQL gives for the same thing.
"""

from dataclasses import dataclass

from sqlalchemy.exc import ArgumentError, DataError, InvalidRequestError

# The server is leaving, or is no longer the primary: the connection is of no more use.
READ_ONLY = "25006"
DISCONNECTED = frozenset({READ_ONLY, "57P01", "57P02", "57P03"})
# A statement in a transaction that is aborted already: another one has failed before.
IN_ABORTED = "25P02"
INTERRUPTED = "57014"
# A prepared statement is there already, or is gone: somebody else uses the connection too.
UNKNOWN_STATEMENT = frozenset({"26000", "42P05"})

# Of limits without a SQLSTATE that says so: of a driver, of SQLite, of PostgreSQL's memory.
LIMITS = {
    "the number of query arguments cannot exceed": "54023",
    "too many SQL variables": "54023",
    "invalid memory alloc request size": "54000",
}

SQLITE = {
    "SQLITE_BUSY": "55P03",
    "SQLITE_CANTOPEN": "08001",
    "SQLITE_CONSTRAINT_CHECK": "23514",
    "SQLITE_CONSTRAINT_DATATYPE": "22000",
    "SQLITE_CONSTRAINT_FOREIGNKEY": "23503",
    "SQLITE_CONSTRAINT_NOTNULL": "23502",
    "SQLITE_CONSTRAINT_PRIMARYKEY": "23505",
    "SQLITE_CONSTRAINT_ROWID": "23505",
    "SQLITE_CONSTRAINT_TRIGGER": "23001",  # also what ON DELETE RESTRICT reports
    "SQLITE_CONSTRAINT_UNIQUE": "23505",
    "SQLITE_FULL": "53100",
    "SQLITE_INTERRUPT": "57014",
    "SQLITE_LOCKED": "55P03",
    "SQLITE_READONLY": "25006",
    "SQLITE_TOOBIG": "54000",
}

# Where the SQLSTATE that the server sends says less: 23000 is every constraint, HY000 anything.
MYSQL = {
    1020: "40001",  # the row has changed since it was read; MariaDB, innodb_snapshot_isolation
    1022: "23505",  # a duplicate key
    1021: "53100",  # the disk is full
    1040: "53300",  # too many connections
    1044: "28000",  # no access to this database
    1045: "28P01",
    1048: "23502",
    1049: "3D000",
    1053: "57P01",  # the server is shutting down
    1062: "23505",
    1114: "53100",  # a table is full: its disk, mostly
    1169: "23505",
    1203: "53300",
    1118: "54000",  # a row is too large
    1153: "54000",  # a statement is larger than max_allowed_packet
    1205: "55P03",  # lock wait timeout
    1206: "53200",  # the lock table is full
    1213: "40P01",  # deadlock
    1216: "23503",
    1217: "23503",
    1226: "53300",  # the user has no connection left
    1264: "22003",
    1265: "22000",
    1290: "25006",  # --read-only
    1292: "22007",
    1300: "22021",  # no character of the set
    1317: "57014",  # interrupted: KILL QUERY
    1364: "23502",  # NULL by omission
    1365: "22012",
    1366: "22000",
    1406: "22001",
    1436: "54001",  # the stack is too small for the statement
    1451: "23503",
    1452: "23503",
    1557: "23505",
    1586: "23505",
    1690: "22003",
    1698: "28000",
    1836: "25006",
    1927: "57P01",  # killed; MariaDB
    1969: "57014",  # max_statement_time; MariaDB
    3024: "57014",  # max_execution_time; MySQL
    3140: "22000",  # malformed JSON
    3572: "55P03",  # NOWAIT; MySQL
    3819: "23514",  # CHECK; MySQL
    4025: "23514",  # CHECK; MariaDB
    4031: "57P01",  # idle for longer than wait_timeout; MySQL
}
MYSQL_CLIENT = range(2000, 3000)
"""Numbers that the driver gives, not the server: no answer came."""


BUGS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, NotImplementedError, TypeError, ValueError),
    *(ArgumentError, InvalidRequestError),
)
"""What a mistake in Python raises, or in what SQLAlchemy is told."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told about an error of the database."""

    status: int
    detail: str


CONFLICT = "conflicts with another transaction; try again"
STALE = Answer(503, "the tables have just changed; try again")

ANSWERS = {
    "22": Answer(422, "a value is out of range or has a wrong form"),
    "23502": Answer(422, "a value is missing"),
    "23001": Answer(409, "another row refers to this one"),
    "23503": Answer(409, "another row refers to this one, or the row referred to is gone"),
    "23505": Answer(409, "a row with the same value exists"),
    "23514": Answer(422, "a value is not allowed"),
    "23P01": Answer(409, "conflicts with another row"),
    "25006": Answer(503, "the database is read-only at the moment"),
    "25P03": Answer(504, "the transaction was idle for too long"),
    "25P04": Answer(504, "the transaction took too long"),
    "40": Answer(503, CONFLICT),
    "53": Answer(503, "the database is out of resources"),
    "54": Answer(422, "a value is too large"),
    "55P03": Answer(503, "the row is locked by another transaction; try again"),
    "57014": Answer(504, "the statement took too long"),
    "57P": Answer(503, "the database is restarting"),
    "08": Answer(503, "the connection to the database was lost"),
}


def is_retryable(code: str | None) -> bool:
    """Whether another transaction was in the way: the same work, begun again, may succeed."""
    return code in {"40001", "40P01"}


def is_bug(error: BaseException) -> bool:
    """Whether what a connect raised is a mistake: in Python, or in a statement that it ran."""
    return isinstance(error, BUGS) or (sqlstate(error) or "")[:2] in {"22", "42"}


def is_stale(error: BaseException) -> bool:
    """Whether a statement was prepared before a migration changed what it is about.

    Nothing was done, and SQLAlchemy forgets what it has prepared: asked again, it succeeds.
    """
    error = getattr(error, "orig", None) or error
    if type(error).__name__ == "InvalidCachedStatementError":
        return True
    return sqlstate(error) == "XX000" and "cache lookup failed" in str(error)


def may_succeed_again(error: BaseException) -> bool:
    """Whether the same work, begun again, may succeed."""
    return is_retryable(sqlstate(error)) or is_stale(error)


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error, however deep it is wrapped."""
    unknown = "22000" if isinstance(error, DataError) else None
    while error is not None:
        code = getattr(error, "sqlstate", None)
        if type(error).__module__ in {"asyncmy.errors", "pymysql.err"}:
            return mysql_sqlstate(error.args[0], code)
        if isinstance(code, str):
            return code if code != "XX000" else limit_of(error) or code
        name = getattr(error, "sqlite_errorname", None)
        if isinstance(name, str):
            # Extended names add to the basic one: SQLITE_BUSY_SNAPSHOT.
            known = (SQLITE[key] for key in SQLITE if name.startswith(key))
            return next(known, None) or limit_of(error)
        unknown = unknown or limit_of(error)
        error = getattr(error, "orig", None) or error.__cause__
    return unknown


def limit_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a limit that only the message names."""
    said = str(error)
    return next((code for text, code in LIMITS.items() if text in said), None)


def mysql_sqlstate(number: int | str, code: str | None) -> str | None:
    """Translate an error's number; `code` is the SQLSTATE that came with it."""
    if isinstance(number, str):  # The driver's own, which is of a value: NaN, infinity.
        return "22003" if number.endswith("can not be used with MySQL") else None
    return None if number in MYSQL_CLIENT else MYSQL.get(number, code)


def answer(code: str | None) -> Answer | None:
    """Return the answer for a SQLSTATE, or for its class; None where the fault is ours."""
    for length in (5, 3, 2):
        if code and (found := ANSWERS.get(code[:length])):
            return found
    return None
