"""Secrets that may change while the service runs, and the certificates that servers show."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import URL

from .threads import aside

Password = SecretStr | Callable[[], str | Awaitable[str]]
"""A password, or what returns it: called at each connect, in the event loop; it may not block."""

REFUSED = frozenset({"28P01", "28000"})
"""SQLSTATEs of a server that did not accept the password."""

TLS_PARAMETERS = {"sslrootcert", "sslcert", "sslkey"}
"""Parameters of a URL that name files; `system`, for `sslrootcert`, is what the machine trusts."""

UNREADABLE = "no certificate with a key that can be read without a passphrase"


class Credentials:
    """The password of one database, asked for at each connect."""

    def __init__(self, password: Password | None, file: str) -> None:
        self._password = password
        self._file = file
        self._last: str | None = None
        self._refused = False

    async def ask(self) -> str | None:
        """Return the password as it is now, None for the one in the URL."""
        if self._file:
            return await aside(read_secret, self._file)
        if self._password is None:
            return None
        if isinstance(self._password, SecretStr):
            return self._password.get_secret_value()
        answer = self._password()
        return await settled(answer) if isawaitable(answer) else answer

    def note_failure(self, code: str | None) -> None:
        """Remember a password that was refused, by the SQLSTATE."""
        self._refused = self._refused or code in REFUSED

    def note_success(self, password: str | None) -> bool:
        """Remember a password that was accepted; say whether the one before it is void.

        Some callables return a new token each time, while the last one still holds: it is void
        when a server has refused one. What a file holds does not change without a reason.
        """
        changed = self._last not in {None, password} and (bool(self._file) or self._refused)
        self._last, self._refused = password, False
        return changed


async def settled(password: Awaitable[str]) -> str:
    """Await a password; raise `RuntimeError` if its provider itself was cancelled."""
    try:
        return await password
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("what makes its password was cancelled") from error


def read_secret(file: str) -> str:
    """Read a file without its last line break; the `ValueError` never shows what is in it."""
    # Something else may have been pasted to where a path belongs.
    name = file if "/" in file and "@" not in file else "the file"
    try:
        secret = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from None
    if not secret:
        raise ValueError(f"{name} is empty")
    return secret


def tls(url: URL) -> ssl.SSLContext | None:
    """Make what checks a server's certificate, by `sslmode` and `sslrootcert` of PostgreSQL.

    None where nothing is to be checked. A `ValueError` says which file is of no use.
    """
    mode = str(url.query.get("ssl", "prefer"))
    files = {name: str(url.query[name]) for name in TLS_PARAMETERS if name in url.query}
    if not files and not mode.startswith("verify-"):
        return None
    if mode not in {"require", "verify-ca", "verify-full"}:
        raise ValueError(f"{min(files)} without sslmode=verify-full checks nothing")
    authority = files.get("sslrootcert", "system")
    at_fault = ""
    try:
        for at_fault in files.keys() - {"sslrootcert"} if authority == "system" else files:
            Path(files[at_fault]).open("rb").close()  # What is missing is named.
        at_fault = "sslrootcert"
        context = ssl.create_default_context(cafile=None if authority == "system" else authority)
        if "sslcert" in files:
            at_fault = "sslkey" if "sslkey" in files else "sslcert"
            # An empty passphrase, or OpenSSL would ask for one.
            context.load_cert_chain(files["sslcert"], files.get("sslkey"), password="")
    except OSError as error:
        reason = error.strerror or "cannot be read"
        if isinstance(error, ssl.SSLError):
            reason = (error.reason or UNREADABLE).replace("_", " ").lower()
        raise ValueError(f"{at_fault} {files.get(at_fault)}: {reason}") from None
    context.check_hostname = mode == "verify-full"
    if mode == "require" and "sslrootcert" not in files:
        context.verify_mode = ssl.CERT_NONE
    return context
