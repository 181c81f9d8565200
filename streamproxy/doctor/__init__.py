"""Finds what a chain of edges does to streams, with real requests through it, and names the lines that cure it.

    caller.py  --->  the operator's edges  --->  witness.py round a real proxy  --->  provider.py, simulated

Both ends are in this process. So what was sent and what arrived, and when, can be compared on each side: a header that
is lost, an event that is held, a closed connection that is not passed on. The proxy takes only requests with a key of
this run, since the address is public meanwhile.

checks      what is asked, and how it is judged
cures       faults, and the lines against them for each edge
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import anyio
import httpx

from streamproxy.app import create_app
from streamproxy.doctor.caller import MARGIN_SECONDS, Caller
from streamproxy.doctor.checks import LEAVING, NAMES, QUICK, SLOW, Check, Finding, Outcome, common, previews, reach
from streamproxy.doctor.cures import Edge, Fault, cures, detect
from streamproxy.doctor.provider import Times, provider
from streamproxy.doctor.witness import Witness
from streamproxy.server import Hooks, serve
from streamproxy.settings import Settings
from streamproxy.simulator.server import serve as serve_scripts

CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was found at `url`. `outcomes`: a word for each check. `findings`: one for each fault."""

    url: str
    edge: Edge | None
    outcomes: Mapping[str, str]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> list[Finding]:
        """What can be cured."""
        return [finding for finding in self.findings if not self._is_note(finding)]

    @property
    def notes(self) -> list[Finding]:
        """What this edge cannot do better."""
        return [finding for finding in self.findings if self._is_note(finding)]

    def _is_note(self, finding: Finding) -> bool:
        return self.edge is not None and finding.fault in self.edge.cannot

    def as_json(self) -> dict[str, object]:
        """The report for programs."""
        return {
            "url": self.url,
            "edge": None if self.edge is None else self.edge.name,
            "checks": dict(self.outcomes),
            "faults": [self._described(finding) for finding in self.faults],
            "notes": [self._described(finding) for finding in self.notes],
        }

    def _described(self, finding: Finding) -> dict[str, object]:
        fault = finding.fault
        found = {"fault": fault.name.lower(), "meaning": fault.value, "seen": finding.detail}
        return {**found, "cures": list(cures(fault, self.edge))}

    def as_text(self) -> str:
        """The report for people."""
        name = "an edge that does not name itself" if self.edge is None else self.edge.name
        lines = [f"{self.url}: {name}", "", *(f"  {check:14} {word}" for check, word in self.outcomes.items())]
        for title, findings in (("FAULT", self.faults), ("note", self.notes)):
            for finding in findings:
                lines += ["", f"{title}: {finding.fault.value}", f"  seen: {finding.detail}"]
                lines += [f"  cure: {line}" for line in cures(finding.fault, self.edge)]
        return "\n".join([*lines, "", "Faults were found." if self.faults else "No fault was found."])


async def examine(url: str, sock: socket.socket, *, times: Times, edge: Edge | None = None) -> Report | None:
    """Serve on `sock`, ask by `url`, and report; None where a signal ends it before. `edge`: it is known to be this."""
    key = secrets.token_urlsafe(32)
    report: Report | None = None
    async with serve_scripts(provider(times)) as upstream, anyio.create_task_group() as tasks:
        settings = _settings(upstream.url, key, times)
        witness = Witness(create_app(settings))
        started = anyio.Event()

        async def stopped() -> None:
            tasks.cancel_scope.cancel()

        hooks = Hooks(ready=lambda _: started.set(), drain=stopped)
        tasks.start_soon(serve, witness, settings, sock, hooks)
        await started.wait()
        async with _client() as client:
            caller = Caller(client, url.rstrip("/"), key, witness)
            report = _report(caller, edge, await _outcomes(caller, times))
        tasks.cancel_scope.cancel()
    return report


def _report(caller: Caller, edge: Edge | None, outcomes: Mapping[str, Outcome]) -> Report:
    seen = next((found for answer in caller.answers if (found := detect(answer.headers))), None)
    findings = [finding for outcome in outcomes.values() for finding in outcome.findings]
    unique = {finding.fault: finding for finding in (*common(caller.answers), *findings)}
    ordered = tuple(unique[fault] for fault in Fault if fault in unique)
    return Report(caller.url, edge or seen, {name: outcome.word for name, outcome in outcomes.items()}, ordered)


def _settings(upstream: str, key: str, times: Times) -> Settings:
    longest = times.silence + 2 * MARGIN_SECONDS
    return Settings.of(
        {
            "providers": {"sim": {"base_url": f"{upstream}/v1", "credential": "none"}},
            "caller_keys": [f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"],
            "heartbeat": times.heartbeat,
            "commit_after": 0.1,
            "disconnect_grace": 0,
            "failure_hold": 0,
            "first_byte_timeout": longest,
            "idle_timeout": longest,
            "total_timeout": longest,
        }
    )


def _client() -> httpx.AsyncClient:
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)  # each answer has a bound of its own
    return httpx.AsyncClient(timeout=timeout, trust_env=False, verify=ssl.create_default_context())


async def _outcomes(caller: Caller, times: Times) -> dict[str, Outcome]:
    short, reached = await reach(caller)
    found = {"reached by": reached}
    if short is None:
        return found
    found["previews"] = await previews(caller, short)

    async def run(name: str, check: Check) -> None:
        found[name] = await check(caller, times)

    async with anyio.create_task_group() as slow:
        for name, check in SLOW.items():
            slow.start_soon(run, name, check)
        for name, check in QUICK.items():
            await run(name, check)
        async with anyio.create_task_group() as leaving:
            for name, check in LEAVING.items():
                leaving.start_soon(run, name, check)
    return {name: found[name] for name in NAMES}
