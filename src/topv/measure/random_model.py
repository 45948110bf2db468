"""Models of a preset's shapes with random weights, and prompts for them as their processor would write them."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError
from .preset import Picture, Preset

__all__ = ["build_random_model", "parameter_count", "random_inputs"]

_FIRST_TEXT_ID = 10
_BEFORE = 8
"""Text tokens in front of a sample's picture."""


def _on_meta(preset: Preset, dtype: torch.dtype, layers: int | None) -> Any:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(preset.config(layers), dtype=dtype)


def parameter_count(preset: Preset) -> int:
    """Number of parameters of a preset's model, counted without memory for any."""
    return sum(parameter.numel() for parameter in _on_meta(preset, torch.float32, None).parameters())


def build_random_model(
    preset: Preset, *, device: torch.device, dtype: torch.dtype, layers: int | None = None, seed: int = 0
) -> Any:
    """A preset's model with random weights, in evaluation mode.

    The weights are drawn on `device` in `dtype`: no copy in another place or precision is ever made. They are as
    small as those that transformers starts a training from, so that activations stay finite.

    Args:
        preset: the shapes.
        device: where the model is to be.
        dtype: of its weights.
        layers: decoder layers, for a quick look; as published where None.
        seed: of the weights. The global generators are left as they were.
    """
    model = _on_meta(preset, dtype, layers)
    model.to_empty(device=device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        # Fills buffers that no checkpoint holds as well, such as rotary frequencies.
        model.initialize_weights()
    model.tie_weights()
    return model.eval()


def random_inputs(model: Any, picture: Picture, *, batch: int, text_tokens: int, seed: int = 0) -> dict[str, Any]:
    """What the processor of a preset's model would return for `batch` samples: one picture, and text of their own.

    Args:
        model: from `build_random_model`.
        picture: the picture of each sample.
        batch: number of samples.
        text_tokens: tokens of a sample besides the picture's placeholders (and the markers around them), at least 1.
        seed: of the tokens and pixels.

    Returns:
        Tensors by argument name, on the model's device; pixels in its dtype.
    """
    if batch < 1 or text_tokens < 1:
        raise InputError(f"batch={batch}, text_tokens={text_tokens}: expected at least 1 of each.")
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    before, after = _markers(config)
    pictured = [*before, *[config.image_token_id] * _placeholders(config, picture), *after]
    special = {*pictured, getattr(config, "video_token_id", None)}
    text = torch.randint(_FIRST_TEXT_ID, config.text_config.vocab_size, (batch, text_tokens), generator=generator)
    text = torch.where(torch.isin(text, torch.tensor(sorted(special - {None}))), _FIRST_TEXT_ID, text)
    front = min(_BEFORE, text_tokens - 1)
    ids = torch.cat([text[:, :front], torch.tensor(pictured).expand(batch, -1), text[:, front:]], dim=1)
    inputs: dict[str, torch.Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    height, width = picture.pixels
    if picture.kind == "patches":
        vision = config.vision_config
        rows, columns = height // vision.patch_size, width // vision.patch_size
        numbers = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(rows * columns, numbers, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, rows, columns]] * batch)
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    else:
        pixels = torch.randn(picture.views, 3, height, width, generator=generator)
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    pixels = pixels.to(model.device, model.dtype)
    return moved | {"pixel_values": pixels.repeat(batch, *[1] * (pixels.ndim - 1))}


def _placeholders(config: Any, picture: Picture) -> int:
    """How many visual tokens stand for a picture in the prompt."""
    height, width = picture.pixels
    vision = config.vision_config
    if picture.kind == "square":
        return int((height // vision.patch_size) * (width // vision.patch_size))
    if picture.kind == "tiles":
        return int(picture.views * config.image_seq_length)
    step = vision.patch_size * vision.spatial_merge_size
    return int((height // step) * (width // step))


def _markers(config: Any) -> tuple[list[int], list[int]]:
    """Ids that the processor writes before and after a picture's placeholders."""
    start = getattr(config, "vision_start_token_id", None)
    return ([], []) if start is None else ([start], [config.vision_end_token_id])
