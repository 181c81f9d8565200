"""Whether a deployment file's command would start: `streamproxy check` with its flags and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from click.testing import CliRunner, Result

from streamproxy.cli import cli

VALUES = {
    "OPENAI_API_KEY": "not-a-key-but-long-enough",
    "STREAMPROXY_CALLER_KEYS": "sha256:" + "0" * 64,
    "STREAMPROXY_SECRET": "0" * 64,
    "STREAMPROXY_STORE": "redis://127.0.0.1:6379/0",
}
"""Credentials by their names. Nothing is dialled with them."""


def checked(command: Sequence[str], environment: Mapping[str, str]) -> Result:
    """Run `check` in place of `serve`. Of the settings, only those of `environment` are in the environment."""
    serve, *flags = command
    assert serve == "serve"
    cleared = {name: None for name in os.environ if name.startswith(("STREAMPROXY_", "OPENAI_", "CREDENTIALS_"))}
    return CliRunner().invoke(cli, ["check", *flags], env={**cleared, **environment})


def credentials(directory: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Write these credentials as files, and return the environment that names their directory."""
    for name in names:
        (directory / name).write_text(VALUES[name])
    return {"CREDENTIALS_DIRECTORY": str(directory)}
