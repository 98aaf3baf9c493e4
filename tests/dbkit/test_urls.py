"""URLs as platforms write them."""

import pytest
from dbkit.settings.urls import Dialect, parse_url

SECRET = "s3cret"  # noqa: S105 -- what no message may show


def shown(text: str, dialect: Dialect = "postgresql") -> str:
    return parse_url(text, dialect).render_as_string(hide_password=False)


def refused(text: str, dialect: Dialect = "postgresql") -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_url(text, dialect)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "scheme",
    ["postgres", "postgresql", "postgresql+asyncpg", "POSTGRES", "PostgreSQL", "postgres+asyncpg"],
)
def test_every_name_of_postgresql_means_asyncpg(scheme: str) -> None:
    assert shown(f"{scheme}://u:p@h:5433/n") == "postgresql+asyncpg://u:p@h:5433/n"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("postgresql://u:p@h/n?sslmode=require&channel_binding=require", "u:p@h/n?ssl=require"),
        ("postgresql://u:p@h/n?ssl=verify-full", "u:p@h/n?ssl=verify-full"),
        ("postgresql://h/n?user=u&password=p%40", "u:p%40@h/n"),
        ("postgresql://u:p@h?dbname=n", "u:p@h/n"),
        ("postgresql://u:p@[::1]:5432/n", "u:p@[::1]:5432/n"),
        ("postgresql://u:p@/n?host=/run/postgresql", "u:p@/n?host=%2Frun%2Fpostgresql"),
        ("postgresql://u:p@/n?host=a:1&host=b:2", "u:p@/n?host=a%3A1&host=b%3A2"),
        ("postgresql://ü:ä@h/ö", "%C3%BC:%C3%A4@h/%C3%B6"),
        ("  postgresql://u:p@h/n\n", "u:p@h/n"),
        # Neon, Supabase, Vercel, Prisma, Fly, Azure, Cloud SQL, Django, node-postgres, Symfony
        ("postgresql://u:p@h/n?options=endpoint%3Dep-x", "u:p@h/n?options=endpoint%3Dep-x"),
        ("postgresql://u.ref:p@h:6543/n?pgbouncer=true", "u.ref:p@h:6543/n?pgbouncer=true"),
        ("postgres://u:p@h/n?sslmode=require&supa=base-pooler.x", "u:p@h/n?ssl=require"),
        ("postgresql://u:p@h/n?schema=app", "u:p@h/n?options=-c+search_path%3Dapp"),
        ("postgres://u:p@h.flycast:5432/n?sslmode=disable", "u:p@h.flycast:5432/n?ssl=disable"),
        ("postgresql://u%40srv:p@h/n?sslmode=require", "u%40srv:p@h/n?ssl=require"),
        ("postgresql://u:p@/n?host=/cloudsql/p:r:i", "u:p@/n?host=%2Fcloudsql%2Fp%3Ar%3Ai"),
        ("postgresql://u:p@h/n?client_encoding=utf8&gssencmode=disable", "u:p@h/n"),
        ("postgresql://u:p@h/n?uselibpqcompat=true&keepalives=1", "u:p@h/n"),
        ("postgresql://u:p@h/n?serverVersion=16&charset=utf8", "u:p@h/n"),
        ("postgresql://u:p@h/n?application_name=web", "u:p@h/n?options=-c+application_name%3Dweb"),
        (
            "postgresql://u:p@h/n?options=-c%20search_path%3Da,b%20--work-mem%3D5MB",
            "u:p@h/n?options=-c+search_path%3Da%2Cb+-c+work_mem%3D5MB",
        ),
        (
            "postgresql://u:p@h/n?connect_timeout=10&passfile=/run/pgpass",
            "u:p@h/n?connect_timeout=10&passfile=%2Frun%2Fpgpass",
        ),
        ("postgresql://u:a%40b%3Ac%2Fd%3Fe%25f@h/n", "u:a%40b%3Ac%2Fd%3Fe%25f@h/n"),
        ("postgresql://u:a:b/c?d@h/n", "u:a%3Ab%2Fc%3Fd@h/n"),
    ],
)
def test_what_platforms_and_libpq_write_works(text: str, meant: str) -> None:
    assert shown(text) == f"postgresql+asyncpg://{meant}"


def test_a_socket_folder_may_stand_where_the_host_does() -> None:
    assert parse_url("postgresql://u:p@%2Frun%2Fpostgresql/n", "postgresql").host == (
        "/run/postgresql"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "postgresql+psycopg2://u:s3cret@h/n",
            "driver psycopg2 cannot work here; write postgresql:// or postgresql+asyncpg://",
        ),
        (
            "mysql://u:s3cret@h/n",
            (
                "is for mysql, but this database is postgresql; write it as"
                " postgresql://user:password@host:5432/name"
            ),
        ),
        (
            "postgresql://u:s3cret@h",
            "names no database; write it as postgresql://user:password@host:5432/name",
        ),
        (
            "postgresql://u@h/n?sslmode=s3cret",
            "sslmode is one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        (
            "postgresql://u@h/n?colour=s3cret",
            (
                "parameter colour is not known here; it takes connect_timeout, gsslib, host,"
                " krbsrvname, options, passfile, pgbouncer, port, ssl, sslcert, sslkey, sslmode,"
                " sslrootcert, target_session_attrs; settings of the server go in"
                " DATABASE_SERVER_SETTINGS"
            ),
        ),
        (
            "postgresql://u:s3cret@h/n?connection_limit=5",
            "parameter connection_limit is not taken here; set DATABASE_POOL_SIZE",
        ),
        (
            "postgresql://u:s3cret@h/n?prepared_statements=false",
            (
                "parameter prepared_statements is not taken here; set DATABASE_PGBOUNCER=true,"
                " behind a pooler"
            ),
        ),
        (
            "postgresql://u:s3cret@h/n?keepalives_idle=30",
            "parameter keepalives_idle is not taken here; the pool has TCP keepalives of its own",
        ),
        (
            "postgresql://u:s3cret@h/n?service=prod",
            (
                "parameter service is not taken here; write host, user and database of the service"
                " in the URL"
            ),
        ),
        (
            "postgresql://u:s3cret@h/n?gssencmode=require",
            (
                "parameter gssencmode is not known here; it takes connect_timeout, gsslib, host,"
                " krbsrvname, options, passfile, pgbouncer, port, ssl, sslcert, sslkey, sslmode,"
                " sslrootcert, target_session_attrs; settings of the server go in"
                " DATABASE_SERVER_SETTINGS"
            ),
        ),
        ("postgresql://h/n?password=s3cret&password=b", "parameter password is given twice"),
        (
            "postgresql://u:s3cret@a,b/n",
            (
                "names several hosts; write them as"
                " postgresql://user:password@/name?host=first:5432&host=second:5432"
            ),
        ),
        ("postgresql://u:s3cret@h:65536/n", "has port 65536; ports go from 1 to 65535"),
        ("postgresql://u:s3cret@h:0/n", "has port 0; ports go from 1 to 65535"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_write(text: str, message: str) -> None:
    assert refused(text) == message


@pytest.mark.parametrize(
    "text",
    [
        "s3cret",
        "postgresql:u:s3cret@h/n",
        "postgresql://u:s3cret@h:5x/n",
        "postgresql://u:s3cret@[::1/n",
        "jdbc:postgresql://h/n",
        "'postgresql://u:s3cret@h/n'",
        # SQLAlchemy reads what follows the first "@" as the host, and would show it.
        "postgresql://u:p@s3cret@h/n",
        "postgresql://u:p@x?s3cret=1@h/n",
        "postgresql://u/v:s3cret@h/n",
        "postgresql:///:s3cret@",
    ],
)
def test_what_is_no_url_is_refused_with_an_example(text: str) -> None:
    assert refused(text) == (
        "not a database URL; write it as postgresql://user:password@host:5432/name"
        " (percent-encode special characters in the password)"
    )


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:s3cret@/n?host=a&host=b",
        "postgresql://u:s3cret@/n?host=a:x&host=b:2",
        "postgresql://u:s3cret@/n?host=a:1,b:2",
        "postgresql://u:s3cret@h/n?port=x",
    ],
)
def test_hosts_that_the_driver_cannot_read_are_refused_at_start(text: str) -> None:
    assert refused(text) == (
        "its hosts or ports cannot be read; write it as postgresql://user:password@host:5432/name"
    )


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("sqlite:///file.db", "file.db"),
        ("sqlite:////absolute/file.db", "/absolute/file.db"),
        ("sqlite+aiosqlite:///file.db", "file.db"),
        ("sqlite:///ü b.db", "ü b.db"),
        ("sqlite:////home/me@work/a@b.db", "/home/me@work/a@b.db"),
    ],
)
def test_sqlite_takes_relative_and_absolute_files(text: str, file: str) -> None:
    url = parse_url(text, "sqlite")

    assert (url.drivername, url.database) == ("sqlite+aiosqlite", file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqlite://", "names no file; write it as sqlite:///folder/file.sqlite3"),
        ("sqlite:///:memory:", "names no file; write it as sqlite:///folder/file.sqlite3"),
        (
            "sqlite://folder/file.db",
            "names a host: it lacks a third slash; write it as sqlite:///folder/file.sqlite3",
        ),
        (
            "sqlite:///file.db?mode=memory&uri=true",
            (
                "has parameters, and takes none; write it as sqlite:///folder/file.sqlite3, and"
                " PRAGMAs in DATABASE_SERVER_SETTINGS"
            ),
        ),
        (
            "sqlite+pysqlite:///file.db",
            "driver pysqlite cannot work here; write sqlite:// or sqlite+aiosqlite://",
        ),
        (
            "postgresql://u:s3cret@h/n",
            (
                "is for postgresql, but this database is sqlite; write it as"
                " sqlite:///folder/file.sqlite3"
            ),
        ),
    ],
)
def test_what_is_no_sqlite_file_is_refused(text: str, message: str) -> None:
    assert refused(text, "sqlite") == message


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("ssl-mode=REQUIRED", "require"),  # DigitalOcean, Aiven
        ("sslaccept=strict", "verify-full"),  # PlanetScale with Prisma
        ("sslaccept=accept_invalid_certs", "require"),
        ("ssl=%7B%22rejectUnauthorized%22%3Atrue%7D", "verify-full"),  # PlanetScale with Node
        ("ssl=%7B%22rejectUnauthorized%22%3A+true%7D", "verify-full"),
        ("ssl_verify_cert=true&ssl_verify_identity=true", "verify-full"),  # TiDB Cloud
        ("ssl_verify_cert=true", "verify-ca"),
        ("ssl_mode=VERIFY_IDENTITY&connect_timeout=10", "verify-full"),
        ("ssl=true&charset=utf8mb4", "require"),
        ("reconnect=true", None),  # ClearDB
    ],
)
def test_tls_of_mysql_as_platforms_write_it(query: str, mode: str | None) -> None:
    url = parse_url(f"mysql://u:p@h/n?{query}", "mysql")

    assert url.query.get("ssl") == mode
    assert url.query.keys() <= {"ssl", "connect_timeout"}
