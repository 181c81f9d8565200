"""The pictures of an order, as OpenAI's JSON answer and as its events. Synchronous and slow: for a worker thread.

The event names are written out, and not taken from the proxy's table, so that a mistake in that table is found.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Final

import orjson

from streamproxy.simulator.order import Order
from streamproxy.simulator.pictures import Picture, draw, edit, encode, preview
from streamproxy.simulator.script import Sample, event

# Output tokens of a 1024x1024 picture. low, medium and high are those of GPT Image; the others continue the row. The
# growth with the area, and all numbers of input tokens, are invented.
OUTPUT_TOKENS: Final = {"low": 272, "medium": 1056, "high": 4160, "xhigh": 8320, "max": 16_640}
# Image tokens of each preview, from OpenAI's guide.
PREVIEW_TOKENS: Final = 100
INPUT_IMAGE_TOKENS: Final = 323
CHARACTERS_PER_TOKEN: Final = 4
# Edge of the pictures of faults, and their two previews: real ones, but small enough to be cut byte by byte.
SAMPLE_EDGE: Final = 64
SAMPLE_PREVIEWS: Final = 2


def pictures(order: Order) -> list[Picture]:
    """The n pictures of an order: the first one is that of its prompt, the others are variations."""
    prompts = [order.prompt, *(f"{order.prompt} #{number}" for number in range(1, order.n))]
    return [_picture(order, prompt) for prompt in prompts]


def files(order: Order, drawn: list[Picture]) -> list[bytes]:
    """Each picture as a file in the order's format."""
    return [encode(picture, order.output_format, order.compression) for picture in drawn]


def json_body(order: Order, data: list[dict[str, str]], created: int) -> bytes:
    """OpenAI's ImagesResponse around `data`, which holds `b64_json` or `url` for each picture."""
    body: dict[str, object] = {
        "created": created,
        "background": "transparent" if order.transparent else "opaque",
        "data": data,
        "output_format": order.output_format,
        "quality": order.quality,
        "size": f"{order.width}x{order.height}",
        "usage": _usage(order, 0),
    }
    if order.safety_identifier is not None:
        body["safety_identifier"] = order.safety_identifier
    return orjson.dumps(body)


def inline(file: bytes) -> dict[str, str]:
    """A picture as an item of `data`."""
    return {"b64_json": base64.b64encode(file).decode("ascii")}


def frames(order: Order, created: tuple[int, ...]) -> list[bytes]:
    """The previews of the order, then `completed`. `created[i]`: the Unix second in which frame *i* will be sent."""
    [picture] = pictures(order)
    steps = order.partial_images
    made = [
        _frame(order, "partial_image", preview(picture, step, steps), created[step], {"partial_image_index": step})
        for step in range(steps)
    ]
    end: dict[str, object] = {"usage": _usage(order, steps)}
    if order.safety_identifier is not None:
        end["safety_identifier"] = order.safety_identifier
    return [*made, _frame(order, "completed", picture, created[steps], end)]


def sample(order: Order, created: int) -> Sample:
    """A small, correct answer to such an order, for the faults to break."""
    small = replace(
        order, n=1, width=SAMPLE_EDGE, height=SAMPLE_EDGE, stream=True, partial_images=SAMPLE_PREVIEWS, url=False
    )
    *previews, completed = frames(small, (created,) * (SAMPLE_PREVIEWS + 1))
    body = json_body(small, [inline(file) for file in files(small, pictures(small))], created)
    return Sample(tuple(previews), completed, body)


def _picture(order: Order, prompt: str) -> Picture:
    if not order.images:
        return draw(prompt, order.width, order.height, transparent=order.transparent)
    first, *_ = order.images
    return edit(prompt, order.width, order.height, first, mask=order.mask, transparent=order.transparent)


def _frame(order: Order, kind: str, picture: Picture, created: int, end: dict[str, object]) -> bytes:
    name = f"image_{'edit' if order.edit else 'generation'}.{kind}"
    data: dict[str, object] = {
        "type": name,
        **inline(encode(picture, order.output_format, order.compression)),
        "created_at": created,
        "size": f"{order.width}x{order.height}",
        "quality": order.quality,
        "background": "transparent" if order.transparent else "opaque",
        "output_format": order.output_format,
        **end,
    }
    return event(name, orjson.dumps(data))


def _usage(order: Order, previews: int) -> dict[str, object]:
    area = order.width * order.height / (1024 * 1024)
    output = max(1, round(OUTPUT_TOKENS[order.quality] * area)) * order.n + PREVIEW_TOKENS * previews
    text = 1 + len(order.prompt) // CHARACTERS_PER_TOKEN
    image = INPUT_IMAGE_TOKENS * len(order.images)
    return {
        "total_tokens": text + image + output,
        "input_tokens": text + image,
        "output_tokens": output,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
    }
