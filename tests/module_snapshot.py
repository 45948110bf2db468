"""Everything about a module tree that attaching could change, to compare before and after."""

from __future__ import annotations

from typing import Any

import torch


def snapshot(model: torch.nn.Module) -> dict[str, Any]:
    """Everything about a module tree that attaching could change."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = [
            list(getattr(module, kind))
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
        ]
        state[name] = (
            type(module),
            sorted(module.__dict__),
            hooks,
            id(getattr(module.forward, "__func__", module.forward)),
        )
    return state
