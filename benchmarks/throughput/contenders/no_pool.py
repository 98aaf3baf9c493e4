"""An async session for each request, and a connection for each session."""

from sqlalchemy.pool import NullPool

from .sessions import make_app

app = make_app(poolclass=NullPool)
