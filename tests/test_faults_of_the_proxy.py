"""What can happen to the proxy itself, and the tests that hold what it does then. Each has to be there."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent

FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "10 000 new streams over the limit": ("e2e/test_overload.py::test_a_crowd_over_the_limit_is_told_and_none_hangs",),
    "SIGTERM with open streams": (
        "e2e/test_drain.py::test_everybody_who_is_served_sees_the_end",
        "e2e/test_drain.py::test_at_the_deadline_everything_ends_with_an_error",
    ),
    "SIGKILL of one worker": ("server/test_workers.py::test_a_killed_worker_is_replaced_unnoticed",),
    "an unforeseen exception": ("generation/test_producer.py::test_an_adapters_mistake_is_told_without_its_words",),
    "file descriptors exhausted": (
        "e2e/test_descriptors.py::test_a_connected_caller_is_told_and_nothing_is_sent",
        "e2e/test_descriptors.py::test_connections_that_cannot_be_accepted_cost_nothing",
    ),
    "memory over the limit": (
        "hub/test_pressure.py::test_from_85_percent_on_new_ones_are_refused",
        "hub/test_pressure.py::test_from_95_percent_on_the_largest_end",
        "e2e/test_overload.py::test_short_memory_ends_streams_and_passes",
    ),
    "the event loop is blocked": ("observe/test_metrics.py::test_a_blocked_loop_is_measured_and_logged",),
    "a provider fails half of the time": ("e2e/test_breakers.py::test_a_provider_that_fails_half_of_the_time",),
    "a storm of requests to a dead provider": (
        "e2e/test_breakers.py::test_a_storm_on_a_dead_provider_is_not_doubled",
        "e2e/test_breakers.py::test_a_storm_on_two_dead_providers_is_not_doubled",
    ),
    "the disk is full during an upload": ("e2e/test_uploads.py::test_a_full_disk_is_a_507_and_the_proxy_goes_on",),
    "the store is down": ("e2e/test_replicas_outage.py::test_a_store_that_goes_away_and_comes_back",),
    "the store hangs": (
        "hub/test_valkey_outage.py::test_a_dead_server_is_noticed_by_every_call",
        "e2e/test_drain.py::test_a_store_that_hangs_holds_nobody_up",
    ),
    "the store takes no writes": ("e2e/test_replicas_outage.py::test_a_store_that_takes_no_writes_is_done_without",),
    "the store is a cluster or a Sentinel": (
        "hub/test_valkey_kinds.py::test_a_node_of_a_cluster_is_refused",
        "hub/test_valkey_kinds.py::test_a_sentinel_is_refused",
    ),
    "the clock jumps by an hour": ("e2e/test_overload.py::test_a_clock_that_jumps_ends_nothing",),
    "a reload with a bad file": ("e2e/test_reload.py::test_a_broken_file_changes_nothing",),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_tests(fault: str) -> None:
    for place in FAULTS[fault]:
        file, name = place.split("::")
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        tests = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, functions)}
        assert name in tests
