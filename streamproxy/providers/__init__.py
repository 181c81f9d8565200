"""Providers' wire forms, one adapter each, listed in `ADAPTERS`."""

from __future__ import annotations

from typing import Final

from streamproxy.core.conversation import Adapter
from streamproxy.providers.ark import Ark
from streamproxy.providers.automatic1111 import Automatic1111
from streamproxy.providers.bedrock import Bedrock
from streamproxy.providers.bfl import Bfl
from streamproxy.providers.cloudflare import Cloudflare
from streamproxy.providers.comfyui import ComfyApi, ComfyWebSocket
from streamproxy.providers.dashscope import DashScope
from streamproxy.providers.fal import Fal
from streamproxy.providers.fireworks import Fireworks
from streamproxy.providers.gemini import Gemini
from streamproxy.providers.huggingface import HuggingFace
from streamproxy.providers.ideogram import Ideogram
from streamproxy.providers.imagen import Imagen
from streamproxy.providers.leonardo import Leonardo
from streamproxy.providers.luma import Luma
from streamproxy.providers.mai import Mai
from streamproxy.providers.minimax import MiniMax
from streamproxy.providers.nova import Nova
from streamproxy.providers.openai import OpenAI
from streamproxy.providers.openrouter import OpenRouter
from streamproxy.providers.replicate import Replicate
from streamproxy.providers.responses import Responses
from streamproxy.providers.runware import Runware
from streamproxy.providers.stability import Stability
from streamproxy.providers.xai import XAI

ADAPTERS: Final[dict[str, Adapter]] = {
    "openai": OpenAI(),
    "gemini": Gemini(),
    "imagen": Imagen(),
    "fal": Fal(),
    "bfl": Bfl(),
    "replicate": Replicate(),
    "stability": Stability(),
    "bedrock": Bedrock(),
    "nova": Nova(),
    "ideogram": Ideogram(),
    "luma": Luma(),
    "mai": Mai(),
    "dashscope": DashScope(),
    "openrouter": OpenRouter(),
    "automatic1111": Automatic1111(),
    "ark": Ark(),
    "minimax": MiniMax(),
    "xai": XAI(),
    "fireworks": Fireworks(),
    "cloudflare": Cloudflare(),
    "huggingface": HuggingFace(),
    "leonardo": Leonardo(),
    "runware": Runware(),
    "responses": Responses(),
    "comfyui": ComfyApi(),
    "comfyui-websocket": ComfyWebSocket(),
}
