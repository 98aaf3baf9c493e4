"""Statements that leave something on their connection, known by their text.

What is told by the server costs a round trip, and by then it is too late: so each distinct
statement is read once. What looks as if it left something costs a reset of the connection, and no
more; what a function does inside the server is seen by nobody here.
"""

import re
from collections.abc import Callable
from enum import IntEnum

LONGEST_KEPT = 5_000
"""Characters of a statement whose verdict is remembered."""
MOST_KEPT = 2_000
"""Verdicts that are remembered."""


class Left(IntEnum):
    """What a caller left on a connection, the worse the higher."""

    NOTHING = 0
    STATE = 1
    """Settings, locks, temporary tables: what a reset undoes."""
    ALTERED = 2
    """What only another connection is free of."""


FLAGS = re.IGNORECASE | re.DOTALL
START = r"(?:^|;)[\s']*"  # A comment before it has become ''.


class Verdicts(dict[str, Left]):
    """Says what a statement leaves: `verdicts[statement]`, which is read once and remembered."""

    def __init__(self, find: Callable[[str], Left]) -> None:
        self._find = find

    def __missing__(self, statement: str) -> Left:
        """Read a statement."""
        left = self._find(statement)
        if len(statement) <= LONGEST_KEPT:
            if len(self) >= MOST_KEPT:
                self.clear()
            self[statement] = left
        return left
