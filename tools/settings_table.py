"""The table of settings in docs/databases.md, written from the code.

`python tools/settings_table.py` writes it anew.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "template" / "src" / "{{package}}"))

from annotated_types import Ge, Le  # noqa: E402
from dbkit.settings.database import DatabaseSettings  # noqa: E402

PAGE = ROOT / "docs" / "databases.md"
HEAD = "| variable | default | bounds | |\n| --- | --- | --- | --- |\n"
ONLY_REPLICAS = {"fallback", "max_lag", "read_your_writes"}
TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)+")


def table() -> str:
    """Write a row for each setting: its variable, default, bounds, and what it means."""
    rows = ""
    for name, field in DatabaseSettings.model_fields.items():
        default = "" if field.is_required() or field.default in (None, {}) else str(field.default)
        low = next((each.ge for each in field.metadata if isinstance(each, Ge)), "")
        high = next((each.le for each in field.metadata if isinstance(each, Le)), "")
        shown = default.lower() if isinstance(field.default, bool) else default
        bounds = f"{low} to {high}" if low != "" else ""
        prefix = "REPLICA_DATABASE_" if name in ONLY_REPLICAS else "DATABASE_"
        rows += f"| `{prefix}{name.upper()}` | {shown} | {bounds} | {field.description} |\n"
    return HEAD + rows


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), page, count=1), encoding="utf-8")
