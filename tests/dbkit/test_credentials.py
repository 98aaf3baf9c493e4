"""Secrets in files, passwords that change while the service runs, and TLS."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from dbkit import Database, DatabaseSettings, NotConfigured, Unreachable
from dbkit.commands import migrations
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres
from dbkit.settings.database import read_settings
from debian import find_program
from pooler import pgbouncer
from replication import give
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from waiting import until

DEBIANS = Path("/usr/lib/postgresql")
SECRET = "postgresql://user:s3cret@host/name"  # noqa: S105 -- no server has it


def read(variables: dict[str, str]) -> DatabaseSettings:
    return read_settings(variables, prefix="DATABASE_", dialect="postgresql", declared={})


def faults(variables: dict[str, str]) -> list[str]:
    with pytest.raises(NotConfigured) as caught:
        read(variables)
    return list(caught.value.faults)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a file of secrets, as containers mount them."""
    return tmp_path / "secret"


@pytest.fixture
async def role(postgres: EmbeddedPostgres) -> AsyncIterator[AsyncConnection]:
    """Make the role `rotating`, password `one`; yield a connection that may change it."""
    engine = create_async_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text("CREATE ROLE rotating LOGIN PASSWORD 'one'"))
        yield connection
        await connection.execute(text("DROP ROLE rotating"))
    await engine.dispose()


async def is_refused(database: Database, connections: int) -> None:
    """Ask for so many connections, until the server has refused one."""
    before = database.pool.snapshot().connect_errors
    with suppress(Unreachable):
        await database.pool.warm(connections, 0)
    await until(lambda: database.pool.snapshot().connect_errors > before)


def rotating(url: URL) -> str:
    role = URL.create("postgresql", "rotating", host=url.host, port=url.port, database=url.database)
    return role.render_as_string()


def test_a_url_may_come_from_a_file(file: Path) -> None:
    file.write_text(f"{SECRET}\n")

    assert read({"DATABASE_URL_FILE": str(file)}).url.password == "s3cret"  # noqa: S105 -- no server has it


def test_a_file_of_a_wrong_url_is_named_and_not_shown(file: Path) -> None:
    file.write_text("mysql://user:s3cret@host/name")

    (fault,) = faults({"DATABASE_URL_FILE": str(file)})

    assert fault.startswith("DATABASE_URL_FILE: is for mysql, but this database is postgresql")
    assert "s3cret" not in fault


@pytest.mark.parametrize("field", ["URL", "PASSWORD"])
def test_what_is_set_twice_is_refused(file: Path, field: str) -> None:
    file.write_text(SECRET)
    variables = {"DATABASE_URL": "postgresql://user@host/name", f"DATABASE_{field}": SECRET}

    assert f"DATABASE_{field}_FILE: DATABASE_{field} is set too; unset one of them" in faults(
        variables | {f"DATABASE_{field}_FILE": str(file)}
    )


def test_two_passwords_are_refused_and_the_same_one_twice_is_not(file: Path) -> None:
    file.write_text("other")

    assert faults({"DATABASE_URL": SECRET, "DATABASE_PASSWORD_FILE": str(file)}) == [
        "DATABASE_PASSWORD_FILE: the URL holds a password too; leave one of them out"
    ]
    assert faults({"DATABASE_URL": SECRET, "DATABASE_PASSWORD": "other"}) == [
        "DATABASE_PASSWORD: the URL holds another one; leave one of them out"
    ]
    assert read({"DATABASE_URL": SECRET, "DATABASE_PASSWORD": "s3cret"}).password is None


def test_files_that_are_missing_or_empty_are_named(file: Path) -> None:
    empty = file.with_name("empty")
    empty.write_text("\n")

    assert faults({"DATABASE_URL_FILE": str(file), "DATABASE_PASSWORD_FILE": str(empty)}) == [
        f"DATABASE_URL_FILE: cannot read {file}: No such file or directory",
        f"DATABASE_PASSWORD_FILE: {empty} is empty",
    ]


def test_a_secret_in_the_place_of_its_file_is_not_shown() -> None:
    variables = {"DATABASE_URL_FILE": SECRET, "DATABASE_PASSWORD_FILE": "s3cret"}

    assert not [fault for fault in faults(variables) if "s3cret" in fault]


def test_settings_do_not_show_the_password() -> None:
    settings = read({"DATABASE_URL": "postgresql://user@host/name", "DATABASE_PASSWORD": "s3cret"})

    assert "s3cret" not in repr(settings) + str(settings.model_dump())


async def test_a_password_file_that_changes_is_read_again(
    role: AsyncConnection, database_url: URL, file: Path
) -> None:
    file.write_text("one\n")  # noqa: ASYNC240 -- it is short
    database = Database(
        "orders",
        "postgresql",
        url=rotating(database_url),
        password_file=str(file),
        pool_size=2,
        min_ready=0,
    )

    async with database.open(), database.engine.connect() as first:
        await first.execute(text("SELECT 1"))
        await role.execute(text("ALTER ROLE rotating PASSWORD 'two'"))
        await is_refused(database, 2)
        with pytest.raises(Unreachable, match="check ORDERS_DATABASE_PASSWORD_FILE"):
            async with migrations.connect(database):
                pass
        file.write_text("two\n")  # noqa: ASYNC240 -- it is short
        assert await database.pool.warm(2, 5) == 2
        slots = database.pool._connections.slots.values()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        due = sorted(slot.expires - slot.taken for slot in slots)

    assert due[0] <= 60  # seconds: the first was opened with the old password
    assert due[1] > 1000


async def test_a_callable_is_asked_at_each_connect(
    role: AsyncConnection, database_url: URL
) -> None:
    asked: list[str] = []

    async def password() -> str:
        asked.append("one")
        return "one"

    database = Database(
        "orders", "postgresql", url=rotating(database_url), password=password, pool_size=2
    )

    async with database.open():
        before = len(asked)
        await database.pool.warm(2, 5)
        assert len(asked) == before + 1


async def test_a_callable_that_others_cancelled_is_asked_again(
    role: AsyncConnection, database_url: URL
) -> None:
    cancelled = asyncio.create_task(asyncio.Event().wait())
    cancelled.cancel()
    asked: list[str] = []

    async def password() -> str:
        asked.append("one")
        if len(asked) <= 6:
            await cancelled
        return "one"

    database = Database("orders", "postgresql", url=rotating(database_url), password=password)

    async with database.open():
        with pytest.raises(Unreachable, match="what makes its password was cancelled"):
            await database.reader.scalar(text("select 1"))
        await until(lambda: database.pool.snapshot().breaker == "closed")
        assert await database.reader.scalar(text("select 1")) == 1


async def test_tokens_that_differ_each_time_retire_nothing_until_one_is_refused(
    role: AsyncConnection, database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tokens = ["one"]
    database = Database(
        "orders",
        "postgresql",
        url=rotating(database_url),
        password=lambda: tokens[-1],
        pool_size=3,
        min_ready=0,
    )

    async with database.open():
        await database.pool.warm(1, 5)
        await role.execute(text("ALTER ROLE rotating PASSWORD 'two'"))
        tokens.append("two")
        await database.pool.warm(2, 5)
        assert "password has changed" not in caplog.text
        await role.execute(text("ALTER ROLE rotating PASSWORD 'three'"))
        await is_refused(database, 3)
        tokens.append("three")
        await database.pool.warm(3, 5)

    assert "orders: the password has changed; connections are replaced" in caplog.text


async def test_a_password_in_the_url_comes_before_a_callable(database_url: URL) -> None:
    def refuse() -> str:
        raise AssertionError

    url = database_url.render_as_string(hide_password=False)

    async with Database("orders", "postgresql", url=url, password=refuse).open() as database:
        assert database.probe.is_up


def test_a_replica_without_a_url_has_the_password_of_its_primary(file: Path) -> None:
    file.write_text("s3cret")
    primary = Database("primary", "postgresql", url="postgresql://user@host/name")
    replica = Database("replica", "postgresql", replica_of=primary)
    variables = {"PRIMARY_DATABASE_PASSWORD_FILE": str(file), "PRIMARY_DATABASE_PGBOUNCER": "true"}

    settings = replica.read_settings(variables)

    assert (settings.password_file, settings.pgbouncer) == (str(file), True)


# TLS. The embedded PostgreSQL was built without it, but not PgBouncer.


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Make an authority that signs certificates."""
    return trustme.CA()


@pytest.fixture(scope="session")
def secured(
    postgres: EmbeddedPostgres, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[URL]:
    """Run a server that insists on TLS, with a certificate for 127.0.0.1."""
    certificate = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    with pgbouncer(
        postgres.url("postgres"),
        files={"tls.pem": certificate.bytes()},
        client_tls_sslmode="require",
        client_tls_key_file="tls.pem",
        client_tls_cert_file="tls.pem",
    ) as url:
        yield url


async def connects(url: URL, **query: str) -> bool:
    database = Database(
        "orders",
        "postgresql",
        url=url.update_query_dict(query).render_as_string(hide_password=False),
        pgbouncer=True,
        required_at_start=True,
        connect_timeout=2,
    )
    async with database.open(), database.engine.connect() as connection:
        return await connection.scalar(text("SELECT true"))


async def test_a_server_is_believed_if_the_authority_has_signed_its_name(
    secured: URL, authority: trustme.CA, tmp_path: Path
) -> None:
    good, other = str(tmp_path / "good.pem"), str(tmp_path / "other.pem")
    authority.cert_pem.write_to_path(good)
    trustme.CA().cert_pem.write_to_path(other)

    assert await connects(secured, sslmode="verify-full", sslrootcert=good)
    assert await connects(secured, sslmode="require")
    with pytest.raises(Unreachable, match="unable to get local issuer"):
        await connects(secured, sslmode="verify-full", sslrootcert=other)
    with pytest.raises(Unreachable, match="certificate verify failed"):
        await connects(secured, sslmode="verify-full")  # by what the machine trusts


async def test_a_name_that_is_not_the_certificates_is_refused(
    secured: URL, authority: trustme.CA, tmp_path: Path
) -> None:
    good = str(tmp_path / "good.pem")
    authority.cert_pem.write_to_path(good)
    elsewhere = secured.set(host="localhost")

    assert await connects(elsewhere, sslmode="verify-ca", sslrootcert=good)
    with pytest.raises(Unreachable, match="Hostname mismatch"):
        await connects(elsewhere, sslmode="verify-full", sslrootcert=good)


def test_synchronous_connections_believe_the_same_servers(
    secured: URL, authority: trustme.CA, tmp_path: Path
) -> None:
    good, other = str(tmp_path / "good.pem"), str(tmp_path / "other.pem")
    authority.cert_pem.write_to_path(good)
    trustme.CA().cert_pem.write_to_path(other)

    def connects_in_a_thread(host: str, **query: str) -> bool:
        url = secured.set(host=host).update_query_dict(query)
        shown = url.render_as_string(hide_password=False)
        database = Database("orders", "postgresql", url=shown, pgbouncer=True, connect_timeout=2)
        try:
            with database.sync.session() as session:
                return bool(session.scalar(text("SELECT true")))
        finally:
            database.close_sync()

    assert connects_in_a_thread("127.0.0.1", sslmode="verify-full", sslrootcert=good)
    assert connects_in_a_thread("127.0.0.1", sslmode="require")
    assert connects_in_a_thread("localhost", sslmode="verify-ca", sslrootcert=good)
    for host, root in (("127.0.0.1", other), ("localhost", good)):
        with pytest.raises(Unreachable, match="certificate"):
            connects_in_a_thread(host, sslmode="verify-full", sslrootcert=root)
    with pytest.raises(Unreachable, match="certificate verify failed"):
        connects_in_a_thread("127.0.0.1", sslmode="verify-full")  # by what the machine trusts


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        (
            "sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
            "sslrootcert /nowhere/ca.pem: No such file or directory",
        ),
        ("sslrootcert=/etc/ca.pem", "sslrootcert without sslmode=verify-full checks nothing"),
        (
            f"sslmode=verify-full&sslrootcert={__file__}",
            "test_credentials.py: no certificate or crl found",
        ),
    ],
)
def test_certificates_of_no_use_are_refused_at_start(query: str, fault: str) -> None:
    (said,) = faults({"DATABASE_URL": f"{SECRET}?{query}"})

    assert fault in said


@pytest.fixture(scope="session")
def certified(
    authority: trustme.CA, fast_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[URL]:
    """Run a PostgreSQL built with TLS, which lets in who shows a certificate of its name."""
    programs = find_program("pg_ctlcluster") and sorted(DEBIANS.glob("*/bin"))
    folder = tmp_path_factory.mktemp("certified")
    key = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    files = {
        "ssl_ca_file": authority.cert_pem.bytes(),
        "ssl_cert_file": key.bytes(),
        "ssl_key_file": key.bytes(),
        "hba_file": b"host all postgres all scram-sha-256\nhostssl all all all cert\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    give(folder)
    settings = {**TEST_SETTINGS, "ssl": "on", **{name: str(folder / name) for name in files}}
    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:  # Not for the rest of the session.
            patch.setenv("EMBEDDED_POSTGRES_BIN", str(programs[-1]))
            certified = EmbeddedPostgres(fast_directory / "certified", settings=settings)
            server = running.enter_context(certified)
        yield server.url("postgres")


@pytest.mark.programs
async def test_a_server_that_asks_for_a_certificate_is_shown_one(
    certified: URL, authority: trustme.CA, tmp_path: Path
) -> None:
    engine = create_async_engine(certified)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE ROLE holder LOGIN"))
    await engine.dispose()
    certificates = {
        "good": authority.issue_cert(common_name="holder"),
        "another's": authority.issue_cert(common_name="somebody"),
        "nobody's": trustme.CA().issue_cert(common_name="holder"),
    }
    for name, certificate in certificates.items():
        certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / name))
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    query = {"sslmode": "verify-full", "sslrootcert": str(ca)}
    url = certified.set(username="holder", password=None).update_query_dict(query)

    assert await connects(url, sslcert=str(tmp_path / "good"))
    said = "cannot connect to .*; check ORDERS_DATABASE_URL"
    for name in ("another's", "nobody's"):
        with pytest.raises(Unreachable, match=said):
            await connects(url, sslcert=str(tmp_path / name))
    with pytest.raises(Unreachable, match=r"or for a certificate \(&sslcert=\); check ORDERS_"):
        await connects(url)


def test_a_certificate_without_its_key_is_refused_at_start(
    authority: trustme.CA, tmp_path: Path
) -> None:
    pair, other = (authority.issue_cert(common_name=name) for name in ("holder", "other"))
    cert, key, locked = (tmp_path / name for name in ("cert.pem", "key.pem", "locked.pem"))
    pair.cert_chain_pems[0].write_to_path(str(cert))
    other.private_key_pem.write_to_path(str(key))
    encrypted = load_pem_private_key(pair.private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"s3cret")
    )
    locked.write_bytes(encrypted)
    query = f"sslmode=require&sslcert={cert}"

    def fault(added: str = "") -> str:
        (said,) = faults({"DATABASE_URL": f"{SECRET}?{query}{added}"})
        return said

    unreadable = "no certificate with a key that can be read without a passphrase"
    assert fault() == f"DATABASE_URL: sslcert {cert}: {unreadable}"
    assert fault(f"&sslkey={locked}") == f"DATABASE_URL: sslkey {locked}: {unreadable}"
    assert fault(f"&sslkey={key}") == f"DATABASE_URL: sslkey {key}: key values mismatch"
    assert fault("&sslkey=/nowhere") == "DATABASE_URL: sslkey /nowhere: No such file or directory"


@pytest.mark.usefixtures("role")
@pytest.mark.parametrize("way", ["passfile", "PGPASSFILE", "PGPASSWORD"])
async def test_a_password_that_libpq_would_find_is_found(
    database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    passwords = tmp_path / "pgpass"
    passwords.write_text("*:*:*:rotating:one\n")
    passwords.chmod(0o600)
    url = database_url._replace(username="rotating", password=None)
    if way == "passfile":
        url = url.update_query_dict({"passfile": str(passwords)})
    else:
        monkeypatch.setenv(way, "one" if way == "PGPASSWORD" else str(passwords))
    database = Database("shop", "postgresql", url=url.render_as_string(hide_password=False))

    async with database.open():
        assert await database.reader.scalar(text("select current_user")) == "rotating"
        assert await asyncio.to_thread(synchronously, database) == "rotating"


def synchronously(database: Database) -> str:
    """Ask who is connected by the synchronous side."""
    with database.sync.session() as session:
        return session.scalars(text("select current_user")).one()
