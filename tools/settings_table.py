"""The settings where people read them: the table in docs/databases.md, and `.env.example`.

`python tools/settings_table.py` writes both anew from the code.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "template" / "src" / "{{package}}"))

from annotated_types import Ge, Le  # noqa: E402
from dbkit.settings.database import DatabaseSettings  # noqa: E402
from dbkit.settings.service import ServiceSettings  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

PAGE = ROOT / "docs" / "databases.md"
EXAMPLE = ROOT / "template" / ".env.example.jinja"
HEAD = "| variable | default | bounds | |\n| --- | --- | --- | --- |\n"
ONLY_REPLICAS = {"fallback", "max_lag", "read_your_writes"}
TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)+")

SERVERS = 'engines != ["sqlite"]'
POSTGRESQL = '"postgresql" in engines'
ONLY_FOR = {
    **dict.fromkeys(("password", "password_file", "statement_timeout"), SERVERS),
    **dict.fromkeys(("idle_in_transaction_timeout",), SERVERS),
    **dict.fromkeys(("client_check_interval", "pgbouncer"), POSTGRESQL),
}
"""Which databases take a setting that not all of them take."""
GROUPS = {"required": "every day", "min_ready": "rarely"}
"""The field with which a group begins. What comes before the first is to connect."""
VALUES = {"pool_size": "{{ first.pool_size or 10 }}"}


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


def lines(prefix: str, fields: Iterable[tuple[str, FieldInfo]]) -> str:
    """Write two lines for each setting: what it means, and its default."""
    text = ""
    for name, field in fields:
        default = field.default
        shown = "" if default in (None, {}) else str(default)
        shown = VALUES.get(name, shown.lower() if isinstance(default, bool) else shown)
        text += f"# {field.description}\n# {prefix}{name.upper()}={shown}\n"
    return text


def of_the_first() -> str:
    """Write the settings of the first database, but its URL, in groups."""
    text = ""
    fields: Mapping[str, FieldInfo] = DatabaseSettings.model_fields
    named = [each for each in fields.items() if each[0] not in {"url", *ONLY_REPLICAS}]
    for (group, condition), found in groupby(
        named, lambda each: (GROUPS.get(each[0]), ONLY_FOR.get(each[0]))
    ):
        if group:
            text += f"\n# {{{{ first.name }}}}, {group}\n"
        part = lines("DATABASE_", found)
        text += f"{{% if {condition} %}}\n{part}{{% endif %}}\n" if condition else part
    return text


def env_example(text: str) -> str:
    """Write the settings into the template of `.env.example`."""
    replicas = [(n, f) for n, f in DatabaseSettings.model_fields.items() if n in ONLY_REPLICAS]
    for begins, written, ends in (
        (r"# A file that contains the URL, ", of_the_first(), r"\{% for db in dbs\[1:\]"),
        (r"# Whether reads go to ", lines("{{ db.env_prefix }}", replicas), r"\{% elif "),
        (
            r"(?<=\n# The service itself\n)",
            lines("", ServiceSettings.model_fields.items()),
            "# How the log is written",
        ),
    ):
        pattern = re.compile(rf"{begins}.*?(?={ends})", re.DOTALL)
        assert len(pattern.findall(text)) == 1, begins
        text = pattern.sub(lambda _, written=written: written, text)
    return text


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), page, count=1), encoding="utf-8")
    EXAMPLE.write_text(env_example(EXAMPLE.read_text(encoding="utf-8")), encoding="utf-8")
