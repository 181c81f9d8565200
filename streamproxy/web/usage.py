"""GET usage: spending by day, caller, model and provider.

A caller with a key sees its own. Where callers have no keys, it has the spending of all, as the metrics have.
"""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Final

from starlette.requests import Request

from streamproxy.auth import authenticate
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.tabs import MICRO
from streamproxy.hub.ledger import FIGURES, KEPT_DAYS, Spent
from streamproxy.web.endpoint import Context
from streamproxy.web.responses import Response, json_response

GROUPS: Final = ("date", "caller", "model", "provider")
QUERY: Final = ("from", "to", "caller", "model", "group_by")
MONEY: Final = ("cost", "estimated")


async def usage(request: Request, context: Context) -> Response:
    """One object for each day, caller, model and provider, or for each of the groups that `group_by` names."""
    for name in request.query_params:
        if name not in QUERY:
            raise _wrong(name, f"it is none of {', '.join(QUERY)}")
    own = authenticate(request.scope["headers"], context.callers).label
    caller, model = request.query_params.get("caller"), request.query_params.get("model")
    if own is not None and caller not in (None, own):
        raise _wrong("caller", "a caller sees its own usage only")
    groups = _groups(request)
    spent = await context.tabs.usage(_days(request, context), caller if own is None else own)
    rows = [row for row in spent if model in (None, row.model)]
    return json_response({"object": "list", "data": _summed(rows, groups)}, headers={"cache-control": "no-store"})


def _days(request: Request, context: Context) -> list[str]:
    """The days from `from` to `to`, both included, of those that are kept; by default all of them."""
    kept = [context.tabs.day(back) for back in reversed(range(KEPT_DAYS))]
    first, last = _day(request, "from", kept[0]), _day(request, "to", kept[-1])
    if first > last:
        raise _wrong("from", "it is after `to`")
    return [day for day in kept if first <= day <= last]


def _day(request: Request, name: str, default: str) -> str:
    given = request.query_params.get(name, default)
    try:
        if date.fromisoformat(given).isoformat() == given:
            return given
    except ValueError:
        pass
    raise _wrong(name, "it is no day of UTC like 2026-11-27")


def _groups(request: Request) -> tuple[str, ...]:
    given = request.query_params.get("group_by")
    if given is None:
        return GROUPS
    groups = tuple(part.strip() for part in given.split(","))
    if not set(groups) <= set(GROUPS) or len(set(groups)) < len(groups):
        raise _wrong("group_by", f"it is no list of {', '.join(GROUPS)}")
    return groups


def _summed(rows: list[Spent], groups: tuple[str, ...]) -> list[dict[str, object]]:
    sums: dict[tuple[str, ...], Counter[str]] = {}
    for row in rows:
        places = {"date": row.day, "caller": row.caller, "model": row.model, "provider": row.provider}
        found = sums.setdefault(tuple(places[group] for group in groups), Counter())
        found.update({figure: getattr(row, figure) for figure in FIGURES})
    return [
        {
            **{group: value or None for group, value in zip(groups, place, strict=True)},
            **{figure: found[figure] / MICRO if figure in MONEY else found[figure] for figure in FIGURES},
        }
        for place, found in sorted(sums.items(), key=lambda item: item[0])
    ]


def _wrong(param: str, why: str) -> ProxyError:
    return ProxyError(Failure.INVALID_REQUEST, f"{param}: {why}.", param=param)
