"""The rendered service, with the garbage collector as Python sets it."""

import os
from importlib import import_module
from typing import Any

from .rendered import app

__all__ = ["app"]

databases: Any = import_module(f"{os.environ['BENCHMARK_PACKAGE']}.dbkit.databases")
databases.spare_requests = lambda: None
