"""Connections to the server: URLs, TLS, a user with few rights, reuse, and error messages."""

from __future__ import annotations

import ssl
from contextlib import aclosing
from pathlib import Path
from typing import Final

import anyio
import pytest
import trustme
from anyio.abc import SocketAttribute, SocketStream
from redis.asyncio.connection import Connection

from streamproxy.hub.log import Entry
from streamproxy.hub.store import Claim, Stored, StoreError
from streamproxy.hub.valkey.client import CONNECTIONS, SHORT, packed, parse_address
from streamproxy.hub.valkey.store import ValkeyStore
from tests.support.kept import BOUND, LEASE, completed, following, in_touch, record, store, until
from tests.support.valkey import ValkeyServer, tls_front, valkey_server

pytestmark = pytest.mark.anyio

ALLOWED: Final = ("~sp:*", "+@read", "+@write", "+@scripting", "+@connection", "-@dangerous")


def test_commands_are_packed_as_redis_py_does() -> None:
    words = ("SET", "sp:é", 17, b"\r\n", memoryview(b"view"), b"", b"x" * SHORT)
    commands = [(*words, *words[1:]), ("PING",)]
    assert b"".join(packed(commands)) == b"".join(Connection().pack_commands(commands))


def test_a_string_in_pieces_is_sent_in_pieces() -> None:
    image = (b"small", b"a" * SHORT, memoryview(b"b" * SHORT), b"small")
    wire = packed([("SET", "key", image, 1)])
    assert b"".join(wire) == b"".join(Connection().pack_command("SET", "key", b"".join(image), 1))
    assert [piece for piece in wire if len(piece) >= SHORT] == list(image[1:3])
    assert wire[1] is image[1]


async def test_tls_and_a_user_with_few_rights(server: ValkeyServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server.command("ACL", "SETUSER", "proxy", "reset", "on", ">p@ss:w/rd", *ALLOWED)
    secret = "proxy:p%40ss%3Aw%2Frd"
    try:
        async with tls_front(server, context) as front:
            url = f"valkeys://{secret}@127.0.0.1:{front.port}/3?ssl_ca_certs={tmp_path / 'ca.pem'}"
            got: list[Entry] = []
            with anyio.fail_after(BOUND):
                async with ValkeyStore(url, linger=60, replica="r", lease=LEASE).open() as one:
                    await one.create(record("tls"))
                    await one.append("tls", completed(1, 0, b"y" * 5_000_000))
                    await one.viewing("tls")
                    assert await one.viewed("tls")
                    await one.claim("key", Claim("print", "tls"))
                    await one.disclaim("key")
                    await one.cancel("tls")
                    async with aclosing(one.cancelled()) as cancelled:
                        assert await anext(cancelled) == "tls"
                    await in_touch(one)
                    server.command("ACL", "LIST")
                    await one.finish("tls")
                    await following(one, "tls", 0, got)
                    assert got == [completed(1, 0, b"y" * 5_000_000)]
                    assert await one.load("unknown") is None
                assert server.lifetimes() == {}, "database 0 is not the one that was asked for"
            for wrong in (f"rediss://127.0.0.1:{front.port}", f"redis://wrong:secret-word@127.0.0.1:{server.port}"):
                async with ValkeyStore(wrong, linger=60, replica="r").open() as one:
                    with pytest.raises(StoreError) as failed:
                        await one.load("x")
                    assert "secret-word" not in str(failed.value)
    finally:
        server.command("ACL", "DELUSER", "proxy")


async def test_what_fails_is_named_without_what_was_sent(server: ValkeyServer) -> None:
    server.command("SET", "sp:{wrong}:meta", "a string")
    server.command("ACL", "SETUSER", "poor", "reset", "on", ">hidden-word", "~sp:*", "+ping")
    poor = f"redis://poor:hidden-word@127.0.0.1:{server.port}"
    try:
        for url, id, said in (
            (server.url, "wrong", "WRONGTYPE"),
            (poor, "payload-word", "NoPermissionError"),
            (f"redis://poor:wrong-word@127.0.0.1:{server.port}", "payload-word", "AuthenticationError"),
        ):
            async with ValkeyStore(url, linger=60, replica="r").open() as one:
                with pytest.raises(StoreError, match=said) as failed:
                    await one.load(id)
                assert "-word" not in str(failed.value)
                assert f"127.0.0.1:{server.port}" in str(failed.value)
                assert failed.value.__cause__ is None
    finally:
        server.command("ACL", "DELUSER", "poor")


async def test_an_error_that_quotes_arguments_is_not_passed_on() -> None:
    with valkey_server("--rename-command", "EVALSHA", "") as server:
        assert b"payload-word" in server.command("EVALSHA", "payload-word")
        async with store(server) as one:
            with pytest.raises(StoreError, match="ResponseError") as failed:
                await one.load("payload-word")
    assert "payload-word" not in str(failed.value)


@pytest.mark.parametrize(
    "url",
    [
        "memory",
        "http://user:hidden-word@host",
        "redis://user:hidden-word@",
        "redis://user:hidden-word@host:none",
        "redis://user:hidden-word@host/name",
        "redis://user:hidden-word@host?ssl_ca_certs=ca.pem",
        "rediss://user:hidden-word@host?password=hidden-word",
        "redis://user:hidden-word@[::1",
    ],
)
def test_a_wrong_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match="store's URL") as refused:
        ValkeyStore(url, linger=1, replica="r")
    assert "hidden-word" not in str(refused.value)


def test_what_a_url_says() -> None:
    plain = parse_address("valkey://host")
    assert (plain.host, plain.port, plain.db, plain.username, plain.password, plain.tls) == (
        ("host", 6379, 0, None, None, False)
    )
    full = parse_address("rediss://user:p%40ss@[::1]:7000/2?ssl_ca_certs=%2Fca.pem")
    assert (full.host, full.port, full.db, full.username, full.password) == ("::1", 7000, 2, "user", "p@ss")
    assert (full.tls, full.ca_certs) == (True, "/ca.pem")
    assert "p@ss" not in repr(full)
    assert parse_address("redis://:p@host").username is None


async def test_no_connection_is_left(server: ValkeyServer) -> None:
    before = server.clients()
    async with store(server) as one, anyio.create_task_group() as tasks:
        await one.create(record("wide"))
        tasks.start_soon(following, one, "wide", 0, [])
        async with anyio.create_task_group() as many:
            for _ in range(4 * CONNECTIONS):
                many.start_soon(one.load, "wide")
        assert server.clients() - before <= CONNECTIONS + 1
        tasks.cancel_scope.cancel()
    await until(lambda: server.clients() == before)
    with pytest.raises(StoreError, match="closed"):
        await one.load("wide")
    with pytest.raises(StoreError, match="closed"):
        await following(one, "wide", 0, [])


async def test_exchanges_that_are_cancelled_leave_the_others_alone(server: ValkeyServer) -> None:
    big = b"x" * 2_000_000
    async with store(server) as one:
        await one.create(record("cut"))
        await one.append("cut", completed(1, 1, big))
        for delay in range(60):
            with anyio.move_on_after(delay / 5000):
                await one.load("cut")
        async with anyio.create_task_group() as many:
            for number in range(CONNECTIONS + 8):  # more than there are connections, so none has been lost
                many.start_soon(one.viewing, f"{number}")
        found = await one.load("cut")
        assert isinstance(found, Stored)
        assert found.entries == (completed(1, 1, big),)
        assert len([name for name in server.lifetimes() if name.endswith(":viewed")]) == CONNECTIONS + 8


async def test_a_peer_that_speaks_another_protocol_is_an_error() -> None:
    async def answer(peer: SocketStream) -> None:
        async with peer:
            await peer.receive()
            await peer.send(b"$none\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer)
        port = listener.extra(SocketAttribute.local_port)
        async with ValkeyStore(f"redis://127.0.0.1:{port}", linger=1, replica="r").open() as one:
            with pytest.raises(StoreError, match="ValueError"):
                await one.load("x")
        tasks.cancel_scope.cancel()
