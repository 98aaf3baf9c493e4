"""Models for a database that is there already, as sqlacodegen writes them."""

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection, MetaData

from ..database.database import Database
from . import migrations

SERVICE = (__package__ or "").partition("dbkit")[0].rstrip(".")


async def inspect(database: Database, tables: Sequence[str] = ()) -> str:
    """Write a module of models for all tables and views, or for those named.

    Their base is the one in the database's own module. Raises `alembic.util.CommandError`.
    """
    if find_spec("sqlacodegen") is None:
        raise CommandError(
            f"{database.name}: inspectdb needs sqlacodegen, for this once: run"
            f" `uv run --with sqlacodegen manage.py inspectdb --database {database.name}`"
        )
    generator = generator_for(".".join(filter(None, (SERVICE, "databases", database.name))))

    def run(connection: Connection) -> str:
        metadata = MetaData()
        metadata.reflect(connection, views=not tables, only=tables or None)
        if not metadata.tables:
            raise CommandError(f"{database.name}: there are no tables")
        return generator(metadata, connection, ()).generate()

    async with migrations.connect(database) as connection:
        models = await connection.run_sync(run)
    return migrations.tidy(
        f'"""Tables of the database `{database.name}`, as they are there."""\n\n{models}'
    )


def generator_for(module: str) -> Any:
    """Return sqlacodegen's generator, made to import the base and to describe each class."""
    sqlacodegen: Any = import_module("sqlacodegen.generators")
    generator: Any = sqlacodegen.DeclarativeGenerator

    class Generator(generator):
        def generate_base(self) -> None:
            base = sqlacodegen.LiteralImport(module, "Base")
            self.base = sqlacodegen.Base([base], [], "Base.metadata")

        def render_class_declaration(self, model: Any) -> str:
            line: str = generator.render_class_declaration(self, model)
            return f'{line}\n{self.indentation}"""A row of `{model.table.name}`."""\n'

        def render_enum_classes(self) -> str:
            classes: str = generator.render_enum_classes(self)
            of_ours = r'class \1(enum.StrEnum):\n    """What a column may hold."""\n'
            return re.sub(r"class (\w+)\(str, enum\.Enum\):", of_ours, classes)

    return Generator
