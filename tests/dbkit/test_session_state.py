"""Which statements leave something on their connection, by their text."""

import pytest
from dbkit.engines.base import load
from dbkit.engines.session_state import Left
from sqlalchemy import Column, Integer, MetaData, Table, func, select, true
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.schema import CreateTable

POSTGRESQL = {
    Left.NOTHING: [
        "SELECT 1",
        "UPDATE items SET name = 'x' WHERE id = 1",
        "INSERT INTO items (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 2",
        "INSERT INTO items (id) VALUES (1) ON CONFLICT DO NOTHING",
        "SET LOCAL search_path = tenant",
        "/* a */ set local statement_timeout = 5",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL DEFERRED",
        "SELECT set_config('app.tenant', $1, true)",
        "SELECT set_config($1::VARCHAR, $2::VARCHAR, true) AS x",
        "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)",
        "SELECT 'SET x = 1; SET y = 2'",
        "SELECT 1 -- ; SET x = 1",
        "SELECT 'don''t; set x = 1'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $body$; SET x = 1; SELECT 1 $body$",
        "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
        "CREATE TABLE template (a int)",
        "PREPARE TRANSACTION 'x'",
        "DECLARE c CURSOR FOR SELECT 1",
        "BEGIN",
        "COMMIT;",
    ],
    Left.STATE: [
        "SET search_path = tenant",
        "set search_path to tenant",
        "  -- as who\n SET ROLE reader",
        "/* as */ SET SESSION AUTHORIZATION reader",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET TIME ZONE 'Europe/Berlin'",
        "SELECT 1; SET x.y = 1",
        "SET LOCAL a.b = 1; SET a.c = 2",
        "RESET search_path",
        "SELECT set_config('search_path', 'x', false)",
        "SELECT set_config($1, $2, $3)",
        "SELECT set_config('a.b', '1', true), set_config('a.c', '1', false)",
        "SELECT pg_catalog.set_config('a.b', '1', false)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock_shared(1)",
        "LISTEN news",
        "CREATE TEMP TABLE t (a int)",
        "CREATE TEMPORARY TABLE t AS SELECT 1",
        "CREATE LOCAL TEMP TABLE t (a int)",
        "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
        "CREATE TEMP SEQUENCE s",
        "CREATE TABLE pg_temp.t (a int)",
        "SELECT 1 INTO TEMP t",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "DO $$ BEGIN SET x.y = 1; END $$",
        "SELECT setseed(0.5)",
        """SELECT "set_config"('a.b', '1', false)""",
    ],
    Left.ALTERED: [
        "PREPARE p AS SELECT 1",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "LOAD 'auto_explain'",
        "SET x.y = 1; DISCARD PLANS",
    ],
}
MYSQL = {
    Left.NOTHING: [
        "SELECT 1",
        "UPDATE items SET name = 'x@y.z', a = @@sql_mode",
        "SELECT * FROM people WHERE mail = 'a@b.c' OR mail = \"it's; SET @x = 1\"",
        "SET STATEMENT max_statement_time = 1 FOR SELECT 1",
        "SET GLOBAL max_connections = 5",
        "CREATE TABLE t (a int)",
        "SELECT `@x := 1`",
        "SELECT LAST_INSERT_ID()",
        "CALL report(1)",
    ],
    Left.ALTERED: [
        "SET @x = 1",
        "SET SESSION sql_mode = ''",
        "SET sql_mode = ''",
        "set names latin1",
        "SET LOCAL sql_mode = ''",
        "SET GLOBAL a = 1, SESSION sql_mode = ''",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",  # The next one, which is anybody's.
        "SELECT @x := 1",
        "SELECT @`x` := 1",
        "SELECT LAST_INSERT_ID(7)",
        "EXECUTE IMMEDIATE 'SET sql_mode = \"\"'",
        "SELECT 1 INTO @x",
        "SELECT GET_LOCK('x', 1)",
        "LOCK TABLES items WRITE",
        "CREATE TEMPORARY TABLE t (a int)",
        "USE other",
        "PREPARE s FROM 'SELECT 1'",
        "CALL report(@total)",
        "/*! SET @x = 1 */; SET @y = 1",
        "FLUSH TABLES WITH READ LOCK",
        "XA START 'x'",
    ],
}
SQLITE = {
    Left.NOTHING: [
        "SELECT 1",
        'PRAGMA main.table_info("items")',
        "PRAGMA foreign_keys",
        "PRAGMA foreign_key_list(items)",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "CREATE TABLE temp (a)",
        "CREATE TABLE items AS SELECT 1 AS temp",
        "INSERT INTO items VALUES ('; PRAGMA foreign_keys = OFF')",
    ],
    Left.ALTERED: [
        "PRAGMA foreign_keys = OFF",
        "PRAGMA foreign_keys(0)",
        "pragma main.cache_size=-20",
        "PRAGMA /* on */ 'query_only' /* now */ = ON",
        "CREATE VIEW temp.v AS SELECT 1",
        "CREATE TABLE IF NOT EXISTS temp . t (a)",
        "ATTACH 'other.sqlite3' AS other",
        "CREATE TEMP TABLE t (a)",
        "CREATE TEMPORARY VIEW v AS SELECT 1",
        "CREATE TEMP TRIGGER x AFTER INSERT ON items BEGIN SELECT 1; END",
    ],
}


@pytest.mark.parametrize(
    ("dialect", "left", "statement"),
    [
        (dialect, left, statement)
        for dialect, verdicts in (
            ("postgresql", POSTGRESQL),
            ("mysql", MYSQL),
            ("sqlite", SQLITE),
        )
        for left, statements in verdicts.items()
        for statement in statements
    ],
)
def test_statement_is_known_by_its_text(dialect: str, left: Left, statement: str) -> None:
    assert load(dialect).verdicts[statement] == left


def test_what_sqlalchemy_compiles_is_known_too() -> None:
    table = Table("t", MetaData(), Column("a", Integer), prefixes=["TEMPORARY"])
    dialect = asyncpg.dialect()

    made = str(CreateTable(table).compile(dialect=dialect))
    kept = str(select(func.set_config("a.b", "1", True)).compile(dialect=dialect))
    local = str(select(func.set_config("a.b", "1", true())).compile(dialect=dialect))

    assert load("postgresql").verdicts[made] == Left.STATE
    assert (
        load("postgresql").verdicts[kept] == Left.STATE
    )  # A parameter's value is not in the text.
    assert load("postgresql").verdicts[local] == Left.NOTHING


def test_long_statements_are_read_and_not_remembered() -> None:
    insert = "INSERT INTO items VALUES (1)" + ", (1)" * 5000

    assert load("postgresql").verdicts[insert] == Left.NOTHING
    assert load("postgresql").verdicts[f"{insert}; SET x.y = 1"] == Left.STATE
