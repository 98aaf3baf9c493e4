"""The application as `manage.py runserver` runs it; it ends with its reloader."""

import os
import signal
import threading
from importlib import import_module
from multiprocessing import parent_process

from starlette.types import ASGIApp

from ..telemetry.repeats import RUNSERVER
from .docs_pages import prepare

VARIABLE = RUNSERVER
"""Holds `module:attribute` of the application: the process is a new one after each change."""


def application() -> ASGIApp:
    """Import the application; uvicorn calls this in each process that it starts."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    module, _, attribute = os.environ[VARIABLE].partition(":")
    return prepare(getattr(import_module(module), attribute))


def end_with_parent() -> None:
    """Stop this process when its parent is gone: one that is killed leaves the port taken."""
    if parent := parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
