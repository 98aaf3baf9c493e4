"""Items: an example to read and delete.

First take its table back (`manage.py migrate --to zero`); then delete this package, its migration,
its lines in `main.py`, and the tests that need it.
"""
