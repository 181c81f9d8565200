"""LangChain as its users call it: prints what they would have seen, one JSON line.

python langchain_calls.py <base_url>        in an environment that has langchain-openai and langchain-community
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(base: str) -> dict[str, Any]:
    from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
    from langchain_openai import ChatOpenAI

    given: dict[str, Any] = {"base_url": base, "api_key": "none", "max_retries": 0}
    tool = {"type": "image_generation", "model": "sim/gpt-image", "size": "256x256"}
    drawing = ChatOpenAI(model="gpt-5", use_responses_api=True, **given).bind_tools([tool])
    whole = drawing.invoke("a lighthouse at dusk")
    streamed: Any = None
    for chunk in drawing.stream("a lighthouse at dusk"):
        streamed = chunk if streamed is None else streamed + chunk
    photo = _pictures(whole)[0]
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{photo}"}}
    edited = drawing.invoke([{"role": "user", "content": [{"type": "text", "text": "at night"}, shown]}])
    chat = ChatOpenAI(model="sim/plain", **given).invoke("a lighthouse at dusk")
    links = DallEAPIWrapper(model="sim/linked", size="256x256", api_key="none", base_url=base, max_retries=0).run(
        "a lighthouse at dusk"
    )
    return {
        "whole": _pictures(whole),
        "streamed": _pictures(streamed),
        "edited": _pictures(edited),
        "chat": chat.content,
        "link": links,
    }


def _pictures(message: Any) -> list[str]:
    return [block["result"] for block in message.content if block["type"] == "image_generation_call"]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
