"""Settings that are changed while a service runs, until it ends."""

import logging
import os
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from ...database.database import Database
from ...database.databases import Databases
from ...database.engine import SERVICE
from ...loggers import logger_named
from ...settings.database import DatabaseSettings, fault, shown

logger = logger_named("databases")

LEVEL = "LOG_LEVEL"
FIELDS = ("echo", "leak_after")


def changeable(databases: Databases) -> dict[str, tuple[Database, str]]:
    """Map the variables of databases that can be changed to what they are."""
    return {
        f"{each.env_prefix}{field.upper()}": (each, field)
        for each in databases.values()
        if each.is_open
        for field in FIELDS
    }


def check(databases: Databases, given: Any) -> dict[str, Any]:
    """Return changes with values of the right type; a ValueError says what is wrong."""
    fields, levels = changeable(databases), logging.getLevelNamesMapping()
    wanted = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    if not wanted or not wanted.keys() <= {LEVEL, *fields}:
        raise ValueError(f"what can be changed is {', '.join((LEVEL, *fields))}")
    changes: dict[str, Any] = {}
    for name, value in wanted.items():
        if name == LEVEL:
            changes[name] = str(value).upper()
            if changes[name] not in levels:
                raise ValueError(f"{name}: {shown(value)} is none of {', '.join(levels)}")
            continue
        database, field = fields[name]
        try:
            read = DatabaseSettings.model_validate({"url": database.settings.url, field: value})
        except ValidationError as error:
            message = fault(wanted, database.env_prefix, dict(error.errors()[0]))
            raise ValueError(message) from None
        changes[name] = getattr(read, field)
    return changes


def change(databases: Databases, changes: Mapping[str, Any]) -> int:
    """Change settings of this process, and say so in its log; return its number."""
    own, fields = logging.getLogger(SERVICE), changeable(databases)
    for name, value in changes.items():
        if name == LEVEL:
            before = logging.getLevelName(own.level)
            own.setLevel(value)
        else:
            database, field = fields[name]
            before = getattr(database.settings, field)
            database.change(**{field: value})
        loud = max(logging.WARNING, logger.getEffectiveLevel())
        logger.log(loud, "%s: changed from %s to %s until this process ends", name, before, value)
    return os.getpid()
