"""An async session for each request, on SQLAlchemy's default pool of 5 and 10 more."""

from .sessions import make_app

app = make_app()
