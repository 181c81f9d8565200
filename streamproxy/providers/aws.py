"""What the models on Amazon Bedrock have in common: InvokeModel, and how AWS refuses it.

    POST /model/{modelId}/invoke      the model's own JSON in, its own JSON out
    x-amzn-requestid                  by which AWS's support finds a request
    x-amzn-errortype                  the name of an error; the body has only its message

Sources: botocore 1.44's model of bedrock-runtime; Amazon Bedrock's API reference, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.conversation import Conversation, Job, JobId, decoded, post_json
from streamproxy.core.requests import Head, UpstreamRequest
from streamproxy.errors import ProxyError
from streamproxy.providers.refusals import Refusal, moderated, refused

FAILED: Final[Mapping[int, int]] = {408: 504, 424: 502}
"""ModelTimeoutException and ModelErrorException: AWS calls them the caller's errors, but the model has failed."""

FILTERS: Final = "content filters"
"""In the text of a refusal for what a prompt shows: a ValidationException like any other, without a code of its own."""


TEXTS: Final = frozenset({"negative_prompt", "style_preset", "search_prompt", "select_prompt"})
"""Members that are text, whatever they hold."""


class _Said(msgspec.Struct):
    message: str | None = None
    capital: str | None = msgspec.field(default=None, name="Message")


def invoke(job: Job, value: object) -> UpstreamRequest:
    """The request that has the job's model work on `value`."""
    model = quote(job.route.upstream_model, safe="")
    accept = (("accept", "application/json"),)
    return post_json(job, f"{job.provider.base_url}/model/{model}/invoke", value, accept)


def plain(name: str, option: object) -> object:
    """A member as AWS wants it: what a form says as text, like `7`, is a number there, unless its name is in TEXTS."""
    if not isinstance(option, str) or name in TEXTS:
        return option
    try:
        value: object = msgspec.json.decode(option)
    except msgspec.DecodeError:
        return option
    return value if isinstance(value, int | float) else option


def named(head: Head) -> Conversation[None]:
    """The request's name, for the log."""
    if (id := head.headers.get("x-amzn-requestid")) is not None:
        yield JobId(id)


def refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """The error that an answer other than a success amounts to."""
    try:
        said = decoded(raw, _Said)
    except ProxyError:
        said = _Said()
    words = said.message or said.capital or ""
    code = head.headers.get("x-amzn-errortype", "").partition(":")[0]
    if head.status == 400 and FILTERS in words:
        return moderated(job, words, code)
    return refused(job, Head(FAILED.get(head.status, head.status), head.items), Refusal(words, code or None))
