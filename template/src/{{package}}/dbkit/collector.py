"""Python's garbage collector, out of the way of requests."""

import gc

YOUNG = 10_000
"""New objects after which it looks at the young ones; Python's own is 700, or 2,000 since 3.13."""


def spare_requests() -> None:
    """Have it pass by what the start has made, and look at what requests make less often.

    A full collection looks at every object: at 100,000 that a started service keeps for ever,
    for some 50 ms in which nobody is served, each 3,000 requests. A collector that is off, or
    set to `YOUNG` or more (`gc.set_threshold()`), is left as it is.
    """
    young, *older = gc.get_threshold()
    if 0 < young < YOUNG:
        gc.freeze()
        gc.set_threshold(YOUNG, *older)
