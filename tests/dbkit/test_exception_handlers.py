"""What a client is told when a database is at fault: real statements in a real application."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import dbkit.database.engine
import pytest
from dbkit import Database, Databases, Unreachable, install, session_from
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres
from dbkit.web.problems import database_failed
from fastapi import APIRouter, FastAPI, Request
from httpx import ASGITransport, AsyncClient, Response
from pydantic import BaseModel
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

SCHEMA = """
CREATE TABLE parents (
    id integer PRIMARY KEY, name varchar(5) NOT NULL, number smallint CHECK (number >= 0));
CREATE TABLE children (
    id integer PRIMARY KEY, parent_id integer REFERENCES parents (id));
CREATE TABLE favourites (
    id integer PRIMARY KEY, parent_id integer REFERENCES parents (id) ON DELETE RESTRICT);
CREATE TABLE late (
    id integer PRIMARY KEY,
    parent_id integer REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);
INSERT INTO parents VALUES (1, 'one', 1), (2, 'two', 2);
INSERT INTO children VALUES (1, 1);
INSERT INTO favourites VALUES (1, 2)
"""


class Work(BaseModel):
    """Statements to run in one transaction."""

    sql: list[str]
    values: dict[str, Any] = {}


class Service:
    """An application on a PostgreSQL and a SQLite database."""

    def __init__(self) -> None:
        self.primary = Database(
            "primary", "postgresql", env_prefix="DATABASE_", lock_timeout=0.1, breaker_threshold=100
        )
        self.audit = Database("audit", "sqlite", lock_timeout=0.1)
        self.databases = Databases(self.primary, self.audit)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
            async with self.databases.open():
                yield

        self.app = FastAPI(lifespan=lifespan)
        install(self.app, self.databases)
        for name, database in self.databases.items():
            self.add_routes(name, session_from(database))
        # As from a server: an error that nobody handles is a 500.
        transport = ASGITransport(self.app, raise_app_exceptions=False)
        self.client = AsyncClient(transport=transport, base_url="http://test")

    def add_routes(self, name: str, dependency: Any) -> None:
        """Add routes that use one database as routes do."""

        @self.app.post(f"/{name}", status_code=201)
        async def run(work: Work, session: Annotated[AsyncSession, dependency]) -> str:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
            for statement in work.sql:
                await session.execute(text(statement), work.values)
            return "done"

        @self.app.get(f"/{name}/raise/{{kind}}")
        async def fail(kind: str, session: Annotated[AsyncSession, dependency]) -> None:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
            await session.execute(text("SELECT 1"))
            raise {"os": OSError, "timeout": TimeoutError}[kind]("mine")

    async def run(self, database: str, /, *sql: str, **values: Any) -> Response:
        """Run statements over HTTP."""
        body = json.dumps({"sql": sql, "values": values})  # httpx's own cannot write surrogates.
        return await self.client.post(
            f"/{database}", content=body, headers={"Content-Type": "application/json"}
        )

    @asynccontextmanager
    async def running(self, url: URL, file: Path, **variables: str) -> AsyncGenerator["Service"]:
        """Run the application's lifespan, and end it before the fixture's task ends."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
            patch.setenv("AUDIT_DATABASE_URL", f"sqlite:///{file}")
            for variable, value in variables.items():
                patch.setenv(variable, value)
            async with self.app.router.lifespan_context(self.app), self.client:
                for database in self.databases.values():
                    async with database.session() as session:
                        for statement in SCHEMA.split(";"):
                            await session.execute(text(statement))
                yield self


@pytest.fixture
async def service(database_url: URL, tmp_path: Path) -> AsyncIterator[Service]:
    async with Service().running(database_url, tmp_path / "audit.sqlite3") as service:
        yield service


def check_problem(response: Response, status: int, detail: str) -> None:
    titles = {409: "Conflict", 503: "Service Unavailable", 504: "Gateway Timeout"}
    assert response.json() == {
        "type": "about:blank",
        "title": titles[status],
        "status": status,
        "detail": detail,
    }
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers.get("Retry-After") == ("1" if status == 503 else None)


def check_unprocessable(response: Response, detail: str) -> None:
    """Compare with FastAPI's own form, in which routes declare their 422."""
    assert response.status_code == 422
    assert response.json() == {"detail": [{"type": "database", "loc": ["body"], "msg": detail}]}


TAKEN = "a row with the same value exists"
GONE = "another row refers to this one, or the row referred to is gone"
REFERRED = "another row refers to this one"
OUT_OF_RANGE = "a value is out of range or has a wrong form"


@pytest.mark.parametrize("database", ["primary", "audit"])
@pytest.mark.parametrize(
    ("sql", "detail"),
    [
        ("INSERT INTO parents VALUES (1, 'again', 1)", TAKEN),
        ("INSERT INTO children VALUES (9, 77)", GONE),
        ("DELETE FROM parents WHERE id = 1", GONE),
        ("DELETE FROM parents WHERE id = 2", REFERRED),
        # Fails at COMMIT only: the answer must wait for it.
        ("INSERT INTO late VALUES (9, 77)", GONE),
    ],
)
async def test_a_conflict_is_409(service: Service, database: str, sql: str, detail: str) -> None:
    check_problem(await service.run(database, sql), 409, detail)


@pytest.mark.parametrize("database", ["primary", "audit"])
@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"name": None}, "a value is missing"),
        ({"number": -1}, "a value is not allowed"),
        ({"id": 2**70}, OUT_OF_RANGE),
        ({"id": -(2**63) - 1}, OUT_OF_RANGE),
        ({"name": "\ud800"}, OUT_OF_RANGE),
    ],
)
async def test_a_bad_value_is_422(
    service: Service, database: str, row: dict[str, Any], detail: str
) -> None:
    values = {"id": 9, "name": "nine", "number": 9} | row

    response = await service.run(
        database, "INSERT INTO parents VALUES (:id, :name, :number)", **values
    )

    check_unprocessable(response, detail)


@pytest.mark.parametrize(
    "row",
    [
        {"id": 2**31},  # refused by the driver
        {"number": 2**15},
        {"name": "longer than five"},  # refused by the server
        {"name": "nul \x00"},
    ],
)
async def test_a_value_that_postgresql_cannot_store_is_422(
    service: Service, row: dict[str, Any]
) -> None:
    values = {"id": 9, "name": "nine", "number": 9} | row

    response = await service.run(
        "primary", "INSERT INTO parents VALUES (:id, :name, :number)", **values
    )

    check_unprocessable(response, OUT_OF_RANGE)


async def test_a_task_group_is_answered_as_what_failed_in_it(service: Service) -> None:
    async def conflict() -> None:
        async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
            for tasks in (outer, inner):
                again = text("INSERT INTO parents VALUES (1, 'again', 1)")
                tasks.create_task(service.primary.execute(again))

    async def buggy() -> None:
        raise ExceptionGroup("reads", [Unreachable("primary", "away"), ZeroDivisionError()])

    async def away() -> None:
        raise ExceptionGroup("reads", [Unreachable("primary", "away")])

    for route in (conflict, buggy, away):
        service.app.add_api_route(f"/{route.__name__}", route, methods=["GET", "POST"])

    check_problem(await service.client.post("/conflict"), 409, TAKEN)
    check_problem(
        await service.client.get("/away"), 503, "primary: cannot be reached; try again later"
    )
    assert (await service.client.get("/buggy")).status_code == 500


async def test_what_failed_left_nothing_behind(service: Service) -> None:
    for database in ("primary", "audit"):
        await service.run(
            database, "INSERT INTO parents VALUES (8, 'eight', 8)", "INSERT INTO late VALUES (9, 9)"
        )
        again = await service.run(database, "INSERT INTO parents VALUES (8, 'eight', 8)")
        assert again.status_code == 201


@pytest.mark.parametrize("database", ["primary", "audit"])
async def test_bodies_hold_neither_sql_nor_values(service: Service, database: str) -> None:
    for sql in (
        "INSERT INTO parents VALUES (1, 'again', 1)",
        "INSERT INTO parents VALUES (9, NULL, 1)",
        "INSERT INTO parents VALUES (9, 'again', -7)",
        "SELECT again FROM parents",
        "SELEKT again FROM parents",
    ):
        response = await service.run(database, sql)

        assert response.status_code in {409, 422, 500}
        assert not {"parents", "again", "VALUES", "sqlite", "asyncpg", "-7"} & set(
            response.text.replace('"', " ").split()
        )
        assert "parents" not in response.text
        assert "again" not in response.text


@pytest.mark.parametrize("database", ["primary", "audit"])
@pytest.mark.parametrize("sql", ["SELEKT 1", "SELECT 1 FROM nowhere"])
async def test_a_mistake_in_our_sql_is_500_and_reaches_the_server(
    service: Service, database: str, sql: str
) -> None:
    assert (await service.run(database, sql)).status_code == 500
    # The server logs what is raised to it, with a traceback.
    transport = ASGITransport(service.app, raise_app_exceptions=True)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(Exception, match=r"syntax error|nowhere"):
            await client.post(f"/{database}", json={"sql": [sql]})


async def test_a_slow_statement_is_504(database_url: URL, tmp_path: Path) -> None:
    variables = {"DATABASE_STATEMENT_TIMEOUT": "0.1"}
    async with Service().running(database_url, tmp_path / "audit", **variables) as service:
        response = await service.run("primary", "SELECT pg_sleep(60)")

        check_problem(response, 504, "primary: the statement took too long")


@pytest.mark.parametrize(
    ("database", "lock"),
    [("primary", "LOCK TABLE parents"), ("audit", "DELETE FROM children")],
)
async def test_a_lock_that_is_not_released_is_503(
    service: Service, database: str, lock: str
) -> None:
    async with service.databases[database].session() as session:
        await session.execute(text(lock))

        response = await service.run(database, "SELECT * FROM parents")

    check_problem(response, 503, f"{database}: the row is locked by another transaction; try again")


async def test_a_deadlock_is_503(database_url: URL, tmp_path: Path) -> None:
    variables = {"DATABASE_LOCK_TIMEOUT": "0"}
    async with Service().running(database_url, tmp_path / "audit", **variables) as service:
        engine = service.primary.engine
        async with engine.connect() as gate, engine.connect() as other:
            await gate.execute(text("SELECT pg_advisory_lock(1)"))
            await other.execute(text("SET deadlock_timeout = '60s'"))
            await other.execute(text("UPDATE parents SET number = 5 WHERE id = 1"))
            request = asyncio.create_task(
                service.run(
                    "primary",
                    "SET LOCAL deadlock_timeout = '10ms'",
                    "UPDATE parents SET number = 6 WHERE id = 2",
                    "SELECT pg_advisory_xact_lock(1)",
                    # Closes the circle, and looks for one first: it is the victim.
                    "UPDATE parents SET number = 6 WHERE id = 1",
                )
            )
            await lock_waiters(service, 1)
            update = asyncio.create_task(
                other.execute(text("UPDATE parents SET number = 5 WHERE id = 2"))
            )
            await lock_waiters(service, 2)
            await gate.execute(text("SELECT pg_advisory_unlock(1)"))
            response, _ = await asyncio.gather(request, update)

        check_problem(response, 503, "primary: conflicts with another transaction; try again")


async def lock_waiters(service: Service, number: int) -> None:
    """Return once that many backends wait for a lock."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(30), service.primary.engine.connect() as watcher:
        await watcher.execution_options(isolation_level="AUTOCOMMIT")
        while await watcher.scalar(query) != number:  # noqa: ASYNC110 -- the server has no event
            await asyncio.sleep(0.01)


async def test_a_serialization_failure_is_503(service: Service) -> None:
    async with service.primary.engine.connect() as other:
        await other.execution_options(isolation_level="SERIALIZABLE")
        await other.execute(text("SELECT sum(number) FROM parents"))
        await other.execute(text("INSERT INTO parents VALUES (8, 'eight', 8)"))
        # Both read what the other writes, so that one of them must fail: the second to commit.
        request = await service.run(
            "primary",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SELECT sum(number) FROM parents",
            "INSERT INTO parents VALUES (9, 'nine', 9)",
        )
        assert request.status_code == 201
        with pytest.raises(Exception, match="could not serialize") as caught:
            await other.commit()

    check = await database_failed(Request({"type": "http", "method": "POST"}), caught.value)
    assert check.status_code == 503


async def test_a_read_only_database_is_503(service: Service) -> None:
    response = await service.run(
        "primary", "SET TRANSACTION READ ONLY", "INSERT INTO parents VALUES (9, 'nine', 9)"
    )

    check_problem(response, 503, "primary: the database is read-only at the moment")


async def test_a_terminated_backend_is_503_and_the_next_request_is_served(service: Service) -> None:
    response = await service.run("primary", "SELECT pg_terminate_backend(pg_backend_pid())")

    check_problem(response, 503, "primary: the connection to the database was lost")
    assert (await service.run("primary", "SELECT 1")).status_code == 201


async def test_no_connection_left_on_the_server_is_503(
    service: Service, database_url: URL, tmp_path: Path
) -> None:
    async with service.primary.session() as session:
        await session.execute(text("CREATE ROLE alone LOGIN PASSWORD 's3cret' CONNECTION LIMIT 1"))
        await session.execute(text("GRANT SELECT ON parents TO alone"))
    url = database_url.set(username="alone", password="s3cret")  # noqa: S106 -- of this test
    other = Service()
    try:
        # The probe of readiness takes the role's only connection.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
            patch.setenv("AUDIT_DATABASE_URL", f"sqlite:///{tmp_path / 'other'}")
            patch.setenv("DATABASE_CONNECT_TIMEOUT", "0.5")
            async with other.app.router.lifespan_context(other.app), other.client:
                response = await other.run("primary", "SELECT 1")
    finally:
        async with service.primary.session() as session:
            await session.execute(text("DROP OWNED BY alone"))
            await session.execute(text("DROP ROLE alone"))

    check_problem(response, 503, "primary: cannot be reached; try again later")


@pytest.fixture(scope="module")
def mortal_postgres(fast_directory: Path) -> Iterator[EmbeddedPostgres]:
    """Run a server that a test may stop."""
    with EmbeddedPostgres(fast_directory / "mortal", settings=TEST_SETTINGS) as server:
        yield server


async def test_a_stopped_server_is_503(
    mortal_postgres: EmbeddedPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mortal_postgres.create_database("orders")
    url = mortal_postgres.url("orders")
    async with Service().running(url, tmp_path / "audit") as service:
        await asyncio.to_thread(mortal_postgres.stop)

        responses = [await service.run("primary", "SELECT 1") for _ in range(2)]

        for response in responses:
            assert response.status_code == 503
            assert response.headers["Retry-After"]
            assert response.headers["Content-Type"] == "application/problem+json"
        assert (await service.run("audit", "SELECT 1")).status_code == 201
    assert url.password
    assert url.password not in caplog.text


@contextmanager
def stopped(process: int) -> Generator[None]:
    """Freeze a process."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


async def test_a_server_that_freezes_is_503(
    database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbkit.database.engine, "FENCE", 0.1)
    variables = {"DATABASE_STATEMENT_TIMEOUT": "0.1", "DATABASE_POOL_SIZE": "1"}
    async with Service().running(database_url, tmp_path / "audit", **variables) as service:
        async with service.primary.engine.connect() as connection:
            backend = await connection.scalar(text("SELECT pg_backend_pid()"))
        with stopped(int(backend)):
            response = await service.run("primary", "SELECT 1")

        check_problem(response, 503, "primary: cannot be reached; try again later")


@pytest.mark.parametrize("kind", ["os", "timeout"])
async def test_an_error_of_ours_that_looks_like_the_networks_stays_500(
    service: Service, kind: str
) -> None:
    assert (await service.client.get(f"/primary/raise/{kind}")).status_code == 500
    assert (await service.run("primary", "SELECT 1")).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        '{"sql": NaN}',
        '{"sql": [Infinity]}',
        '{"sql": "\\ud800"}',
        '{"sql": 1e999}',
        '"\\ud800"',
        '{"\\ud800": NaN}',
        "{",
        "",
        "[" * 500,
    ],
)
async def test_a_body_that_cannot_be_sent_back_is_422(service: Service, body: str) -> None:
    response = await service.client.post(
        "/primary", content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code == 422
    assert all(each.keys() == {"type", "loc", "msg"} for each in response.json()["detail"])


async def test_each_error_is_a_line_with_its_reason_and_place_and_without_values(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dbkit"):
        await service.run("primary", "INSERT INTO parents VALUES (1, 'again', 1)")
        await service.run("primary", "INSERT INTO parents VALUES (:id, :name, 1)", id=9, name=None)
        await service.run("primary", "INSERT INTO late VALUES (9, 987654)")
        await service.run("primary", "SELECT hunter2")
        await service.run(
            "primary",
            "SET TRANSACTION READ ONLY",
            "INSERT INTO parents VALUES (:id, 'nine', 9)",
            id=987654,
        )

    logged = [each for each in caplog.records if each.name == "dbkit.exception_handlers"]
    assert [
        (each.levelname, vars(each)["sqlstate"], vars(each).get("constraint"), vars(each)["table"])
        if "table" in vars(each)
        else (each.levelname, vars(each)["sqlstate"])
        for each in logged
    ] == [
        ("INFO", "23505", "parents_pkey", "parents"),
        ("WARNING", "23502", None, "parents"),
        ("INFO", "23503", "late_parent_id_fkey", "late"),
        ("ERROR", "42703"),
        ("ERROR", "25006"),
    ]
    assert vars(logged[1])["column"] == "name"
    for each in logged:
        assert each.getMessage().startswith(f"primary: SQLSTATE {vars(each)['sqlstate']}: ")
        assert "test_exception_handlers.py:" in each.getMessage()
        assert " in run" in each.getMessage()
    # At COMMIT, no line of the service is under way: its function is named.
    assert "violates foreign key constraint" in logged[2].getMessage()
    assert "987654" not in caplog.text


async def test_openapi_declares_the_answers(service: Service) -> None:
    responses = service.app.openapi()["paths"]["/primary"]["post"]["responses"]

    assert set(responses) == {"201", "409", "422", "503", "504"}
    assert list(responses["503"]["content"]) == ["application/problem+json"]
    assert {"title", "status", "detail"} <= set(
        responses["409"]["content"]["application/problem+json"]["schema"]["properties"]
    )
    alive = service.app.openapi()["paths"]["/livez"]["get"]["responses"]
    assert set(alive) == {"200"}


async def test_openapi_has_what_a_route_says_of_an_answer_itself() -> None:
    app = FastAPI(responses={503: {"description": "Closed on Sundays"}})
    install(app, Databases())
    app.add_api_route("/", lambda: "open", responses={409: {"description": "Taken"}})

    responses = app.openapi()["paths"]["/"]["get"]["responses"]
    assert (responses["409"]["description"], responses["503"]["description"]) == (
        "Taken",
        "Closed on Sundays",
    )


async def test_a_405_names_every_method_of_its_path() -> None:
    app = FastAPI()
    install(app, Databases())
    router = APIRouter(prefix="/items")

    @router.get("/{item_id}")
    @router.delete("/{item_id}")
    async def use(item_id: int) -> int:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        return item_id

    app.include_router(router)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        for method in ("OPTIONS", "PUT"):
            response = await client.request(method, "/items/1")
            assert (response.status_code, response.headers["allow"]) == (405, "GET, DELETE")
        assert (await client.post("/pools")).status_code in {404, 405}


async def test_mounted_applications_answer_as_the_one_around_them(service: Service) -> None:
    """Each has error handlers of its own, so that ours around them would come too late."""
    session = session_from(service.primary)

    async def conflict(session: Annotated[AsyncSession, session]) -> None:
        await session.execute(text("INSERT INTO parents VALUES (1, 'one', 1)"))

    async def page(_: Request) -> PlainTextResponse:
        async with service.primary.session() as session:
            await session.execute(text("INSERT INTO parents VALUES (1, 'one', 1)"))
        return PlainTextResponse("made")

    fast, twice, own, inner = FastAPI(), FastAPI(), FastAPI(), Starlette()
    install(twice, service.databases)
    for app in (fast, twice, own):
        app.post("/parents")(conflict)
        app.post("/works")(take)
    own.add_exception_handler(DBAPIError, teapot)
    inner.add_route("/parents", page, methods=["POST"])
    fast.mount("/inner", inner)
    gzip = [Middleware(GZipMiddleware)]
    for path, app in {"/fast": fast, "/twice": twice, "/own": own}.items():
        service.app.router.routes.append(Mount(path, app, middleware=gzip))

    answers = {
        path: await service.client.post(f"{path}/parents")
        for path in ("/fast", "/twice", "/fast/inner", "/own")
    }

    assert {path: answer.status_code for path, answer in answers.items()} == {
        "/fast": 409,
        "/twice": 409,
        "/fast/inner": 409,
        "/own": 418,
    }
    assert all(len(each.headers.get_list("x-request-id")) == 1 for each in answers.values())
    headers = {"content-type": "application/json"}
    for path in ("/fast", "/twice", "/own"):
        body = b'{"sql": NaN}'
        refused = await service.client.post(f"{path}/works", content=body, headers=headers)
        assert refused.status_code == 422


async def take(_: Work) -> None:
    """Take a body."""


async def teapot(_request: Request, _error: Exception) -> PlainTextResponse:
    """Answer as no handler of ours."""
    return PlainTextResponse("", 418)
