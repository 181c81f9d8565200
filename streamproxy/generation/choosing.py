"""The models that a request may be given to: the one that it names, or `auto`, and its fallbacks.

    choose      the names in a request, and in the settings -> candidates
    fitting     the candidates that take the request's images, once these are here

Both run before anything is sent. A model that lacks what the request needs is refused where the caller names it, with
its place in the request. It is left out where the settings or `auto` name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from streamproxy.core.catalogue import AUTO
from streamproxy.core.requests import FileId, ImageRequest
from streamproxy.core.schema import MAX_FALLBACKS, invalid
from streamproxy.errors import Failure, Problem, ProxyError
from streamproxy.generation.attempts import Attempts, check_inputs
from streamproxy.generation.router import Plan, Router
from streamproxy.surfaces.variations import way

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that a request may be given to. `param`: its place in the request, "" where it is not named there."""

    plan: Plan
    param: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """The provider and the model. Two candidates with the same place are one."""
        return self.plan.route.provider.name, self.plan.model or self.plan.route.upstream_model


@dataclass(frozen=True, slots=True)
class Choice:
    """A request's candidates, best first; at least one."""

    candidates: tuple[Candidate, ...]
    auto: bool = False

    @property
    def first(self) -> Plan:
        return self.candidates[0].plan

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(candidate.plan for candidate in self.candidates)

    @property
    def is_open(self) -> bool:
        """Whether the model that makes the images may be another one than the caller's."""
        return self.auto or len(self.candidates) > 1


@dataclass(frozen=True, slots=True)
class Chooser:
    """Chooses for all requests. `auto` and `fallbacks` are the settings."""

    router: Router
    attempts: Attempts
    auto: tuple[str, ...]
    fallbacks: Mapping[str, tuple[str, ...]]

    def choose(self, request: ImageRequest, headers: Headers, trace: tuple[tuple[str, str], ...]) -> Choice:
        """The candidates of a request. Raises ProxyError where a model that its caller names cannot be asked for it."""

        def plan(name: str) -> Plan:
            found = self.router.plan(name, headers).with_headers(request.extra_headers, trace)
            self.attempts.check(request, found)
            return found

        if request.model == AUTO:
            chosen = tuple(Candidate(found) for found in self._by_capability(request, plan))
            if not chosen:
                message = (
                    "No model that is known to be served does what this request asks for. The setting auto names "
                    "models to choose from."
                )
                raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param="model")
            kept = chosen if request.fallbacks is None else chosen[:1]
            return Choice((*kept, *self._named(request, kept, plan)), auto=True)
        first = Candidate(plan(request.model), "model")
        if request.fallbacks is None:
            return Choice((first, *self._of_settings(request, first, plan)))
        return Choice((first, *self._named(request, (first,), plan)))

    def fitting(self, choice: Choice, request: ImageRequest) -> Choice:
        """The candidates that take the request's images, which are here by now. Raises ProxyError as `choose`.

        Of the request's own `model` only the kinds of images are checked. Its provider checks the rest.
        """
        fit: list[Candidate] = []
        refused: ProxyError | None = None
        for candidate in choice.candidates:
            try:
                check_inputs(request, candidate.plan.route.model)
                if candidate.param != "model" and choice.is_open:
                    _check_files(request, candidate.plan, choice.first)
                    self.attempts.rehearse(request, candidate.plan)
                fit.append(candidate)
            except ProxyError as error:
                if candidate.param:
                    raise _placed(error, candidate.param) from None
                refused = refused or error
        if not fit and refused is not None:
            raise refused
        return Choice(tuple(fit), auto=choice.auto)

    def _by_capability(self, request: ImageRequest, plan: Callable[[str], Plan]) -> Iterator[Plan]:
        """The models of the setting that have what is needed. Without it: the cheapest one of each provider."""
        found: dict[object, Plan] = {}
        for name in self.auto or self.router.by_price():
            candidate = self._able(request, name, plan)
            if candidate is not None:
                key = candidate.place if self.auto else candidate.plan.route.provider.name
                found.setdefault(key, candidate.plan)
            if len(found) > MAX_FALLBACKS:
                break
        yield from found.values()

    def _of_settings(self, request: ImageRequest, first: Candidate, plan: Callable[[str], Plan]) -> Iterator[Candidate]:
        names = (request.model, *first.plan.route.model.spellings)
        others = next((self.fallbacks[name] for name in names if name in self.fallbacks), ())
        seen = {first.place}
        for name in others:
            candidate = self._able(request, name, plan)
            if candidate is not None and candidate.place not in seen:
                seen.add(candidate.place)
                yield candidate

    def _able(self, request: ImageRequest, name: str, plan: Callable[[str], Plan]) -> Candidate | None:
        """The model of this name, if it has what the request needs."""
        try:
            found = plan(name)
        except ProxyError:
            return None
        return Candidate(found) if not self._lacking(request, found) else None

    def _named(
        self, request: ImageRequest, before: Iterable[Candidate], plan: Callable[[str], Plan]
    ) -> Iterator[Candidate]:
        """The fallbacks that the caller names. Raises ProxyError for one that is no fallback for this request."""
        seen = {candidate.place for candidate in before}
        for index, name in enumerate(request.fallbacks or ()):
            param = f"fallbacks[{index}]"
            try:
                candidate = Candidate(plan(name), param)
            except ProxyError as error:
                if error.failure is Failure.MODEL_NOT_FOUND:
                    raise _invalid(index, error.message, "model_not_found") from None
                raise _placed(error, param) from None
            if candidate.place in seen:
                raise _invalid(index, "Value error, it is asked before: name another model", "value_error")
            if lacking := self._lacking(request, candidate.plan):
                message = f"{param}: {candidate.plan.route.model.id} does not do what the request asks for: {lacking}."
                raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=param)
            seen.add(candidate.place)
            yield candidate

    def _lacking(self, request: ImageRequest, plan: Plan) -> str:
        """What the request needs that the model does not have, by the member that asks for it; "" where it has all."""
        model = plan.route.model
        if request.images and not model.edits:
            return "image"
        if request.variation is not None:
            try:
                if way(plan.route) is not request.variation:
                    return "image"
            except ProxyError:
                return "image"
        if request.n > model.max_n and self.attempts.at_once(request, plan) > model.max_n:
            return "n"
        if len(request.prompt) > model.max_prompt:
            return "prompt"
        missed = _needs(request) & {*self.attempts.not_applied(request, plan), *model.refuses}
        return min(missed, default="")


def _needs(request: ImageRequest) -> frozenset[str]:
    """Members without which the picture would be another one than was asked for."""
    asked = {
        "mask": request.mask is not None,
        "size": request.size not in (None, "auto"),
        "background": request.background == "transparent",
        "output_format": request.output_format is not None,
    }
    return frozenset(name for name, needed in asked.items() if needed)


def _check_files(request: ImageRequest, plan: Plan, first: Plan) -> None:
    """Raise ProxyError for a file of the first provider's own, which no other provider has."""
    files = any(isinstance(image, FileId) for image in (*request.images, request.mask))
    if files and plan.route.provider.name != first.route.provider.name:
        message = "The file's id is that of another provider. POST /v1/files uploads an image to this proxy."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message)


def _placed(error: ProxyError, param: str) -> ProxyError:
    """The same failure, about the model at `param`. That of the model itself keeps the member that it names."""
    if param == "model":
        return error
    message = error.message if error.message.startswith(param) else f"{param}: {error.message}"
    return ProxyError(error.failure, message, param=param, details=error.details)


def _invalid(index: int, msg: str, type: str) -> ProxyError:
    return invalid((Problem(("body", "fallbacks", index), msg, type),))
