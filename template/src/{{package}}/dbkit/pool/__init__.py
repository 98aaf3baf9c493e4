"""The pool of connections, and what it is made of."""

from .fair_pool import FairPool
from .status import PoolStatus

__all__ = ["FairPool", "PoolStatus"]
