"""Settings: where they come from, and what a person reads when they are wrong."""

import logging
import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dbkit import Database, Databases, DatabaseSettings, NotConfigured
from dbkit.settings.database import Declared, environment, misspelt, read_settings
from hypothesis import given
from hypothesis import strategies as st

URL = "postgresql://user:s3cret@localhost/name"
SECRET = "s3cret"  # noqa: S105 -- what no message may show


def read(
    variables: dict[str, str], declared: Any = None, *, prefix: str = "DATABASE_"
) -> DatabaseSettings:
    return read_settings(
        {f"{prefix}URL": URL} | variables,
        prefix=prefix,
        dialect="postgresql",
        declared=declared or {},
    )


def faults(
    variables: dict[str, str], declared: Any = None, *, prefix: str = "DATABASE_"
) -> tuple[str, ...]:
    with pytest.raises(NotConfigured) as caught:
        read(variables, declared, prefix=prefix)
    return caught.value.faults


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no variable of a database set."""
    for name in environment():
        if "DATABASE_" in name:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SECRETS = {"url", "url_file", "password", "password_file"}  # tests/dbkit/test_credentials.py
ANOTHER = {
    str(bool): ("true", True),
    str(int): ("7", 7),
    str(float): ("7.5", 7.5),
    str(DatabaseSettings.model_fields["server_settings"].annotation): (
        "-c search_path=a,b -cjit=off --work-mem=5MB note.of=two\\ words\\\\",
        {"search_path": "a,b", "jit": "off", "work_mem": "5MB", "note.of": "two words\\"},
    ),
}


@pytest.mark.parametrize("field", sorted(DatabaseSettings.model_fields.keys() - SECRETS))
def test_every_setting_has_a_variable(field: str) -> None:
    text, value = ANOTHER[str(DatabaseSettings.model_fields[field].annotation)]
    if field == "pool_recycle":  # The only one that may not be as low.
        text, value = "77", 77
    if DatabaseSettings.model_fields[field].default is True:
        text, value = "false", False

    settings = read({f"DATABASE_{field.upper()}": text})

    assert getattr(settings, field) == value != DatabaseSettings.model_fields[field].default


def test_every_setting_may_be_declared() -> None:
    assert set(Declared.__annotations__) == set(DatabaseSettings.model_fields)


def test_the_environment_beats_env_file_beats_declaration_beats_default(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / ".env").write_text(
        f"DATABASE_URL={URL}\nDATABASE_POOL_SIZE=2\nDATABASE_MAX_OVERFLOW=2\n"
    )
    monkeypatch.setenv("DATABASE_POOL_SIZE", "3")
    database = Database(
        "primary",
        "postgresql",
        env_prefix="DATABASE_",
        pool_size=1,
        max_overflow=1,
        pool_timeout=1,
    )

    settings = database.read_settings()

    assert (settings.pool_size, settings.max_overflow, settings.pool_timeout) == (3, 2, 1)
    assert settings.pool_recycle == DatabaseSettings.model_fields["pool_recycle"].default


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_counts_as_absent(
    clean: Path, monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    (clean / ".env").write_text(f"DATABASE_URL={URL}\nDATABASE_POOL_SIZE=2\nDATABASE_ECHO=\n")
    monkeypatch.setenv("DATABASE_POOL_SIZE", empty)

    settings = Database("primary", "postgresql", env_prefix="DATABASE_").read_settings()

    assert (settings.pool_size, settings.echo) == (2, False)


def test_spaces_around_a_value_do_not_count(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f" {URL}\n")
    monkeypatch.setenv("DATABASE_ECHO", " true ")

    settings = Database("primary", "postgresql", env_prefix="DATABASE_").read_settings()

    assert settings.echo is True


def test_the_prefix_is_the_name_in_capitals() -> None:
    assert Database("analytics", "postgresql").env_prefix == "ANALYTICS_DATABASE_"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "POOL_SIZE",
            "0",
            (
                "'0' is not an integer from 1 to 1000. Connections kept open by each process."
                " Default: 10."
            ),
        ),
        (
            "POOL_TIMEOUT",
            "5s",
            (
                "'5s' is not a number from 0.05 to 300. Seconds to wait for a free connection."
                " Default: 5."
            ),
        ),
        (
            "ECHO",
            "2",
            (
                "'2' is not true or false."
                " Log every statement with its parameters; for development. Default: false."
            ),
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_unit_bounds_and_default(
    variable: str, value: str, message: str
) -> None:
    name = f"ANALYTICS_DATABASE_{variable}"
    assert faults({name: value}, prefix="ANALYTICS_DATABASE_") == (f"{name}: {message}",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("POOL_SIZE", value)
            for value in [
                "-1",
                "1001",
                "5.5",
                "1e1",
                "0x10",
                "abc",
                "true",
                "NaN",
                "inf",
                "٣",
                "5\x00",
            ]
        ),
        ("POOL_SIZE", "9" * 5000),
        *(
            ("POOL_TIMEOUT", value)
            for value in ["nan", "inf", "-inf", "1e400", "0.04", "-1", "True", "5s", "٣.5"]
        ),
        *(("REQUIRED", value) for value in ["2", "wahr", "None", "truefalse"]),
    ],
)
def test_no_number_and_no_truth_is_guessed(field: str, value: str) -> None:
    (fault,) = faults({f"DATABASE_{field}": value})

    assert fault.startswith(f"DATABASE_{field}: ")
    assert len(fault) < 200


@pytest.mark.parametrize(("text", "value"), [("5_0", 50), ("+5", 5), ("5.0", 5), (" 5 ", 5)])
def test_numbers_are_read_as_python_writes_them(text: str, value: int) -> None:
    assert read({"DATABASE_POOL_SIZE": text}).pool_size == value


def test_a_url_in_the_wrong_variable_is_not_shown() -> None:
    (fault,) = faults({"DATABASE_POOL_SIZE": URL})

    assert fault.startswith("DATABASE_POOL_SIZE: the value is not an integer from 1 to 1000.")


def test_a_missing_url_says_what_to_set() -> None:
    with pytest.raises(NotConfigured) as caught:
        read_settings({}, prefix="DATABASE_", dialect="postgresql", declared={})

    assert str(caught.value) == (
        "settings are missing or wrong:\n"
        "  DATABASE_URL: not set. Where to connect, as"
        " postgresql://user:password@host:5432/name."
        " In development, `manage.py runserver` and `opened(databases)` need none."
    )


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            {"pool_size": "many"},
            "DATABASE_POOL_SIZE: 'many', as declared, is not an integer from 1 to 1000.",
        ),
        ({"pool_size": None}, "DATABASE_POOL_SIZE: None, as declared, is not an integer"),
        (
            {"pool_sice": 3},
            "DATABASE_POOL_SICE: pool_sice is declared, but unknown; did you mean pool_size?",
        ),
        ({"colour": 3}, "DATABASE_COLOUR: colour is declared, but unknown"),
    ],
)
def test_a_wrong_declaration_is_a_fault_like_others(
    declared: dict[str, object], message: str
) -> None:
    (fault,) = faults({}, declared)

    assert fault.startswith(message)


@pytest.mark.parametrize("url", [None, 5, b"postgresql://user:s3cret@h/n"])
def test_a_declared_url_of_a_wrong_type_is_a_fault(url: object) -> None:
    declared: Any = {"url": url}

    with pytest.raises(NotConfigured) as caught:
        read_settings({}, prefix="DATABASE_", dialect="postgresql", declared=declared)

    assert caught.value.faults[0].startswith("DATABASE_URL: not a database URL; write it as")
    assert SECRET not in str(caught.value)


def test_all_faults_of_all_databases_are_reported_together(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = Databases(
        Database("primary", "postgresql", env_prefix="DATABASE_"),
        Database("analytics", "postgresql"),
        Database("audit", "sqlite", url="sqlite:///audit.sqlite3"),
    )
    monkeypatch.setenv("DATABASE_POOLSIZE", "3")
    monkeypatch.setenv("DATABASE_URL", "mysql://user:s3cret@localhost/name")
    monkeypatch.setenv("ANALYTICS_DATABASE_POOL_SIZE", "many")
    monkeypatch.setenv("AUDIT_DATABASE_ECHO", "perhaps")

    with pytest.raises(NotConfigured) as caught:
        databases.read_settings()

    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [
        "DATABASE_POOLSIZE",
        "DATABASE_URL",
        "ANALYTICS_DATABASE_URL",
        "ANALYTICS_DATABASE_POOL_SIZE",
        "AUDIT_DATABASE_ECHO",
    ]
    assert "DATABASE_POOLSIZE: unknown; did you mean DATABASE_POOL_SIZE?" in str(caught.value)
    assert SECRET not in str(caught.value)


PREFIXES = ("DATABASE_", "ANALYTICS_DATABASE_")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("DATABASE_POOLSIZE", "DATABASE_POOL_SIZE"),
        ("DATABASE_TIMEOUT", "DATABASE_POOL_TIMEOUT"),
        ("DATABASE_UR", "DATABASE_URL"),
        ("ANALYTICS_DATABASE_POLL_SIZE", "ANALYTICS_DATABASE_POOL_SIZE"),
        ("DATABSE_URL", "DATABASE_URL"),
        ("ANALYTICS_DATABASES_POOL_SIZE", "ANALYTICS_DATABASE_POOL_SIZE"),
        ("ANALITICS_DATABASE_URL", "ANALYTICS_DATABASE_URL"),
        ("ANALYTIC_DATABASE_MAX_OVERFLOW", "ANALYTICS_DATABASE_MAX_OVERFLOW"),
    ],
)
def test_a_misspelt_variable_is_found(written: str, meant: str) -> None:
    assert misspelt([written], PREFIXES) == {written: meant}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_POSTGRES",
        "PORT",
        "PORT_5432_TCP",
        "PORT_5432_TCP_ADDR",
        "PORT_5432_TCP_PORT",
        "PORT_5432_TCP_PROTO",
        "HOST",
        "USER",
        "PASSWORD",
        "NAME",
        "SSLMODE",
        "SCHEMA",
        "PRIVATE_URL",
        "URL_UNPOOLED",
        "REPLICA_URL",
    ],
)
def test_what_platforms_set_is_left_alone(prefix: str, name: str) -> None:
    assert misspelt([prefix + name], PREFIXES) == {}


@pytest.mark.parametrize(
    "name",
    [
        "TEST_DATABASE_URL",
        "ANALYTICS_TEST_DATABASE_URL",
        "OLD_DATABASE_URL",
        "BILLING_DATABASE_URL",
        "STATISTICS_DATABASE_URL",
        "DATABASE_URL",
        "ANALYTICS_DATABASE_URL",
    ],
)
def test_what_belongs_to_somebody_else_is_left_alone(name: str) -> None:
    assert misspelt([name], PREFIXES) == {}


NAMES = {"orders": "DATABASE_"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ORDERS_DATABASE_URL", "DATABASE_URL"),
        ("ORDERS_DATABASE_POOL_SIZE", "DATABASE_POOL_SIZE"),
        ("ORDERS_TEST_DATABASE_URL", "TEST_DATABASE_URL"),
        ("DATABASE__URL", "DATABASE_URL"),
        ("database_url", "DATABASE_URL"),
        ("Analytics_Database_Url", "ANALYTICS_DATABASE_URL"),
        ("DATABASE-POOL-SIZE", "DATABASE_POOL_SIZE"),
        ("analytics.database.url", "ANALYTICS_DATABASE_URL"),
        ("ANALYTICS__DATABASE__POOL_SIZE", "ANALYTICS_DATABASE_POOL_SIZE"),
        ("DB_POOL_SIZE", "DATABASE_POOL_SIZE"),
        ("ANALYTICS_DB_MAX_OVERFLOW", "ANALYTICS_DATABASE_MAX_OVERFLOW"),
    ],
)
def test_another_spelling_of_a_setting_is_found(written: str, meant: str) -> None:
    assert misspelt([written], PREFIXES, NAMES) == {written: meant}


@pytest.mark.parametrize(
    "name",
    [
        *("DB_PASSWORD", "DB_URL", "ANALYTICS_DB_PASSWORD", "POSTGRES_PASSWORD", "PGPASSWORD"),
        *("ORDERS_URL", "ORDERS_DATABASE_HOST", "ANALYTICS_API_URL", "CELERY_DB_ECHO"),
        *(
            "ORDERS_TEST_DATABASE_ECHO",
            "ORDERS_TEST_DATABASE",
            "REDIS_DATABASE_URL",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        ),
    ],
)
def test_another_programs_variables_are_left_alone(name: str) -> None:
    assert misspelt([name], PREFIXES, NAMES | {"analytics": "ANALYTICS_DATABASE_"}) == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((name, "postgres://u:s3cret@h/n") for name in ("DB_URL", "POSTGRES_URL", "DATABASE_DSN")),
        *((name, URL) for name in ("DATABASE_URI", "ORDERS_URL", "ORDERS_DB_URL", "PG_DSN")),
        ("SQLALCHEMY_DATABASE_URI", "postgresql+psycopg2://u:s3cret@h/n"),
        *(("PGHOST", "h"), ("DB_HOST", "h"), ("POSTGRES_HOST", "h")),
    ],
)
def test_a_missing_url_names_the_variable_that_may_hold_it(variable: str, value: str) -> None:
    with pytest.raises(NotConfigured) as caught:
        read_settings(
            {variable: value}, prefix="DATABASE_", dialect="postgresql", declared={}, name="orders"
        )

    assert f"Nothing reads {variable}; is that what you mean?" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert read({variable: value})  # Where there is a URL, nothing is amiss.


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ORDERS_URL", "https://orders.example.com"),
        ("MYSQL_URL", "mysql://u:s3cret@h/n"),
        ("BILLING_DATABASE_URL", URL),
        ("TEST_DATABASE_URL", URL),
        ("LOG_DB_URL", URL),
    ],
)
def test_a_missing_url_does_not_name_what_belongs_to_others(variable: str, value: str) -> None:
    with pytest.raises(NotConfigured) as caught:
        read_settings(
            {variable: value}, prefix="DATABASE_", dialect="postgresql", declared={}, name="orders"
        )

    assert variable not in str(caught.value)


def test_a_nested_delimiter_is_a_warning_and_no_fault(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = Databases(Database("orders", "postgresql", env_prefix="DATABASE_"))
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("DATABASE__PASSWORD", SECRET)

    assert databases.read_settings()["orders"].password is None
    assert databases.misspelt_variables() == {"DATABASE__PASSWORD": "DATABASE_PASSWORD"}


def test_variables_that_hold_a_url_are_found_where_there_is_none(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = Databases(
        Database("orders", "postgresql", env_prefix="DATABASE_"),
        Database("analytics", "postgresql"),
    )
    monkeypatch.setenv("DATABASE_DSN", URL)
    monkeypatch.setenv("ANALYTICS_DB_URL", URL)

    assert databases.misspelt_variables() == {
        "DATABASE_DSN": "DATABASE_URL",
        "ANALYTICS_DB_URL": "ANALYTICS_DATABASE_URL",
    }


@pytest.mark.parametrize(
    ("variables", "declared", "said"),
    [
        (
            {"SERVER_SETTINGS": "search_path"},
            {},
            "SERVER_SETTINGS: write settings of the server as -c name=value -c name=value",
        ),
        (
            {"SERVER_SETTINGS": "-c statement_timeout=5s"},
            {},
            "SERVER_SETTINGS: statement_timeout is set by DATABASE_STATEMENT_TIMEOUT, in seconds",
        ),
        (
            {"URL": f"{URL}?options=-c%20lock_timeout%3D5s"},
            {},
            "URL: lock_timeout is set by DATABASE_LOCK_TIMEOUT, in seconds",
        ),
        (
            {},
            {"server_settings": {"client_encoding": "latin1"}},
            "SERVER_SETTINGS, as declared: client_encoding cannot be set: the driver speaks UTF-8",
        ),
        (
            {"URL": f"{URL}?pgbouncer=true&schema=app"},
            {},
            (
                "URL: search_path cannot be set with DATABASE_PGBOUNCER=true: the next transaction"
                " may be on another connection to the server; ALTER ROLE ... SET search_path = ..."
                " holds for all"
            ),
        ),
        (
            {"URL": f"{URL}?connect_timeout=0"},
            {},
            (
                "CONNECT_TIMEOUT: '0', as declared or in the URL, is not a number from 0.1 to 300."
                " Seconds to wait for the server to accept a connection. Default: 5."
            ),
        ),
    ],
)
def test_settings_of_the_server_that_cannot_be_are_faults(
    variables: dict[str, str], declared: Any, said: str
) -> None:
    prefixed = {f"DATABASE_{name}": value for name, value in variables.items()}

    assert faults(prefixed, declared) == (f"DATABASE_{said}",)


def test_the_url_beats_declarations_and_variables_beat_the_url() -> None:
    url = f"{URL}?connect_timeout=7&pgbouncer=true&application_name=web&options=-c%20timezone%3DUTC"
    declared = {"connect_timeout": 3, "server_settings": {"timezone": "CET", "datestyle": "ISO"}}

    settings = read({"DATABASE_URL": url}, declared)
    over = read({"DATABASE_URL": url, "DATABASE_CONNECT_TIMEOUT": "9"}, declared)

    assert (settings.connect_timeout, settings.pgbouncer) == (7, True)
    assert over.connect_timeout == 9
    assert settings.server_settings == {
        "timezone": "UTC",
        "datestyle": "ISO",
        "application_name": "web",
    }


async def test_a_misspelt_prefix_is_a_warning_at_start(
    clean: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    databases = Databases(Database("audit", "sqlite", url="sqlite:///audit.sqlite3"))
    monkeypatch.setenv("AUDITS_DATABASE_POOL_SIZE", "3")

    with caplog.at_level(logging.WARNING):
        async with databases.open():
            pass

    assert caplog.messages == [
        "AUDITS_DATABASE_POOL_SIZE is no setting; did you mean AUDIT_DATABASE_POOL_SIZE?"
    ]


def test_no_password_in_what_settings_show() -> None:
    settings = read({})

    assert SECRET not in f"{settings} {settings!r} {settings.url} {settings.url!r}"


ODD = st.text(
    st.sampled_from(string.ascii_letters + string.digits + "@:/?#[]%&=+ '\"\\\t\néü\x00\ud800"),
    max_size=12,
)
SCHEMES = ["postgresql", "postgres", "postgresql+psycopg2", "mysql", "sqlite"]
# Long enough not to occur in a message by chance.
PASSWORD = ODD.map(lambda odd: f"s3{odd}cret")


@given(
    before=ODD,
    password=PASSWORD,
    after=ODD,
    scheme=st.sampled_from(SCHEMES),
    field=st.sampled_from([field.upper() for field in DatabaseSettings.model_fields]),
)
def test_no_url_is_a_traceback_and_no_password_is_shown(
    before: str, password: str, after: str, scheme: str, field: str
) -> None:
    variables = {"DATABASE_URL": f"{scheme}://{before}:{password}@{after}"}
    variables[f"DATABASE_{field}"] = variables["DATABASE_URL"]
    try:
        said = repr(read(variables))
    except NotConfigured as error:
        said = str(error)

    assert password not in said
    assert SECRET not in said


@given(
    st.dictionaries(
        st.sampled_from([field.upper() for field in DatabaseSettings.model_fields]), st.text()
    )
)
def test_whatever_is_set_is_read_or_a_fault(values: dict[str, str]) -> None:
    with suppress(NotConfigured):
        read({f"DATABASE_{field}": value for field, value in values.items()})
