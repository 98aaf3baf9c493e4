"""Whether others can bring the service the template's fixes."""

import re
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding

ANSWERS = ".copier-answers.yml"
LOCAL = re.compile(r"(git\+)?file:|[/~.\\]|[a-z]:[/\\]|[^:]*$", re.IGNORECASE)
"""How a path begins, and no URL: `C:\\template` has a colon, too."""


def check_template(root: Path) -> Iterator[Finding]:
    """Find a template that is recorded as a path of one machine."""
    answers = root / ANSWERS
    if not answers.is_file():  # As in an image.
        return
    recorded = re.search(r"^_src_path: *(\S.*)$", answers.read_text("utf-8"), re.MULTILINE)
    source = recorded[1].strip("'\" ") if recorded else ""
    if source and LOCAL.match(source):
        yield Finding(
            "template.W001",
            ANSWERS,
            f"the template is at {source}, which other machines do not have",
            "set _src_path to the URL of the template's repository,"
            " so that your colleagues and CI can run `copier update`",
        )
