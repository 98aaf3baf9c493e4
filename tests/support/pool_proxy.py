"""A way to the server that can be cut, clogged or counted."""

import asyncio
from contextlib import suppress
from typing import Self

from sqlalchemy import URL


class Proxy:
    """Forwards connections to a server; use as an async context manager."""

    def __init__(self, target: URL) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._flows: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._clear = asyncio.Event()
        self._clear.set()
        self.port = 0
        self.accepted = 0
        self.sent = 0
        """Bytes that went to the server."""
        self.round_trips = 0
        """How often something was sent to the server after its last answer."""
        self._answered = True

    @property
    def url(self) -> URL:
        """The server's URL, by way of this."""
        return self._target.set(host="127.0.0.1", port=self.port)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self.cut()
        self.remember()
        for flow in self._flows:
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)

    async def accept(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop listening: who connects is refused."""
        if self._server:
            self._server.close()
            self._server = None

    def lead_to(self, target: URL) -> None:
        """Lead new connections to another server; those there are stay where they are."""
        self._target = target

    def freeze(self) -> None:
        """Accept connections, and forward nothing: neither old nor new are answered."""
        self._clear.clear()

    def thaw(self) -> None:
        """Forward again, and what was held back."""
        self._clear.set()

    def forget(self) -> None:
        """Lose the connections there are without telling either side, as some firewalls do."""
        for flow in self._flows:
            flow.cancel()
        self._forgotten |= self._writers
        self._writers = set()

    def remember(self) -> None:
        """Tell both sides of the connections that were forgotten, as a keepalive would in time."""
        for writer in self._forgotten:
            writer.transport.abort()

    def cut(self) -> None:
        """Close the connections there are."""
        for writer in self._writers:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        await self._clear.wait()
        try:
            there = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        for flow in (self._flow(reader, there[1], up=True), self._flow(there[0], writer)):
            self._flows.add(asyncio.create_task(flow))

    async def _flow(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool = False
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._clear.wait()
                if up:
                    self.sent += len(data)
                    self.round_trips += self._answered
                self._answered = not up
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
