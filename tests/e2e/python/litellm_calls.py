"""LiteLLM's SDK as its users call it: prints what they would have seen, one JSON line.

python litellm_calls.py <base_url> <picture>        in an environment that has litellm
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(base: str, picture: Path) -> dict[str, Any]:
    import litellm

    given: dict[str, Any] = {"api_base": base, "api_key": "none", "max_retries": 0}
    model = "openai/sim/gpt-image"
    made = litellm.image_generation(prompt="a lighthouse at dusk", model=model, size="256x256", **given)
    with picture.open("rb") as file:
        edited = litellm.image_edit(image=[file], prompt="at night", model=model, size="256x256", **given)
    messages = [{"role": "user", "content": "a lighthouse at dusk"}]
    chat = litellm.completion(model="openai/sim/plain", messages=messages, **given)
    return {
        "made": [image.b64_json for image in made.data],
        "usage": made.usage.total_tokens,
        "edited": [image.b64_json for image in edited.data],
        "chat": chat.choices[0].message.content,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]))) + "\n")
