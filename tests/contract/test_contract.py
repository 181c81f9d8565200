"""The rules for every adapter, whatever its provider's wire: see `core.conversation`."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import Final

import pytest

from streamproxy.core.conversation import Accepted, Connect, Fetch, Launch, Pour, Send, Step, Undo
from streamproxy.core.events import ANSWER, KINDS, Frame
from streamproxy.core.requests import FileId, Inline, Remote
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers import ADAPTERS
from tests.contract.peer import INSTANT, Run, as_text, byte_by_byte, cuts, early_ends, sent
from tests.contract.scenarios import BESIDE, HEADER, HOSTS, INPUT, KEY, PNG, PROMPT, SCENARIOS, WHOLE, Scenario

every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=str)


WHOLES: Final = ("imagen", "mai", "bedrock", "nova", "cloudflare", "huggingface")
"""Adapters with one whole answer, so that nothing can fail once it is accepted."""


def test_every_adapter_has_every_kind_of_scenario() -> None:
    for adapter in ADAPTERS:
        rows = [row for row in SCENARIOS if row.adapter == adapter]
        failed_and_accepted = {(row.failure is not None, row.proof is not None) for row in rows}
        whole = adapter in WHOLES
        assert failed_and_accepted == {(False, True), (True, False), *(() if whole else ((True, True),))}, adapter
        assert any(row.failure is Failure.UPSTREAM_INCOMPLETE for row in rows), adapter
    assert ADAPTERS.keys() == HOSTS.keys()


@every_scenario
def test_each_image_has_a_final_frame_or_an_error(scenario: Scenario) -> None:
    run = scenario.play()
    assert (run.error and run.error.failure) is scenario.failure
    assert " ".join(map(_letter, run.frames)) == scenario.frames
    assert (run.accepted_at is None) is (scenario.proof is None)
    if run.error is None:
        finals = [frame.image for frame in run.frames if frame.final]
        answered = [frame.type for frame in run.frames] == [ANSWER]
        assert answered or sorted(finals) == list(range(scenario.first, scenario.first + scenario.n))
        assert run.frames[-1].final
    for frame in run.frames:
        named = b'"image_index":%d' % frame.image in b"".join(frame.data)
        assert named is (scenario.job.several and frame.type != ANSWER)


@every_scenario
def test_where_answers_are_cut_changes_nothing(scenario: Scenario) -> None:
    run = scenario.play()
    whole = _told(run)
    for exchanges in (byte_by_byte(scenario.exchanges), *cuts(scenario.exchanges, run.decoded)):
        assert _told(scenario.play(exchanges)) == whole


@every_scenario
def test_accepted_with_the_proving_byte_and_no_sooner(scenario: Scenario) -> None:
    run = scenario.play(byte_by_byte(scenario.exchanges))
    assert run.accepted_at == _proof(scenario)
    assert sum(isinstance(step, Accepted) for step in run.steps) == (scenario.proof is not None)


@every_scenario
def test_an_early_end_gives_whole_frames_or_an_error(scenario: Scenario) -> None:
    recorded = scenario.play()
    whole = list(map(_unnumbered, recorded.frames))
    for exchanges in early_ends(scenario.exchanges, recorded.decoded):
        run = scenario.play(exchanges)
        assert run.error is not None or run.finals == scenario.n or run.frames[0].type == ANSWER
        previews = [_unnumbered(frame) for frame in run.frames if not frame.final]
        assert [frame for frame in previews if frame not in whole] == []


THROWN: Final = (
    Failure.UPSTREAM_INCOMPLETE,
    Failure.CONNECTION_REFUSED,
    Failure.FETCH_FAILED,
    Failure.FOREIGN_HOST,
    Failure.DEADLINE,
    Failure.RESPONSE_BODY_SIZE,
)
"""One failure of each kind: broken off, never sent, not to be fetched, and three that no repetition mends."""


@every_scenario
def test_an_error_thrown_in_ends_it_or_is_handled(scenario: Scenario) -> None:
    """Once, or at every later step too, as if the provider were gone. Nothing is paid twice."""
    for at, failure in product(range(len(scenario.play().waits)), THROWN):
        for run in (scenario.play(throw_at=at, failure=failure), scenario.play(lost_from=at, failure=failure)):
            ended = run.error is not None or run.finals == scenario.n or run.frames[0].type == ANSWER
            assert ended, f"{failure} at step {at}"


@every_scenario
def test_each_input_goes_out_once_and_in_order(scenario: Scenario) -> None:
    told = b"".join(sent(step.request) for step in scenario.play().steps if isinstance(step, Send | Launch))
    given = [bytes(as_text(image)) for image in scenario.inputs]
    tries = {told.count(text) // given.count(text) for text in given}
    assert tries in (set(), {1})
    if scenario.adapter.startswith("comfyui"):
        return  # its slots have an order of their own
    places = [told.find(text) for text in dict.fromkeys(given)]
    assert places == sorted(places)


@pytest.mark.parametrize("row", [row for row in SCENARIOS if row.failure is None and row.of], ids=str)
def test_jobs_side_by_side_share_no_image(row: Scenario) -> None:
    """The other jobs of the same request get the same answers."""
    found = [frame.image for first in (0, row.n) for frame in replace(row, first=first).play().frames if frame.final]
    assert found == list(range(2 * row.n))


@every_scenario
def test_closing_it_anywhere_leaves_the_right_undo(scenario: Scenario) -> None:
    whole = scenario.play()
    over = next((at for at, step in enumerate(whole.waits) if step == Undo(None)), len(whole.waits))
    for at, step in enumerate(whole.waits):
        run = scenario.play(close_at=at)
        assert run.error is None
        if not isinstance(step, INSTANT):
            expected = scenario.undo if run.accepted_at is not None and at <= over else None
            assert (run.undo and f"{run.undo.method} {run.undo.url}") == expected


@every_scenario
def test_no_step_and_no_error_repeats_a_secret(scenario: Scenario) -> None:
    run = scenario.play()
    told = b"".join(map(_told_step, run.steps))
    assert [word for word in (KEY, HEADER) if word.encode() in told] == []
    sends = [step.request for step in run.steps if isinstance(step, Send | Launch)]
    names = {name for request in sends for name, _ in request.headers}
    assert names & {"authorization", "x-api-key", "api-key", "x-key", "x-goog-api-key", "cookie"} == set()
    said = "" if run.error is None else _everything(run.error)
    assert [word for word in (KEY, PROMPT, PNG, HEADER) if word in said] == []


FOURS: Final = frozenset(
    ["dashscope", "fal", "imagen", "replicate", "ark", "minimax", "xai", "leonardo", "runware", "nova", "ideogram"]
)
AT_ONCE: Final = {"openai": 2, **dict.fromkeys(FOURS, 4)}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_one_job_makes_no_more_images_than_its_provider(adapter: str) -> None:
    for n in (1, 2, 10):
        row = Scenario(adapter, "one", n=n)
        assert ADAPTERS[adapter].at_once(row.request, row.route) == min(n, AT_ONCE.get(adapter, 1))


MASK: Final = Inline(memoryview(b"iVBORw0KGgoAAAANcanaryOfAMask"), "image/png")
REMOTE: Final = Remote("https://canary.test/a.png")
OTHERS: Final = tuple(name for name in ADAPTERS if name != "openai")
URLS: Final = frozenset(
    ["fal", "bfl", "replicate", "ark", "minimax", "xai", "dashscope", "openrouter", "runware", "responses", "luma"]
)
INLINE: Final = tuple(name for name in OTHERS if name not in URLS)
WORDS_ALONE: Final = ("fireworks", "cloudflare", "leonardo", "comfyui", "comfyui-websocket")
"""The model or workflow that their scenarios name takes no input image."""

SEVERAL: Final = ("gemini", "ark", "minimax", "xai", "openrouter", "runware", "responses", "nova")
"""Adapters that take several input images with any model."""

QUALITY: Final = ("openrouter", "responses", "nova")
"""They pass it on."""

TAKES_ONE: Final = {"bfl": "flux-pro-1.1", "dashscope": "qwen-image-max"}
CANNOT: Final = (
    Scenario("openai", "style", members={"style": "canary"}),
    *(Scenario(name, "style", members={"style": "canary"}) for name in OTHERS),
    *(Scenario(name, "quality", members={"quality": "canary"}) for name in OTHERS if name not in QUALITY),
    *(Scenario(name, "file", images=(FileId("canary"),)) for name in OTHERS),
    *(Scenario(name, "mask", mask=MASK, members={"mask": "canary"}) for name in OTHERS if name != "responses"),
    *(
        Scenario(name, "second", images=(INPUT, MASK), model=TAKES_ONE.get(name))
        for name in OTHERS
        if name not in SEVERAL
    ),
)


@pytest.mark.parametrize("scenario", CANNOT, ids=str)
def test_what_it_cannot_do_is_said_before_anything_is_sent(scenario: Scenario) -> None:
    said = ADAPTERS[scenario.adapter].not_applied(scenario.job)
    run = scenario.play((), lost_from=0)
    if scenario.name in said and run.waits:
        assert isinstance(run.waits[0], Send | Launch | Connect)
        assert "canary" not in repr(_told_step(run.waits[0])).replace(PROMPT, "")
        return
    assert run.error is not None
    assert (run.waits, run.error.failure, run.error.charged) == ([], Failure.UNSUPPORTED_PARAMETER, False)
    assert run.error.param
    assert "canary" not in _everything(run.error)


def _first(name: str, *, takes_urls: bool) -> Step | ProxyError:
    """The first step for an input image at a URL, or the refusal."""
    job = Scenario(name, "remote", images=(REMOTE,)).job
    model = replace(job.route.model, remote_image_urls=takes_urls)
    try:
        return next(ADAPTERS[name].converse(replace(job, route=replace(job.route, model=model))))
    except ProxyError as error:
        return error


@pytest.mark.parametrize("name", INLINE)
def test_an_image_at_a_url_is_fetched_first(name: str) -> None:
    """The wire needs its bytes. A model that takes no URLs has it fetched only by the setting."""
    taken, refused = _first(name, takes_urls=True), _first(name, takes_urls=False)
    assert isinstance(taken, Fetch) or (isinstance(taken, ProxyError) and name in WORDS_ALONE)
    assert isinstance(refused, ProxyError)
    assert (refused.failure, refused.charged) == (Failure.UNSUPPORTED_PARAMETER, False)
    assert "canary" not in _everything(refused)


def _proof(scenario: Scenario) -> int | None:
    """Bytes of the paid answer until the provider has accepted it."""
    if scenario.proof is None:
        return None
    paid = [one.body for one in scenario.exchanges if "paid" in one.words and one.head.status < 400]
    if scenario.proof == BESIDE:
        return 0
    if scenario.proof == WHOLE:
        return len(paid[0])
    return paid[0].index(b"\n\n", paid[0].index(scenario.proof.encode())) + 2


def _letter(frame: Frame) -> str:
    return f"{'a' if frame.type == ANSWER else KINDS[frame.type].role.value[0]}{frame.image}"


def _told(run: Run) -> tuple[object, ...]:
    """All of a run that is visible from outside."""
    return (*map(_told_step, run.steps), run.error and _everything(run.error))


def _told_step(step: Step) -> bytes:
    match step:
        case Send(request) | Launch(request):
            return sent(request)
        case Undo(request) if request is not None:
            return b"undo " + sent(request)
        case Fetch(url):
            return b"fetch " + url.encode()
        case Frame():
            return b"%b %d %d " % (step.type.encode(), step.image, step.final) + b"".join(step.data)
        case Pour():
            return b"pour"
    return repr(step).encode()


def _unnumbered(frame: Frame) -> bytes:
    """A frame without a preview's number, which changes where a draft before it is lost."""
    return re.sub(rb'"partial_image_index":[0-9]', b"", _told_step(frame))


def _everything(error: ProxyError) -> str:
    said = (error.failure, error.message, error.param, error.code, error.type, error.status, error.retry_after)
    return repr(
        (*said, error.details.problems, error.details.members, b"".join(error.details.as_sent), error.details.noted)
    )
