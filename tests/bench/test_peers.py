"""A peer's processes are counted whenever they come, and when they have ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench.peers import PEERS, Running
from tests.bench.wire import Void

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="read through Linux' kernel interfaces")

FORKS = """
import os, sys, time

def work():
    while time.process_time() < 0.2:
        pass

ends, held = os.pipe()  # a child that stays ends with its parent, who holds this open
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        work()
        print("done", flush=True)
        if line == "stay\\n":
            os.close(held)
            os.read(ends, 1)
        os._exit(0)
    if line == "end\\n":
        os.waitpid(child, 0)
        print("waited", flush=True)
"""


@pytest.mark.parametrize(("how", "lines"), [("stay", 1), ("end", 2)], ids=["it stays", "it ends"])
def test_a_later_process_counts_after_its_end(how: str, lines: int) -> None:
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()
            peer = Running(PEERS[0], 0, process.pid)
            before, resident = peer.cpu(), peer.memory()
            for number in (1, 2):
                process.stdin.write(f"{how}\n")
                process.stdin.flush()
                for _ in range(lines):
                    process.stdout.readline()
                assert peer.cpu() - before >= 0.2 * number - 0.03  # the kernel says in ticks what ended ones had
            assert (peer.memory() > resident * 1.2) == (how == "stay")
        finally:
            process.kill()
    with pytest.raises(Void, match="ended"):
        peer.cpu()
