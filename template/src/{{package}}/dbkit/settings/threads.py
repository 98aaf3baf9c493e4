"""Calls that cannot be cancelled, each in its own thread, so that they block nothing else.

A DNS lookup or a file read can hang with a dead resolver or file server. In the event loop's shared
thread pool, a few hanging calls, of a database or of anything else, would block the lookups of
every database.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from ipaddress import ip_address
from threading import Thread
from typing import Any

_pending: dict[tuple[Callable[[str], Any], str], Future[Any]] = {}

os.register_at_fork(after_in_child=_pending.clear)  # The threads stay with the parent.


async def aside(work: Callable[[str], Any], argument: str) -> Any:
    """Call `work` in a thread, or wait for a call with this argument that is already running.

    A cancelled caller leaves the call running for the next one, so there is never more than one.
    """
    key = work, argument
    future: Future[Any] | None = _pending.get(key)
    if future is None:
        future = _pending[key] = Future()
        future.set_running_or_notify_cancel()  # A waiter's cancellation does not cancel it.
        # A daemon: it keeps no process from ending.
        Thread(target=_call, args=[work, argument, future], name="aside", daemon=True).start()
    return await asyncio.wrap_future(future)


def _call(work: Callable[[str], Any], argument: str, future: Future[Any]) -> None:
    try:
        outcome = work(argument)
    except BaseException as error:  # noqa: BLE001 -- raised for the waiters
        _pending.pop((work, argument), None)
        future.set_exception(error)
    else:
        _pending.pop((work, argument), None)
        future.set_result(outcome)


async def look_up(host: str) -> list[str]:
    """Return the addresses of a host; raise the resolver's `OSError` if it knows none."""
    return await aside(resolve, host) if is_name(host) else [host]


def is_name(host: str) -> bool:
    """Whether a host has to be looked up: it is neither an address nor the path of a socket."""
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


def resolve(host: str) -> list[str]:
    """Ask the resolver."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_pending(host: str) -> bool:
    """Whether the resolver has not answered yet."""
    return (resolve, host) in _pending


class LookingUp:
    """The running event loop, for a driver: it looks up the hosts to connect to as above.

    A driver has to be given the name: TLS verifies it, and proxies tell services apart by it. The
    loop's own threads may all be taken (https://github.com/python/cpython/issues/112169).
    """

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self.loop = asyncio.get_running_loop()
        vars(self).update(methods)  # Others than the loop's.

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    async def create_connection(
        self, factory: Callable[[], Any], host: str | None = None, *args: Any, **options: Any
    ) -> Any:
        """Connect to the first address of a host that answers."""
        if host is None:
            return await self.loop.create_connection(factory, host, *args, **options)
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        refused: OSError | None = None
        for address in await look_up(host):
            try:
                return await self.loop.create_connection(factory, address, *args, **options)
            except OSError as error:
                refused = refused or error
        raise refused or OSError(f"no address of {host}")
