"""The public surface: what a service's own code, its owner and its platform may rely on.

docs/updating.md names it; this says it in lines, one for each thing that can be relied on.
`tests/surface/` holds the lines of each release, written by `python tools/surface.py`.
"""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import Mount

ROOT = Path(__file__).parent.parent
KIT = ROOT / "template" / "src" / "{{package}}" / "dbkit"
sys.path.insert(0, str(KIT.parent))

import dbkit  # noqa: E402 -- it is in the template
from dbkit import testing  # noqa: E402
from dbkit.commands import command_line as commands  # noqa: E402
from dbkit.pool import FairPool  # noqa: E402
from dbkit.settings.database import Declared  # noqa: E402
from dbkit.settings.service import ServiceSettings  # noqa: E402
from dbkit.web.prometheus import metrics_router  # noqa: E402
from dbkit.web.workers import Workers  # noqa: E402

LOGGERS = """
import importlib, logging, pkgutil
import orders.dbkit as kit

for module in pkgutil.walk_packages(kit.__path__, f"{kit.__name__}."):
    importlib.import_module(module.name)
known = logging.Logger.manager.loggerDict.items()
print(*(name for name, each in known if name.startswith("orders") and hasattr(each, "level")))
"""


def documented() -> dict[str, list[str]]:
    """Read the public names from docs/updating.md, each with its public parts."""
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    section = text.partition("## What your code may rely on")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", section, re.MULTILINE)
    return {
        name: re.findall(r"`(\w+)", parts)
        for names, parts in rows
        for name in re.findall(r"`([\w.]+)", names)
    }


@cache
def surface() -> list[str]:
    """Return the lines, sorted."""
    return sorted(
        [*names(), *fixtures(), *command_line(), *variables(), *checks(), *routes(), *loggers()]
    )


def names() -> Iterator[str]:
    """Name what may be imported, its parameters and its public parts."""
    parts = documented()
    assert set(dbkit.__all__) == parts.keys() - {
        "commands.manage",
        "dbkit.testing",
        "Database.pool",
    }
    for name in dbkit.__all__:
        thing = getattr(dbkit, name)
        yield f"name {name}"
        for part in parts[name]:
            known = [*dir(thing), *getattr(thing, "__annotations__", ())]
            assert part in known or f"self.{part}" in inspect.getsource(thing), (name, part)
            yield f"part {name}.{part}"
        if inspect.isclass(thing) and issubclass(thing, BaseModel):
            yield from (f"part {name}.{field}" for field in thing.model_fields)
        elif name in {"Database", "Databases"} or inspect.isfunction(thing):
            yield from parameters(name, thing)
    for part in parts["Database.pool"]:
        assert hasattr(FairPool, part), part
        yield f"part Database.pool.{part}"
    yield from parameters("run_transaction", dbkit.Database.run_transaction)
    yield from parameters("commands.manage", commands.manage)


def parameters(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Name the parameters of a function, and those that a caller must give."""
    for each in inspect.signature(function).parameters.values():
        match each.kind:
            case inspect.Parameter.VAR_KEYWORD:
                yield from (f"parameter {name}({key})" for key in Declared.__annotations__)
            case inspect.Parameter.VAR_POSITIONAL:
                yield f"parameter {name}(*{each.name})"
            case _ if each.name != "self":
                yield f"parameter {name}({each.name})"
                if each.default is inspect.Parameter.empty:
                    yield f"required {name}({each.name})"
            case _:
                pass


def fixtures() -> Iterator[str]:
    """Name the fixtures and types of tests."""
    for name in documented()["dbkit.testing"]:
        assert hasattr(testing, name), name
        yield f"testing {name}"


def command_line() -> Iterator[str]:
    """Name the commands of manage.py, their arguments and options."""
    databases = dbkit.Databases(dbkit.Database("primary", "sqlite"))
    cli: Any = typer.main.get_command(commands.manage(databases, app="a:b", root=ROOT))
    commands_ = dict(cli.commands)
    for group, command in cli.commands.items():
        for name, each in getattr(command, "commands", {}).items():
            commands_[f"{group} {name}"] = each
    for name, command in commands_.items():
        yield f"command {name}"
        for parameter in command.params:
            yield from (f"option {name} {option}" for option in parameter.opts)
            if parameter.required:
                yield f"required {name} {parameter.name}"


def variables() -> Iterator[str]:
    """Name the environment variables, and the least and the greatest value of each."""
    for prefix, model in {"DATABASE_": dbkit.DatabaseSettings, "": ServiceSettings}.items():
        for name, field in model.model_fields.items():
            yield f"variable {prefix}{name.upper()}"
            for bound in field.metadata:
                for sort in ("ge", "le"):
                    if hasattr(bound, sort):
                        yield f"bound {prefix}{name.upper()} {sort} {getattr(bound, sort):g}"


def checks() -> Iterator[str]:
    """Name the ids of the checks, which `SILENCED_CHECKS` may name."""
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    yield from (f"check {id_}" for id_ in re.findall(r"^\| `(\w+\.\w+)`", page, re.MULTILINE))


def routes() -> Iterator[str]:
    """Name the routes that the kit adds."""
    app = FastAPI()
    databases = dbkit.Databases(dbkit.Database("primary", "sqlite"))
    dbkit.install(app, databases)
    hidden = [*metrics_router(databases, Workers()).routes, *app.routes]
    paths = [each.path for each in hidden if isinstance(each, APIRoute | Mount)]
    yield from (f"route {path}" for path in [*app.openapi()["paths"], *paths])


def loggers() -> Iterator[str]:
    """Name the loggers of the kit, by which dashboards find lines; they are below the package."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "orders").mkdir()
        (Path(folder) / "orders" / "dbkit").symlink_to(KIT)
        command = [sys.executable, "-c", LOGGERS]
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    page = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`dbkit\.[^|]*`) \|", page, re.MULTILINE)
    assert {f"orders.{name}" for row in rows for name in row.strip("`").split("`, `")} == set(
        done.stdout.split()
    )
    yield from (f"logger {name.removeprefix('orders.')}" for name in done.stdout.split())


def broken(before: list[str], now: list[str]) -> list[str]:
    """Say what of an earlier surface can no longer be relied on."""
    bounds: dict[str, str] = {}
    for line in now:
        name, _, value = line.rpartition(" ")
        bounds[name] = value
    known = {line.partition("(")[0] for line in before if line.startswith("parameter ")}
    found: list[str] = []
    for line in before:
        sort, _, rest = line.partition(" ")
        if sort == "bound":
            name, _, value = line.rpartition(" ")
            wider = float(value), float(bounds.get(name, value))
            if (wider[1] > wider[0]) if name.endswith(" ge") else (wider[1] < wider[0]):
                found.append(f"{rest}: is {bounds[name]} now")
        elif sort != "required" and line not in now:
            found.append(f"{sort} {rest}: is gone")
    for line in now:
        sort, _, rest = line.partition(" ")
        if sort == "required" and line not in before:
            function, command = rest.partition("(")[0], rest.rpartition(" ")[0]
            if f"parameter {function}" in known or f"command {command}" in before:
                found.append(f"{rest}: must be given now")
    return found


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in surface())
