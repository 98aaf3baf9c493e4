"""The page of the pools, `/pools`: what they do now, who holds what, and what to do about it."""

from .routes import Pages
from .state import State

__all__ = ["Pages", "State"]
