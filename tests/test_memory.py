"""What this process uses, and its limits: of the setting, and of control groups of both versions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamproxy.memory import Cgroup, Usage, usage

GROUPS = {
    "with a limit": ("1000\n", "2000\n", "anon 1\ninactive_file 300\n", Usage(700, 2000)),
    "version 2 without": ("1000\n", "max\n", "inactive_file 300\n", None),
    "version 1 without": ("1000\n", "9223372036854771712\n", "inactive_file 300\n", None),
    "no such line": ("1000\n", "2000\n", "anon 1\n", Usage(1000, 2000)),
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_without_droppable_pages(tmp_path: Path, group: str) -> None:
    *texts, expected = GROUPS[group]
    files = [tmp_path / name for name in ("current", "max", "stat")]
    for file, text in zip(files, texts, strict=True):
        assert isinstance(text, str)
        file.write_text(text)
    assert Cgroup(files[0], files[1], files[2], "inactive_file").usage() == expected


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert Cgroup(nowhere, nowhere, nowhere, "inactive_file").usage() is None


@pytest.mark.skipif(sys.platform != "linux", reason="from Linux' /proc")
def test_the_setting_counts_this_process() -> None:
    before = usage(1 << 40)
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    after = usage(1 << 40)
    assert before is not None
    assert after is not None
    assert after.limit == 1 << 40
    assert 48 << 20 < after.used - before.used < 128 << 20
