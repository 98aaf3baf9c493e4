"""What a service is deployed and tested by: files that their own tools accept, and that work."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres, find_binaries
from dbkit.settings.database import DatabaseSettings
from debian import find_program
from mariadb import MariaDB
from pooler import running_pgbouncer
from rendering import ROOT, Renderer, Service
from running import (
    PATIENCE,
    copy_of,
    environment,
    free_port,
    manage,
    run,
    running,
    wait_until,
    write_and_read,
)
from variants import VARIANTS

BIN = Path(sys.executable).parent
VARIANT = {each.name: each for each in VARIANTS}
DEPLOYED = [
    *("default", "four-databases", "replicas", "postgresql-gitlab"),
    *("mysql", "every-engine"),
]


@pytest.fixture
def services(render: Renderer) -> list[Service]:
    """Return services for either provider, on each engine, and on several at once: read only."""
    return [render(**VARIANT[name].answers) for name in DEPLOYED]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def accepted(*command: str | Path) -> None:
    done = run(ROOT, *command)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_nothing(services: list[Service]) -> None:
    accepted(BIN / "hadolint", *(each.path / "Dockerfile" for each in services))


def test_manifests_are_kubernetes(services: list[Service]) -> None:
    found = [path for each in services for path in each.path.glob("deploy/**/*.yaml")]
    manifests = [path for path in found if path.name not in {"compose.yaml", "alerts.yaml"}]

    assert len(manifests) == 3 + 4 + 4 + 3 + 2 + 4  # SQLite has a volume, PostgreSQL a PgBouncer.
    accepted(BIN / "kubernetes-validate", "--strict", *manifests)


def test_other_files_are_of_their_schemas(services: list[Service]) -> None:
    for schema, name in (
        ("compose-spec", "compose.yaml"),
        ("compose-spec", "deploy/pgbouncer/compose.yaml"),
        ("github-workflows", ".github/workflows/ci.yml"),
        ("gitlab-ci", ".gitlab-ci.yml"),
        ("renovate", "renovate.json"),
    ):
        files = [each.path / name for each in services if (each.path / name).exists()]
        assert files
        accepted(BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


def test_zizmor_finds_nothing(services: list[Service]) -> None:
    workflows = [each.path / ".github" for each in services if (each.path / ".github").exists()]
    accepted(BIN / "zizmor", "--offline", ROOT / ".github", *workflows)


def test_platforms_wait_longer_than_a_service_takes_to_stop(services: list[Service]) -> None:
    for service in services:
        text = (service.path / "Dockerfile").read_text()
        delay = int(re.findall(r"SHUTDOWN_DELAY=(\d+)", text)[0])
        graceful = int(re.findall(r'"--timeout-graceful-shutdown", "(\d+)"', text)[0])
        takes = delay + graceful + DatabaseSettings.model_fields["drain_timeout"].default

        deployment = documents(service.path / "deploy" / "service.yaml")[0]
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > takes
        (compose,) = documents(service.path / "compose.yaml")
        assert int(compose["services"]["service"]["stop_grace_period"].rstrip("s")) > takes


def test_manifests_say_how_many_connections_they_need(services: list[Service]) -> None:
    said = [
        re.findall(
            r"^#   (\w+): (.*)$", (each.path / "deploy" / "service.yaml").read_text(), re.MULTILINE
        )
        for each in services
    ]

    assert said == [
        [("primary", "4 x (10 + 1) = 44")],
        [("primary", "1 x (10 + 1) = 11"), ("analytics", "1 x (2 + 1) = 3")],
        [
            ("primary", "1 x (10 + 1) = 11"),
            ("analytics", "1 x (10 + 1) = 11"),
            ("near", "1 x (5 + 1) = 6"),
            ("reports", "1 x (10 + 1) = 11"),
        ],
        [("primary", "4 x (10 + 1) = 44")],
        [("primary", "4 x (10 + 1) = 44")],
        [
            ("orders", "1 x (10 + 1) = 11"),
            ("primary", "1 x (10 + 1) = 11"),
            ("order_archive", "1 x (3 + 1) = 4"),
        ],
    ]


def test_steps_of_the_container_work_without_one(services: list[Service], tmp_path: Path) -> None:
    """Make the databases as compose does, migrate, and run the command of the image."""
    folder = copy_of(services[1], tmp_path)
    (compose,) = documents(folder / "compose.yaml")
    migrate = compose["services"]["migrate"]
    dockerfile = (folder / "Dockerfile").read_text()
    port = str(free_port())
    healthcheck, command = (
        json.loads(each.replace("0.0.0.0", "127.0.0.1").replace("8000", port))  # noqa: S104 -- what it says
        for each in re.findall(r"^ *CMD (\[.*\])", dockerfile, re.MULTILINE)
    )
    with EmbeddedPostgres(tmp_path / "postgres", settings=TEST_SETTINGS) as server:
        address = f"{server.password}@127.0.0.1:{server.port}"
        variables = {
            name: url.replace("local@postgres:5432", address)
            for name, url in migrate["environment"].items()
        } | {
            name: url.replace("/data", str(tmp_path))
            for name, url in re.findall(r"^ENV (\w*URL)=(.*)", dockerfile, re.MULTILINE)
        }
        assert len(variables) == 4
        sql = tmp_path / "databases.sql"
        sql.write_text(compose["configs"]["postgres-databases"]["content"])
        made = run(
            tmp_path,
            *(find_binaries() / "psql", "--host", "127.0.0.1", "--port", str(server.port)),
            *("--username", "postgres", "--file", sql),
            variables={"PGPASSWORD": server.password},
        )
        assert made.returncode == 0, made.stdout
        migrated = run(folder, sys.executable, *migrate["command"][1:], variables=variables)
        assert migrated.returncode == 0, migrated.stdout

        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command, "--port", port],
                cwd=folder,
                env=environment(**variables, SHUTDOWN_DELAY="0.1"),
                stdout=output,
                stderr=output,
            )
        try:
            healthy = [sys.executable, *healthcheck[1:]]
            wait_until(lambda: run(folder, *healthy).returncode == 0, "healthy")
            url = f"http://127.0.0.1:{port}/readyz"
            wait_until(lambda: httpx.get(url).status_code == 200, "ready")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in {0, -signal.SIGTERM}
        finally:
            process.kill()
    # The server's first lines come before the application.
    written = [line for line in log.read_text().splitlines() if not line.startswith("INFO:")]
    lines = [json.loads(line) for line in written]
    assert [each for each in lines if each["level"] != "info"] == []


def test_a_service_is_right_behind_the_pgbouncer_of_the_manifests(
    services: list[Service], tmp_path: Path
) -> None:
    """Make its list of users as the manifest says, and run it with its own settings."""
    folder = copy_of(services[1], tmp_path)
    pooled = documents(folder / "deploy" / "pgbouncer" / "compose.yaml")[0]["services"]
    manifest = (folder / "deploy" / "pgbouncer" / "kubernetes.yaml").read_text()
    (select,) = re.findall(r'^# +("SELECT .*")$', manifest, re.MULTILINE)
    ini = (folder / "deploy" / "pgbouncer" / "pgbouncer.ini").read_text()
    port = free_port()
    with EmbeddedPostgres(tmp_path / "postgres", settings=TEST_SETTINGS) as server:

        def psql(sql: str) -> str:
            done = run(
                tmp_path,
                *(find_binaries() / "psql", "--no-align", "--tuples-only", "--command", sql),
                *("--host", "127.0.0.1", "--port", str(server.port), "--username", "postgres"),
                variables={"PGPASSWORD": server.password},
            )
            assert done.returncode == 0, done.stdout
            return done.stdout

        psql("CREATE ROLE \"user\" LOGIN PASSWORD 'p@ss'")
        for name in ("primary", "analytics"):
            psql(f'CREATE DATABASE "{name}" OWNER "user"')
        users = psql(shlex.split(select)[0])
        assert users.startswith('"user" "SCRAM-SHA-256$')
        for written, here in (
            ("host=postgres", f"host=127.0.0.1 port={server.port}"),
            ("listen_addr = *", "listen_addr = 127.0.0.1"),
            ("= 6432", f"= {port}"),
            ("/etc/pgbouncer/", ""),
        ):
            assert written in ini
            ini = ini.replace(written, here)
        variables = {
            name: value.replace("postgres:local@pgbouncer:6432", f"user:p%40ss@127.0.0.1:{port}")
            for name, value in pooled["service"]["environment"].items()
        }
        assert list(variables) == [
            *("DATABASE_URL", "DATABASE_PGBOUNCER"),
            *("ANALYTICS_DATABASE_URL", "ANALYTICS_DATABASE_PGBOUNCER"),
        ]
        with running_pgbouncer(ini, port, {"userlist.txt": users.encode()}) as pgbouncer:
            migrated = manage(folder, "migrate", variables=variables)
            assert migrated.returncode == 0, migrated.stdout
            checked = manage(folder, "check", "--fail-level", "warning", variables=variables)
            assert checked.returncode == 0, checked.stdout
            with running(folder, **variables) as service:
                write_and_read(service.client, VARIANT["four-databases"].names_of_databases)
            assert "WARNING" not in service.log
            pgbouncer.send_signal(signal.SIGINT)
            assert pgbouncer.wait(PATIENCE) == 0


def test_databases_of_compose_are_made_on_mariadb(
    render: Renderer, mariadb: MariaDB, tmp_path: Path
) -> None:
    service = render(**VARIANT["every-engine"].answers)
    (compose,) = documents(service.path / "compose.yaml")
    urls = [
        url
        for url in compose["services"]["migrate"]["environment"].values()
        if url.startswith("mysql:")
    ]
    names = [url.rpartition("/")[2] for url in urls]
    server = compose["services"]["mariadb"]
    assert {url.rpartition("/")[0] for url in urls} == {
        f"mysql://root:{server['environment']['MARIADB_ROOT_PASSWORD']}@mariadb:3306"
    }

    mariadb.run(*filter(str.strip, compose["configs"]["mariadb-databases"]["content"].split(";")))

    try:
        found = mariadb.run(
            "SELECT schema_name, default_character_set_name FROM information_schema.schemata"
        )
        assert {(name, "utf8mb4") for name in names} <= set(found)
    finally:
        mariadb.run(*(f"DROP DATABASE {name}" for name in names))


@pytest.mark.programs
def test_unit_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    unit = re.findall(r"^```ini\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    # Programs and folders that this machine has.
    unit = re.sub(r"/opt/orders/\.venv/bin/\w+", sys.executable, unit)
    unit = unit.replace("/opt/orders", str(tmp_path)).replace("/etc/orders.env", "/dev/null")
    (tmp_path / "orders.service").write_text(unit)

    accepted(find_program("systemd-analyze"), "verify", tmp_path / "orders.service")


def test_the_image_needs_nothing_that_it_leaves_out(
    services: list[Service], tmp_path: Path
) -> None:
    service = services[0]
    left_out = {
        path
        for pattern in (service.path / ".dockerignore").read_text().split()
        for path in service.path.glob(pattern)
    }
    image = tmp_path / "image"
    shutil.copytree(
        service.path,
        image,
        ignore=lambda folder, names: [each for each in names if Path(folder, each) in left_out],
    )
    (kit,) = image.glob("src/*/dbkit")
    package = f"{kit.parent.name}.dbkit"
    imports = (
        "import importlib, pkgutil, sys; sys.path.insert(0, 'src');"
        f" kit = importlib.import_module('{package}');"
        " names = [m.name for m in pkgutil.walk_packages(kit.__path__, kit.__name__ + '.')];"
        " [importlib.import_module(name) for name in names if '.alembic' not in name]"
    )

    assert not (kit / "testing").exists()
    done = run(image, sys.executable, "-c", imports)
    assert done.returncode == 0, done.stdout
