"""The `completed` event: synthesized where the provider answers JSON, and completed where it sends its own.

Every `completed` event and every JSON answer has `cost` (USD) and `provider`. The provider's own values count.
Otherwise the cost is computed from `usage` and the catalogue's prices, and is null where that is impossible. Both
members are appended to the provider's bytes, which do not change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final

import msgspec

from streamproxy.core.conversation import Job, Picture
from streamproxy.core.cost import Price, Work, amount, cost, why_unknown
from streamproxy.core.events import Frame, Operation, Role, type_of
from streamproxy.core.images import probe_base64
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, ProxyError

_ZERO_DETAILS: Final = {"text_tokens": 0, "image_tokens": 0}
ZERO_USAGE: Final[Mapping[str, object]] = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": _ZERO_DETAILS,
}
"""The members of `usage` that SDK types require. Applications read `event.usage.total_tokens` without a check."""


USAGE_BYTES: Final = 16 * 1024
"""Bytes of a `usage` that is read; real ones have under 1 KiB. A larger one is replaced by zeros."""

_NULL: Final = b"null"
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a JSON answer: base64 as the inside of a JSON string, in pieces, or a URL, or both.

    The first piece has the image's header. `extra`: further members.

    Values of members, here and below, may be msgspec.Raw, which keeps the provider's exact bytes.
    """

    b64: tuple[Piece, ...]
    url: str | None
    extra: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """Facts about all images of an answer, from the answer or else from the request; "" where neither is concrete."""

    created_at: int
    size: str = ""
    quality: str = ""
    background: str = ""
    output_format: str = ""


def completed(
    operation: Operation, image: Image, stated: AnswerFacts, *, index: int, several: bool, ending: Mapping[str, object]
) -> Frame:
    """One synthesized `completed` event. Format, size and transparency are read from the image's own bytes.

    `several`: the request yields more than one image, so each event names its `image_index`. `ending`: the last
    members, which are usage, cost, provider and the provider's own.
    """
    info = probe_base64(image.b64[0]) if image.b64 else None
    values: dict[str, object] = {
        "created_at": stated.created_at,
        "size": f"{info.width}x{info.height}" if info else stated.size or "auto",
        "quality": stated.quality or "auto",
        "background": stated.background or ("transparent" if info and info.alpha else "opaque"),
        "output_format": info.format if info else stated.output_format or "png",
    }
    if several:
        values["image_index"] = index
    if image.url:
        values["url"] = image.url
    values |= image.extra
    values |= ending
    kind = type_of(operation, Role.COMPLETED)
    head = b'{"type":"' + kind.encode() + (b'","b64_json":"' if image.b64 else b'","b64_json":null,')
    tail = msgspec.json.encode(values).translate(_ONE_LINE)
    data = (head, *image.b64, b'",' + tail[1:]) if image.b64 else (head + tail[1:],)
    return Frame(kind, data, image=index, final=True, cost=amount(ending.get("cost")))


_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")
"""A provider may indent its JSON, and an event is one line. Inside of strings there are no line ends."""

_COMMAS: Final = 64 * 1024
"""Commas of one event: more members than this would take seconds. Base64 has no comma."""

_PER_IMAGE: Final = ("b64_json", "url", "revised_prompt", "warning")
_JOINED: Final = ("usage", "cost", "text", "parts")
_EVENT_ONLY: Final = ("type", "created_at", "image_index", "partial_image_index", "error")


def collected(events: Sequence[bytes], now: int, sums: Sequence[bytes] = ()) -> bytes:
    """The JSON answer made of `completed` events, and of those that sum up jobs with fewer images than asked for.

    Members about all images are taken from the last one.

    The jobs' own members are combined: `usage` and `cost` are sums, `text` and `parts` are joined. Raises
    ProxyError(BAD_JSON).
    """
    images = [_event_members(event) for event in events]
    last = images[-1]
    created = bytes(last.get("created_at", msgspec.Raw()))
    answer: dict[str, object] = {
        "created": int(created) if created.isdigit() and len(created) <= _DIGITS else now,
        "data": [{name: image[name] for name in _PER_IMAGE if name in image} for image in images],
    }
    answer |= {name: value for name, value in last.items() if name not in (*_PER_IMAGE, *_EVENT_ONLY)}
    if len(images) > 1 or sums:
        answer |= _together([*images, *map(_event_members, sums)])
    return msgspec.json.encode(answer)


def _together(images: Sequence[Mapping[str, msgspec.Raw]]) -> Mapping[str, object]:
    """What several jobs say of their images, as if one had made them all."""
    said = [{name: _value(image[name]) for name in _JOINED if name in image} for image in images]
    usages: list[Mapping[str, object]] = [value for each in said if isinstance(value := each.get("usage"), dict)]
    together: dict[str, object] = {"usage": reduce(_sum, usages)} if usages else {}
    if any("cost" in each for each in said):
        unknown = any(each.get("cost") is None and _used(each.get("usage")) for each in said)
        costs = [value for each in said if isinstance(value := each.get("cost"), int | float)]
        together["cost"] = None if unknown or not costs else round(sum(costs), 6)
    texts = [value for each in said if isinstance(value := each.get("text"), str)]
    parts = [part for each in said if isinstance(value := each.get("parts"), list) for part in value]
    return {**together, **({"text": "\n".join(texts)} if texts else {}), **({"parts": parts} if parts else {})}


def _value(raw: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _sum(left: Mapping[str, object], right: Mapping[str, object]) -> Mapping[str, object]:
    """Two usages as one: numbers are added, what is no number is the right one's."""
    total = {**left, **right}
    for name in left.keys() & right.keys():
        match left[name], right[name]:
            case int() as first, int() as second:
                total[name] = first + second
            case dict() as first, dict() as second:
                total[name] = _sum(first, second)
    return total


def _used(usage: object) -> bool:
    """Whether a usage says that something was used: a job's other images have zeros."""
    return isinstance(usage, dict) and usage.get("total_tokens") not in (0, None)


def _event_members(event: bytes) -> Mapping[str, msgspec.Raw]:
    try:
        if event.count(b",") <= _COMMAS:
            return _OBJECT.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    raise ProxyError(Failure.BAD_JSON, "The provider sent an event whose data is not JSON.")


_DIGITS: Final = 12


def full_usage(raw: bytes | None) -> bytes:
    """The provider's `usage`, with zeros for required members that are absent or null."""
    said = _members(raw)
    details = _members(bytes(said.get("input_tokens_details", b"")))
    if raw is not None and said.keys() >= ZERO_USAGE.keys() and details.keys() >= _ZERO_DETAILS.keys():
        return raw
    return msgspec.json.encode({**ZERO_USAGE, **said, "input_tokens_details": {**_ZERO_DETAILS, **details}})


def _members(raw: bytes | None) -> dict[str, msgspec.Raw]:
    """A JSON object's members that are not null; {} where it is not an object, or too large for a usage."""
    try:
        found = _OBJECT.decode(raw if raw and len(raw) <= USAGE_BYTES else b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: value for name, value in found.items() if bytes(value) != _NULL}


def decoded_usage(raw: bytes | None) -> dict[str, object]:
    """The `usage` object, {} where there is none."""
    if raw is None or len(raw) > USAGE_BYTES:
        return {}
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def ending(
    usage: bytes | None, *, price: Price | None, images: int, provider: str, has: Collection[str]
) -> dict[str, object]:
    """The members to append: `cost` and `provider`, without those that the provider sent itself (`has`)."""
    members: dict[str, object] = {}
    if "cost" not in has:
        members["cost"] = cost(decoded_usage(usage), price, images)
    if "provider" not in has:
        members["provider"] = provider
    return members


def model_of(job: Job) -> dict[str, object]:
    """The member that says which model made it, where the request left a choice."""
    return {"model": job.model.id} if job.request.names_model else {}


def appended(data: tuple[Piece, ...], members: Mapping[str, object]) -> tuple[Piece, ...]:
    """Insert `members` before the closing brace of `data`, a JSON object with at least one member."""
    if not members:
        return data
    pieces = list(data)
    while pieces:
        last = bytes(pieces.pop()).rstrip()
        if last:
            return (*pieces, last[:-1] + b"," + msgspec.json.encode(members)[1:])
    return data


def preview(job: Job, picture: Picture, number: int, *, image: int = 0) -> Frame:
    """A `partial_image` event: preview `number`, from 0, of the job's image `image`."""
    return _frame(job, Role.PREVIEW, picture, image, {"partial_image_index": number})


class Spread:
    """Chooses at most `partial_images` of a picture's drafts: the first, second, fourth, eighth and so on."""

    def __init__(self, job: Job) -> None:
        self._most = (job.request.partial_images or 0) if job.request.stream else 0
        self._seen = 0
        self._given = 0

    def take(self) -> int | None:
        """Take a draft. Returns the number of its preview, None where it is not shown."""
        self._seen += 1
        if self._given >= self._most or self._seen < 2**self._given:
            return None
        self._given += 1
        return self._given - 1


def finals(
    job: Job,
    pictures: Sequence[Picture | None],
    *,
    usage: Mapping[str, object] | None = None,
    work: Work | None = None,
    said: Mapping[str, object] | None = None,
) -> Iterator[Frame]:
    """One `completed` event per picture. The last one has the job's `usage`, in OpenAI's terms, and its cost.

    None in `pictures` stands for a missing picture; the others keep their indices. The cost is `work.paid`, or computed
    from `usage`, `work` and the catalogue's price. `work` without pixels: those of the pictures count. `said`: further
    members for the last event.
    """
    made = [picture for picture in pictures if picture is not None]
    counted = Work() if work is None else work
    counted = counted if counted.pixels is not None else replace(counted, pixels=_pixels(made))
    spent = _spent(job, usage, counted, counted.images or len(made))
    if job.n < job.request.n:
        pictures = pictures[: job.n]  # the other indices are other jobs'
    last = max((index for index, picture in enumerate(pictures) if picture is not None), default=0)
    for index, picture in enumerate(pictures):
        if picture is None:
            continue
        members: dict[str, object] = {"usage": ZERO_USAGE, "cost": None, **model_of(job)}
        if index == last:
            members = {"usage": ZERO_USAGE, "cost": None, **model_of(job), **(said or {}), **spent}
        yield _frame(job, Role.COMPLETED, picture, index, {**members, "provider": job.provider.name}, len(pictures) > 1)


def missing(job: Job, image: int, count: int, usage: Mapping[str, object] | None, work: Work) -> Frame:
    """The event of a job that makes `count` pictures fewer than it was for, once the others have gone out.

    It says what they cost together, for the last of them could not. `image`: the first that is missing.
    """
    kind = type_of(job.request.operation, Role.USAGE)
    values: dict[str, object] = {"type": kind, "created_at": job.now}
    values |= {"image_index": job.first + image} if job.several else {}
    spent = _spent(job, usage, work, work.images)
    data = msgspec.json.encode({**values, "missing": count, **spent, "provider": job.provider.name})
    return Frame(kind, (data,), image=job.first + image, final=True, cost=amount(spent["cost"]))


def _spent(job: Job, usage: Mapping[str, object] | None, work: Work, images: int) -> dict[str, object]:
    """What a job has used and cost, and why that is unknown where it is."""
    used, total = ZERO_USAGE if usage is None else usage, work.paid
    if total is None:
        total = cost(used, job.model.price, images, work)
    unknown = {} if total is not None else {"cost_unknown": why_unknown(job.model.price)}
    return {"usage": used, "cost": total, **unknown}


def early(job: Job, picture: Picture, image: int) -> Frame:
    """The `completed` event of a picture that others follow: what they cost together stands in the last one."""
    members: dict[str, object] = {"usage": ZERO_USAGE, "cost": None, "provider": job.provider.name, **model_of(job)}
    return _frame(job, Role.COMPLETED, picture, image, members)


def _pixels(pictures: Sequence[Picture]) -> tuple[int, ...] | None:
    """Pixels of each picture, None where one does not say its size."""
    found = [probe_base64(picture.base64[0]) if picture.base64 else None for picture in pictures]
    sizes = [info.width * info.height for info in found if info is not None]
    return tuple(sizes) if len(sizes) == len(found) else None


def _frame(
    job: Job, role: Role, picture: Picture, image: int, members: Mapping[str, object], several: bool = False
) -> Frame:
    """An event around a picture. Format, size and transparency are read from the picture's own bytes."""
    request = job.request
    info = probe_base64(picture.base64[0]) if picture.base64 else None
    kind = type_of(request.operation, role)
    values: dict[str, object] = {
        "created_at": job.now,
        "size": f"{info.width}x{info.height}" if info else request.size or "auto",
        "quality": request.quality or "auto",
        "background": "transparent" if info and info.alpha else "opaque",
        "output_format": info.format if info else picture.media_type.removeprefix("image/") or "png",
    }
    if job.several or several:
        values["image_index"] = job.first + image
    if picture.revised_prompt:
        values["revised_prompt"] = picture.revised_prompt
    if not picture.base64:
        values |= {"url": picture.url, "warning": picture.problem}
    tail = msgspec.json.encode({**values, **members})[1:]
    head = b'{"type":"' + kind.encode() + (b'","b64_json":"' if picture.base64 else b'","b64_json":null,')
    data = (head, *picture.base64, b'",' + tail) if picture.base64 else (head + tail,)
    final, paid = role is Role.COMPLETED, amount(members.get("cost"))
    return Frame(kind, data, image=job.first + image, final=final, cost=paid)
