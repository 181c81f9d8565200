"""POST, GET and DELETE files, and POST upload: images that later requests name by their ids.

`at_hand` puts the files in the place of their ids, before anything of a request is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import BinaryIO

from anyio import to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from streamproxy.auth import owner_of
from streamproxy.core.catalogue import Provider
from streamproxy.core.files import PREFIX, FileRecord
from streamproxy.core.requests import FileId, ImageRequest, Input, Part, Spooled
from streamproxy.errors import Failure, ProxyError
from streamproxy.surfaces import files as surface
from streamproxy.web.body import SpooledUpload, media_type, unsupported
from streamproxy.web.endpoint import Context
from streamproxy.web.responses import NOT_APPLIED, empty_response, json_response
from streamproxy.web.slicing import LARGEST


async def create(request: Request, context: Context) -> ASGIApp:
    """OpenAI's way to upload."""
    return await _create(request, context, surface.uploaded, surface.described)


async def create_as_eden(request: Request, context: Context) -> ASGIApp:
    """Eden AI's way to upload."""
    return await _create(request, context, surface.uploaded_to_eden, surface.described_by_eden)


async def _create(
    request: Request,
    context: Context,
    read: Callable[[tuple[Part, ...]], surface.Uploaded],
    describe: Callable[[FileRecord], dict[str, object]],
) -> ASGIApp:
    if media_type(request) != "multipart/form-data":
        raise unsupported("multipart/form-data")
    context.ask_for_key(request)
    if context.hub.admission.draining:
        raise ProxyError(Failure.DRAINING, "The proxy is shutting down.", retry_after="2")
    form = await context.intake.read_form(request)
    try:
        uploaded = await to_thread.run_sync(read, form.parts)
        record = await context.uploads.keep(uploaded.file, _owner(request, context))
    finally:
        form.close()
    names = uploaded.not_applied(record)
    return json_response(describe(record), headers={NOT_APPLIED: ", ".join(names)} if names else {})


async def index(request: Request, context: Context) -> ASGIApp:
    """The files that came with this caller's key, in pages."""
    asked = surface.page(request.query_params)
    records = await context.uploads.owned(_owner(request, context))
    return json_response(surface.listing(records, asked))


async def describe(request: Request, context: Context) -> ASGIApp:
    """What is known of one file."""
    return json_response(surface.described(await _found(request, context)))


async def content(request: Request, context: Context) -> ASGIApp:
    """The file itself."""
    record = await _found(request, context)
    headers = {
        "content-type": record.media_type,
        "content-length": str(record.size),
        "content-disposition": "attachment",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }
    if request.method == "HEAD":
        return empty_response(200, headers)
    return _Content(await context.uploads.content(record), headers)


async def delete(request: Request, context: Context) -> ASGIApp:
    """Let go of one file."""
    record = await _found(request, context)
    await context.uploads.delete(record)
    return json_response(surface.deleted(record.id))


async def _found(request: Request, context: Context) -> FileRecord:
    return await context.uploads.find(request.path_params["id"], _owner(request, context))


def _owner(request: Request, context: Context) -> str | None:
    return owner_of(request.scope["headers"], context.callers)


class _Content:
    """A response with a file as its body, which is read while it is sent."""

    def __init__(self, file: BinaryIO, headers: Mapping[str, str]) -> None:
        self._file = file
        self._headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._file.seek(0)
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            while piece := await to_thread.run_sync(self._file.read, LARGEST):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._file.close()


async def at_hand(
    wanted: ImageRequest, context: Context, provider: Provider, owner: str | None, opened: ExitStack
) -> ImageRequest:
    """The request with each id of a file of ours replaced by the file, which `opened` closes.

    Ids of the provider's own files stay as they are. Raises ProxyError(FILE_NOT_FOUND) or (FILE_EXPIRED).
    """

    async def one(image: Input, param: str) -> Input:
        if not isinstance(image, FileId) or _of_provider(image.id, provider):
            return image
        try:
            record = await context.uploads.find(image.id, owner)
            upload = SpooledUpload(record.size, await context.uploads.content(record))
        except ProxyError as error:
            error.param = wanted.told(param)
            raise
        opened.callback(upload.close)
        return Spooled(upload, record.media_type)

    if not any(isinstance(image, FileId) for image in (*wanted.images, wanted.mask)):
        return wanted
    images = [await one(image, f"images[{index}].file_id") for index, image in enumerate(wanted.images)]
    mask = None if wanted.mask is None else await one(wanted.mask, "mask.file_id")
    return replace(wanted, images=tuple(images), mask=mask)


def _of_provider(id: str, provider: Provider) -> bool:
    return not id.startswith(PREFIX) and id.startswith(provider.file_ids)
