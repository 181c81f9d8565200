"""The seam to redis-py: connections to one Valkey or Redis server, with one deadline per exchange and one error.

It uses redis-py's connections, not its client. So a cancelled exchange costs its own connection and nothing else, since
no pool has to be told; replies arrive as the server sent them; and one deadline covers connecting, sending and reading.
When the server has closed an idle connection, the exchange is repeated once on a new one. So every command may run
twice.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import (
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as TimedOut

from streamproxy.core.sse import Piece
from streamproxy.hub.store import StoreError

COMMAND_SECONDS: Final = 2.0
"""For one exchange, connecting included. 4 MB take milliseconds, and a store that hangs must not hold up a stream."""

CONNECT_SECONDS: Final = 1.0

BLOCK_SECONDS: Final = 1.0
"""How long one blocking read waits in the server. Between two reads, a reader checks that the producer lives."""

CONNECTIONS: Final = 32
"""Most connections, beside one per followed stream. The server runs one command at a time, so more would only wait."""

ROWS: Final = 32
"""Most descriptors that one read of a log returns, about 100 bytes each."""

SCHEMES: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
"""Whether a URL's scheme means TLS."""

KEEPALIVE: Final = {
    getattr(socket, name): value
    for name, value in {
        "TCP_KEEPIDLE": 15,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 10_000,  # also ends closed connections whose last bytes the server never takes
    }.items()
    if hasattr(socket, name)
}
"""Socket options by which a dead peer is noticed: seconds, a count, milliseconds."""

SHORT: Final = 16 * 1024
"""Bytes below which a piece of a command is joined with what is before it."""

Argument = str | int | Piece | tuple[Piece, ...]
"""Of a command: a tuple is one string in pieces."""

LogEntry = tuple[bytes, dict[bytes, bytes]]
"""An entry of a log: its id and its fields."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, which the server knows by its SHA-1 once it has run."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", sha)  # computed once, not for each command


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a store's URL. The password is not in its repr."""

    host: str
    port: int
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: bool
    ca_certs: str | None


def parse_address(url: str) -> Address:
    """Parse `redis[s]://` or `valkey[s]://` `[user:password@]host[:port][/db][?ssl_ca_certs=file]`.

    Raises ValueError, whose text never holds the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        raise ValueError("The store's URL is malformed.") from None
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    db = parts.path.strip("/") or "0"
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError(f"The store's URL needs one of the schemes {', '.join(SCHEMES)}, and a host.")
    if query.keys() - {"ssl_ca_certs"} or parts.fragment:  # not named: it may be the rest of an unquoted password
        raise ValueError("The store's URL has a parameter that is not ssl_ca_certs, or an unquoted ? or # in it.")
    if query and not SCHEMES[parts.scheme]:
        raise ValueError("The store's URL has ssl_ca_certs but a scheme without TLS.")
    if not (db.isascii() and db.isdigit()):
        raise ValueError("The store's URL has a path that is not a database number.")
    username, password = (unquote(part) if part else None for part in (parts.username, parts.password))
    return Address(
        parts.hostname, port, int(db), username, password, SCHEMES[parts.scheme], query.get("ssl_ca_certs") or None
    )


KINDS: Final = {"cluster": "a node of a cluster", "sentinel": "a Sentinel"}
"""Servers that cannot be the store, by the mode that they give: a script's keys are spread over a cluster's nodes."""

SINGLE: Final = "the setting store takes a single server"
WHY: Final[dict[type[Exception], str]] = {
    **dict.fromkeys((MovedError, ClusterCrossSlotError, ClusterDownError), f"{KINDS['cluster']}; {SINGLE}"),
    ReadOnlyError: "a replica; the setting store takes the server that is written to",
}
"""What a wrong server is, by its error."""


async def unsuitable(url: str) -> str | None:
    """Say what kind of server a store's URL leads to, if it cannot be the store. None too where it does not answer."""
    client = ValkeyClient(parse_address(url))
    try:
        info = await client.ask("INFO", "server")
    except StoreError:
        return None
    finally:
        await client.aclose()
    modes = re.findall(rb"^(?:redis|server)_mode:(\w+)", info, re.MULTILINE) if isinstance(info, bytes) else []
    return next((KINDS[mode.decode()] for mode in modes if mode.decode() in KINDS), None)


class ValkeyClient:
    """See the module's text. `since`: the time on anyio's clock since which the server has answered; None if it fails.

    A circuit breaker: after one timeout every command fails at once until a `probe` succeeds.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._limit = anyio.Semaphore(CONNECTIONS, fast_acquire=True)  # the exchange itself yields to other tasks
        self._idle: list[Connection] = []
        self._lines: set[Connection] = set()
        self._tls: Any = None
        self._closed = False
        self._hangs = False
        self.since: float | None = None

    async def ask(self, *command: Argument) -> Any:
        """The reply to one command. Raises StoreError, like everything here."""
        return (await self.ask_all([command]))[0]

    async def ask_all(self, commands: Sequence[tuple[Argument, ...]], *, probe: bool = False) -> list[Any]:
        """The replies to commands that are sent together."""
        with self.translated():
            return await self._ask_all(commands, probe=probe)

    async def run(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        """The result of a script. Its text is sent only if the server does not know it."""
        rest = (len(keys), *keys, *arguments)
        with self.translated():
            try:
                return (await self._ask_all([("EVALSHA", script.sha, *rest)]))[0]
            except NoScriptError:
                return (await self._ask_all([("EVAL", script.text, *rest)]))[0]

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line]:
        """A separate connection, for reads that block."""
        connection = self._new()
        self._lines.add(connection)
        try:
            yield Line(self, connection)
        finally:
            self._lines.discard(connection)
            await _close(connection)

    async def aclose(self) -> None:
        """Close all connections. Exchanges in progress raise StoreError."""
        self._closed = True
        for connection in (*self._idle, *self._lines):
            await _close(connection)
        self._idle.clear()

    def _new(self) -> Connection:
        address = self._address
        if not address.tls:
            return Connection(
                host=address.host,
                port=address.port,
                db=address.db,
                username=address.username,
                password=address.password,
                socket_timeout=None,  # the default of 5 s would end blocking reads; deadlines are set per exchange
                socket_connect_timeout=CONNECT_SECONDS,
                socket_keepalive_options=KEEPALIVE,
                protocol=2,
                driver_info=None,  # saves a command that an ACL might refuse
            )
        connection = SSLConnection(
            host=address.host,
            port=address.port,
            db=address.db,
            username=address.username,
            password=address.password,
            socket_timeout=None,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_keepalive_options=KEEPALIVE,
            protocol=2,
            driver_info=None,
            ssl_ca_certs=address.ca_certs,
        )
        if self._tls is None:
            self._tls = connection.ssl_context
        connection.ssl_context = self._tls  # the certificates are read once, not once per connection
        return connection

    async def _ask_all(self, commands: Sequence[tuple[Argument, ...]], *, probe: bool = False) -> list[Any]:
        if self._hangs and not probe:
            raise StoreError(f"The store at {self._address.host}:{self._address.port} does not answer.")
        try:
            with anyio.fail_after(COMMAND_SECONDS):
                return await self._ask_in_time(commands)
        except (TimeoutError, TimedOut):
            self._hangs = True
            raise

    async def _ask_in_time(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        async with self._limit:
            self.check()
            if self._idle:
                try:
                    return await self._exchange(self._idle.pop(), commands)
                except Disconnected:  # the other idle ones are probably closed too
                    idle, self._idle = self._idle, []
                    for connection in idle:
                        await _close(connection)
            return await self._exchange(self._new(), commands)

    async def _exchange(self, connection: Connection, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        replies: list[Any] = []
        refused: ResponseError | None = None
        try:
            await connection.send_packed_command(packed(commands))  # type: ignore[arg-type]  # views as well
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    refused = error
        except BaseException:
            await _close(connection)
            raise
        if self._closed:
            await _close(connection)
        else:
            self._idle.append(connection)
        self.mark_alive()
        if refused is not None:
            raise refused
        return replies

    def check(self) -> None:
        """Raise StoreError after `aclose`."""
        if self._closed:
            raise StoreError("The store is closed.")

    def mark_alive(self) -> None:
        """Note that the server has answered."""
        self._hangs = False
        if self.since is None:
            self.since = anyio.current_time()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise StoreError for every failure. It has the type only, since redis-py's texts can quote arguments."""
        try:
            yield
        except (RedisError, OSError, ValueError) as error:  # ValueError: the server speaks another protocol
            cause = error.__cause__ or error.__context__
            detail = type(cause).__name__ if isinstance(cause, OSError) else ""
            if isinstance(error, ResponseError):
                word = str(error).partition(" ")[0]
                detail = word if word.isupper() else detail  # the server's code, like MISCONF
                detail = f"it is {WHY[type(error)]}" if type(error) in WHY else detail
            else:
                self.since = None
            what = f"{type(error).__name__} {detail}".strip()
            raise StoreError(f"The store at {self._address.host}:{self._address.port} failed: {what}.") from None


class Line:
    """A connection that waits for entries of logs."""

    def __init__(self, client: ValkeyClient, connection: Connection) -> None:
        self._client = client
        self._connection = connection

    async def read(self, log: str, after: bytes) -> list[LogEntry]:
        """Entries after the id `after`, in order; [] where none comes within BLOCK_SECONDS."""
        block = int(BLOCK_SECONDS * 1000)
        with self._client.translated(), anyio.fail_after(BLOCK_SECONDS + COMMAND_SECONDS):
            self._client.check()
            command = ("XREAD", "COUNT", ROWS, "BLOCK", block, "STREAMS", log, after)
            await self._connection.send_packed_command(packed([command]))  # type: ignore[arg-type]
            reply = await self._connection.read_response()
        self._client.mark_alive()
        return [entry_of(row) for _, rows in reply or () for row in rows]


def packed(commands: Sequence[tuple[Argument, ...]]) -> list[Piece]:
    """Commands as RESP writes them, arrays of bulk strings. An image goes out as the pieces that it is, unjoined.

    Source: Redis serialization protocol specification, "Sending commands to a Redis server".
    """
    wire: list[Piece] = []
    short = bytearray()
    for command in commands:
        short += b"*%d\r\n" % len(command)
        for argument in command:
            pieces = argument if isinstance(argument, tuple) else (_bytes(argument),)
            short += b"$%d\r\n" % sum(map(len, pieces))
            for piece in pieces:
                if len(piece) < SHORT:
                    short += piece
                else:
                    wire += (bytes(short), piece)
                    short.clear()
            short += b"\r\n"
    wire.append(bytes(short))
    return wire


def _bytes(argument: str | int | Piece) -> Piece:
    return argument if isinstance(argument, bytes | memoryview) else str(argument).encode()


def entry_of(reply: Any) -> LogEntry:
    """Read an entry of a log from a reply of XREAD or XRANGE: its id, and a flat list of names and values."""
    id, fields = reply
    return id, dict(zip(fields[::2], fields[1::2], strict=True))


async def _close(connection: Connection) -> None:
    with anyio.CancelScope(shield=True):
        await connection.disconnect(nowait=True)
