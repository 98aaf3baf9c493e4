"""An async session for each request, committed at its end, on a pool of 10."""

from .sessions import make_app

app = make_app(commit_at_end=True, pool_size=10, max_overflow=0)
