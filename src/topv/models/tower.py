"""The vision tower's last block: where the states are that become visual tokens, and how they are pooled into them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError

__all__ = ["feeding_block", "merged_patches", "pixel_shuffled", "without_class_token"]

_TOWERS = ("vision_tower", "visual", "vision_model")


def feeding_block(multimodal: nn.Module, config: Any) -> nn.Module:
    """The block of the vision tower whose output becomes visual tokens.

    Args:
        multimodal: the model without its language-modelling head.
        config: its configuration, whose `vision_feature_layer` counts hidden states from the end: -1 is the output of
            the last block, -2 of the one before.

    Raises:
        UnsupportedError: when there is no one such block.
    """
    tower = next((module for name in _TOWERS if isinstance(module := getattr(multimodal, name, None), nn.Module)), None)
    lists = [] if tower is None else [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
    layer = getattr(config, "vision_feature_layer", -1)
    if tower is None or not lists:
        raise UnsupportedError(
            f"{type(multimodal).__name__} has no vision tower of blocks under any of {', '.join(_TOWERS)}."
        )
    if not isinstance(layer, int):
        raise UnsupportedError(f"visual tokens are made of several layers of the vision tower ({layer}), not of one.")
    blocks = max(lists, key=len)
    index = len(blocks) + layer if layer < 0 else layer - 1
    if not 0 <= index < len(blocks):
        raise UnsupportedError(f"vision_feature_layer={layer} is not the output of one of {len(blocks)} blocks.")
    return blocks[index]


def without_class_token(states: torch.Tensor, strategy: str) -> torch.Tensor:
    """States (B, P, D) of the patches alone, where the "default" strategy drops the first."""
    return states[:, 1:] if strategy == "default" else states


def pixel_shuffled(model: Any, states: torch.Tensor, ratio: float) -> torch.Tensor:
    """States (B, P, D) of square pictures grouped by the model's own pixel shuffle: (B, P * ratio^2, D / ratio^2)."""
    side = round(states.shape[1] ** 0.5)
    grouped: torch.Tensor = model.pixel_shuffle(states.reshape(len(states), side, side, -1), scale_factor=ratio)
    return grouped.reshape(len(states), -1, grouped.shape[-1])


def merged_patches(tower: Any, states: torch.Tensor, merge: int, grids: torch.Tensor) -> torch.Tensor:
    """States (P, D) of packed patches, the merge x merge that meet in one token side by side: (P / merge^2, merge^2 D).

    Args:
        tower: the vision tower, for the order in which it looks at windows.
        states: of the patches, in the tower's order.
        merge: patches that meet in a token, in height and in width.
        grids: LongTensor (pictures, 3), frames, height and width of each in patches.
    """
    grouped = states.reshape(-1, merge * merge * states.shape[-1])
    if getattr(tower, "window_size", None) is None:
        return grouped
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(grids, merge, tower.window_size, tower.patch_size)
    return grouped[torch.argsort(order).to(grouped.device)]
