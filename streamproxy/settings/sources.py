"""Where settings come from: flags > environment > secret files > TOML > defaults.

    settings, problems = load(flags, environ, config)

Strategy: each layer is read into a mapping, the mappings are merged name by name, and `read` checks the result. Two
problems are found here: a file that cannot be read, and a STREAMPROXY_* name that is not a setting's, which would
otherwise be ignored silently. `OPENAI_BASE_URL` is never read: callers point it at this proxy, which would then call
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

from streamproxy.settings import PREFIX, ROWS, Settings, meant, read
from streamproxy.settings.values import MIB, ConfigurationProblem

LIMIT_OF_FILES: Final = MIB  # bytes; a configuration has a few KiB, so a larger file is the wrong one

# STREAMPROXY_CONFIG names the TOML file itself. The other two describe what Kubernetes puts into every pod of a
# namespace with a Service called "streamproxy", "streamproxy-valkey" and the like (kubernetes.io, "Discovering
# services"). The operator did not set these variables, so they are neither read nor refused.
CONFIG_ENV: Final = PREFIX + "CONFIG"
KUBERNETES: Final = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")  # the value of a Service's ..._PORT, which is not our port


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None
) -> tuple[Settings, list[ConfigurationProblem]]:
    """Settings from all layers, without their wrong values, and every problem of every layer.

    A flag that is None and an empty environment value count as not given. Secret files are the files of
    `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential=) with the names of environment variables.
    """
    problems: list[ConfigurationProblem] = []
    layers: dict[str, dict[str, object]] = {
        "a flag": {name: value for name, value in flags.items() if value is not None},
        "the environment": _named(dict(environ), "environment variable", problems),
        "a secret file": _named(_secret_files(environ, problems), "secret file", problems),
        "the TOML file": _toml(config, problems) if config else {},
    }
    settings, found = read(reduce(_over, layers.values()))
    for problem in found:
        problems.append(replace(problem, happened=f"{problem.happened}; it comes from {_origin(problem, layers)}"))
    return settings, problems


def _over(high: Mapping[str, object], low: Mapping[str, object]) -> dict[str, object]:
    """Merge two layers. Where both have a name, the higher one's value counts, and tables are merged."""
    merged = {**low, **high}
    for name in low.keys() & high.keys():
        above, below = high[name], low[name]
        if isinstance(above, Mapping) and isinstance(below, Mapping):
            merged[name] = _over(above, below)
    return merged


def _origin(problem: ConfigurationProblem, layers: Mapping[str, Mapping[str, object]]) -> str:
    """The highest layer with the setting, or with the table that it is in."""
    at = problem.setting + "."
    return next(layer for layer, values in layers.items() if any(at.startswith(f"{name}.") for name in values))


def _named(named: Mapping[str, str], kind: str, problems: list[ConfigurationProblem]) -> dict[str, object]:
    """The values of known settings by name. Each other STREAMPROXY_* name is a problem."""
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
        # tomllib names a place, never a value; for a duplicate it names the key.
        happened = f"the file is not valid TOML: {error}"
    problems.append(ConfigurationProblem("--config", happened, "correct the file or its path", CONFIG_ENV))
    return {}
