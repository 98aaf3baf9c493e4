"""Pytest plugin: note every outcome and, with `SUITE_POOL=fair`, run asyncpg's engines on FairPool.

Loaded before SQLAlchemy's own plugin, so it imports SQLAlchemy late.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

OUTCOMES: dict[str, str] = {}
"""Of each test, the worst of its three phases."""
WORSE = ("passed", "skipped", "xfailed", "failed", "error")


def use_fair_pool() -> None:
    """Make FairPool the default pool of asyncpg, with the arguments of SQLAlchemy's queue pool."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "template" / "src" / "{{package}}"))
    from dbkit import DatabaseSettings  # noqa: PLC0415
    from dbkit.pool import FairPool  # noqa: PLC0415
    from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg  # noqa: PLC0415

    class SuitePool(FairPool):
        def __init__(  # noqa: PLR0917 -- the queue pool's
            self,
            creator: Any,
            settings: DatabaseSettings | None = None,
            env_prefix: str = "DATABASE_",
            pool_size: int = 5,
            max_overflow: int = 10,
            timeout: float = 30,
            **base: Any,
        ) -> None:
            for name in ("recycle", "use_lifo"):
                base.pop(name, None)
            made = DatabaseSettings.model_construct(
                pool_size=pool_size or 1000, max_overflow=max_overflow, pool_timeout=timeout
            )
            super().__init__(creator, settings or made, env_prefix, **base)

    def pool_class(_cls: type, _url: object) -> type[FairPool]:
        return SuitePool

    dialect: Any = PGDialect_asyncpg
    dialect.get_pool_class = classmethod(pool_class)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """Before SQLAlchemy's plugin connects: change the pool, ask for no extensions."""
    from sqlalchemy.dialects.postgresql import provision  # noqa: PLC0415

    theirs: Any = provision
    theirs._extensions = ()  # noqa: SLF001 -- the wheel has none of them; their tests are skipped.
    if os.environ["SUITE_POOL"] == "fair":
        use_fair_pool()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst outcome of a test."""
    outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
    if outcome == "failed" and report.when != "call":
        outcome = "error"
    before = OUTCOMES.get(report.nodeid, "passed")
    OUTCOMES[report.nodeid] = max(before, outcome, key=WORSE.index)


def pytest_sessionfinish() -> None:
    """Write them down."""
    Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps(OUTCOMES))
