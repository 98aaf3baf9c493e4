"""What makemigrations writes when models change, asks about, and warns of, on each engine."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.util import CommandError
from dbkit import NAMING_CONVENTION, TYPES, Database
from dbkit.commands import migrations
from dbkit.commands.checks import Finding, check
from dbkit.settings.urls import Dialect
from sqlalchemy import (
    ARRAY,
    URL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    Sequence,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import Time

ENGINES: dict[str, Dialect] = {"postgresql": "postgresql", "mariadb": "mysql", "sqlite": "sqlite"}
MYSQL: dict[str, Dialect] = {"mysql": "mysql"}

Tables = Callable[[MetaData], Any]


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on these engines."""
    return pytest.mark.parametrize("engine", names)


each_engine = on(*ENGINES)

TRIGGER = """CREATE TRIGGER noted AFTER INSERT ON items WHEN new.id > 5
BEGIN UPDATE items SET size = 1; END"""


class Shop:
    """A database whose models change."""

    def __init__(self, dialect: Dialect, url: str) -> None:
        self.dialect: Dialect = dialect
        self.url = url
        self.ignored: list[str] = []
        self.schema: str | None = None
        self.options: dict[str, Any] = {}

    def database(self, *tables: Any) -> Database:
        """Declare the database with these models: functions that add them to the metadata."""

        class Base(DeclarativeBase):
            metadata = MetaData(naming_convention=NAMING_CONVENTION)
            type_annotation_map = TYPES

        for name, *columns in tables:
            made = [each() for each in columns]
            key = [Column("id", Integer, primary_key=True)]
            own = any(getattr(each, "name", "") == "id" for each in made)
            parts = [*([] if own else key), *made]
            Table(name, Base.metadata, *parts, schema=self.schema, **self.options)
        return Database("shop", self.dialect, base=Base, url=self.url, ignore_tables=self.ignored)

    async def become(self, *tables: Any, yes: bool = False, message: str = "") -> "Change":
        """Have the models be these, and migrate."""
        database = self.database(*tables)
        change = await self.write(*tables, yes=yes, message=message)
        await migrations.migrate(database)
        left = await migrations.compare(database)
        assert left.changes == [], left
        return change

    async def write(self, *tables: Any, yes: bool = False, message: str = "") -> "Change":
        """Have the models be these, and write the migration."""
        asked: list[str] = []

        def ask(question: str) -> bool:
            asked.append(question)
            return yes

        said: list[str] = []
        database = self.database(*tables)
        path = await migrations.make(database, message, ask=ask, on_note=said.append)
        return Change(path, path.read_text() if path else "", said, asked)

    async def back_and_forth(self, *tables: Any) -> None:
        """Take the last migration back, and apply it again."""
        database = self.database(*tables)
        await migrations.migrate(database, "-1")
        await migrations.migrate(database)
        assert (await migrations.compare(database)).changes == []

    async def run(self, *statements: str) -> Any:
        """Run statements, and return the rows of the last."""
        rows: Any = None
        database = self.database()
        async with database.open(), database.engine.begin() as connection:
            for each in statements:
                result = await connection.execute(text(each))
                rows = result.all() if result.returns_rows else None
        return rows


class Change:
    """A migration that was written."""

    def __init__(self, path: Path | None, code: str, said: list[str], asked: list[str]) -> None:
        self.path, self.code, self.said, self.asked = path, code, said, asked

    def warns(self, id_: str) -> bool:
        """Whether it warns of this, in the file and on the terminal."""
        in_file = f"# migrations.{id_}" in self.code
        assert in_file == any(f"migrations.{id_}" in each for each in self.said)
        return in_file


@pytest.fixture
def shop(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Shop:
    """Make an empty database, in a folder without migrations."""
    monkeypatch.chdir(tmp_path)
    if engine == "sqlite":
        url = f"sqlite:///{tmp_path / 'shop.sqlite3'}"
    elif engine == "postgresql":
        url = request.getfixturevalue("database_url").render_as_string(hide_password=False)
    else:
        server: Any = request.getfixturevalue(engine)
        url = server.new_database().render_as_string(hide_password=False)
    return Shop((ENGINES | MYSQL)[engine], url)


def column(name: str, *options: Any, **more: Any) -> Callable[[], Column[Any]]:
    """Make a column anew for each table."""
    return lambda: Column(name, *options, **more)


def reference(own: str, target: str, *, index: bool = False, **more: Any) -> Any:
    """Make a column that refers to another, anew for each table."""
    return lambda: Column[int](own, ForeignKey(target, **more), index=index)


def twice() -> Column[Any]:
    """Make a generated column."""
    return Column("twice", Integer, Computed("id * 2"))


name_ = column("name", String(20))


@each_engine
async def test_files_are_numbered_and_named_after_what_they_do(shop: Shop) -> None:
    first = await shop.become(("items", name_))
    second = await shop.become(("items", name_, column("price", Integer)))
    third = await shop.become(("items", name_), message="Take the price (old) away!")

    assert [each.path and each.path.name for each in (first, second, third)] == [
        "0001_create_items.py",
        "0002_add_items_price.py",
        "0003_take_the_price_old_away.py",
    ]
    assert second.said == [
        "wrote migrations/shop/0002_add_items_price.py",
        "  add column items.price",
    ]
    database = shop.database(("items", name_))
    await migrations.migrate(database, "0001")
    assert [each.applied for each in await migrations.history(database)] == [True, False, False]
    await migrations.migrate(database, "0002")
    with pytest.raises(CommandError, match="is the beginning of 0001_create_items, 0002_add"):
        await migrations.migrate(database, "000")


@on("sqlite")
async def test_older_histories_go_on_with_numbers(shop: Shop) -> None:
    folder = Path("migrations/shop")
    await shop.become(("items", name_))
    (folder / "0001_create_items.py").rename(folder / "20261130_355ac4643325_items.py")
    file = folder / "20261130_355ac4643325_items.py"
    file.write_text(file.read_text().replace("0001_create_items", "355ac4643325"))
    await migrations.fake(shop.database(("items", name_)))

    change = await shop.become(("items", name_, column("price", Integer)))

    assert change.path
    assert change.path.name == "0002_add_items_price.py"


@each_engine
async def test_two_branches_are_joined_by_a_migration_that_follows_both(shop: Shop) -> None:
    await shop.become(("items", name_))
    ours = await shop.write(("items", name_, column("price", Integer)))
    assert ours.path
    ours.path.rename("ours")
    theirs = await shop.become(("items", name_, column("size", Integer)))
    Path("ours").rename(ours.path)  # noqa: ASYNC240
    assert theirs.path
    models = ("items", name_, column("price", Integer), column("size", Integer))
    database = shop.database(models)

    found = [each async for each in check([database])]
    with pytest.raises(CommandError) as caught:
        await migrations.migrate(database)
    path = await migrations.make(database, merge=True)

    assert str(caught.value) == (
        "shop: migrations/shop has several heads, as after a merge of two branches:"
        " 0002_add_items_price, 0002_add_items_size\n"
        "  run `manage.py makemigrations --database shop --merge`: it writes a migration that"
        " follows both, whichever of them a database has"
    )
    assert [each.id for each in found] == ["database.E002"]
    assert path
    assert path.name == "0003_merge.py"
    assert "import" not in path.read_text()
    steps = await migrations.migrate(database)
    assert [each.split(":")[0] for each in steps] == [
        "upgraded to 0002_add_items_price",
        "upgraded to 0003_merge",
    ]
    assert (await migrations.compare(database)).changes == []
    await migrations.migrate(database, "zero")
    await migrations.migrate(database)
    assert (await migrations.compare(database)).changes == []
    with pytest.raises(CommandError, match="there is one head, and nothing to merge"):
        await migrations.make(database, merge=True)


@on("sqlite")
async def test_two_files_of_one_revision_are_an_error_to_read(shop: Shop) -> None:
    await shop.become(("items", name_))
    file = Path("migrations/shop/0001_create_items.py")
    Path("migrations/shop/0001_other.py").write_text(file.read_text())  # noqa: ASYNC240

    with pytest.raises(CommandError, match="two migrations in migrations/shop have the revision"):
        await migrations.migrate(shop.database())


@each_engine
async def test_an_empty_migration_can_be_filled_at_once(shop: Shop) -> None:
    await shop.become(("items", name_))
    database = shop.database(("items", name_))

    path = await migrations.make(database, "fill names", empty=True)

    assert path
    assert path.name == "0002_fill_names.py"
    code = path.read_text()
    assert "import sqlalchemy as sa\nfrom alembic import op\n" in code
    assert 'op.execute(sa.text("SELECT 1"))' in code
    await migrations.migrate(database)
    await migrations.migrate(database, "zero")


@each_engine
async def test_a_renamed_column_is_asked_about_and_keeps_its_values(shop: Shop) -> None:
    await shop.become(("items", column("colour", String(20), index=True), name_))
    await shop.run("INSERT INTO items (id, colour) VALUES (1, 'red')")
    new = ("items", column("color", String(20), index=True), name_)

    change = await shop.become(new, yes=True)

    assert change.asked == ["Is items.color the column items.colour, renamed?"]
    assert change.warns("W003")
    assert not change.warns("W002")
    assert "  rename column items.colour to color" in change.said
    assert await shop.run("SELECT color FROM items") == [("red",)]
    await shop.back_and_forth(new)
    assert await shop.run("SELECT color FROM items") == [("red",)]


@each_engine
async def test_what_may_be_a_rename_is_said_where_nobody_can_be_asked(shop: Shop) -> None:
    await shop.become(("items", column("colour", String(20)), column("size", Integer)))

    change = await shop.become(("items", column("color", String(20)), column("note", Text)))

    assert change.asked == ["Is items.color the column items.colour, renamed?"]
    assert change.warns("W001")
    assert change.warns("W002")
    assert any(
        "items.colour goes, and items.color comes. If that is a rename, say so" in each
        for each in change.said
    )
    await shop.back_and_forth(("items", column("color", String(20)), column("note", Text)))


@each_engine
async def test_a_renamed_table_is_asked_about_and_keeps_its_rows(shop: Shop) -> None:
    child = ("children", reference("item_id", "items.id"))
    await shop.become(("items", column("name", String(20), index=True)), child)
    await shop.run(
        "INSERT INTO items (id, name) VALUES (1, 'a')", "INSERT INTO children VALUES (1, 1)"
    )
    child = ("children", reference("item_id", "things.id"))
    new = (("things", column("name", String(20), index=True)), child)

    change = await shop.become(*new, yes=True)

    assert change.asked == ["Is table things the table items, renamed?"]
    assert change.warns("W003")
    assert await shop.run("SELECT name FROM things, children WHERE things.id = item_id") == [("a",)]
    await shop.back_and_forth(*new)
    assert await shop.run("SELECT name FROM things, children WHERE things.id = item_id") == [("a",)]


@each_engine
async def test_a_table_that_is_renamed_may_change_at_once(shop: Shop) -> None:
    old = ("items", column("colour", String(20), index=True), name_, column("size", String(5)))
    await shop.become(old)
    await shop.run("INSERT INTO items (id, colour, name, size) VALUES (1, 'red', 'a', '4')")
    new = (
        "things",
        column("color", String(20), index=True),
        name_,
        column("size", String(9), nullable=False),
        column("note", Text),
    )

    change = await shop.become(new, yes=True)

    assert change.asked == [
        "Is table things the table items, renamed?",
        "Is things.color the column things.colour, renamed?",
    ]
    assert await shop.run("SELECT color, name, size FROM things") == [("red", "a", "4")]
    await shop.back_and_forth(new)
    assert await shop.run("SELECT color, name, size FROM things") == [("red", "a", "4")]
    assert (await shop.write(old)).warns("W001")


@each_engine
async def test_a_column_that_is_renamed_may_get_another_type(shop: Shop) -> None:
    await shop.become(("items", column("colour", String(20))))
    await shop.run("INSERT INTO items (id, colour) VALUES (1, 'red')")
    new = ("items", column("color", Text, nullable=False))

    change = await shop.become(new, yes=True)

    assert change.asked == ["Is items.color the column items.colour, renamed?"]
    await shop.back_and_forth(new)
    assert await shop.run("SELECT color FROM items") == [("red",)]


def status(*labels: str, **options: Any) -> Callable[[], Column[Any]]:
    """Make a column of an enum."""
    return column("status", Enum(*labels, name="status"), **options)


@each_engine
async def test_an_enum_gets_labels_and_loses_them(shop: Shop) -> None:
    await shop.become(("items", status("new", "done", server_default="new")))
    await shop.run("INSERT INTO items (id) VALUES (1)")

    more = ("items", status("new", "late", "done", "gone", server_default="new"))
    added = await shop.write(more)
    if shop.dialect == "sqlite":  # A text, of any length.
        assert added.path is None
        return
    await migrations.migrate(shop.database(more))
    assert (await migrations.compare(shop.database(more))).changes == []
    await shop.run("INSERT INTO items (id, status) VALUES (2, 'late')")
    with pytest.raises(migrations.MigrationFailed) as caught:
        await migrations.migrate(shop.database(more), "-1")  # A row has one.
    assert "0002_" in str(caught.value)
    await shop.run("DELETE FROM items WHERE id = 2")
    await shop.back_and_forth(more)

    fewer = ("items", status("new", "gone", server_default="new"))
    removed = await shop.become(fewer)
    if shop.dialect == "postgresql":
        assert removed.warns("W011")
    await shop.back_and_forth(fewer)
    assert await shop.run("SELECT status FROM items") == [("new",)]


@on("postgresql")
async def test_a_label_that_gets_another_name_is_asked_about(shop: Shop) -> None:
    await shop.become(("items", status("new", "done")))
    await shop.run("INSERT INTO items VALUES (1, 'done')")

    change = await shop.become(("items", status("new", "finished")), yes=True)

    assert change.asked == ["Is 'finished' of enum status the label 'done', renamed?"]
    assert await shop.run("SELECT status::text FROM items") == [("finished",)]
    await shop.back_and_forth(("items", status("new", "finished")))


@on("postgresql")
async def test_an_enum_of_nobody_goes_if_a_migration_made_it(shop: Shop) -> None:
    await shop.become(("items", status("new")), ("others", status("new")))
    await shop.run("CREATE TYPE theirs AS ENUM ('a')")

    await shop.become(("items", status("new")))
    await shop.become(("items",))

    types = await shop.run("SELECT typname FROM pg_type WHERE typtype = 'e'")
    assert types == [("theirs",)]
    await migrations.migrate(shop.database(("items",)), "zero")
    await migrations.migrate(shop.database(("items",)))


@each_engine
async def test_labels_in_a_check_go_with_the_models(shop: Shop) -> None:
    def plain(*labels: str) -> Any:
        kind = Enum(*labels, name="kind", native_enum=False, create_constraint=True, length=9)
        return ("items", column("kind", kind))

    await shop.become(plain("a", "b"))
    await shop.become(plain("a", "b", "c"))

    await shop.run("INSERT INTO items VALUES (1, 'c')")


@each_engine
async def test_what_is_not_ours_is_left_alone(shop: Shop) -> None:
    await shop.become(("items", name_))
    await shop.run(
        "CREATE TABLE theirs (id INTEGER)",
        "CREATE INDEX ix_theirs ON items (name)",
        "CREATE TABLE audit_log (id INTEGER)",
    )
    shop.ignored = ["audit_*"]

    change = await shop.write(("items", name_))
    found = [each async for each in check([shop.database(("items", name_))])]

    assert change.path is None
    assert change.said == [
        "  left alone, as no migration made it: index ix_theirs",
        "  left alone, as no migration made it: table theirs",
    ]
    assert found == [
        Finding(
            "migrations.W012",
            "shop",
            "neither the models nor a migration name index ix_theirs, table theirs",
            "migrations leave them alone; say so by Database(..., ignore_tables=[...]), or drop"
            " them by hand",
        )
    ]


@on("postgresql")
async def test_partitions_are_left_alone(shop: Shop) -> None:
    def measurements() -> Any:
        return ("measurements",)

    await shop.become(measurements())
    await shop.run(
        "DROP TABLE measurements",
        "CREATE TABLE measurements (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE measurements_1 PARTITION OF measurements FOR VALUES FROM (1) TO (9)",
        "INSERT INTO measurements VALUES (1)",
    )

    assert (await shop.write(measurements())).said == []
    assert await migrations.compare(shop.database(measurements())) == migrations.Differences(
        [], [], [], []
    )


@on("sqlite")
async def test_tables_of_a_virtual_one_are_left_alone(shop: Shop) -> None:
    await shop.become(("items", name_))
    await shop.run("CREATE VIRTUAL TABLE docs USING fts5(body)", "INSERT INTO docs VALUES ('a')")

    assert (await shop.write(("items", name_))).said == []
    await shop.become(("items", column("name", String(30))))
    assert await shop.run("SELECT body FROM docs WHERE docs MATCH 'a'") == [("a",)]


@each_engine
async def test_a_table_of_ours_goes_with_its_model_and_says_so(shop: Shop) -> None:
    await shop.become(("items", name_), ("old", name_))

    change = await shop.become(("items", name_))

    assert change.warns("W002")
    assert "  remove table old" in change.said


@on("sqlite")
async def test_models_that_migrations_do_not_see_lose_no_table(shop: Shop) -> None:
    await shop.become(("items", name_))
    database = shop.database()
    base: Any = database.base

    async def refused() -> str:
        (found,) = [each async for each in check([database])]
        assert found.id == "models.E001"
        with pytest.raises(CommandError) as raised:
            await migrations.make(database)
        assert found.text in str(raised.value)
        assert found.hint in str(raised.value)
        return found.text

    assert await refused() == (
        "the base Base has no models, so that migrations would drop every table"
    )

    class Own(base):
        __abstract__ = True
        metadata = MetaData()

    class Item(Own):
        __tablename__ = "items"
        id = Column(Integer, primary_key=True)

    assert await refused() == (
        "1 models are in another `metadata` than their base Base's, so that migrations would drop"
        f" their tables: {Item.__name__}"
    )


@on("sqlite")
async def test_a_rebuild_keeps_triggers_views_and_indexes_on_expressions(shop: Shop) -> None:
    await shop.become(("items", name_, twice))
    await shop.run(
        "CREATE UNIQUE INDEX ix_lower ON items (lower(name))",
        "CREATE TABLE log (name TEXT)",
        "CREATE TRIGGER noted AFTER INSERT ON items BEGIN INSERT INTO log VALUES (new.name); END",
        "CREATE VIEW names AS SELECT name FROM items",
        "INSERT INTO items (id, name) VALUES (1, 'a')",
    )
    new = ("items", column("name", String(30), nullable=False), twice)

    await shop.become(new)

    await shop.run("INSERT INTO items (id, name) VALUES (2, 'b')")
    assert await shop.run("SELECT name FROM log") == [("a",), ("b",)]
    assert await shop.run("SELECT name FROM names") == [("a",), ("b",)]
    assert await shop.run("SELECT twice FROM items") == [(2,), (4,)]
    with pytest.raises(Exception, match="UNIQUE constraint failed"):
        await shop.run("INSERT INTO items (id, name) VALUES (3, 'A')")
    await shop.back_and_forth(new)


@on("sqlite")
@pytest.mark.parametrize(
    ("made", "lost"),
    [
        (TRIGGER, "noted"),
        ("CREATE INDEX ix_size ON items (abs(size))", "ix_size"),
        ("CREATE VIEW sizes AS SELECT size FROM items", "the view sizes"),
    ],
)
async def test_a_rebuild_that_would_lose_something_is_refused(
    shop: Shop, made: str, lost: str
) -> None:
    await shop.become(("items", name_, column("size", Integer)))
    await shop.run(made, "INSERT INTO items VALUES (1, 'a', 2)")
    await shop.write(("items", column("name", String(30))))

    with pytest.raises(migrations.MigrationFailed, match=lost):
        await migrations.migrate(shop.database(("items", name_)))

    assert await shop.run("SELECT * FROM items") == [(1, "a", 2)]
    assert len(
        await shop.run("SELECT name FROM sqlite_master WHERE name LIKE '%size%' OR name = 'noted'")
    )


@on("sqlite")
@pytest.mark.parametrize(
    ("table", "lost"),
    [
        ("id INTEGER PRIMARY KEY AUTOINCREMENT, name VARCHAR(20)", "AUTOINCREMENT"),
        ("id INTEGER PRIMARY KEY, name VARCHAR(20) COLLATE NOCASE", "COLLATE"),
        (
            "id INTEGER PRIMARY KEY, name VARCHAR(20) CHECK (length(name) < 9)",
            "CHECK without a name",
        ),
        ("id INTEGER PRIMARY KEY, name VARCHAR(20) UNIQUE ON CONFLICT IGNORE", "ON CONFLICT"),
    ],
)
@pytest.mark.filterwarnings("ignore:Unnamed CHECK")  # Alembic's, which goes on.
async def test_a_table_that_cannot_be_read_wholly_is_not_rebuilt(
    shop: Shop, table: str, lost: str
) -> None:
    await shop.become(("items", name_))
    await shop.run("DROP TABLE items", f"CREATE TABLE items ({table})")
    await shop.write(("items", column("name", String(30))))

    with pytest.raises(migrations.MigrationFailed, match=lost):
        await migrations.migrate(shop.database(("items", name_)))


@on("mariadb", "sqlite")
async def test_a_type_that_would_cut_its_values_is_refused(shop: Shop) -> None:
    models = ("items", column("price", Numeric))
    with pytest.raises(CommandError, match=r"\(migrations.W013\)[^$]*items.price is NUMERIC there"):
        await shop.write(models)
    if shop.dialect == "mysql":
        with pytest.raises(CommandError, match="loses microseconds"):
            await shop.write(("items", column("at", Time)))

    database = shop.database(models)
    assert await migrations.make(database, silenced=["migrations.W013"])
    await migrations.migrate(database)
    assert [each.id async for each in check([database])] == ["migrations.W013"]


@each_engine
async def test_an_index_on_a_foreign_key_goes_back(shop: Shop) -> None:
    child = ("children", reference("item_id", "items.id", index=True))
    await shop.become(("items",), child)
    await migrations.migrate(shop.database(("items",), child), "zero")
    await migrations.migrate(shop.database(("items",), child))

    await shop.become(("items",), ("children",))
    await shop.back_and_forth(("items",), ("children",))


@each_engine
async def test_what_changes_of_a_column_or_table_is_seen(shop: Shop) -> None:
    child = ("children", reference("item_id", "items.id", name="fk"))
    await shop.become(("items", name_, column("size", Integer)), child)
    expression = [] if shop.dialect == "mysql" else [lambda: Index("ix_low", text("lower(name)"))]
    new = (
        (
            "items",
            column("name", String(20), server_default="none"),
            column("size", Integer, comment="A size"),
            lambda: CheckConstraint("size > 0", name="positive"),
            *expression,
        ),
        ("children", reference("item_id", "items.id", name="fk", ondelete="CASCADE")),
    )

    seen = (await migrations.compare(shop.database(*new))).changes

    wanted = ["modify default of items.name", "ck_items_positive", "add fk fk"]
    wanted += [] if shop.dialect == "mysql" else ["ix_low"]
    wanted += [] if shop.dialect == "sqlite" else ["modify comment of items.size"]
    for each in wanted:
        assert any(each in change for change in seen), (each, seen)
    await shop.become(*new)
    await shop.back_and_forth(*new)


@on("postgresql", "mariadb", "sqlite")
async def test_risks_are_said_in_the_file_and_on_the_terminal(shop: Shop) -> None:
    postgresql = shop.dialect == "postgresql"
    await shop.become(("items", name_, column("size", String(5))), ("others",))
    models = (
        (
            "items",
            column("name", String(20), nullable=False),
            column("size", Integer),
            column("price", Integer, nullable=False),
            *([column("token", String(36), server_default=func.random())] if postgresql else []),
            reference("other_id", "others.id"),
            lambda: UniqueConstraint("name"),
            lambda: CheckConstraint("price > 0", name="positive"),
            lambda: Index("ix_size", "size"),
        ),
        ("others",),
    )

    change = await shop.write(*models)

    expected = {"W004", "W006", "W007", "W009", "W010"}
    expected |= {"W005", "W008"} if postgresql else set[str]()
    assert {id_ for n in range(1, 13) if change.warns(id_ := f"W{n:03}")} == expected


@on("postgresql")
async def test_an_index_is_built_beside_the_writes_where_the_model_says_so(shop: Shop) -> None:
    late = lambda: Index("ix_name", "name", postgresql_concurrently=True)  # noqa: E731
    await shop.become(("items", name_))

    change = await shop.become(("items", name_, late))

    assert "with op.get_context().autocommit_block():" in change.code
    assert not change.warns("W008")
    await shop.back_and_forth(("items", name_, late))


@on("postgresql")
async def test_a_new_type_is_converted_by_a_cast(shop: Shop) -> None:
    await shop.become(("items", column("size", String(5))))
    await shop.run("INSERT INTO items VALUES (1, '42')")

    change = await shop.become(("items", column("size", Integer)))

    assert "postgresql_using" in change.code
    assert await shop.run("SELECT size FROM items") == [(42,)]
    await shop.back_and_forth(("items", column("size", Integer)))


@each_engine
async def test_a_failure_says_where_which_statement_and_what_to_do(shop: Shop) -> None:
    await shop.become(("items", column("name", String(20))))
    await shop.run("INSERT INTO items (id) VALUES (1)")
    change = await shop.write(("items", column("name", String(20), nullable=False)))
    assert change.path

    with pytest.raises(migrations.MigrationFailed) as caught:
        await migrations.migrate(shop.database())

    said = str(caught.value)
    assert said.startswith(f"shop: a migration failed at {change.path}:")
    assert "items" in said
    if shop.dialect != "mysql":
        assert "rows that are there have no value" in said
        assert "Nothing of it stays: mend the file" in said
    else:
        assert "cannot roll a change of the schema back" in said


@on("mariadb", "mysql")
async def test_a_foreign_key_in_the_way_of_a_type_is_said(shop: Shop) -> None:
    await shop.become(("items",), ("children", reference("item_id", "items.id")))
    change = await shop.write(("items",), ("children", reference("item_id", "items.id"), name_))
    assert change.path
    by_hand = "op.execute('ALTER TABLE {} MODIFY {} BIGINT NOT NULL')\n    op.add_column"

    for table, column_name in (("children", "item_id"), ("items", "id")):
        alter = by_hand.format(table, column_name)
        change.path.write_text(change.code.replace("op.add_column", alter))
        with pytest.raises(migrations.MigrationFailed, match="a foreign key holds the type of its"):
            await migrations.migrate(shop.database())


@each_engine
async def test_several_statements_in_one_are_run_in_the_transaction(shop: Shop) -> None:
    await shop.become(("items", name_))
    database = shop.database(("items", name_))
    path = await migrations.make(database, "fill", empty=True)
    assert path
    code = path.read_text()
    several = (
        "INSERT INTO items VALUES (1, 'a;b'); -- one;\n UPDATE items SET name = 'c' WHERE id = 1;"
    )
    path.write_text(code.replace('sa.text("SELECT 1")', repr(several)))
    await migrations.migrate(database)
    assert await shop.run("SELECT name FROM items") == [("c",)]

    broken = "UPDATE items SET name = 'd'; UPDATE nowhere SET x = 1"
    second = await migrations.make(database, "fail", empty=True)
    assert second
    second.write_text(second.read_text().replace('sa.text("SELECT 1")', repr(broken)))
    with pytest.raises(migrations.MigrationFailed, match="nowhere"):
        await migrations.migrate(database)
    assert await shop.run("SELECT name FROM items") == [("c",)]


@on("sqlite")
@pytest.mark.parametrize(
    ("line", "said"),
    [("nowhere()", "NameError: name 'nowhere' is not defined"), ("(", "SyntaxError: ")],
)
async def test_a_file_that_is_no_migration_is_an_error_to_read(
    shop: Shop, line: str, said: str
) -> None:
    change = await shop.write(("items", name_))
    assert change.path
    change.path.write_text(
        change.code.replace("op.drop_table", f"{line}\n    op.drop_table").replace(
            "op.create_table", f"{line}\n    op.create_table"
        )
    )

    with pytest.raises(migrations.MigrationFailed) as caught:
        await migrations.migrate(shop.database())

    assert f"failed at {change.path}:" in str(caught.value)
    assert said in str(caught.value)


@on("mariadb", "mysql")
async def test_a_foreign_key_that_stays_keeps_an_index(shop: Shop) -> None:
    without = ("children", reference("item_id", "items.id"))
    with_ = ("children", reference("item_id", "items.id", index=True))
    await shop.become(("items",), without)

    await shop.become(("items",), with_)  # In place of the server's own.
    await shop.back_and_forth(("items",), with_)
    await shop.become(("items",), without)
    await shop.back_and_forth(("items",), without)


@on("mariadb", "mysql")
async def test_what_a_foreign_key_needs_and_made_goes_with_it(shop: Shop) -> None:
    def children(*more: Any, key: bool = True) -> Any:
        own = reference("item_id", "items.id") if key else column("item_id", Integer)
        return ("children", own, name_, *more)

    unique = lambda: UniqueConstraint("item_id", "name", name="uq")  # noqa: E731
    await shop.become(("items",), children())

    for each in (children(unique), children(), children(key=False)):
        await shop.become(("items",), each)
        await shop.back_and_forth(("items",), each)


@on("postgresql")
async def test_a_sequence_that_ends_before_its_column_is_seen(shop: Shop) -> None:
    large = ("items", column("id", BigInteger, primary_key=True))
    await shop.become(large)
    await shop.run("ALTER SEQUENCE items_id_seq AS integer")

    change = await shop.become(large)

    assert change.said[1:] == ["  modify type of sequence items_id_seq"]


@on("postgresql", "mariadb")
async def test_a_sequence_is_made_before_what_uses_it(shop: Shop) -> None:
    def numbered() -> Column[Any]:
        sequence = Sequence("numbers", start=5)
        return Column("number", Integer, sequence, server_default=sequence.next_value())

    await shop.become(("items", name_))
    new = ("items", name_, numbered)
    change = await shop.become(new)
    await shop.back_and_forth(new)

    assert change.said[1:3] == ["  add sequence numbers", "  add column items.number"]
    await shop.run("INSERT INTO items (id) VALUES (1)")
    assert await shop.run("SELECT number FROM items") == [(5,)]


@on("postgresql")
async def test_a_time_without_zone_is_one_in_utc(shop: Shop) -> None:
    await shop.become(("items", column("at", DateTime)))
    await shop.run("INSERT INTO items VALUES (1, '2026-01-02 03:04:05')")
    shop.url += "?options=-ctimezone%3DAsia/Tokyo"
    new = ("items", column("at", TYPES[datetime]))

    await shop.become(new)
    await shop.back_and_forth(new)

    assert await shop.run("SELECT at AT TIME ZONE 'UTC' FROM items") == [
        (datetime.fromisoformat("2026-01-02 03:04:05"),)
    ]


@on("postgresql")
async def test_a_view_in_the_way_of_a_type_is_said(shop: Shop) -> None:
    await shop.become(("items", name_))
    await shop.run("CREATE VIEW names AS SELECT name FROM items")
    await shop.write(("items", column("name", Text)))

    with pytest.raises(migrations.MigrationFailed, match="where a view, a policy or a generated"):
        await migrations.migrate(shop.database())


@on("sqlite")
async def test_a_rebuild_keeps_the_order_of_an_index(shop: Shop) -> None:
    ordered = index("ix_size", text("size DESC"))
    await shop.become(("items", name_, column("size", Integer), ordered))
    await shop.run("INSERT INTO items VALUES (1, 'a', 1)")

    await shop.become(("items", column("name", String(30)), column("size", Integer), ordered))

    (made,) = await shop.run("SELECT sql FROM sqlite_master WHERE name = 'ix_size'")
    assert made == ("CREATE INDEX ix_size ON items (size DESC)",)


@on("postgresql")
async def test_a_default_that_becomes_another_function_is_seen(shop: Shop) -> None:
    def at(default: Any) -> Any:
        return ("items", column("at", TYPES[datetime], server_default=default))

    await shop.become(at(func.now()))
    await shop.become(at(func.clock_timestamp()))
    await shop.back_and_forth(at(func.clock_timestamp()))


@on(*ENGINES, "mysql")
async def test_a_key_that_others_refer_to_gets_another_type(shop: Shop) -> None:
    own = column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    children = [("children", reference("item_id", "items.id", index=i)) for i in (False, True)]
    twins = ("twins", reference("item_id", "items.id", ondelete="CASCADE"))
    await shop.become(("items", name_), children[0], twins)
    await shop.run(
        "INSERT INTO items (id) VALUES (1)",
        "INSERT INTO children (id, item_id) VALUES (1, 1)",
        "INSERT INTO twins (id, item_id) VALUES (1, 1)",
    )
    new = (("items", own, name_), children[1], twins)

    await shop.become(*new)
    await shop.back_and_forth(*new)

    assert await shop.run("SELECT count(*) FROM children JOIN items ON items.id = item_id") == [
        (1,)
    ]
    with pytest.raises(DBAPIError):
        await shop.run("INSERT INTO children (id, item_id) VALUES (2, 2)")
    if shop.dialect == "postgresql":
        await shop.run("SELECT setval('items_id_seq', 1 + (1::bigint << 31))")
    await shop.run("INSERT INTO items (name) VALUES ('a')")


@each_engine
async def test_a_foreign_key_that_gets_another_name_goes_before_it_comes(shop: Shop) -> None:
    await shop.become(("items",), ("children", reference("item_id", "items.id", name="old")))
    new = ("children", reference("item_id", "items.id", name="new", index=True))
    await shop.become(("items",), new)
    await shop.back_and_forth(("items",), new)


@on("postgresql")
async def test_databases_may_be_schemas_of_one_database(shop: Shop) -> None:
    """`migrate` makes the schema; tables of the search_path's other schemas are not its own."""
    both = ("items", name_), ("notes", name_)
    analytics = Shop("postgresql", f"{shop.url}?search_path=analytics")
    await shop.become(*both)
    await shop.run("INSERT INTO notes (id) VALUES (1)")

    with pytest.MonkeyPatch.context() as patch:
        folder = Path("analytics")
        folder.mkdir()  # noqa: ASYNC240
        patch.chdir(folder)
        with pytest.raises(CommandError, match="the schema analytics of its search_path"):
            await migrations.compare(analytics.database(*both))
        change = await analytics.become(*both)
        analytics.url += ",public"
        gone = await analytics.become(("items", name_))
        left = await analytics.write(("items", name_))

    assert change.said[0] == "created schema analytics"
    assert "  add table items" in change.said
    assert "  remove table notes" in gone.said
    assert left.said == []
    assert (await shop.write(*both)).said == []
    assert await shop.run("SELECT id FROM notes") == [(1,)]


@on("postgresql")
async def test_a_server_that_refuses_alembics_own_table_is_named_with_what_to_do(
    shop: Shop, database_url: URL
) -> None:
    await shop.write(("items", name_))
    name, password = database_url.database, "s3cret"
    await shop.run(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    poor = database_url.set(username=name, password=password)
    shop.url = poor.render_as_string(hide_password=False)

    with pytest.raises(migrations.MigrationFailed) as caught:
        await migrations.migrate(shop.database(("items", name_)))

    first, reason, *rest = str(caught.value).splitlines()
    assert first == "shop: it cannot be migrated"
    assert reason == "  permission denied for schema public"
    assert rest[-1] == (
        "  the role may not do that: GRANT it, or migrate as the one that owns the tables"
    )


def check_(name: str, condition: str) -> Callable[[], CheckConstraint]:
    """Make a CHECK anew for each table."""
    return lambda: CheckConstraint(condition, name=name)


def index(name: str, *columns: Any, **options: Any) -> Callable[[], Index]:
    """Make an index anew for each table."""
    return lambda: Index(name, *columns, **options)


@on(*ENGINES, "mysql")
async def test_a_check_gets_another_condition(shop: Shop) -> None:
    size = column("size", Integer)
    old = ("items", size, check_("small", "size < 5"))
    new = ("items", size, check_("small", "size < 9"), column("color", String(9)))
    await shop.become(old)
    assert (await shop.write(("items", size, check_("small", "size<5")))).path is None

    change = await shop.become(new)

    assert change.warns("W009")
    await shop.run("INSERT INTO items (id, size) VALUES (1, 7)")
    await shop.run("DELETE FROM items")
    await shop.back_and_forth(new)
    with pytest.raises(DBAPIError):
        await shop.run("INSERT INTO items (id, size) VALUES (2, 9)")


@on("postgresql", "mysql", "sqlite")
async def test_an_index_gets_another_expression_order_or_condition(shop: Shop) -> None:
    dialects = ("postgresql", "sqlite")

    def models(upper: str, order: str, where: str) -> Any:
        conditions = {f"{each}_where": text(where) for each in dialects}
        return (
            "items",
            name_,
            column("size", Integer),
            index("ix_upper", text(f"({upper}(name))")),
            index("ix_size", text(f"size {order}")),
            index("ix_some", "size", **conditions),
        )

    await shop.become(models("upper", "ASC", "size > 1"))
    new = models("lower", "DESC", "size > 2")
    change = await shop.become(new)

    said = [each for each in change.said if " index " in each and "migrations" not in each]
    some = [] if shop.dialect == "mysql" else ["ix_some"]
    assert sorted(said) == sorted(
        f"  {verb} index {name} of items"
        for verb in ("remove", "add")
        for name in ("ix_upper", "ix_size", *some)
    )
    await shop.back_and_forth(new)


@on("postgresql")
async def test_what_only_postgresql_has_gets_another_definition(shop: Shop) -> None:
    def models(operator: str, using: str, expression: str, **deferrable: Any) -> Any:
        return (
            "items",
            column("size", Integer),
            column("twice", Integer, Computed(expression, persisted=True)),
            index("ix_items_size", "size", postgresql_using=using),
            lambda: ExcludeConstraint(("size", operator), name="ex_items", using="btree"),
            lambda: UniqueConstraint("size", name="uq_items", **deferrable),
        )

    await shop.become(("items", column("size", Integer)))
    exclude = ("items", *models("=", "btree", "size * 2")[1:])
    await shop.become(exclude)
    new = models("=", "hash", "size * 3", deferrable=True)
    change = await shop.become(new)

    assert "  modify expression of items.twice" in change.said
    assert change.warns("W008")
    assert change.warns("W010")
    await shop.back_and_forth(new)
    gone = await shop.become(("items", column("size", Integer)))
    assert "  remove constraint ex_items of items" in gone.said


@each_engine
async def test_a_primary_key_gets_another_column(shop: Shop) -> None:
    """SQLite's is left to whoever writes the migration, and said."""
    own = {"primary_key": True, "autoincrement": False}
    await shop.become(
        ("items", column("id", Integer, **own), column("code", String(9), nullable=False))
    )
    await shop.run("INSERT INTO items (id, code) VALUES (1, 'a')")
    new = ("items", column("id", Integer, **own), column("code", String(9), **own))

    if shop.dialect == "sqlite":
        change = await shop.write(new)
        found = [each async for each in check([shop.database(new)])]
        assert change.path is None
        assert change.said == ["  left to you: the primary key of items is id"]
        assert [each.id for each in found] == ["migrations.W014"]
        return
    await shop.become(new)
    await shop.run("INSERT INTO items (id, code) VALUES (1, 'b')")
    await shop.run("DELETE FROM items WHERE code = 'b'")
    await shop.back_and_forth(new)


@each_engine
async def test_what_is_not_written_of_a_generated_column_is_said(shop: Shop) -> None:
    plain, generated = column("twice", Integer), twice
    await shop.become(("items", plain))

    change = await shop.write(("items", generated))

    assert change.path is None
    assert change.said == ["  left to you: items.twice is to be generated"]


@on(*ENGINES, "mysql")
async def test_a_collation_and_an_option_of_a_table_are_left_to_you(shop: Shop) -> None:
    collation, options = {
        "postgresql": ("C", {"postgresql_with": {"fillfactor": 70}}),
        "mysql": ("utf8mb4_bin", {"mysql_row_format": "COMPRESSED"}),
        "sqlite": ("NOCASE", {"sqlite_with_rowid": False}),
    }[shop.dialect]
    plain = ("items", name_, column("size", Numeric(5, 2)))
    await shop.become(plain)

    shop.options = options
    text = column("name", String(20, collation=collation))
    new = ("items", text, column("size", Numeric(5, 2)))
    change = await shop.write(new)

    assert change.path is None
    said = sorted(change.said)
    assert [each.partition(" is ")[0] for each in said] == [
        f"  left to you: {option} of items"
        for option in ("fillfactor", "ROW_FORMAT", "WITHOUT ROWID")
        if option.lower().replace(" ", "_").removeprefix("without_") in str(options)
    ] + ["  left to you: the collation of items.name"]
    assert f", and is to be {collation}" in said[-1]
    await shop.run("DROP TABLE items", "DELETE FROM alembic_version")
    await migrations.migrate(shop.database(new), "zero")
    Path("migrations/shop/0001_create_items.py").unlink()  # noqa: ASYNC240
    assert (await shop.become(new)).said[1:] == ["  add table items"]
    assert (await shop.write(new)).said == []
    shop.options = {}
    assert [each.partition(" is ")[0] for each in (await shop.write(plain)).said] == [
        "  left to you: the collation of items.name"
    ]


@on("postgresql")
async def test_an_identity_is_left_to_you(shop: Shop) -> None:
    await shop.become(("items", column("number", Integer, Identity(), nullable=False)))

    always = column("number", Integer, Identity(always=True), nullable=False)
    for new in (always, column("number", Integer, nullable=False)):
        change = await shop.write(("items", new))

        assert change.said == ["  left to you: the identity of items.number differs"]


@on("mariadb", "mysql", "sqlite")
async def test_servers_without_identities_miss_none(shop: Shop) -> None:
    await shop.become(("items", column("number", Integer)))

    assert (await shop.write(("items", column("number", Integer, Identity())))).said == []


@on("postgresql")
async def test_a_role_that_cannot_compare_definitions_is_told_so(
    shop: Shop, database_url: URL
) -> None:
    size, name = column("size", Integer), database_url.database
    await shop.become(("items", size, check_("small", "size < 5")))
    await shop.run(
        f"CREATE ROLE {name} LOGIN PASSWORD 's3cret'",
        f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}",
    )
    poor = database_url.set(username=name, password="s3cret")  # noqa: S106 -- of this test
    shop.url = poor.render_as_string(hide_password=False)

    found = [each async for each in check([shop.database(("items", size))])]

    assert [each.id for each in found] == ["database.W002", "migrations.W014"]
    assert found[-1].text == (
        "makemigrations does not write this: definitions of items are not seen: permission denied"
        f' to create temporary tables in database "{name}"'
    )


@on("postgresql")
async def test_a_table_that_goes_to_another_schema_keeps_its_rows(shop: Shop) -> None:
    await shop.become(("items", column("name", String(20), index=True)))
    await shop.run("INSERT INTO items (id, name) VALUES (1, 'a')")
    shop.schema = "billing"
    new = shop.database(("things", column("name", String(20), index=True)))
    shop.schema = None
    said: list[str] = []

    await migrations.make(new, ask=lambda _: True, on_note=said.append)
    await migrations.migrate(new)

    assert await shop.run("SELECT name FROM billing.things") == [("a",)]
    assert "  move table things to schema billing" in said
    assert (await migrations.compare(new)).changes == []
    await migrations.migrate(new, "-1")
    assert await shop.run("SELECT name FROM items") == [("a",)]


@each_engine
async def test_tables_may_refer_to_each_other(shop: Shop) -> None:
    """Their foreign keys are made after both, and dropped before."""
    both = (
        ("authors", reference("best_id", "books.id")),
        ("books", reference("author_id", "authors.id")),
    )

    await shop.become(*both)
    await shop.back_and_forth(*both)
    await shop.become(("others",))
    await migrations.migrate(shop.database(("others",)), "zero")
    await migrations.migrate(shop.database(("others",)))


@on("postgresql")
@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        (String(9), Integer(), "1"),
        (Integer(), Boolean(), "1"),
        (Enum("1", "2", name="old"), Enum("2", "1", name="new"), "1"),
    ],
)
async def test_a_column_with_a_default_gets_another_type(
    shop: Shop, old: Any, new: Any, value: str
) -> None:
    default = text("true") if isinstance(new, Boolean) else value
    models = ("items", column("size", new, server_default=default))
    await shop.become(("items", column("size", old, server_default=value)))
    await shop.run("INSERT INTO items (id) VALUES (1)")

    await shop.become(models)
    await shop.back_and_forth(models)

    await shop.run("INSERT INTO items (id) VALUES (2)")
    rows = await shop.run("SELECT size FROM items")
    assert rows[0] == rows[1]


@on("postgresql")
@pytest.mark.parametrize("array", [False, True])
async def test_a_label_goes_that_is_a_default(shop: Shop, *, array: bool) -> None:
    def models(*labels: str, default: str) -> Any:
        kind = Enum(*labels, name="status")
        if array:
            return ("items", column("status", ARRAY(kind), server_default=f"{{{default}}}"))
        return ("items", column("status", kind, server_default=default))

    await shop.become(models("new", "old", default="old"))

    await shop.become(models("new", "next", default="next"))
    await shop.back_and_forth(models("new", "next", default="next"))


@on(*ENGINES, "mysql")
async def test_percent_signs_and_quotes_stay_as_they_are(shop: Shop) -> None:
    def models(note: str, condition: str) -> Any:
        default = column("note", String(40), server_default=note)
        return ("items", default, column("size", Integer), check_("even", condition))

    await shop.become(models("none", "size % 2 = 0"))
    new = models('50% of: it\'s "q"', "size % 3 = 0 OR note LIKE '%x'")
    await shop.become(new)
    await shop.back_and_forth(new)

    await shop.run("INSERT INTO items (id, size) VALUES (1, 3)")
    assert await shop.run("SELECT note FROM items") == [('50% of: it\'s "q"',)]


@on("sqlite")
async def test_a_rebuild_keeps_values_that_the_new_type_does_not_have(shop: Shop) -> None:
    await shop.become(("items", column("at", String(30)), column("size", String(9))))
    await shop.run("INSERT INTO items VALUES (1, '2026-01-02 03:04:05', 'large')")

    await shop.become(("items", column("at", Date), column("size", Integer)))

    assert await shop.run("SELECT at, size FROM items") == [("2026-01-02 03:04:05", "large")]


@on("mariadb", "sqlite")
async def test_the_check_of_a_type_goes_with_it(shop: Shop) -> None:
    of_type = Enum("a", "b", name="kind", native_enum=False, create_constraint=True)
    await shop.become(("items", lambda: Column("kind", of_type)))

    change = await shop.become(("items", column("kind", String(1))))

    assert "  remove constraint ck_items_kind of items" in change.said
    await shop.run("INSERT INTO items (id, kind) VALUES (1, 'c')")


@on("mariadb", "postgresql")
async def test_what_rows_do_not_fit_is_said_in_the_servers_words(shop: Shop) -> None:
    await shop.become(("items", column("size", String(9))))
    await shop.run("INSERT INTO items VALUES (1, 'large')")
    new = ("items", column("size", Integer))
    await shop.write(new)

    with pytest.raises(migrations.MigrationFailed) as caught:
        await migrations.migrate(shop.database(new))

    reasons = {
        "postgresql": "  invalid input syntax for type integer: …",
        "mysql": "  1292 Truncated incorrect INTEGER value: …",
    }
    assert str(caught.value).splitlines()[1] == reasons[shop.dialect]
