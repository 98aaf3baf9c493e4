"""A catalogue of models: each type and construct that people use, by engine."""

import enum
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from dbkit import NAMING_CONVENTION, TYPES
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects.postgresql import (
    CIDR,
    CITEXT,
    HSTORE,
    INET,
    INT4RANGE,
    JSONB,
    TSTZRANGE,
    TSVECTOR,
    ExcludeConstraint,
    Range,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column, relationship
from sqlalchemy.types import TypeDecorator, UserDefinedType

LONG = "a_table_whose_name_is_longer_than_what_a_server_keeps_of_a_name"  # 63 characters


class Status(enum.Enum):
    """An enum as Python has it: its names are stored."""

    DRAFT = "draft"
    PAID = "paid"


def stored(kind: type[Status]) -> list[str]:
    """Store values in place of names."""
    return [each.value for each in kind]


class Money(NamedTuple):
    """A value of the service's own."""

    cents: int


class Cents(TypeDecorator[Money]):
    """A type of the service's own, stored as an integer."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Money | None, dialect: Dialect) -> int | None:
        """Store the cents."""
        return value and value.cents

    def process_result_value(self, value: int | None, dialect: Dialect) -> Money | None:
        """Read the cents."""
        return None if value is None else Money(value)


class Guid(TypeDecorator[UUID]):
    """A type that is stored otherwise on each server, as SQLAlchemy's documentation has it."""

    impl = String(36)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Choose the type."""
        kind: Any = postgresql.UUID() if dialect.name == "postgresql" else String(36)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        """Store it."""
        return value if value is None or dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        """Read it."""
        return value if value is None or isinstance(value, UUID) else UUID(value)


class LTREE(UserDefinedType[str]):
    """A type of another library, as a migration imports it."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Name the type."""
        return "LTREE"


class VECTOR(UserDefinedType[str]):
    """Another, with an argument, as pgvector's."""

    cache_ok = True

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def get_col_spec(self, **_: Any) -> str:
        """Name the type."""
        return f"VECTOR({self.dim})"


@dataclass
class Catalogue:
    """Models, and rows for them."""

    base: Any
    rows: list[Any]


def on_each_engine(dialect: str, *, expressions: bool = True) -> Catalogue:
    """Declare what each engine has; MariaDB has no indexes on expressions."""
    micro = mysql.DATETIME(fsp=6)

    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=NAMING_CONVENTION)
        type_annotation_map = TYPES

    class Stamped:
        """A mixin."""

        created_at: Mapped[datetime] = mapped_column(
            server_default=text("CURRENT_TIMESTAMP(6)") if dialect == "mysql" else func.now()
        )
        updated_at: Mapped[datetime | None] = mapped_column(onupdate=func.now())

    class Kind(Stamped, Base):
        """Each type."""

        __tablename__ = "kinds"
        __table_args__ = {"comment": "Each type's column"}  # noqa: RUF012

        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[Status]
        status_by_value: Mapped[Status] = mapped_column(
            Enum(Status, name="status_value", values_callable=stored)
        )
        size: Mapped[str] = mapped_column(Enum("S", "M", "it's", name="size"), server_default="M")
        colour: Mapped[str] = mapped_column(
            Enum("red", "blue", name="colour", native_enum=False, create_constraint=True, length=10)
        )
        number: Mapped[int] = mapped_column(comment="A number of 64 bits")
        small: Mapped[int] = mapped_column(SmallInteger, server_default="0")
        name: Mapped[str] = mapped_column(String(100), server_default="none")
        description: Mapped[str | None] = mapped_column(Text)
        active: Mapped[bool] = mapped_column(server_default=text("true"))
        price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
        ratio: Mapped[float]
        day: Mapped[date]
        hour: Mapped[time] = mapped_column()
        at: Mapped[datetime]
        if dialect != "mysql":  # It has no type for it.
            took: Mapped[timedelta] = mapped_column(Interval)
        key: Mapped[UUID] = mapped_column(Uuid, default=uuid4)
        guid: Mapped[UUID] = mapped_column(Guid)
        cents: Mapped[Money] = mapped_column(Cents)
        data: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON()))
        picture: Mapped[bytes] = mapped_column(LargeBinary)
        version: Mapped[int] = mapped_column()
        twice: Mapped[int] = mapped_column(  # MariaDB has no NOT NULL for it.
            Integer, Computed("small * 2", persisted=True), nullable=dialect == "mysql"
        )
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

        @hybrid_property
        def is_paid(self) -> bool:
            """Say so in Python and in SQL."""
            return self.status == Status.PAID

    class Other(Base):
        """The same enum in a second table."""

        __tablename__ = "others"

        id: Mapped[int] = mapped_column(primary_key=True)
        status: Mapped[Status]

    class Country(Base):
        """A natural key."""

        __tablename__ = "countries"

        code: Mapped[str] = mapped_column(String(2), primary_key=True)
        cities: Mapped[list["City"]] = relationship(back_populates="country")

    class City(Base):
        """A composite key, and a reference to a natural one."""

        __tablename__ = "cities"

        country_code: Mapped[str] = mapped_column(
            ForeignKey("countries.code", ondelete="CASCADE", onupdate="CASCADE"), primary_key=True
        )
        name: Mapped[str] = mapped_column(String(50), primary_key=True)
        country: Mapped[Country] = relationship(back_populates="cities")

    class Street(Base):
        """A reference to a composite key, with an index on it."""

        __tablename__ = "streets"
        __table_args__ = (
            ForeignKeyConstraint(["country", "city"], ["cities.country_code", "cities.name"]),
            Index("ix_streets_city", "country", "city"),
            *([Index("ix_streets_upper", text("(upper(name))"))] if expressions else []),
            UniqueConstraint("name", "city"),
            CheckConstraint("length(name) > 1", name="long_enough"),
        )

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50))
        country: Mapped[str] = mapped_column(String(2))
        city: Mapped[str] = mapped_column(String(50))

    class Node(Base):
        """A self-reference, with an index on it."""

        __tablename__ = "nodes"

        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None] = mapped_column(
            ForeignKey("nodes.id", ondelete="SET NULL"), index=True
        )

    tags = Table(
        "node_tags",
        Base.metadata,
        Column[int]("node_id", ForeignKey("nodes.id"), primary_key=True),
        Column[int]("tag_id", ForeignKey("tags.id"), primary_key=True, index=True),
    )

    class Tag(Base):
        """Many to many."""

        __tablename__ = "tags"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(20), unique=True)
        nodes: Mapped[list[Node]] = relationship(secondary=tags)

    class Membership(Base):
        """An association object."""

        __tablename__ = "memberships"

        node_id: Mapped[int] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
        tag_id: Mapped[int] = mapped_column(ForeignKey("tags.id"), primary_key=True)
        since: Mapped[date]

    class Animal(Base):
        """Joined inheritance."""

        __tablename__ = "animals"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))

    class Dog(Animal):
        """One of them, in a table of its own."""

        __tablename__ = "dogs"
        __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012

        id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
        bark: Mapped[str] = mapped_column(String(10))

    class Cat(Animal):
        """One of them, in the same table."""

        __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012

        lives: Mapped[int | None]

    class Named:
        """A mixin with a reference."""

        @declared_attr
        def owner_id(self) -> Mapped[int | None]:
            """Refer from each class."""
            return mapped_column(ForeignKey("nodes.id"))

    class Long(Named, Base):
        """Names that a server cuts, and reserved words."""

        __tablename__ = LONG

        id: Mapped[int] = mapped_column(primary_key=True)
        select: Mapped[str] = mapped_column(String(10), index=True)
        a_column_whose_name_is_rather_long_too: Mapped[str] = mapped_column(String(9), unique=True)

    class Order(Base):
        """A reserved word, and names with capitals."""

        __tablename__ = "order"

        id: Mapped[int] = mapped_column(primary_key=True)
        group: Mapped[str] = mapped_column("group", String(10), index=True)
        camel: Mapped[int] = mapped_column("camelCase", server_default=text("1"))
        at: Mapped[datetime | None] = mapped_column(micro if dialect == "mysql" else None)

    now = datetime.fromisoformat("2026-01-02T03:04:05.678901+00:00")

    def rows() -> list[Any]:
        node, tag = Node(id=1), Tag(id=1, name="new")
        return [
            Kind(
                id=1,
                status=Status.PAID,
                status_by_value=Status.DRAFT,
                size="it's",
                colour="blue",
                number=1 << 40,
                small=3,
                name="x",
                active=False,
                price=Decimal("19.99"),
                ratio=1 / 3,
                day=now.date(),
                hour=now.time(),
                at=now,
                **({"took": timedelta(days=1, microseconds=5)} if dialect != "mysql" else {}),
                key=uuid4(),
                guid=uuid4(),
                cents=Money(5),
                data={"a": [1]},
                picture=b"\0\xff",
            ),
            Other(id=1, status=Status.DRAFT),
            Country(code="fr", cities=[City(name="Lyon")]),
            Street(id=1, name="Rue", country="fr", city="Lyon"),
            *(node, tag),
            Node(id=2, parent_id=1),
            Membership(node_id=1, tag_id=1, since=now.date()),
            Dog(id=1, bark="wuff"),
            Cat(id=2, lives=7),
            Long(id=1, select="s", a_column_whose_name_is_rather_long_too="l", owner_id=1),
            Order(id=1, group="g", camel=2),
        ]

    return Catalogue(Base, rows())


def on_postgresql(*, contrib: bool) -> Catalogue:
    """Declare what only PostgreSQL has, with the types of its extensions if they are there."""
    found = on_each_engine("postgresql")
    base: Any = found.base

    class Special(base):
        """Each type of PostgreSQL's own."""

        __tablename__ = "specials"
        __table_args__ = (
            Index("ix_specials_late", "words", postgresql_concurrently=True),
            Index(
                "ix_specials_open", "words", unique=True, postgresql_where=text("closed IS NULL")
            ),
            Index("ix_specials_search", "search", postgresql_using="gin"),
            Index(
                "ix_specials_data",
                "data",
                postgresql_using="gin",
                postgresql_ops={"data": "jsonb_path_ops"},
            ),
            Index("ix_specials_lower", text("lower(name)")),
            ExcludeConstraint(("during", "&&"), name="ex_specials_during", using="gist"),
        )

        id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
        name: Mapped[str] = mapped_column(server_default="")
        words: Mapped[list[str]] = mapped_column(ARRAY(String(20)), server_default="{}")
        statuses: Mapped[list[Status]] = mapped_column(ARRAY(Enum(Status, name="status")))
        data: Mapped[dict[str, Any]] = mapped_column(
            MutableDict.as_mutable(JSONB()), server_default=text("'{}'::jsonb")
        )
        closed: Mapped[datetime | None]
        during: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)
        span: Mapped[Range[int] | None] = mapped_column(INT4RANGE)
        address: Mapped[Any] = mapped_column(INET)
        net: Mapped[Any] = mapped_column(CIDR)
        search: Mapped[str] = mapped_column(
            TSVECTOR, Computed("to_tsvector('english'::regconfig, name)", persisted=True)
        )
        token: Mapped[UUID] = mapped_column(Uuid, server_default=func.gen_random_uuid())

    class Invoice(base):
        """A table in a schema of its own, with an enum there."""

        __tablename__ = "invoices"
        __table_args__ = ({"schema": "billing"},)

        id: Mapped[int] = mapped_column(primary_key=True)
        node_id: Mapped[int] = mapped_column(ForeignKey("nodes.id"), index=True)
        state: Mapped[str] = mapped_column(Enum("open", "closed", name="state", schema="billing"))

    class Line(base):
        """A reference to a table in a schema."""

        __tablename__ = "lines"

        id: Mapped[int] = mapped_column(primary_key=True)
        invoice_id: Mapped[int] = mapped_column(ForeignKey("billing.invoices.id"))

    class Measurement(base):  # pyright: ignore[reportUnusedClass] -- its table is in the metadata
        """A table with partitions, which are made by hand."""

        __tablename__ = "measurements"
        __table_args__ = ({"postgresql_partition_by": "RANGE (at)"},)

        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[datetime] = mapped_column(primary_key=True)

    now = datetime.fromisoformat("2026-01-02T03:04:05.678901+00:00")
    found.rows += [
        Special(
            name="a cat",
            words=["a"],
            statuses=[Status.PAID],
            data={"a": 1},
            during=Range(now, now + timedelta(hours=1)),
            span=Range(1, 5),
            address=ip_address("10.0.0.1"),
            net=ip_network("10.0.0.0/8"),
        ),
        Invoice(id=1, node_id=1, state="open"),
        Line(id=1, invoice_id=1),
    ]

    if contrib:

        class Extended(base):
            """Types of PostgreSQL's own extensions."""

            __tablename__ = "extended"

            id: Mapped[int] = mapped_column(primary_key=True)
            email: Mapped[str] = mapped_column(CITEXT, unique=True)
            labels: Mapped[dict[str, str | None]] = mapped_column(MutableDict.as_mutable(HSTORE()))
            path: Mapped[str] = mapped_column(LTREE)

        found.rows.append(Extended(id=1, email="A@b.c", labels={"a": "1", "b": None}, path="a.b"))
    else:

        class Embedded(base):
            """The type of an extension that comes with the embedded server."""

            __tablename__ = "embeddings"

            id: Mapped[int] = mapped_column(primary_key=True)
            embedding: Mapped[str] = mapped_column(VECTOR(3))

        found.rows.append(Embedded(id=1, embedding="[1,2,3]"))
    return found
