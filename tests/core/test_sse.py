"""core/sse.py against a slow, obvious reading of WHATWG's rules, cut everywhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproxy.core.sse import FIELD_LIMIT, GATHERED, SMALL, Cutter, Event
from streamproxy.errors import Failure, ProxyError

LARGE = 1 << 30

Seen = list[tuple[str, bytes]]


def cut(chunks: Iterable[bytes], limit: int = LARGE) -> tuple[Seen, tuple[str, bytes] | None]:
    """Name and data of each event, and of what the end leaves unfinished. Every second chunk may be gathered."""
    cutter = Cutter(limit)
    events: list[Event] = []
    for number, chunk in enumerate(chunks):
        if number % 2 or not cutter.gather(chunk):
            events += cutter.feed(chunk)
    left = cutter.finish()
    return [(event.name, event.joined()) for event in events], None if left is None else (left.name, left.joined())


def reference(document: bytes) -> tuple[Seen, tuple[str, bytes] | None]:
    """The rules as they are written, on the whole document; several data lines joined with our space."""
    text = document.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *lines, last = text.split(b"\n")
    events: Seen = []
    name = ""
    data: list[bytes] | None = None
    for line in (*lines, *([last] if last else [])):
        if line == b"":
            if data is not None:
                events.append((name, b" ".join(data)))
            name, data = "", None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data = [*(data or []), value]
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return events, None if data is None else (name, b" ".join(data))


DOCUMENTS = (
    b"data: a\n\n",
    b"data:a\n\ndata:  b\n\n",
    b"\xef\xbb\xbfdata: a\n\n",
    b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n",
    b"event: a\r\ndata: 1\r\ndata: 2\r\n\r\n",
    b"data: a\r\n\r\ndata: b\r\rdata: c\n\n\r\ndata: d\r\n\n",
    b"event: x\ndata: 1\n\ndata: 2\n\n",
    b"data: 1\nevent: late\n\n",
    b"event: first\nevent: second\ndata: 1\n\n",
    b"event: x\n\ndata: 1\n\n",
    b": comment\n:\nid: 7\nretry: 5\nunknown\nData: x\n data: y\ndatax: z\ndata : w\n\ndata: 1\n\n",
    b"data\n\ndata\ndata\n\ndata:",
    b"data: {\ndata:\ndata: }\n\n",
    b"data: \xff\x00\xc3\n\nevent: \xff\xc3\xa4\ndata: 1\n\n",
    b"data: unfinished",
    b"event: e\ndata: unfinished\n",
    b"event: unfinished",
    b"\n\n\r\r\r\n\ndata: a\n\n",
    b"da",
    b"\xef\xbb",
    b"event: a\nevent: b\n: c\n\nevent: d\ndata: 1\nid: 2\ndata\ndatabase: x\nevent\ndata: data: 2\r\n"
    b"\revent: e\rdata:3\n\n",
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_where_chunks_are_cut_changes_nothing(document: bytes) -> None:
    whole = reference(document)
    assert cut([document]) == whole
    for first in range(len(document) + 1):
        assert cut([document[:first], document[first:]]) == whole
        for second in range(first, len(document) + 1):
            assert cut([document[:first], document[first:second], document[second:]]) == whole
    assert cut(document[at : at + 1] for at in range(len(document))) == whole


@pytest.mark.parametrize("size", [253, 254, 255, 256, 257])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_about_the_length_of_short_ones(size: int, end: bytes) -> None:
    lines = (b"data: " + b"x" * (size - 6), b"event: " + b"y" * (size - 7), b"z" * size, b"data:1", b"", b"data:2", b"")
    document = end.join((*lines, b""))
    assert cut([document]) == reference(document)
    for at in range(0, len(document), 7):
        assert cut([document[:at], document[at:]]) == reference(document)


def test_what_the_rules_say_in_words() -> None:
    """The reference could share a misreading with the code: these expectations are written out by hand."""
    assert cut([b"data\n\ndata\ndata\n\ndata:"])[0] == [("", b""), ("", b" ")]
    assert cut([b"data:  x\n\n"])[0] == [("", b" x")]
    assert cut([b"\xef\xbb\xbfdata: a\n\n"])[0] == [("", b"a")]
    assert cut([b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n"])[0] == []
    assert cut([b"data: a\r", b"\n\r\n"])[0] == [("", b"a")]
    assert cut([b"event: x\n\ndata: 1\n\n"])[0] == [("", b"1")]
    assert cut([b"data: {\ndata: }\n\n"])[0] == [("", b"{ }")]


LINE = st.one_of(
    st.sampled_from(
        (b"", b"", b"data", b"data:", b"event", b"event:", b":", b"id: 1", b"retry: 5", b" data: x", b"dat")
    ),
    st.binary(max_size=12).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"")),
    st.binary(max_size=40).map(lambda value: b"data: " + value.replace(b"\r", b"").replace(b"\n", b"")),
    st.sampled_from((b"event: image_generation.completed", b"event:x", b"event: \xc3\xa4", b"datax: y", b"eventx")),
    st.integers(250, 260).map(lambda size: b"data: " + b"x" * (size - 6)),
)
DOCUMENT = st.tuples(
    st.sampled_from((b"", b"\xef\xbb\xbf")),
    st.lists(st.tuples(LINE, st.sampled_from((b"\n", b"\r\n", b"\r"))), max_size=20),
    LINE,
).map(lambda parts: parts[0] + b"".join(line + end for line, end in parts[1]) + parts[2])


@settings(max_examples=400, deadline=None)
@given(document=DOCUMENT, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_any_document_cut_anywhere(document: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(at, len(document)) for at in cuts), len(document)]
    assert cut(document[a:b] for a, b in pairwise(edges)) == reference(document)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 2 * GATHERED), min_size=1, max_size=8), step=st.integers(1000, 2 * GATHERED))
def test_large_data_in_chunks_about_the_gathering_size(sizes: list[int], step: int) -> None:
    document = b"".join(b"data: %b\n\n" % (bytes([65 + at % 26]) * size) for at, size in enumerate(sizes))
    chunks = [document[at : at + step] for at in range(0, len(document), step)]
    assert cut(chunks) == reference(document)


@pytest.mark.parametrize("step", [1, 7, 1000, GATHERED // 4, GATHERED, 1 << 20])
@pytest.mark.parametrize("lines", [1, 3])
def test_the_cap_counts_the_data_exactly(step: int, lines: int) -> None:
    """Joining spaces count, the space after the colon does not; every event begins anew."""
    line = b"data: " + b"x" * 30_000 + b"\n"
    cap = lines * 30_001 - 1
    document = (line * lines + b"\n") * 2
    chunks = [document[at : at + step] for at in range(0, len(document), step)]
    assert [len(data) for _, data in cut(chunks, cap)[0]] == [cap, cap]
    with pytest.raises(ProxyError) as caught:
        cut(chunks, cap - 1)
    assert caught.value.failure is Failure.EVENT_TOO_LARGE


def test_empty_data_lines_count_as_well() -> None:
    """Each adds a byte to what is held."""
    assert cut([b"data\n" * 11 + b"\n"], 10)[0] == [("", b" " * 10)]
    for endless in (b"data\n", b"data:\n"):
        with pytest.raises(ProxyError):
            cut([endless * 12], 10)


def test_events_before_one_that_is_too_large_come_out_first() -> None:
    found = []
    cutter = Cutter(4)
    with pytest.raises(ProxyError):
        found += [event.joined() for event in _each(cutter, b"data: 1234\n\ndata: 12345\n\n")]
    stream = Cutter(4).feed(b"data: 1234\n\ndata: 12345\n\n")
    assert next(stream).joined() == b"1234"


def _each(cutter: Cutter, chunk: bytes) -> Iterable[Event]:
    yield from cutter.feed(chunk)


def test_a_field_of_any_length_is_not_kept() -> None:
    cutter = Cutter(10)
    for _ in range(2000):
        assert list(cutter.feed(b"event: " + b"e" * 1000)) == []
    assert len(cutter._head) <= FIELD_LIMIT  # noqa: SLF001 - memory shows nowhere else
    assert [event.joined() for event in cutter.feed(b"\ndata: 1\n\n")] == [b"1"]


def test_a_chunk_inside_the_data_stays_the_same_object() -> None:
    cutter = Cutter(LARGE)
    first, middle, last = b"data: " + b"a" * GATHERED, [bytes([66 + at]) * GATHERED for at in range(8)], b"z" * GATHERED
    for chunk in (first, *middle):
        assert list(cutter.feed(chunk)) == []
    [event] = cutter.feed(last + b"\n\n")
    head, *pieces, tail = event.data
    assert all(piece is chunk for piece, chunk in zip(pieces, middle, strict=True))
    assert isinstance(head, memoryview)
    assert head.obj is first
    assert isinstance(tail, memoryview)
    assert event.size == sum(map(len, event.data)) == 10 * GATHERED


def test_only_a_chunk_inside_a_data_line_is_gathered() -> None:
    cutter = Cutter(100)
    taken = []
    for chunk in (b"data", b": a", b"b", b"c\rd", b"ata:x", b"e\n", b"\n", b"f", b"event: g", b"h\n"):
        taken.append(cutter.gather(chunk))
        if not taken[-1]:
            assert len(list(cutter.feed(chunk))) == (chunk == b"\n")
    assert taken == [False, False, True, False, False, False, False, False, False, False]
    assert list(cutter.feed(b"\ndata: x")) == []
    with pytest.raises(ProxyError):
        cutter.gather(bytes(100))


@pytest.mark.parametrize("size", [7, SMALL - 1, SMALL, GATHERED])
def test_pieces_with_a_quote_are_told(size: int) -> None:
    image = b"a" * (5 * GATHERED)
    document = b'data: {"b":"' + image + b'","c":"' + image + b'"}\n\n'
    cutter = Cutter(LARGE)
    events: list[Event] = []
    for at in range(0, len(document), size):
        chunk = document[at : at + size]
        if not cutter.gather(chunk):
            events += cutter.feed(chunk)
    [event] = events
    assert event.joined() == document[6:-2]
    with_quote = {number for number, piece in enumerate(event.data) if b'"' in bytes(piece)}
    views = {number for number, piece in enumerate(event.data) if isinstance(piece, memoryview)}
    assert set(event.quoted or ()) == with_quote | views
    assert len(with_quote | views) < len(event.data) / 2


def test_small_pieces_are_gathered() -> None:
    """A provider that sends byte by byte costs no list entry per byte, and keeps no chunk alive."""
    size = 3 * GATHERED
    cutter = Cutter(LARGE)
    for byte in (b"d", b"a", b"t", b"a", b":", *[b"x"] * size, b"\n"):
        assert list(cutter.feed(byte)) == []
    [event] = cutter.feed(b"\n")
    assert [len(piece) for piece in event.data] == [GATHERED] * 3
    assert all(isinstance(piece, bytes) for piece in event.data)


def _seconds(document: bytes, step: int, runs: int = 5) -> float:
    """Processor time, the best of several runs."""
    chunks = [document[at : at + step] for at in range(0, len(document), step)]
    best = 1e9
    for _ in range(runs):
        cutter = Cutter(LARGE)
        began = time.thread_time()
        for chunk in chunks:
            for _event in cutter.feed(chunk):
                pass
        best = min(best, time.thread_time() - began)
    return best


@pytest.mark.parametrize(
    ("unit", "step", "size"),
    [
        (b"x" * (1 << 20), 16, 1 << 18),
        (b"data:\n", 4096, 1 << 15),
        (b"\r", 4096, 1 << 15),
        (b":c\n", 100, 1 << 15),
        (b"\n", 1 << 20, 1 << 17),
        (b"data: x\n\n", 1000, 1 << 15),
    ],
    ids=["one long line", "data lines", "blank lines", "comments", "line feeds in one chunk", "events"],
)
def test_time_is_linear(unit: bytes, step: int, size: int) -> None:
    """Four times the input is about four times the work: quadratic would be sixteen."""
    document = b"data: " + unit * (4 * size // len(unit) + 1)
    assert _seconds(document[: 4 * size], step) < 9 * _seconds(document[:size], step) + 0.01


CHUNK = 64 * 1024
LINES = {
    "LF": b"\n",
    "CR": b"\r",
    "CRLF": b"\r\n",
    "LF CR": b"\n\r",
    "comments": b":c\n",
    "comments apart": b":c\r\n\r\n",
    "unknown fields": b"x\n",
    "names": b"event:a\n",
    "names apart": b"event:a\n\n",
    "data": b"data\n",
    "data and comments": b"data:x\n:c\n",
    "data and names": b"event:x\ndata:x\r\n",
}


@pytest.mark.parametrize("before", [b"", b"data: begun\n"])
@pytest.mark.parametrize("name", LINES)
def test_a_chunk_of_short_lines_costs_milliseconds(name: str, before: bytes) -> None:
    """One step of Python for each of 64 KiB of line ends took 40 ms, in which no other task ran."""
    document = before + (LINES[name] * (CHUNK // len(LINES[name])))[: CHUNK - len(before)]
    assert _seconds(document, CHUNK, runs=20) < 0.005


def test_a_million_data_lines_are_no_second_of_work() -> None:
    assert _seconds(b"data: x\n" * 1_000_000, CHUNK) < 1


def test_only_data_of_the_open_event_is_held() -> None:
    cutter = Cutter(LARGE)
    for chunk, held in ((b": c\n\ndata: ab", 2), (b"c\ndata:d\n", 5), (b"id: 7\n", 5), (b"\n", 0), (b"\n:x\n", 0)):
        for _ in cutter.feed(chunk):
            pass
        assert cutter.held == held


@pytest.mark.parametrize(("end", "lone"), [(b"\n", False), (b"\r\n", False), (b"\r", True)])
def test_a_lone_cr_is_noticed_wherever_chunks_are_cut(end: bytes, lone: bool) -> None:
    wire = b"data: a" + end + end + b"data: b\n\n"
    for cut in range(len(wire) + 1):
        cutter = Cutter(100)
        assert [event.joined() for chunk in (wire[:cut], wire[cut:]) for event in cutter.feed(chunk)] == [b"a", b"b"]
        assert cutter.lone_cr is lone, cut


def test_a_lone_cr_at_the_cut_and_within_a_chunk() -> None:
    for chunks in ([b"data: a\r", b"data: b\n\n"], [b"data: a\rdata: b\n\n"]):
        cutter = Cutter(100)
        assert [event.joined() for chunk in chunks for event in cutter.feed(chunk)] == [b"a b"]
        assert cutter.lone_cr
