"""The pool of connections, and what it is made of."""

from .fair_pool import FairPool
from .options import PoolOptions
from .status import PoolStatus

__all__ = ["FairPool", "PoolOptions", "PoolStatus"]
