"""streamproxy makes every image model stream, to every client.

create_app(settings)   the app, to be mounted or served
app                    the app by the environment's settings, made when it is imported: `uvicorn streamproxy:app`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from streamproxy.app import create_app
    from streamproxy.settings import Settings

    __version__: str
    app: Starlette

__all__ = ["Settings", "__version__", "create_app"]


def __getattr__(name: str) -> object:
    """Import what is asked for: `streamproxy --help` needs none of it."""
    if name == "app":
        return _app()
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


def _app() -> Starlette:
    """The app by the settings of the environment, for other servers. Raises ConfigurationError."""
    import os
    from pathlib import Path

    from streamproxy.app import create_app
    from streamproxy.observe import configure_logging
    from streamproxy.settings import ConfigurationError
    from streamproxy.settings.sources import CONFIG_ENV, load

    config = os.environ.get(CONFIG_ENV)
    settings, problems = load({}, os.environ, Path(config) if config else None)
    if problems:
        raise ConfigurationError(problems)
    configure_logging(settings.log_level, settings.log_format, pid=True)
    return create_app(settings)
