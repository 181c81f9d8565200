"""Small previews of one stream: made once, never late, bounded, and gone with the preview that they are made of."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import anyio
import orjson
import pytest
from anyio.lowlevel import checkpoint
from PIL import Image, ImageFile

from streamproxy.core.events import Frame, Operation, Role, type_of
from streamproxy.core.previews import PreviewForm, edge_of, format_of
from streamproxy.generation import previews
from streamproxy.generation.converting import MAX_PIXELS, shrink
from streamproxy.generation.previews import MOST_FORMS, PreviewMaker
from streamproxy.hub.generation import Generation
from streamproxy.hub.log import Entry, Record, Unmade
from streamproxy.hub.stream import Stream, Subscriber

pytestmark = pytest.mark.anyio

BOUND: Final = 20.0
PREVIEW: Final = type_of(Operation.GENERATION, Role.PREVIEW)
COMPLETED: Final = type_of(Operation.GENERATION, Role.COMPLETED)
FORM: Final = PreviewForm(32)
COLOURS: Final = Image.effect_noise((96, 64), 50).convert("RGB")


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def event(raw: bytes, *, image: int = 0, final: bool = False) -> Frame:
    kind = COMPLETED if final else PREVIEW
    said = {"type": kind, "b64_json": base64.b64encode(raw).decode(), "size": "?", "partial_image_index": 1e2}
    data = orjson.dumps(said)
    return Frame(kind, (data[:70], data[70:]), image, final)


PICTURE: Final = encoded(COLOURS)


def shown(frame: Frame) -> Image.Image:
    """The picture of an event, which says its size and format."""
    data = orjson.loads(b"".join(frame.data))
    image = Image.open(BytesIO(base64.b64decode(data["b64_json"], validate=True)))
    image.load()
    assert data["size"] == f"{image.width}x{image.height}"
    assert data["output_format"].upper() == image.format
    return image


# One preview.


@pytest.mark.parametrize("format", ["webp", "jpeg", "avif", "png"])
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_every_kind_becomes_small(source: str, format: str) -> None:
    form = format_of(format)
    assert form is not None
    made = shrink(event(encoded(COLOURS, source)), PreviewForm(32, form))
    image = shown(made)
    assert (image.format, max(image.size), min(image.size)) == (format.upper(), 32, 21)
    assert (made.type, made.image, made.final) == (PREVIEW, 0, False)
    assert b'"partial_image_index":100.0' in b"".join(made.data)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
def test_every_mode_becomes_small(mode: str) -> None:
    image = Image.new("L", (64, 64), 200).convert("I").convert("I;16") if mode == "I;16" else COLOURS.convert(mode)
    made = shown(shrink(event(encoded(image, "JPEG" if mode == "CMYK" else "PNG")), FORM))
    assert max(made.size) == 32


def test_what_is_transparent_stays_so() -> None:
    source = event(encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 0))))
    assert shown(shrink(source, FORM)).convert("RGBA").getpixel((9, 9)) == (0, 0, 0, 0)
    assert shown(shrink(source, PreviewForm(32, "jpeg"))).getpixel((9, 9)) == (255, 255, 255)


def test_what_is_small_already_is_not_enlarged() -> None:
    assert shown(shrink(event(PICTURE), PreviewForm(200))).size == (96, 64)
    source = event(encoded(COLOURS, "WEBP"))
    assert shrink(source, PreviewForm(96)) is source


def bomb() -> bytes:
    """A sound PNG with more pixels than are decoded."""
    return encoded(Image.new("1", (6000, MAX_PIXELS // 6000 + 1)))


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it is decoded"))
    source = event(bomb())
    assert shrink(source, FORM) is source


@pytest.mark.parametrize(
    "raw",
    [b"", b"no image", PICTURE[:200], PICTURE[:60] + b"x" + PICTURE[61:], b"\0\0\0\x1cftypavif" + bytes(40)],
    ids=["empty", "text", "short", "broken", "avif"],
)
def test_what_cannot_be_read_stays(raw: bytes) -> None:
    source = event(raw)
    assert shrink(source, FORM) is source


def test_indented_json_becomes_one_line() -> None:
    data = b'{"type":"a",\n "b64_json": "' + base64.b64encode(PICTURE) + b'",\r\n "usage": {\n "a": 1\n}}'
    made = b"".join(shrink(Frame(PREVIEW, (data,)), FORM).data)
    assert b"\n" not in made
    assert b"\r" not in made
    assert orjson.loads(made)["usage"] == {"a": 1}


def test_an_event_without_a_picture_stays() -> None:
    for data in (b'{"url":"https://a.example/b.png"}', b'{"b64_json":null}', b"no JSON", b'{"b64_json":"%%%="}'):
        source = Frame(PREVIEW, (data,))
        assert shrink(source, FORM) is source


@pytest.mark.parametrize("text", ["", "0", "15", "2049", "100000", "abc", "-5", "5.5", " 64", "\u0661\u0662\u0668"])
def test_sizes_that_are_none(text: str) -> None:
    assert edge_of(text) is None


# Readers of one stream.


@dataclass(slots=True)
class Made:
    """A stream, and what makes its previews small; `threads` can be held."""

    generation: Generation
    maker: PreviewMaker
    threads: anyio.CapacityLimiter

    @property
    def stream(self) -> Stream:
        return self.generation.stream

    def reader(self, form: PreviewForm = FORM, *, asker: bool = False) -> Subscriber:
        return self.stream.subscribe(versions=self.maker.versions(form), asker=asker)

    async def preview(self, image: int = 0) -> None:
        await self.generation.append(event(PICTURE, image=image))

    async def complete(self, image: int = 0) -> None:
        await self.generation.append(event(PICTURE, image=image, final=True))


@asynccontextmanager
async def made(n: int = 1) -> AsyncIterator[Made]:
    threads = anyio.CapacityLimiter(1)
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            generation = Generation(Stream(Record("str_1", n=n)))
            yield Made(generation, PreviewMaker(tasks, threads), threads)
            tasks.cancel_scope.cancel()


async def given(reader: Subscriber) -> Entry:
    entry = await reader.next(within=BOUND)
    assert entry is not None
    return entry


async def test_readers_share_one_that_is_made_once() -> None:
    async with made() as scene:
        readers = [scene.reader() for _ in range(3)]
        other = scene.reader(PreviewForm(32, "png"))
        whole = scene.stream.subscribe()
        await scene.preview()
        entries = [await given(reader) for reader in readers]
        assert entries[0] is entries[1] is entries[2]
        assert entries[0].cursor == (await given(whole)).cursor
        assert shown(entries[0].frame).size == (32, 21)
        assert shown((await given(other)).frame).format == "PNG"


async def test_a_later_reader_gets_the_same() -> None:
    async with made() as scene:
        await scene.preview()
        first = await given(scene.reader())
        assert await given(scene.reader()) is first


async def test_the_image_is_the_providers() -> None:
    async with made() as scene:
        await scene.complete()
        assert (await given(scene.reader())).frame.data == event(PICTURE, final=True).data


async def test_a_late_one_gives_way_to_the_next() -> None:
    async with made() as scene:
        reader = scene.reader()
        async with anyio.create_task_group() as tasks:
            await scene.threads.acquire()
            await scene.preview()
            entries: list[Entry] = []

            async def read() -> None:
                entries.append(await given(reader))

            tasks.start_soon(read)
            for _ in range(10):
                await checkpoint()
            await scene.preview()
            scene.threads.release()
        assert [entry.cursor.seq for entry in entries] == [2]


async def test_a_late_one_holds_up_no_image() -> None:
    async with made() as scene:
        reader = scene.reader()
        async with scene.threads:
            await scene.preview()
            with pytest.raises(TimeoutError):
                await reader.next(within=0.01)
            ready = [reader.ready]
            await scene.complete()
            assert [*ready, reader.ready] == [False, True]
            assert (await given(reader)).critical


async def test_the_producer_does_not_wait_for_it() -> None:
    async with made() as scene:
        reader = scene.reader(asker=True)
        async with scene.threads, anyio.create_task_group() as tasks:
            tasks.start_soon(given, reader)
            await scene.preview()
            await scene.preview()
            await scene.complete()


async def test_one_whose_preview_is_dropped_wakes_readers() -> None:
    async with made() as scene:
        reader = scene.reader()
        async with scene.threads:
            await scene.preview()
            assert not reader.ready
            scene.stream.log.drop(1)
        assert await scene.stream.changed.wait(anyio.current_time() + BOUND)


async def test_its_bytes_count_and_go_with_it() -> None:
    async with made() as scene:
        log = scene.stream.log
        await scene.preview()
        whole = log.bytes
        small = await given(scene.reader())
        assert log.bytes == whole + small.frame.size
        await scene.preview()
        assert log.bytes == whole
        await scene.complete()
        scene.stream.finish()
        assert log.bytes == event(PICTURE, final=True).size


async def test_one_that_stays_as_it_is_counts_once() -> None:
    async with made() as scene:
        await scene.generation.append(event(b"no image"))
        reader = scene.reader()
        entry = await given(reader)
        assert entry is scene.stream.log.at(1)
        assert scene.stream.log.bytes == entry.frame.size


async def test_a_fifth_form_is_the_preview_itself() -> None:
    async with made() as scene:
        await scene.preview()
        forms = [PreviewForm(16 + number) for number in range(MOST_FORMS + 1)]
        entries = [await given(scene.reader(form)) for form in forms]
        assert all(max(shown(entry.frame).size) == form.edge for entry, form in zip(entries[:-1], forms, strict=False))
        assert entries[-1] is scene.stream.log.at(1)


async def test_too_many_at_a_time_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "MOST_WAITING", 1)
    async with made(n=2) as scene:
        async with scene.threads:
            await scene.preview()
            assert scene.maker.version(FORM, scene.stream, scene.stream.log.retained().__next__()) is Unmade.MAKING
            await scene.preview(image=1)
            entry = scene.stream.log.at(2)
            assert entry is not None
            assert scene.maker.version(FORM, scene.stream, entry) is Unmade.SKIPPED
        reader = scene.reader()
        assert (await given(reader)).cursor.seq == 1
        await scene.complete(image=1)
        assert (await given(reader)).cursor.seq == 3
        await scene.preview()
        assert (await given(reader)).cursor.seq == 4
