"""The previews that a caller wants: what its query says, else its Prefer header, else the settings for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from streamproxy.core.previews import FORMATS, FULL, LEAST, MOST, PreviewForm, edge_of, format_of
from streamproxy.errors import Failure, ProxyError
from streamproxy.settings import Settings
from streamproxy.web.headers import preferences


@dataclass(frozen=True, slots=True)
class PreviewChoice:
    """`form`: None for previews as they come. `applied`: the preferences of the header that decided."""

    form: PreviewForm | None
    applied: tuple[str, ...] = ()

    @property
    def query(self) -> str:
        """The form as parameters of a URL that has others before them."""
        return "" if self.form is None else self.form.query

    @property
    def headers(self) -> Mapping[str, str]:
        """Preference-Applied (RFC 7240, 3)."""
        return {"preference-applied": ", ".join(self.applied)} if self.applied else {}


AS_THEY_COME: Final = PreviewChoice(None)


def preview_choice(request: Request, settings: Settings, model: tuple[str, ...] = ()) -> PreviewChoice:
    """The previews that are wanted. `model`: the names of the one that makes them, if this request orders them.

    Raises ProxyError(INVALID_REQUEST) for a wrong query. A preference that cannot be honoured is ignored (RFC 7240, 2).
    """
    query = request.query_params
    if "preview" in query or "preview_format" in query:
        return PreviewChoice(_queried(query, settings.preview_pixels))
    if (preferred := _preferred(request, settings.preview_pixels)) is not None:
        return preferred
    named = any(name in settings.preview_models for name in model)
    return PreviewChoice(PreviewForm(settings.preview_pixels) if named else None)


def _queried(query: Mapping[str, str], pixels: int) -> PreviewForm | None:
    format = format_of(query.get("preview_format", FORMATS[0]))
    if format is None:
        raise ProxyError(
            Failure.INVALID_REQUEST, f"preview_format must be one of {', '.join(FORMATS)}.", param="preview_format"
        )
    said = query.get("preview", str(pixels))
    if said == FULL:
        return None
    edge = edge_of(said)
    if edge is None:
        message = f"preview must be a whole number of pixels from {LEAST} to {MOST}, or {FULL}."
        raise ProxyError(Failure.INVALID_REQUEST, message, param="preview")
    return PreviewForm(edge, format)


def _preferred(request: Request, pixels: int) -> PreviewChoice | None:
    preferred = preferences(request)
    said, format = preferred.get("preview", ""), format_of(preferred.get("preview-format", ""))
    if said == FULL:
        return PreviewChoice(None, (f"preview={FULL}",))
    edge = edge_of(said)
    if edge is None and format is None:
        return None
    applied = [] if edge is None else [f"preview={edge}"]
    applied += [] if format is None else [f"preview-format={format}"]
    return PreviewChoice(PreviewForm(edge or pixels, format or FORMATS[0]), tuple(applied))
