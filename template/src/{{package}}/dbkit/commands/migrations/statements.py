"""Statements that a generated migration runs as they are, by `op.execute()`."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations.ops import MigrateOperation

WIDTH = 84
"""Characters of a line's text, within the 100 that the service's ruff.toml allows."""


@dataclass(eq=False)
class SqlOp(MigrateOperation):
    """SQL forwards and backwards; `said` is what it does, in words."""

    said: str
    up: Sequence[str]
    down: Sequence[str] = ()
    reversed_said: str = ""

    def reverse(self) -> "SqlOp":
        """Return the way back."""
        return SqlOp(self.reversed_said or f"undo: {self.said}", self.down, self.up, self.said)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Say what differs, as Alembic does."""
        return (self.said,)


@dataclass(eq=False)
class Remark(MigrateOperation):
    """A comment in a generated migration."""

    text: str

    def reverse(self) -> "Remark":
        """Say the same on the way back."""
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Say what differs: nothing."""
        return ()


@renderers.dispatch_for(SqlOp)
def render_sql(_context: AutogenContext, op: SqlOp) -> list[str]:
    """Write calls of `op.execute()`."""
    return [f"op.execute({literal(each)})" for each in op.up]


@renderers.dispatch_for(Remark)
def render_remark(_context: AutogenContext, op: Remark) -> list[str]:
    """Write lines of a comment."""
    return textwrap.wrap(
        op.text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )


def literal(sql: str) -> str:
    """Write SQL as Python has it, in lines that are not too long."""
    # A colon before a word would be a parameter.
    sql = re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", sql)
    lines: list[str] = []
    for line in sql.splitlines(keepends=True):
        rest = line
        while len(rest) > WIDTH and (cut := rest.rfind(" ", 0, WIDTH)) > 0:
            lines.append(rest[: cut + 1])
            rest = rest[cut + 1 :]
        lines.append(rest)
    if len(lines) == 1:
        return repr(sql)
    return "\n" + "\n".join(f"    {line!r}" for line in lines) + "\n"
