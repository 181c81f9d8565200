"""The log: structlog over the standard library, as JSON lines or as text, on standard error.

Every line of the process comes this way: ours, the libraries', Python's warnings, and exceptions that nothing caught.
Of an exception only its type and place are told, because its text may hold anything. Of a library's message the first
line is told: what follows repeats exceptions.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

import orjson
import structlog

OURS: Final = "streamproxy"

_QUIET: Final = (
    "httpx",
    "httpcore",
    "sse_starlette",
    "sse_starlette.sse",
    "python_multipart",
    "urllib3",
    "uvicorn.access",
    "websockets",
)
"""Loggers that print URLs, or every chunk at DEBUG."""

_IDENTIFIER: Final = re.compile(r"[a-z][a-z0-9_.\[\]-]{0,63}")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
"""UUIDs, mostly."""

_TRACEBACK: Final = "Traceback (most recent call last):"
_FRAME: Final = re.compile(r'^ *File "([^"\n]*)", line (\d+)', re.MULTILINE)
_RAISED: Final = re.compile(r"^([A-Za-z_][\w.]*)(?::|$)", re.MULTILINE)


def get_log() -> structlog.typing.FilteringBoundLogger:
    """The log for our own lines."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger(OURS)
    return log


def configure_logging(level: str, form: str, *, pid: bool = False) -> None:
    """Send every log line of the process to standard error. `form`: `json`, `text` or `auto`; `pid`: each says its own.

    Ours are written as they are rendered: the standard library's way for libraries' lines costs three times as much.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(_json) if is_json(form) else structlog.dev.ConsoleRenderer(colors=False)
    )
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pid:
        shared.append(_add_pid)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _shortened],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(True)
    _log_uncaught()
    quiet_libraries()


def is_json(form: str) -> bool:
    """Whether lines are JSON. `auto`: text for a person at a terminal, JSON for a collector."""
    return form == "json" or (form == "auto" and not sys.stderr.isatty())


def say(line: str, form: str) -> None:
    """Tell the operator, whatever the level of the log. Where the log is JSON, so is this line."""
    if is_json(form):
        line = json.dumps({"event": line, "level": "info", "timestamp": datetime.now(UTC).isoformat()})
    sys.stderr.write(line + "\n")


def quiet_libraries() -> None:
    """Keep libraries from logging URLs and chunks, whatever the level of our own log."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_exception(log: structlog.typing.FilteringBoundLogger, error: BaseException, **fields: str) -> None:
    """Log an exception: its type and place. Of a group, each of its exceptions: its own place is the task group's."""
    for one in _flattened(error):
        log.error("unexpected", exception=type(one).__name__, where=place(one.__traceback__), **fields)


def place(trace: TracebackType | None) -> str:
    """The file and the line that raised."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def as_id(text: str | None) -> str | None:
    """A provider's own name for a request or for its work, None for anything else, which may be a text."""
    return text if text is not None and _ID.fullmatch(text) else None


def as_identifier(text: str | None) -> str | None:
    """A code or a field's name, None for anything else: where a provider chose it, it may repeat the prompt."""
    return text if text is not None and _IDENTIFIER.fullmatch(text) else None


def _flattened(error: BaseException) -> Iterator[BaseException]:
    """The exception, or all those of a group and of groups in it."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for one in error.exceptions:
        yield from _flattened(one)


def _log_uncaught() -> None:
    """Log exceptions that end the process or a thread, or that have nowhere to go. Python would print them."""
    log = get_log()

    def raised(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log_exception(log, error)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            log_exception(log, args.exc_value, thread=args.thread.name if args.thread else "")

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            log_exception(log, args.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = raised, in_thread, unraisable


def _json(line: dict[str, object], default: Callable[[object], object]) -> str:
    return orjson.dumps(line, default=default).decode()


def _add_pid(logger: object, name: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    line["pid"] = os.getpid()
    return line


def _shortened(logger: object, name: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A line of the standard library's logging: on one line, and without an exception's text."""
    source: str = line["_record"].name
    line.pop("stack_info", None)
    kind, _, trace = line.pop("exc_info", None) or (None, None, None)
    if kind is not None:
        line.update(exception=kind.__name__, where=place(trace))
    if source.partition(".")[0] == OURS:
        return line
    text = str(line["event"]).strip()
    if text.startswith(_TRACEBACK):  # as Starlette tells that a lifespan has failed
        line.update(_read(text))
        text = "failed"
    line.update(event=text.partition("\n")[0], logger=source)
    return line


def _read(traceback: str) -> dict[str, str]:
    """The last exception's type and place in a printed traceback."""
    frames = [*_FRAME.finditer(traceback)]
    raised = _RAISED.search(traceback, frames[-1].end() if frames else 0)
    return {"exception": raised[1] if raised else "?", "where": ":".join(frames[-1].groups()) if frames else ""}
