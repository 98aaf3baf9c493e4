"""`manage.py`: checks, migrations, servers for development."""

from .command_line import manage

__all__ = ["manage"]
