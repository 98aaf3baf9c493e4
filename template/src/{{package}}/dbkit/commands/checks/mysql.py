"""What a database on MySQL or MariaDB should be like."""

from collections.abc import AsyncGenerator

from sqlalchemy import text

from .finding import Finding, Subject

WITHOUT_TRANSACTIONS = text("""
    SELECT table_name, engine FROM information_schema.tables JOIN information_schema.engines
    USING (engine) WHERE table_schema = database() AND transactions <> 'YES' ORDER BY table_name
""")


async def check_mysql(subject: Subject) -> AsyncGenerator[Finding]:
    """Look at the character set that new tables get: many servers have one of one byte."""
    found = await subject.connection.scalar(text("SELECT @@character_set_database"))
    if found != "utf8mb4":
        yield subject.finding(
            "mysql.W001",
            f"its new tables have the character set {found}, which not every text fits in",
            f"ALTER DATABASE `{subject.settings.url.database}` CHARACTER SET utf8mb4; then convert"
            " the tables that there are",
        )


async def check_engines(subject: Subject) -> AsyncGenerator[Finding]:
    """Look for tables whose engine has no transactions: what is rolled back stays in them."""
    found = (await subject.connection.execute(WITHOUT_TRANSACTIONS)).all()
    if found:
        tables = ", ".join(f"{table} ({engine})" for table, engine in found)
        yield subject.finding(
            "mysql.W002",
            f"tables without transactions: {tables}; what is rolled back stays in them",
            f"ALTER TABLE `{found[0][0]}` ENGINE = InnoDB",
        )


CHECKS = (check_mysql,)
DEPLOY_CHECKS = (check_engines,)
