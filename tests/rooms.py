"""The rooms of the kit: what is in them, how large they are, and which imports which.

`python tests/rooms.py` writes the table of docs/design.md anew.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
KIT = ROOT / "template" / "src" / "{{package}}" / "dbkit"
PAGE = ROOT / "docs" / "design.md"
HEAD = "| room | lines of code | modules |\n| --- | ---: | --- |\n"
TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)+")

LEAVES = ("clock", "errors", "context", "callsites", "loggers")
ROOMS = (
    "settings",
    "engines",
    "pool",
    "telemetry",
    "database",
    "web",
    "commands",
    "testing",
)
"""From the lowest to the highest: each imports only from those before it."""
BLANK = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)


def modules() -> dict[str, Path]:
    """Map the kit's modules, as `pool.usage`, to their files."""
    found: dict[str, Path] = {}
    for path in sorted(KIT.rglob("*.py")):
        parts = path.relative_to(KIT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """Name the room of a module; a leaf is one of its own."""
    return module.partition(".")[0]


def lines_of_code(path: Path) -> int:
    """Count the lines that hold code: no blank one, comment or docstring."""
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {
        line
        for token in tokens
        if token.type not in BLANK
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            case _:
                pass
    return len(held)


def imports() -> Iterator[tuple[str, str]]:
    """Yield who imports what, `TYPE_CHECKING` and imports in functions included."""
    files = modules()
    for module, path in files.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        package = [part for part in package if part]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1]
                target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
                for name in node.names:
                    inner = f"{target}.{name.name}".strip(".")
                    imported = inner if inner in files else target
                    if imported != module:
                        yield module, imported


def table() -> str:
    """Write a row for each room."""
    files = modules()
    rows, whole = "", 0
    for room in (*LEAVES, *ROOMS):
        inside = {name: path for name, path in files.items() if room_of(name) == room}
        size = sum(map(lines_of_code, inside.values()))
        whole += size
        names = sorted({name.split(".")[1] for name in inside if "." in name})
        rows += f"| `{room}` | {size:,} | {', '.join(names)} |\n"
    whole += lines_of_code(KIT / "__init__.py")
    return f"{HEAD}{rows}| all | {whole:,} | |\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), page, count=1), encoding="utf-8")
