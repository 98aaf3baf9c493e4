"""The kit's modules are in rooms, each of which imports only from those below it."""

from collections import defaultdict
from graphlib import TopologicalSorter

import rooms


def test_each_room_imports_only_from_lower_ones() -> None:
    order = {name: rank for rank, name in enumerate((*rooms.LEAVES, *rooms.ROOMS))}

    upward = {
        f"{module} -> {imported}"
        for module, imported in rooms.imports()
        if module  # The package itself offers what is in its rooms.
        and rooms.room_of(module) != rooms.room_of(imported)
        and order[rooms.room_of(imported)] > order[rooms.room_of(module)]
    }
    assert not upward


def test_no_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, imported in rooms.imports():
        # A package offers what is in it, so that what is in it may import the package.
        if module and not imported.startswith(f"{module}."):
            graph[module].add(imported)
    TopologicalSorter(graph).prepare()


def test_every_module_is_in_a_room() -> None:
    assert {rooms.room_of(name) for name in rooms.modules()} == {"", *rooms.LEAVES, *rooms.ROOMS}


def test_design_shows_the_sizes_of_the_rooms() -> None:
    (shown,) = rooms.TABLE.findall(rooms.PAGE.read_text(encoding="utf-8"))
    assert shown == rooms.table(), "run `python tests/rooms.py`"
