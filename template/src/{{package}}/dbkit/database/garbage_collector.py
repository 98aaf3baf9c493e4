"""Python's garbage collector, tuned for a service."""

import gc

YOUNG, OLDER = 5_000, 2
"""New objects after which it looks at the young ones, and collections after which at older ones.

Python's own are 700, or 2,000 since 3.13, and 10.
"""


def spare_requests() -> None:
    """Freeze objects created at startup, and collect less often while serving.

    A full collection looks at every object: at 100,000 that a started service keeps for ever,
    for some 50 ms in which nobody is served, each 3,000 requests. Without these it is cheap, and
    comes sooner: what errors leave behind takes no more memory. A collector that is off, or set to
    `YOUNG` or more (`gc.set_threshold()`), is left as it is.
    """
    if 0 < gc.get_threshold()[0] < YOUNG:
        gc.freeze()
        gc.set_threshold(YOUNG, OLDER, OLDER)
