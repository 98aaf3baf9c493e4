"""Whether a replica is one."""

from collections.abc import AsyncGenerator

from sqlalchemy import text

from .finding import Finding, Subject

RECOVERY = text("SELECT pg_is_in_recovery()")


async def check_replica(subject: Subject) -> AsyncGenerator[Finding]:
    """Find a replica whose server takes writes; not one that borrows its primary's URL."""
    primary = subject.database.replica_of
    if primary is None or subject.settings.url == primary.read_settings().url:
        return
    if not await subject.connection.scalar(RECOVERY):
        yield subject.finding(
            "replica.W001",
            "its server is no replica: it takes writes of its own",
            f"set {subject.database.env_prefix}URL to a server that follows that of {primary.name}",
        )


CHECKS = (check_replica,)
