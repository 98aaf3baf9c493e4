"""`manage.py startapp`: a feature in the form of the example, with tests and a first migration."""

import ast
import builtins
import keyword
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from alembic.util import CommandError

from ..database.database import Database
from ..database.engine import SERVICE
from .migrations import DIRECTORY, tidy
from .migrations.history import configure, next_revision, read_scripts

FOLDER = Path(__file__).parent / "feature"
"""The example, as it is where the database is `primary`; a test compares them."""
REPLACED = {"item", "items", "Item", "primary"}
NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
MODEL = re.compile(r"[A-Z][A-Za-z0-9]*")


def write(database: Database, name: str, model: str | None, app: str) -> Iterator[str]:
    """Write a feature with the table `name`, and yield what was done, and what is left to do.

    `model` is its class, by default the singular of `name`. Raises `CommandError` before anything
    is written: of a name that is taken or cannot be one, and of a file that is there.
    """
    one = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", model).lower() if model else singular(name)
    model = model or camel(one)
    check(database, name, one, model)
    files = render(database, name, one, model)
    if there := [path for path in (*files, package() / f"{name}.py") if path.exists()]:
        raise CommandError(f"{shown(there[0])} is there already: nothing was written")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        yield f"wrote {shown(path)}"
    yield register(name, *app.partition(":")[::2])
    yield f"Next: manage.py migrate --database {database.name}"


def package() -> Path:
    """Return the folder of the service's package."""
    return Path(__file__).parents[2]


def shown(path: Path) -> str:
    """Write a path as seen from the service's folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def singular(name: str) -> str:
    """Return the singular of a regular plural: `order_line` of `order_lines`."""
    if name.endswith("ies"):
        return f"{name[:-3]}y"
    return re.sub(r"(?<=ss|sh|ch)es$|(?<=x)es$|(?<![sui])s$", "", name)


def camel(name: str) -> str:
    """Write a name as that of a class."""
    return "".join(word.capitalize() for word in name.split("_"))


def check(database: Database, name: str, one: str, model: str) -> None:
    """Raise `CommandError` for a name that would break the code, or is taken."""
    used = {each for path in FOLDER.iterdir() for each in names_in(path.read_text("utf-8"))}
    used = used - REPLACED | {database.name}
    for each in dict.fromkeys((name, one, model)):
        if not (MODEL if each == model else NAME).fullmatch(each):
            raise CommandError(
                f"{each!r} is no name; write it as order_lines, and its model OrderLine"
            )
        fault = ""
        if keyword.iskeyword(each) or keyword.issoftkeyword(each):
            fault = "a keyword of Python"
        elif hasattr(builtins, each):
            fault = "a name of Python's own"
        elif each in used:
            fault = "a name that the generated code uses for something else"
        if fault:
            raise CommandError(f"{each} is {fault}; say for instance startapp {SERVICE}_{name}")
    assert database.base is not None  # noqa: S101 -- it is migrated
    if name in database.base.metadata.tables:
        raise CommandError(f"{database.name} has a table {name} already")
    module = f"{SERVICE}.databases.{database.name}"
    names = [
        "Base",
        database.name,
        *(camel(database.name) + each for each in ("Session", "Reader")),
    ]
    try:
        declared = vars(import_module(module))
    except ModuleNotFoundError:
        declared = {}
    if missing := [each for each in names if each not in declared]:
        raise CommandError(f"{module} has no {missing[0]}, which the code would import")


def names_in(source: str) -> Iterator[str]:
    """Yield the names that a module defines and uses."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.alias(name=name, asname=other):
                yield other or name
            case _:
                pass


def render(database: Database, name: str, one: str, model: str) -> dict[Path, str]:
    """Return the files, formatted as the service's ruff does."""
    words = {
        "Items": camel(name),
        "Item": model,
        "items": name,
        "item": one,
        "Primary": camel(database.name),
        "primary": database.name,
    }

    def replaced(kind: str) -> str:
        text = (FOLDER / f"{kind}.txt").read_text("utf-8")
        text = re.sub(r"\ban(?= item\b)", "an" if one[0] in "aeiou" else "a", text)
        text = re.sub(
            r"(?<![a-z])[Ii]tems?(?![a-z]|\(\))|\bPrimary(?=Session|Reader)|\bprimary\b",
            lambda found: words[found[0]],
            text,
        )
        return tidy(text)

    (DIRECTORY / database.name).mkdir(parents=True, exist_ok=True)
    script = read_scripts(database, configure(database))
    revision, last = next_revision(script, f"create {name}"), script.get_current_head()
    migration = replaced("migration").replace('"0001"', f'"{revision}"')
    if last:
        migration = migration.replace("down_revision = None", f'down_revision = "{last}"')
    folder = package() / name
    return {
        folder / "__init__.py": f'"""{camel(name)}."""\n',
        **{folder / f"{kind}.py": replaced(kind) for kind in ("models", "schemas", "router")},
        DIRECTORY.resolve() / database.name / f"{revision}.py": migration,
        Path.cwd() / "tests" / f"test_{name}.py": replaced("tests"),
    }


def register(name: str, module: str, app: str) -> str:
    """Include the router in the application, where it is plain how; say it, or what to add."""
    imported = f"from .{name}.router import router as {name}_router"
    included = f"{app}.include_router({name}_router)"
    spec = find_spec(module)
    path = Path(spec.origin) if spec and spec.origin else Path()
    text = path.read_text("utf-8") if path.parent == package() else ""
    body = ast.parse(text).body
    imports = [each for each in body if isinstance(each, ast.ImportFrom) and each.level == 1]
    calls = [
        each
        for each in body
        if isinstance(each, ast.Expr)
        and ast.unparse(each).startswith((f"{app}.include_router(", f"install({app},"))
    ]
    if not imports or not calls:
        return f"To serve it, add to {module}:\n\n    {imported}\n    {included}\n"
    lines = text.splitlines(keepends=True)
    lines.insert(calls[-1].end_lineno or 0, f"{included}\n")
    lines.insert(imports[-1].end_lineno or 0, f"{imported}\n")
    changed = "".join(lines)
    # Sorted, unless that would change more of the owner's file.
    path.write_text(tidy(changed) if tidy(text) == text else changed, encoding="utf-8")
    return f"included its router in {shown(path)}"
