"""The listening socket: bound before anything else starts, so that a busy port is a configuration error.

Connections inherit its options. Several processes share one socket.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from streamproxy.settings.values import ConfigurationError, ConfigurationProblem

BACKLOG: Final = 2048  # connections waiting for accept, uvicorn's default
UNSENT_BYTES: Final = 128 * 1024  # of one connection, in the kernel: more would be previews that arrive out of date
USER_TIMEOUT: Final = 30.0  # seconds without an acknowledgement after which a peer counts as gone


def listen(host: str, port: int, *, of: str = "") -> socket.socket:
    """Make a listening TCP socket; port 0 takes a free one. Raises ConfigurationError, which names host or port.

    `of` is what the names of the two settings begin with.
    """
    flag, env = f"--{of.replace('_', '-')}", f"STREAMPROXY_{of.upper()}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(
            found, key=lambda info: info[0] != socket.AF_INET
        )  # localhost: what clients try first
        both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        sock = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
        _tune(sock)
        return sock
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                happened, fix = (
                    "this port is already in use",
                    f"stop the program that has it, or choose another: {flag}port 0",
                )
            case errno.EACCES:
                happened, fix = (
                    "this port needs rights that the process has not",
                    f"choose one above 1023 with {flag}port",
                )
            case _:
                happened = f"this machine cannot listen there: {error.strerror}"
                fix = f"give an address of this machine with {flag}host, like 127.0.0.1"
                problem = ConfigurationProblem(f"{of}host", happened, fix, f"{env}HOST")
                raise ConfigurationError([problem]) from None
        problem = ConfigurationProblem(f"{of}port", f"{happened} ({host}, {port})", fix, f"{env}PORT")
        raise ConfigurationError([problem]) from None


def _tune(sock: socket.socket) -> None:
    """Set the options that connections inherit, for fresh previews at slow readers, and against dead peers."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ("TCP_USER_TIMEOUT", int(USER_TIMEOUT * 1000)),
        ("TCP_KEEPIDLE", int(USER_TIMEOUT)),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
    ):
        option = getattr(socket, name, None)
        if option is not None:  # Linux has all of them
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def url_of(sock: socket.socket) -> str:
    """The address of a listening socket, as callers on this machine write it."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
