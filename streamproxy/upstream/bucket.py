"""The seam to obstore: a bucket of an S3 service.

Region and credentials are those that obstore finds: AWS_REGION, AWS_ACCESS_KEY_ID and their like, a role of the
machine, or a web identity. Every operation is bounded in time and raises BucketError, whose text names the kind of
failure only: obstore's own texts have URLs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import anyio

PUT_SECONDS: Final = 60.0
"""For one picture: 50 MB at 7 Mbit/s."""

LOOK_SECONDS: Final = 2.0
"""For a list of one stream's pictures, or a signature, for which a role's credentials may have to be fetched."""

CONNECT_SECONDS: Final = 3.0

IDLE_SECONDS: Final = 1.0
"""A connection is kept for the next picture of the same order. obstore closes none by itself when the app ends."""

RETRIES: Final = 2
"""Of a request that fails by a 5xx or a broken connection. A picture is put under a name of its own: nothing is lost
by putting it twice."""


class BucketError(Exception):
    """The bucket cannot be reached, or refuses."""


class Bucket:
    """A bucket, or what is below a prefix of it. `url`: `s3://bucket/prefix`; `endpoint`: of a service not AWS's.

    `seconds`: how long a signed URL is valid. Nothing is sent yet. Raises ModuleNotFoundError without the extra `s3`,
    and BucketError for what obstore finds wrong with the URL or the environment.
    """

    def __init__(self, url: str, *, endpoint: str | None, seconds: float) -> None:
        from obstore.store import S3Store

        place = urlsplit(url)
        options: dict[str, str] = {} if endpoint is None else {"endpoint": endpoint}
        with _translated():
            self._store = S3Store(
                place.netloc,
                prefix=place.path.strip("/") or None,
                client_options={
                    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                    "timeout": timedelta(seconds=PUT_SECONDS),
                    "pool_idle_timeout": timedelta(seconds=IDLE_SECONDS),
                    **({"allow_http": True} if (endpoint or "").startswith("http://") else {}),
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=PUT_SECONDS)},
                **options,  # type: ignore[arg-type]
            )
        self._lifetime = timedelta(seconds=seconds)

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """Put an object, in one request."""
        from obstore import put_async

        with _translated(), anyio.fail_after(PUT_SECONDS):
            await put_async(self._store, key, data, attributes={"Content-Type": media_type}, use_multipart=False)

    async def names(self, prefix: str) -> list[str]:
        """The objects whose keys begin with `prefix/`, by what follows."""
        from obstore import list_with_delimiter_async

        with _translated(), anyio.fail_after(LOOK_SECONDS):
            found = await list_with_delimiter_async(self._store, prefix)
        return [str(each["path"]).rpartition("/")[2] for each in found["objects"]]

    async def delete(self, keys: list[str]) -> None:
        """Delete objects; one that is not there is no error."""
        from obstore import delete_async

        with _translated(), anyio.fail_after(PUT_SECONDS):
            await delete_async(self._store, keys)

    async def signed(self, keys: list[str]) -> list[str]:
        """A URL for each object that reads it, without asking whether it is there."""
        from obstore import sign_async

        with _translated(), anyio.fail_after(LOOK_SECONDS):
            return [*await sign_async(self._store, "GET", keys, self._lifetime)]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise BucketError("it took too long") from None
    except Exception as error:  # obstore's own, and those of Python's types that it raises
        raise BucketError(type(error).__name__) from None
