"""Variables that seem to be meant for a database, and that nothing reads."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

INFIX = "DATABASE_"

SCHEMES = {
    "postgresql": ("postgres", "postgresql"),
    "mysql": ("mysql", "mariadb"),
    "sqlite": ("sqlite", "file"),
}
HOSTS = {
    "postgresql": ("DATABASE_HOST", "DB_HOST", "PGHOST", "POSTGRES_HOST", "POSTGRESQL_HOST"),
    "mysql": ("DATABASE_HOST", "DB_HOST", "MYSQL_HOST", "MARIADB_HOST"),
    "sqlite": (),
}
# What names of variables with a URL are made of, beside the name of the database.
WORDS = {
    *("DATABASE", "DATABASES", "DB", "URL", "URI", "DSN", "CONNECTION", "CONN", "STRING"),
    *("POSTGRES", "POSTGRESQL", "PG", "PGURL", "MYSQL", "MARIADB", "SQLITE", "SQL"),
    *("SQLALCHEMY", "ASYNC", "ADDON", "JAWSDB", "DATABASEURL"),
}


def misspelt(
    variables: Iterable[str],
    prefixes: Iterable[str],
    fields: Iterable[str],
    names: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Map each variable that looks like a database's setting, and is none, to the nearest.

    `names` maps names of databases to their prefixes, where these do not begin with the name. What
    resembles no setting is left alone: platforms set `DATABASE_SERVICE_HOST` and the like.
    """
    fields = [field.upper() for field in fields]
    heads = {prefix.removesuffix(INFIX): prefix for prefix in prefixes}
    tests = {head + f"TEST_{INFIX}URL" for head in heads}
    known = {prefix + field for prefix in heads.values() for field in fields} | tests
    for name, prefix in (names or {}).items():
        head = prefix.removesuffix(INFIX)
        heads.setdefault(f"{name.upper()}_", prefix)
        heads.setdefault(f"{name.upper()}_TEST_", f"{head}TEST_{INFIX}")
    found: dict[str, str] = {}
    for name in sorted(set(variables) - known):
        plain = re.sub(r"[^A-Z0-9]+", "_", name.upper())  # database.url, DATABASE__URL
        if plain in known:
            found[name] = plain
            continue
        near = get_close_matches("DATABASE", plain.split("_"), 1, 0.85)
        head, infix, tail = plain.rpartition(f"{near[0]}_" if near else INFIX)
        if not infix and (short := re.fullmatch("(.*_|)DB_(.*)", plain)):
            head, tail = short.groups()  # Of which URLs and passwords may be others'.
            infix = head in heads and tail in fields and not tail.startswith(("URL", "PASSWORD"))
        # Apart: beside a long prefix, any two names resemble each other.
        head_near = [head] if head in heads else get_close_matches(head, heads, 1, 0.8)
        tail_near = get_close_matches(tail, fields, 1, 0.7)
        nearest = heads[head_near[0]] + tail_near[0] if head_near and tail_near else ""
        if infix and nearest in known:
            found[name] = nearest
    return found


def is_fault(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a misspelt variable stops the service: it can only be ours.

    Two underscores in a row are those of `env_nested_delimiter`: some `BaseSettings` reads it.
    """
    return name.startswith(tuple(prefixes)) and "__" not in name


def meant_for(variables: Mapping[str, str], name: str, prefix: str, dialect: str) -> list[str]:
    """List the variables that may hold the URL of a database that has none.

    Those are named after it, or after its kind of server if it is the first one, and hold a URL
    for its dialect; and those that name a host.
    """
    head = prefix.removesuffix(INFIX).strip("_").split("_")
    own = [[*filter(None, head)], name.upper().split("_")]
    hosts = HOSTS[dialect] if prefix == INFIX else ()
    found: list[str] = []
    for variable, value in variables.items():
        words = [each for each in re.split(r"[^A-Z0-9]+", variable.upper()) if each]
        rest = [each for each in words if each not in WORDS]
        scheme = value.partition(":")[0].partition("+")[0].lower()
        holds_url = rest != words and rest in own and scheme in SCHEMES[dialect]
        if holds_url or variable in hosts:
            found.append(variable)
    return sorted(found)
