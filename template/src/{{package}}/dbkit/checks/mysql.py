"""What a database on MySQL or MariaDB should be like."""

from collections.abc import AsyncGenerator

from sqlalchemy import text

from .finding import Finding, Subject


async def check_mysql(subject: Subject) -> AsyncGenerator[Finding]:
    """Look at the character set that new tables get: many servers have one of one byte."""
    if subject.database.dialect != "mysql":
        return
    found = await subject.connection.scalar(text("SELECT @@character_set_database"))
    if found != "utf8mb4":
        yield subject.finding(
            "mysql.W001",
            f"its new tables have the character set {found}, which not every text fits in",
            f"ALTER DATABASE `{subject.settings.url.database}` CHARACTER SET utf8mb4; then convert"
            " the tables that there are",
        )
