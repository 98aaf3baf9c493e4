"""Lines of a test's file, found by the comments that they bear."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def line_marked(file: str | Path, comment: str, *, shown: str | None = None) -> str:
    """Name the one line that ends with a comment, as messages do: `tests/dbkit/test_usage.py:9`."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    (number,) = (at for at, line in enumerate(lines, 1) if line.endswith(f"# {comment}"))
    return f"{shown or Path(file).relative_to(ROOT)}:{number}"
