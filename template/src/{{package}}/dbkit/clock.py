"""The kit's clock, which goes on while a test freezes time.

freezegun replaces Python's functions wherever a module has one by name. It does not look inside of
others.
"""

import time
from functools import partial

monotonic = partial(time.monotonic)
"""Return seconds since an arbitrary moment."""
