"""OpenAI's images wire: the adapter, the events and the JSON of its answers, its errors."""

from __future__ import annotations

from streamproxy.providers.openai.adapter import OpenAI

__all__ = ["OpenAI"]
