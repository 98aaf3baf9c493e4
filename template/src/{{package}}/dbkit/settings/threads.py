"""Calls that cannot be cancelled, each in its own thread, so that they block nothing else.

A DNS lookup or a file read can hang with a dead resolver or file server. In the event loop's shared
thread pool, a few hanging calls would block the lookups of every database.
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


async def look_up(host: str) -> None:
    """Return once the resolver knows a host; raise its `OSError` if it does not.

    The driver asks again, in the shared threads, and is answered at once. (It has to be given the
    name: TLS verifies it, and proxies tell services apart by it.)
    """
    if is_name(host):
        await aside(resolve, host)


def is_name(host: str) -> bool:
    """Whether a host has to be looked up: it is neither an address nor the path of a socket."""
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


def resolve(host: str) -> object:
    """Ask the resolver."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)


def is_pending(host: str) -> bool:
    """Whether the resolver has not answered yet."""
    return (resolve, host) in _pending
