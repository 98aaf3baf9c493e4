"""Whether others can bring the service the template's fixes."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..template_version import ANSWERS, recorded
from .finding import Finding

LOCAL = re.compile(r"(git\+)?file:|[/~.\\]|[a-z]:[/\\]|[^:]*$", re.IGNORECASE)
"""How a path begins, and no URL: `C:\\template` has a colon, too."""


def check_template(root: Path) -> Iterator[Finding]:
    """Find a template that is recorded as a path of one machine."""
    source = recorded("_src_path", root)
    if source and LOCAL.match(source):
        yield Finding(
            "template.W001",
            ANSWERS,
            f"the template is at {source}, which other machines do not have",
            "set _src_path to the URL of the template's repository,"
            " so that your colleagues and CI can run `copier update`",
        )
