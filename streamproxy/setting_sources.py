"""Where settings come from: flags > environment > secret files > TOML > defaults.

    settings = load(flags, environ, config)      or ConfigurationError with every problem of every layer

Strategy: each layer is read into a mapping, the mappings are merged name by name, and `Settings.of` judges the result.
Two things are said here already: a STREAMPROXY_* name that is no setting's, which would else do nothing unnoticed, and
a file that cannot be read. `OPENAI_BASE_URL` is never read: callers point it at this proxy, which would then call
itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Final

from streamproxy.setting_types import MIB, ConfigurationError, ConfigurationProblem
from streamproxy.settings import PREFIX, ROWS, Settings, meant

LIMIT_OF_FILES: Final = MIB  # bytes; a configuration is a few KiB, so more is the wrong file: refused

# STREAMPROXY_CONFIG names the TOML file itself. The rest is what Kubernetes puts into every pod of a namespace that has
# a Service called "streamproxy", "streamproxy-valkey" and the like (kubernetes.io, "Discovering services"). It is known
# by its form and is not the operator's: neither read nor refused.
CONFIG_ENV: Final = PREFIX + "CONFIG"
KUBERNETES: Final = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")  # what a Service's ..._PORT holds, and no port of ours


def load(flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None) -> Settings:
    """Settings from all layers. A flag that is None and an empty environment value count as not given.

    Secret files are those of `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential=) that are named like the environment
    names. Raises ConfigurationError with every problem of every layer.
    """
    problems: list[ConfigurationProblem] = []
    layers: dict[str, dict[str, object]] = {
        "a flag": {name: value for name, value in flags.items() if value is not None},
        "the environment": _named(dict(environ), "environment variable", problems),
        "a secret file": _named(_secret_files(environ, problems), "secret file", problems),
        "the TOML file": _toml(config, problems) if config else {},
    }
    sound: Settings | None
    try:
        sound = Settings.of(reduce(_over, layers.values()))
    except ConfigurationError as error:
        sound = error.sound
        for problem in error.problems:
            problems.append(replace(problem, happened=f"{problem.happened}; it comes from {_origin(problem, layers)}"))
    if problems or sound is None:
        raise ConfigurationError(problems, sound)
    return sound


def _over(high: Mapping[str, object], low: Mapping[str, object]) -> dict[str, object]:
    """Both layers; where both have a name the higher one's value, or where that is a table, both tables merged."""
    merged = {**low, **high}
    for name in low.keys() & high.keys():
        above, below = high[name], low[name]
        if isinstance(above, Mapping) and isinstance(below, Mapping):
            merged[name] = _over(above, below)
    return merged


def _origin(problem: ConfigurationProblem, layers: Mapping[str, Mapping[str, object]]) -> str:
    """The highest layer that says the setting, or the table that it is in."""
    at = problem.setting + "."
    return next(layer for layer, values in layers.items() if any(at.startswith(f"{name}.") for name in values))


def _named(named: Mapping[str, str], kind: str, problems: list[ConfigurationProblem]) -> dict[str, object]:
    """The values whose name is a setting's; each other STREAMPROXY_* name is a problem, not a value to ignore."""
    names = {row.env: row.name for row in ROWS.values() if row.env}
    values: dict[str, object] = {}
    for name, value in named.items():
        if KUBERNETES.fullmatch(name) or (name.endswith("_PORT") and SERVICE_ADDRESS.match(value)):
            continue
        if name in names:
            if value.strip():
                values[names[name]] = value.strip()
        elif name.upper().startswith(PREFIX) and name != CONFIG_ENV:
            problems.append(ConfigurationProblem(name, f"no setting has this {kind}", meant(name.upper(), names)))
    return values


def _secret_files(environ: Mapping[str, str], problems: list[ConfigurationProblem]) -> dict[str, str]:
    files: dict[str, str] = {}
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        for path in sorted(Path(directory).iterdir()) if directory else ():
            if path.name.upper().startswith(PREFIX):
                with path.open(encoding="utf-8-sig") as file:
                    files[path.name] = file.read(LIMIT_OF_FILES)
    except (OSError, UnicodeDecodeError) as error:
        fix = "make the directory and its files readable UTF-8, or unset CREDENTIALS_DIRECTORY"
        problems.append(ConfigurationProblem("CREDENTIALS_DIRECTORY", f"unreadable ({type(error).__name__})", fix))
    return files


def _toml(config: Path, problems: list[ConfigurationProblem]) -> dict[str, object]:
    try:
        with config.open("rb") as file:
            raw = file.read(LIMIT_OF_FILES + 1)
        if len(raw) > LIMIT_OF_FILES:
            raise ValueError(f"it has more than {LIMIT_OF_FILES} bytes")
        return tomllib.loads(raw.decode("utf-8-sig"))  # editors on Windows write a byte order mark
    except OSError as error:
        happened = f"the file cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        happened = "the file is not UTF-8"
    except ValueError as error:
        # tomllib says a place, never a value; a duplicate key's message does name the key.
        happened = f"the file is not valid TOML: {error}"
    problems.append(ConfigurationProblem("--config", happened, "correct the file or its path", CONFIG_ENV))
    return {}
