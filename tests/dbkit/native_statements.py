"""Statements of each kind, to be run natively and by SQLAlchemy: which must be the same."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownLambdaType=false
# pyright: reportAttributeAccessIssue=false, reportPrivateUsage=false

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID

from catalogue import Cents, Money, Status, stored
from sqlalchemy import (
    JSON,
    LABEL_STYLE_NONE,
    LABEL_STYLE_TABLENAME_PLUS_COL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    ForeignKey,
    Identity,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    PickleType,
    Sequence,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    UniqueConstraint,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    delete,
    distinct,
    exists,
    extract,
    false,
    func,
    insert,
    intersect,
    lambda_stmt,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    table,
    text,
    true,
    tuple_,
    type_coerce,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    BIT,
    CIDR,
    DATERANGE,
    INET,
    INT4MULTIRANGE,
    INT4RANGE,
    JSONB,
    MACADDR,
    MONEY,
    OID,
    REGCLASS,
    TSVECTOR,
    Range,
    aggregate_order_by,
    array,
    array_agg,
    distinct_on,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import DeclarativeBase

metadata = MetaData()
numbers = count(1)
serial = Sequence("serials", metadata=metadata)

things = Table(
    "things",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("small", SmallInteger),
    Column("big", BigInteger),
    Column("price", Numeric(12, 2)),
    Column("approximate", Numeric(12, 2, asdecimal=False)),
    Column("ratio", Float),
    Column("exact_ratio", Float(53, asdecimal=True)),
    Column("wide", Double),
    Column("name", String(20), unique=True),
    Column("description", Text),
    Column("active", Boolean),
    Column("day", Date),
    Column("hour", Time),
    Column("hour_there", Time(timezone=True)),
    Column("at", DateTime),
    Column("at_there", DateTime(timezone=True)),
    Column("took", Interval),
    Column("key", Uuid),
    Column("text_key", Uuid(as_uuid=False)),
    Column("data", JSON),
    Column("tree", JSONB(none_as_null=True)),
    Column("picture", LargeBinary),
    Column("status", Enum(Status, name="status")),
    Column("level", Enum(Status, name="level", values_callable=stored)),
    Column("colour", Enum("red", "blue", name="colour", native_enum=False)),
    Column("tags", ARRAY(Text)),
    Column("grid", ARRAY(Integer, dimensions=2)),
    Column("moods", ARRAY(Enum(Status, name="status"))),
    Column("address", INET),
    Column("network", CIDR),
    Column("card", MACADDR),
    Column("flags", BIT(4)),
    Column("span", INT4RANGE),
    Column("spans", INT4MULTIRANGE),
    Column("season", DATERANGE),
    Column("words", TSVECTOR),
    Column("cash", MONEY),
    Column("relation", REGCLASS),
    Column("oid", OID),
    Column("cents", Cents),
    Column("pickled", PickleType),
    Column("twice", Integer, Computed("small * 2")),
    Column("UPPER", Integer),
    Column("with space", Integer, key="spaced"),
    Column("percent%", Integer, key="percent"),
)

parts = Table(
    "parts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("thing_id", ForeignKey("things.id"), nullable=False),
    Column("quantity", Integer, CheckConstraint("quantity >= 0"), default=1, onupdate=7),
    Column("number", Integer, default=lambda: next(numbers), onupdate=lambda: next(numbers)),
    Column("note", String(10), server_default="none"),
    UniqueConstraint("thing_id", "note"),
)

defaults = Table(
    "defaults",
    metadata,
    Column("id", Integer, serial, server_default=serial.next_value(), primary_key=True),
    Column("of_the_server", Integer, server_default=text("1 + 1")),
    Column("of_sql", Integer, default=select(func.count()).select_from(things).scalar_subquery()),
    Column("of_the_statement", String, default=lambda context: str(context.current_parameters)),
)

numbered_by_server = Table(
    "numbered_by_server",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", String),
)

numbered = Table(
    "numbered",
    metadata,
    Column("id", Integer, Sequence("numbered_ids", metadata=metadata), primary_key=True),
)


class Base(DeclarativeBase):
    """Of the class below."""


class Thing(Base):
    """Some of the columns, one by another name."""

    __table__ = Table(
        "things",
        Base.metadata,
        *(
            Column(c.name, c.type, key=c.key, primary_key=c.primary_key)
            for c in things.c
            if c.name in {"id", "name", "small"}
        ),
    )


FULL: dict[str, Any] = {
    "small": 7,
    "big": 2**40,
    "price": Decimal("12.50"),
    "approximate": 1.25,
    "ratio": 0.1,
    "exact_ratio": Decimal("0.25"),
    "wide": 1e300,
    "name": "lamp",
    "description": "ein Licht: \u2600 %s :x $1",
    "active": True,
    "day": date(2024, 2, 29),
    "hour": time(12, 30, 15, 250),
    "hour_there": time(12, 30, tzinfo=UTC),
    "at": datetime(2024, 2, 29, 12, 30, 15, 250),  # noqa: DTZ001 -- a column without a zone
    "at_there": datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    "took": timedelta(days=3, seconds=4, microseconds=5),
    "key": UUID(int=5),
    "text_key": str(UUID(int=6)),
    "data": {"a": [1, None, {"b": 1.5}]},
    "tree": {"a": {"b": [1, 2, 3]}, "c": "d", "n": None},
    "picture": bytes(range(256)),
    "status": Status.PAID,
    "level": Status.DRAFT,
    "colour": "red",
    "tags": ["a", "b,c", None],
    "grid": [[1, 2], [3, 4]],
    "moods": [Status.PAID, Status.DRAFT],
    "address": "10.0.0.1",
    "network": "10.0.0.0/8",
    "card": "08:00:2b:01:02:03",
    "flags": "1010",
    "span": Range(1, 5),
    "spans": [Range(1, 3), Range(5, None)],
    "season": Range(date(2024, 1, 1), date(2024, 4, 1)),
    "words": "a fat cat",
    "cash": "12.50",
    "relation": "parts",
    "oid": 12,
    "cents": Money(250),
    "pickled": {1, 2},
    "UPPER": 1,
    "spaced": 2,
    "percent": 3,
}
ROWS: list[dict[str, Any]] = [
    FULL,
    {"name": "chair", "small": 3, "tags": [], "data": None, "tree": None, "active": False},
    {"name": "table", "small": -3, "tags": ["b"], "tree": {"a": 1}, "cents": Money(0)},
    dict.fromkeys(FULL) | {"name": None},
]
PARTS = [
    {"id": 1, "thing_id": 1, "quantity": 5, "number": 0, "note": "a"},
    {"id": 2, "thing_id": 1, "quantity": 2, "number": 0, "note": "b"},
    {"id": 3, "thing_id": 2, "quantity": 9, "number": 0, "note": "a"},
]


@dataclass(frozen=True)
class Case:
    """A statement, and whether SQLAlchemy has to run it."""

    statement: Any
    params: Any = None
    by_sqlalchemy: str = ""
    """Why, if so."""
    after: Any = field(default=None)
    """What shows what it wrote."""


t, p = things.c, parts.c
other = things.alias("other")
one = select(t.id, t.name).where(t.id == bindparam("id"))
cte = select(t.id, t.small).where(t.small > 0).cte("positive")
numbers_cte = select(literal(1).label("n")).cte("numbers", recursive=True)
numbers_cte = numbers_cte.union_all(select(numbers_cte.c.n + 1).where(numbers_cte.c.n < 5))
added = insert(parts).values(id=9, thing_id=1).returning(p.id).cte("added")
cte_as_subquery = select(t.id, t.small).where(t.small > 0).subquery()
lateral = select(p.id).where(p.thing_id == t.id).order_by(p.id).limit(1).lateral("first")
total = select(func.sum(p.quantity)).where(p.thing_id == t.id)
everything = select(parts).order_by(p.id)

READS: dict[str, Case] = {
    **{f"column {c.key}": Case(select(c).order_by(t.id)) for c in things.c},
    **{
        f"parameter {name}": Case(select(t.id).where(t[name] == value))
        for name, value in FULL.items()
        if name not in {"data", "words", "pickled", "cash", "relation", "moods"}
    },
    **{
        f"in list of {n}": Case(select(t.id).where(t.id.in_(range(n))).order_by(t.id))
        for n in (0, 1, 2, 3, 10, 100)
    },
    **{
        f"not in list of {n}": Case(select(t.id).where(t.name.not_in(["lamp"] * n)).order_by(t.id))
        for n in (0, 1, 2)
    },
    "all columns": Case(select(things).order_by(t.id)),
    "a constant": Case(one, {"id": 1}),
    "a constant without a row": Case(one, {"id": 99}),
    "a constant with None": Case(one, {"id": None}),
    "a constant with more": Case(one, {"id": 1, "of no use": 2}),
    "a value": Case(select(t.id, t.name).where(t.name == "lamp")),
    "an empty dict": Case(select(t.id).order_by(t.id), {}),
    "labels": Case(select(t.id.label("a"), (t.small + 1).label("b"), t.name).order_by(t.id)),
    "the same name twice": Case(select(t.id, p.id).join_from(things, parts).order_by(p.id)),
    "the same column twice": Case(select(t.id, t.id).order_by(t.id)),
    "the same label twice": Case(select(t.id.label("x"), t.name.label("x")).order_by(t.id)),
    "table names in labels": Case(
        select(things, parts)
        .join_from(things, parts)
        .set_label_style(LABEL_STYLE_TABLENAME_PLUS_COL)
        .order_by(p.id)
    ),
    "no labels": Case(
        select(t.id, p.id).join_from(things, parts).set_label_style(LABEL_STYLE_NONE)
    ),
    "and, or, not": Case(
        select(t.id).where(and_(or_(t.small > 1, t.name == "table"), not_(t.active.is_(true()))))
    ),
    "is null": Case(select(t.id).where(t.name.is_(None))),
    "equals None": Case(select(t.id).where(t.name == None)),  # noqa: E711 -- SQLAlchemy's
    "null, true and false": Case(select(null(), true(), false())),
    "distinct from": Case(select(t.id).where(t.name.is_distinct_from(None)).order_by(t.id)),
    "between": Case(select(t.id).where(t.small.between(2, 8)).order_by(t.id)),
    "like": Case(select(t.name).where(t.name.like("%a%")).order_by(t.name)),
    "ilike": Case(select(t.name).where(t.name.ilike("%A%", escape="/")).order_by(t.name)),
    "contains": Case(select(t.name).where(t.name.contains("a_%", autoescape=True))),
    "regular expression": Case(select(t.name).where(t.name.regexp_match("^l.*p$"))),
    "percent sign": Case(select((t.small % 4).label("rest"), literal_column("'%'"))),
    "concatenation": Case(select(t.name + "!" + func.coalesce(t.colour, "none"))),
    "arithmetic": Case(select(t.small + 1, t.small * 1.5, t.price / 2, -t.small).order_by(t.id)),
    "limit and offset": Case(select(t.id).order_by(t.id).limit(2).offset(1)),
    "limit by parameter": Case(
        select(t.id).order_by(t.id).limit(bindparam("limit", type_=Integer)), {"limit": 2}
    ),
    "fetch with ties": Case(select(t.id).order_by(t.active).fetch(1, with_ties=True)),
    "order by": Case(select(t.id).order_by(t.small.desc().nulls_last(), t.id)),
    "distinct": Case(select(distinct(p.thing_id)).order_by(p.thing_id)),
    "distinct on": Case(
        select(p.thing_id, p.id).ext(distinct_on(p.thing_id)).order_by(p.thing_id, p.id)
    ),
    "group by": Case(
        select(p.thing_id, func.count(), func.sum(p.quantity), func.avg(p.quantity))
        .group_by(p.thing_id)
        .having(func.count() > 0)
        .order_by(p.thing_id)
    ),
    "rollup": Case(
        select(p.thing_id, func.sum(p.quantity))
        .group_by(func.rollup(p.thing_id))
        .order_by(p.thing_id)
    ),
    "aggregates": Case(
        select(
            func.min(t.price),
            func.max(t.at_there),
            func.bool_or(t.active),
            func.count(distinct(t.small)).filter(t.small > 0),
            func.percentile_cont(0.5).within_group(t.small),
        )
    ),
    "array of aggregates": Case(
        select(array_agg(aggregate_order_by(p.id, p.id.desc())), func.array_agg(p.note))
    ),
    "string of aggregates": Case(
        select(func.string_agg(t.name, aggregate_order_by(literal_column("','"), t.name)))
    ),
    "window": Case(
        select(
            p.id,
            func.row_number().over(partition_by=p.thing_id, order_by=p.id),
            func.sum(p.quantity).over(order_by=p.id, rows=(-1, 0)).label("sum"),
            func.lag(p.quantity, 1, 0).over(order_by=p.id),
        ).order_by(p.id)
    ),
    "join": Case(select(t.name, p.note).join_from(things, parts).order_by(p.id)),
    "outer join": Case(select(t.name, p.note).outerjoin_from(things, parts).order_by(t.id, p.id)),
    "full join": Case(
        select(t.id, p.id).select_from(things.join(parts, full=True)).order_by(t.id, p.id)
    ),
    "self join": Case(select(t.id, other.c.id).where(t.id < other.c.id).order_by(t.id, other.c.id)),
    "lateral": Case(select(t.id, lateral.c.id).join_from(things, lateral, true()).order_by(t.id)),
    "subquery": Case(select(cte_as_subquery.c.id).order_by(cte_as_subquery.c.id)),
    "scalar subquery": Case(select(t.id, total.scalar_subquery().label("sum")).order_by(t.id)),
    "exists": Case(select(t.id).where(exists().where(p.thing_id == t.id)).order_by(t.id)),
    "in a subquery": Case(select(t.id).where(t.id.in_(select(p.thing_id))).order_by(t.id)),
    "any and all": Case(select(t.id).where(t.id == func.any(array([1, 2]))).order_by(t.id)),
    "cte": Case(select(cte.c.id, cte.c.small).order_by(cte.c.id)),
    "recursive cte": Case(select(numbers_cte.c.n).order_by(numbers_cte.c.n)),
    "materialized cte": Case(
        select(select(t.id).cte("m").prefix_with("MATERIALIZED", dialect="postgresql").c.id)
    ),
    "union": Case(select(t.id).union(select(p.id)).order_by("id")),
    "union all": Case(union_all(select(t.id, t.name), select(p.id, p.note)).order_by("id", "name")),
    "intersect and except": Case(intersect(select(t.id), select(p.id).except_(select(literal(3))))),
    "values": Case(
        select(
            values(Column("a", Integer), Column("b", String), name="v").data([(1, "x"), (2, "y")])
        )
    ),
    "case": Case(select(case((t.small > 0, "more"), (t.small < 0, "less"), else_=null()))),
    "cast": Case(select(cast(t.small, String), cast("5", Integer), cast(None, JSONB))),
    "type coercion": Case(select(type_coerce(t.small, Cents)).order_by(t.id)),
    "extract": Case(select(extract("year", t.day), func.date_trunc("month", t.at_there))),
    "functions": Case(
        select(func.lower("A"), func.length(t.name), func.coalesce(t.small, 0)).order_by(t.id)
    ),
    "function of a set": Case(select(func.generate_series(1, 3).table_valued("n").c.n)),
    "function of several columns": Case(
        select(
            func.json_to_recordset('[{"a": 1, "b": "x"}]')
            .table_valued(Column("a", Integer), Column("b", Text))
            .render_derived(with_types=True)
        )
    ),
    "unknown function": Case(select(func.md5("a"))),
    "json item": Case(
        select(t.tree["a"], t.tree["c"].astext, t.tree[("a", "b", 1)]).order_by(t.id)
    ),
    "json as integer": Case(select(t.data["a"][0].as_integer())),
    "json operators": Case(
        select(t.id)
        .where(t.tree.has_key("a"), t.tree.contains({"c": "d"}) | t.tree.has_any(array(["a"])))
        .order_by(t.id)
    ),
    "json path": Case(
        select(func.jsonb_path_query_array(t.tree, cast("$.a.b[*]", JSONB.JSONPathType)))
    ),
    "json parameter": Case(
        select(literal({"a": [1]}, JSONB), literal(None, JSON), literal([], JSON))
    ),
    "json null": Case(select(literal(JSON.NULL, JSONB), literal(None, JSONB(none_as_null=True)))),
    "array operators": Case(
        select(t.tags[1], t.tags[1:2], func.cardinality(t.tags))
        .where(t.tags.contains(["a"]) | t.tags.overlap(["b"]) | (func.cardinality(t.tags) == 0))
        .order_by(t.id)
    ),
    "array comparisons": Case(select(t.id).where(literal("b") == func.any(t.tags))),
    "array parameters": Case(
        select(
            literal([1, 2], ARRAY(Integer)),
            array(["a", "b"]),
            literal([Status.PAID], ARRAY(Enum(Status, name="status"))),
        )
    ),
    "ranges": Case(select(t.id, t.span * Range(2, 9)).where(t.span.contains(3)).order_by(t.id)),
    "network": Case(select(t.id).where(t.address.op("<<")(cast("10.0.0.0/8", INET)))),
    "full text": Case(select(t.id).where(t.words.match("cats")).order_by(t.id)),
    "own operator": Case(select(t.small.op("|", return_type=Integer)(8)).order_by(t.id)),
    "tuples": Case(select(t.id).where(tuple_(t.id, t.name).in_([(1, "lamp"), (2, "no")]))),
    "no tuples": Case(select(t.id).where(tuple_(t.id, t.name).in_([]))),
    "custom type in a list": Case(
        select(t.id).where(t.cents.in_([Money(250), Money(0)])).order_by(t.id)
    ),
    "enum in a list": Case(select(t.id).where(t.status.in_([Status.PAID]))),
    "expanding parameter": Case(
        select(t.id).where(t.id.in_(bindparam("ids", expanding=True))).order_by(t.id),
        {"ids": [1, 3]},
    ),
    "literal execute": Case(
        select(t.id).where(t.small == bindparam("n", literal_execute=True, type_=Integer)), {"n": 7}
    ),
    "literal binds": Case(select(literal_column("1 + 1", Integer), literal(5), literal("x"))),
    "named like SQL": Case(select(t.UPPER, t.spaced, t.percent).order_by(t.id)),
    "escaped parameter": Case(
        select(t.id).where(t.small == bindparam("a b%(c).d", type_=Integer)), {"a b%(c).d": 7}
    ),
    "untyped table": Case(select(table("things", Column("id"), Column("name"))).order_by("id")),
    "no row": Case(select(t.id).where(false())),
    "no column": Case(select().select_from(things)),
    "class by columns": Case(select(Thing.id, Thing.small).order_by(Thing.id)),
    "class by table": Case(select(Thing.__table__).order_by(Thing.id)),
    "with prefix and hint": Case(
        select(t.id).with_statement_hint("-- no hint").prefix_with("ALL").order_by(t.id)
    ),
    "tablesample": Case(select(func.count()).select_from(things.tablesample(100))),
    "text": Case(text("SELECT id, name, price, tags FROM things ORDER BY id")),
    "text with parameters": Case(
        text("SELECT id FROM things WHERE name = :name AND small > :n"), {"name": "lamp", "n": 1}
    ),
    "text with an expanding parameter": Case(
        text("SELECT id FROM things WHERE id IN :ids ORDER BY id").bindparams(
            bindparam("ids", expanding=True)
        ),
        {"ids": [1, 2]},
    ),
    "text with types": Case(
        text("SELECT id, cents FROM things ORDER BY id").columns(t.id, t.cents)
    ),
    "text with types by name": Case(
        text("SELECT cents, id FROM things ORDER BY id").columns(id=Integer, cents=Cents)
    ),
    "text with colons": Case(text(r"SELECT '1'::int, 'a\:b', ARRAY[1,2,3][1\:2]")),
    "text without rows": Case(text("SELECT 1 WHERE false")),
    "text with a value": Case(text("SHOW server_version")),
    "text and columns": Case(select(t.id, text("small + 1 AS more")).order_by(t.id)),
    "for the server": Case(select(func.current_setting("statement_timeout"))),
    "lambda": Case(
        lambda_stmt(lambda: select(t.id).order_by(t.id)), by_sqlalchemy="its kind of statement"
    ),
    "a function alone": Case(func.length("abc"), by_sqlalchemy="its kind of statement"),
    "execution options": Case(
        select(t.id).order_by(t.id).execution_options(stream_results=True),
        by_sqlalchemy="execution options",
    ),
    "schema of another name": Case(
        select(things.to_metadata(MetaData(), schema="a").c.id).execution_options(
            schema_translate_map={"a": "public"}
        ),
        by_sqlalchemy="execution options",
    ),
    "a lock": Case(
        select(func.pg_try_advisory_lock(1)), by_sqlalchemy="what it leaves on its connection"
    ),
    "a setting": Case(
        text("SET lock_timeout = 5"), by_sqlalchemy="what it leaves on its connection"
    ),
}

WRITES: dict[str, Case] = {
    "insert": Case(insert(parts).values(id=9, thing_id=1)),
    "insert of parameters": Case(insert(parts), {"id": 9, "thing_id": 1, "quantity": None}),
    "insert of some parameters": Case(insert(parts).values(id=9), {"thing_id": 1}),
    "insert of an expression": Case(
        insert(parts).values(
            id=9, thing_id=func.abs(-1), quantity=2 + total.where(false()).scalar_subquery()
        )
    ),
    "insert of each type": Case(
        insert(things).values(FULL | {"name": "full"}), after=select(things)
    ),
    "insert returning": Case(
        insert(things).values(name="new").returning(t.id, t.name, t.twice, t.cents)
    ),
    "insert returning all": Case(insert(things).values(name="new", small=4).returning(things)),
    "insert returning an expression": Case(
        insert(parts).values(id=9, thing_id=1).returning((p.id + 1).label("next"), p.number)
    ),
    "insert of a key of the server": Case(
        insert(things).values(name="new"), after=select(t.id, t.name)
    ),
    "insert with its defaults": Case(insert(things).values(name="new").return_defaults()),
    "insert of several": Case(
        insert(parts).values([{"id": 8, "thing_id": 1}, {"id": 9, "thing_id": 2}])
    ),
    "insert of several returning": Case(
        insert(parts)
        .values([{"id": 8, "thing_id": 1, "note": "x"}, {"id": 9, "thing_id": 2, "note": "y"}])
        .returning(p.id, p.number, p.note)
    ),
    "insert of nothing": Case(insert(numbered_by_server), after=select(numbered_by_server)),
    "insert from select": Case(
        insert(parts).from_select(
            ["id", "thing_id", "note"], select(t.id + 10, t.id, literal("x")).where(t.id < 3)
        )
    ),
    "insert inline": Case(insert(parts).values(id=9, thing_id=1).inline()),
    "insert by a class": Case(insert(Thing).values(name="new", small=1).returning(Thing.id)),
    "upsert that does nothing": Case(
        upsert(things).values(name="lamp").on_conflict_do_nothing(index_elements=["name"])
    ),
    "upsert that updates": Case(
        upsert(things)
        .values(name="lamp", small=9)
        .on_conflict_do_update(index_elements=["name"], set_={"small": 10})
        .returning(t.id, t.small),
        after=select(t.id, t.small),
    ),
    "upsert of what was given": Case(
        (by_excluded := upsert(parts).values(id=1, thing_id=1, quantity=3)).on_conflict_do_update(
            constraint="parts_pkey", set_={"quantity": by_excluded.excluded.quantity}
        )
    ),
    "update": Case(update(parts).values(note="new").where(p.id == 1)),
    "update of parameters": Case(
        update(parts).where(p.id == bindparam("key")), {"key": 1, "note": "x"}
    ),
    "update of nothing": Case(update(parts).values(note="new").where(p.id == 99)),
    "update of an expression": Case(update(parts).values(quantity=p.quantity + 1)),
    "update returning": Case(
        update(parts).values(quantity=1).where(p.id < 3).returning(p.id, p.quantity, p.number)
    ),
    "update with its defaults": Case(
        update(things).values(small=8).where(t.id == 1).return_defaults(t.twice),
        after=select(t.id, t.twice),
    ),
    "update from another": Case(
        update(parts).values(note=t.name).where(p.thing_id == t.id, t.name == "lamp", p.id == 1)
    ),
    "update of a cte": Case(
        update(parts).values(quantity=0).where(p.thing_id.in_(select(cte.c.id)))
    ),
    "update by a class": Case(
        update(Thing).values(small=1).where(Thing.id == 1), after=select(t.id, t.small)
    ),
    "delete": Case(delete(parts).where(p.id == 1)),
    "delete of nothing": Case(delete(parts).where(false())),
    "delete returning": Case(delete(parts).where(p.thing_id == 1).returning(p.id, p.note)),
    "delete using another": Case(delete(parts).where(p.thing_id == t.id, t.name == "lamp")),
    "delete by text": Case(text("DELETE FROM parts WHERE id = :id"), {"id": 1}),
    "insert by text": Case(text("INSERT INTO parts (id, thing_id) VALUES (9, 1) RETURNING id")),
    "cte that writes": Case(select(added.c.id).add_cte(added), after=everything),
    "json changed": Case(
        update(things).values(tree=func.jsonb_set(t.tree, "{c}", '"e"')).where(t.id == 1),
        after=select(t.id, t.tree),
    ),
    "many rows": Case(
        insert(parts),
        [{"id": 8, "thing_id": 1}, {"id": 9, "thing_id": 2}],
        by_sqlalchemy="parameters of several rows",
    ),
    "many rows changed": Case(
        update(parts).where(p.id == bindparam("key")),
        [{"key": 1, "note": "x"}, {"key": 2, "note": "y"}],
        by_sqlalchemy="parameters of several rows",
    ),
    "a default of SQL": Case(
        insert(defaults),
        after=select(defaults),
        by_sqlalchemy="the default of defaults.of_the_statement",
    ),
    "a sequence": Case(insert(numbered), after=select(numbered), by_sqlalchemy=""),
    "a table": Case(text("CREATE TABLE made (id integer)"), after=text("SELECT * FROM made")),
}

ERRORS: dict[str, Case] = {
    "unique": Case(insert(things).values(name="lamp")),
    "foreign key": Case(insert(parts).values(id=9, thing_id=99)),
    "not null": Case(insert(parts).values(id=9, thing_id=None)),
    "check": Case(update(parts).values(quantity=-1)),
    "no table": Case(select(table("nothing", Column("id")).c.id)),
    "no column": Case(select(table("things", Column("nothing")).c.nothing)),
    "no function": Case(select(func.nothing(1))),
    "syntax": Case(text("SELEC 1")),
    "two statements": Case(text("SELECT 1; SELECT 2")),
    "division by zero": Case(select(1 / (t.small - t.small))),
    "out of the column's range": Case(insert(things).values(price=10**15)),
    "too long": Case(insert(things).values(name="x" * 21)),
    "out of the type's range": Case(select(t.id).where(t.small == 2**15)),
    "beyond 64 bits": Case(select(t.id).where(t.big == 2**64)),
    "nul": Case(select(t.id).where(t.name == "a\x00b")),
    "lone surrogate": Case(select(t.id).where(t.name == "\ud800")),
    "another type": Case(select(t.id).where(t.small == "seven")),
    "no number": Case(text("SELECT CAST('x' AS integer)")),
    "no value of the enum": Case(select(t.id).where(t.status == "OTHER")),
    "no uuid": Case(select(t.id).where(t.key == "x")),
    "no json": Case(select(literal({1, 2}, JSON))),
    "custom type": Case(select(t.id).where(t.cents == "x")),
    "no parameter": Case(one),
    "no parameter of that name": Case(one, {"other": 1}),
    "no parameter of text": Case(text("SELECT :a"), {"b": 1}),
    "parameter of a type unknown": Case(text("SELECT :a"), {"a": object()}),
    "no such column to write": Case(insert(parts), {"nothing": 1}),
    "no list": Case(select(t.id).where(t.id.in_(bindparam("ids", expanding=True))), {"ids": 1}),
    "rows where one is wanted": Case(select(select(t.id).scalar_subquery())),
    "aborted by the server": Case(
        text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'P0001'; END $$"),
        by_sqlalchemy="what it leaves on its connection",
    ),
    "raised by a function": Case(select(func.raises("no"))),
    "serialization": Case(select(func.raises_code("40001"))),
    "deadlock": Case(select(func.raises_code("40P01"))),
    "no permission": Case(select(func.raises_code("42501"))),
    "read only": Case(select(func.raises_code("25006"))),
    "shutdown": Case(select(func.raises_code("57P01"))),
    "out of memory": Case(select(func.raises_code("53200"))),
    "timeout of the server": Case(select(func.pg_sleep(60))),
    "connection ended by the server": Case(
        select(func.pg_terminate_backend(func.pg_backend_pid()))
    ),
    "generated column": Case(insert(things).values(twice=1)),
    "ambiguous": Case(select(text("id")).select_from(things, parts)),
    "not grouped": Case(select(t.id, func.count())),
    "BEGIN": Case(text("BEGIN"), by_sqlalchemy="the end of a transaction"),
    "COMMIT": Case(text("/* so */ COMMIT"), by_sqlalchemy="the end of a transaction"),
}
"""What raises an error, of each class."""

RAISES = """
    CREATE FUNCTION raises(message text) RETURNS int LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '%', message USING DETAIL = 'detail', HINT = 'hint'; END $$
"""
RAISES_CODE = """
    CREATE FUNCTION raises_code(code text) RETURNS int LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'raised' USING ERRCODE = code; END $$
"""
