"""The ledger of many processes, in the Valkey or Redis server that keeps their streams.

    sp:callers                  sorted set: callers by the last day on which they had a generation, as 20261127
    sp:{caller:<c>}:running     sorted set: ids of its generations, by the time until which their process lives (ms)
    sp:{caller:<c>}:day:<d>     hash: `spent`; `held <id>`, the estimate, provider and model of one that is not settled;
                                and sums by `<figure> <provider> <model>`
    sp:{caller:<c>}:settled:<i> there once a generation has been settled, for as long as that may be repeated

A caller's money is changed by scripts only. A process that dies leaves its generations in `running` for one lease, and
their estimates spent. They are part of the usage as requests of unknown cost. The leases' clock is the server's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

from streamproxy.hub.ledger import FIGURES, KEPT_DAYS, Bill, CallerLimits, Entry, Spent, Verdict
from streamproxy.hub.store import StoreError
from streamproxy.hub.valkey.client import Argument, Script, ValkeyClient, parse_address

LEASE_SECONDS: Final = 9.0
"""Generations are renewed every 3 s; two renewals may get lost."""

SETTLED_SECONDS: Final = 6 * 3600.0
"""How long a settlement may be repeated: while an outage of the server lasts whose first moment lost the reply."""

ALL: Final = "sp:callers"
CHUNK: Final = 500
"""Hashes that are asked for at a time."""

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

RESERVE: Final = Script(
    _NOW
    + """
local running, day, settled = KEYS[1], KEYS[2], KEYS[3]
local id, estimate, place, streams, budget, lease_ms, day_ms = unpack(ARGV)
redis.call('ZREMRANGEBYSCORE', running, '-inf', now)
if redis.call('ZSCORE', running, id) or redis.call('EXISTS', settled) == 1 then return 'reserved' end
if streams ~= '' and redis.call('ZCARD', running) >= tonumber(streams) then return 'streams' end
local spent = tonumber(redis.call('HGET', day, 'spent') or '0')
if budget ~= '' and spent + tonumber(estimate) > tonumber(budget) then return 'budget' end
redis.call('ZADD', running, now + lease_ms, id)
redis.call('PEXPIRE', running, lease_ms)
redis.call('HSET', day, 'held ' .. id, estimate .. ' ' .. place)
redis.call('HINCRBY', day, 'spent', estimate)
redis.call('PEXPIRE', day, day_ms)
return 'reserved'
"""
)
"""Keys: running, day, settled. Arguments: id, estimate, provider and model, the limits ("" for none), the lease, and
how long a day is kept."""

SETTLE: Final = Script(
    """
local running, day, settled = KEYS[1], KEYS[2], KEYS[3]
local id, spent, settled_ms, day_ms = unpack(ARGV)
if not redis.call('SET', settled, '1', 'NX', 'PX', settled_ms) then return 'settled' end
redis.call('ZREM', running, id)
local held = redis.call('HGET', day, 'held ' .. id) or '0'
redis.call('HDEL', day, 'held ' .. id)
redis.call('HINCRBY', day, 'spent', spent - string.match(held, '^%d+'))
for at = 5, #ARGV, 2 do redis.call('HINCRBY', day, ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', day, day_ms)
return 'settled'
"""
)
"""Keys: running, day, settled. Arguments: id, what it spent, how long things are kept; then names of sums, and what is
added to each."""

RENEW: Final = Script(
    _NOW
    + """
for at = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[at]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 'renewed'
"""
)
"""Key: running. Arguments: the lease, and the ids that still run."""


RUNNING: Final = Script(_NOW + "return redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')")
"""Key: running. The ids that have a lease."""


class ValkeyLedger:
    """See the module's text. `lease` is in seconds."""

    def __init__(self, url: str, *, lease: float = LEASE_SECONDS) -> None:
        self._client = ValkeyClient(parse_address(url))
        self._lease = int(lease * 1000)
        self._listed: dict[str, str] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Close the connections with the block. The server need not be there yet."""
        try:
            yield self
        finally:
            await self._client.aclose()

    async def reserve(self, entry: Entry, limits: CallerLimits) -> Verdict:
        most = ["" if limit is None else limit for limit in (limits.streams, limits.budget)]
        what = (entry.id, entry.estimate, f"{entry.provider} {entry.model}", *most)
        await self._list(entry)
        said = await self._client.run(RESERVE, _keys(entry), *what, self._lease, DAY_MS)
        return Verdict(said.decode())

    async def settle(self, bill: Bill) -> None:
        entry = bill.entry
        sums: list[Argument] = []
        for figure, value in bill.figures.items():
            sums += (f"{figure} {bill.provider} {bill.model}", value)
        await self._client.run(SETTLE, _keys(entry), entry.id, bill.spent, SETTLED_MS, DAY_MS, *sums)
        await self._list(entry)

    async def _list(self, entry: Entry) -> None:
        """Put the caller into the list for `usage`, once a day."""
        if self._listed.get(entry.caller) != entry.day:
            commands: list[tuple[Argument, ...]] = [
                ("ZADD", ALL, "GT", _number(entry.day), entry.caller),
                ("PEXPIRE", ALL, DAY_MS),
            ]
            await self._client.ask_all(commands)
            self._listed[entry.caller] = entry.day

    async def renew(self, running: Iterable[Entry]) -> None:
        await self._client.ask_all([("PING",)], probe=True)  # whether or not there is anything to be renewed
        by_caller: defaultdict[str, list[str]] = defaultdict(list)
        for entry in running:
            by_caller[entry.caller].append(entry.id)
        for caller, ids in by_caller.items():
            await self._client.run(RENEW, [_key(caller, "running")], self._lease, *ids)

    async def usage(self, days: Sequence[str], caller: str | None) -> list[Spent]:
        if not days:
            return []
        known = [caller]
        if caller is None:
            known = [name.decode() for name in await self._client.ask("ZRANGEBYSCORE", ALL, _number(min(days)), "+inf")]
        names = [name for name in known if name is not None]
        running = {name: set(await self._client.run(RUNNING, [_key(name, "running")])) for name in names}
        wanted = [(day, name) for day in days for name in names]
        found: list[Spent] = []
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            replies = await self._client.ask_all([("HGETALL", _key(name, f"day:{day}")) for day, name in chunk])
            for (day, name), reply in zip(chunk, replies, strict=True):
                found += _sums(day, name, dict(zip(reply[::2], reply[1::2], strict=True)), running[name])
        return found


DAY_MS: Final = (KEPT_DAYS + 1) * 86_400_000
SETTLED_MS: Final = int(SETTLED_SECONDS * 1000)


def _sums(day: str, caller: str, fields: dict[bytes, bytes], running: set[bytes]) -> Iterator[Spent]:
    """The sums in one hash. Estimates of generations whose processes died are added."""
    places: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    try:
        for name, value in fields.items():
            figure, _, place = name.decode().partition(" ")
            if figure in FIGURES:
                provider, _, model = place.partition(" ")
                places[model, provider][figure] += int(value)
            elif figure == "held" and place.encode() not in running:
                estimate, provider, model = value.decode().split(" ")
                places[model, provider].update({"requests": 1, "cost_unknown": 1, "estimated": int(estimate)})
    except ValueError:
        raise StoreError("The store holds usage that this version cannot read.") from None
    for (model, provider), sums in places.items():
        yield Spent(day, caller, model, provider, **{figure: sums[figure] for figure in FIGURES})


def _keys(entry: Entry) -> list[str]:
    return [_key(entry.caller, name) for name in ("running", f"day:{entry.day}", f"settled:{entry.id}")]


def _key(caller: str, name: str) -> str:
    return f"sp:{{caller:{caller}}}:{name}"


def _number(day: str) -> int:
    """A day as a number, which sorts as it does."""
    return int(day.replace("-", ""))
