"""Uploaded files as values: new ones, their records, and their ids.

An id is a capability: 128 random bits, which only its uploader is told. It also says when the file expires, so that an
id of an expired file is told from one that never was, without anything being kept for that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from streamproxy.core.requests import Upload

PREFIX: Final = "upl_"
"""How our ids begin. OpenAI's begin with `file-`, so that neither is taken for the other."""

_ID: Final = re.compile(PREFIX + r"([0-9a-f]{8})[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of one uploaded file. `owner`: a hash of the key it came with, None without one.

    `created` and `expires` are in Unix seconds, `media_type` is what its bytes say.
    """

    id: str = field(repr=False)  # without caller keys, the id is the right to read the file
    owner: str | None
    name: str = field(repr=False)
    size: int
    media_type: str
    purpose: str
    created: int
    expires: int


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file as it is uploaded. `seconds`: how long it is to be kept, None for as long as the setting says."""

    upload: Upload = field(repr=False)
    name: str = field(repr=False)
    media_type: str
    purpose: str
    seconds: int | None = None


def file_id(expires: int, token: str) -> str:
    """The id of a file that expires then. `token`: 32 random hexadecimal digits."""
    return f"{PREFIX}{expires:08x}{token}"


def expiry(id: str) -> int | None:
    """When the file of this id expires, in Unix seconds; None for an id that is not of our form."""
    found = _ID.fullmatch(id)
    return int(found[1], 16) if found else None
