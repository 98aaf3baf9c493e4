"""What routes depend on."""

from typing import Any

from fastapi import Depends

from ..database.database import Database
from ..database.readers import Reader


def session_from(database: Database) -> Any:
    """Depend on one session, hence one transaction, per request.

    The "function" scope ends it before the response is sent: a COMMIT that fails is an
    error response, never a lost write behind a 201. Source: FastAPI, "Dependencies with
    yield and scope". Tests override `database.request_session`.
    """
    return Depends(database.request_session, scope="function")


def sync_session_from(database: Database) -> Any:
    """Depend on one synchronous session, hence one transaction, per request: for `def` routes.

    Its connections are counted in the budget from now on. Tests override
    `database.sync.request_session`.
    """
    database.uses_sync = True
    return Depends(database.sync.request_session, scope="function")


def reader_from(database: Database) -> Any:
    """Depend on the reader of a database, which holds no connection between its calls."""

    async def reader() -> Reader:
        return database.reader

    return Depends(reader)
