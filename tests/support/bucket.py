"""A real S3 server of our own on the loopback: nanio, which keeps buckets as folders and verifies every signature."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from nanio.app import build_app
from nanio.auth.credentials import StaticCredentialResolver
from nanio.config import Settings as NanioSettings
from starlette.types import Receive, Scope, Send

from streamproxy.settings import Settings
from tests.support.proxy import serving

KEY_ID: Final = "bucket-key-id"
SECRET: Final = "bucket-secret-0123456789"
NAME: Final = "pictures"
PREFIX: Final = "made/here"


@dataclass(slots=True)
class BucketServer:
    """`folder` is where the objects of the bucket are; `put` are the paths of PUTs; `lists` counts lists."""

    url: str
    folder: Path
    put: list[str] = field(default_factory=list)
    lists: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """What a proxy needs to put pictures here."""
        return {"results": f"s3://{NAME}/{PREFIX}", "results_endpoint": self.url}

    def objects(self) -> dict[str, bytes]:
        """What it keeps, by key."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and ".nanio" not in str(path)]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def credentials(monkeypatch: pytest.MonkeyPatch, *, secret: str = SECRET) -> None:
    """Put the bucket's credentials where obstore looks for them, and nothing else."""
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_PROFILE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@asynccontextmanager
async def bucket_server() -> AsyncIterator[BucketServer]:
    """A running server with one bucket, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="bucket-") as directory:
        folder = Path(directory, NAME)
        await anyio.Path(folder).mkdir()
        app = build_app(NanioSettings(data_dir=Path(directory), credentials=StaticCredentialResolver({KEY_ID: SECRET})))
        server = BucketServer("", folder)

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "PUT":
                server.put.append(scope["path"])
            server.lists += b"list-type" in scope.get("query_string", b"")
            await app(scope, receive, send)

        async with serving(counting, Settings.of({"port": 0})) as running:
            server.url = running.url
            yield server
