"""Loggers whose names stay when their module moves: configurations and dashboards refer to them."""

import logging


def logger_named(name: str) -> logging.Logger:
    """Return the logger `my_service.dbkit.<name>`."""
    return logging.getLogger(f"{__package__}.{name}")
