"""TopV in vLLM, as a plugin: images lose tokens between the vision tower and the decoder.

Importing this package imports neither torch nor vLLM.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ARCHITECTURES": "supported",
    "ServeSettings": "settings",
    "engine_arguments": "arguments",
    "export_for_vllm": "export",
    "served_name": "supported",
}

__all__ = ["ARCHITECTURES", "ServeSettings", "engine_arguments", "export_for_vllm", "served_name"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
