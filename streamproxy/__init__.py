"""streamproxy makes every image model stream, to every client."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamproxy.app import create_app
    from streamproxy.settings import Settings

    __version__: str

__all__ = ["Settings", "__version__", "create_app"]


def __getattr__(name: str) -> object:
    """Import what is asked for: `streamproxy --help` needs none of it."""
    if name == "create_app":
        from streamproxy.app import create_app

        return create_app
    if name == "Settings":
        from streamproxy.settings import Settings

        return Settings
    if name == "__version__":
        from importlib.metadata import version

        return version("streamproxy")
    raise AttributeError(f"module 'streamproxy' has no attribute {name!r}")
