"""Begin a tiled model from a trained LLaVA: copy the weights that mean the same, derive those that nearly do.

Copied as they are: the tower's layers, the decoder, the projector's second matrix, and the embeddings of all tokens
that both know. Derived: the LayerNorm that only CLIP has behind its embeddings is folded into the patch and position
embeddings, at the spread that it measures on drawn scenes; the projector's first matrix averages the four patches of
a token. Fresh: the embeddings of InternVL's image tokens, and the neutral layer scale.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topv.scenes import read_view

__all__ = ["copied_name", "positions", "transplant"]

_SCENES = 8
_TOWER, _EMBEDDINGS = "model.vision_tower.", "model.vision_tower.embeddings."
_PROJECTOR = "model.multi_modal_projector."
_WORDS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
_RENAMED = {
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.projection_layer",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_LAYER = re.compile(r"model\.vision_tower\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def copied_name(name: str) -> str | None:
    """The name in an InternVL of a LLaVA's tensor that is copied unchanged, or None.

    >>> copied_name("model.vision_tower.encoder.layers.3.self_attn.out_proj.bias")
    'model.vision_tower.encoder.layer.3.attention.projection_layer.bias'
    >>> copied_name("model.vision_tower.pre_layrnorm.weight")
    """
    if layer := _LAYER.fullmatch(name):
        number, module, kind = layer.groups()
        return f"{_TOWER}encoder.layer.{number}.{_RENAMED[module]}.{kind}"
    decoder = name.startswith("model.language_model.") and name not in _WORDS
    return name if decoder or name.startswith(f"{_PROJECTOR}linear_2.") else None


def positions(table: Tensor, grid: int) -> Tensor:
    """Position embeddings (n * n, d) of a square grid for one of ``grid`` rows and columns.

    A smaller grid gets the middle of a larger one, so that neighbours differ as they did in training; only a larger
    one is interpolated.
    """
    side = round(len(table) ** 0.5)
    square = table.view(side, side, -1)
    if grid <= side:
        edge = (side - grid) // 2
        return square[edge : edge + grid, edge : edge + grid].reshape(grid * grid, -1)
    stretched = F.interpolate(square.permute(2, 0, 1)[None], size=(grid, grid), mode="bicubic", align_corners=False)
    return stretched[0].permute(1, 2, 0).reshape(grid * grid, -1)


@torch.no_grad()
def transplant(start: Path, model: Any, tokenizer: Any) -> list[str]:
    """Give an untrained InternVL the weights of a trained LLaVA.

    Args:
        start: folder of the LLaVA and its processor.
        model: the InternVL; its tower and decoder have the LLaVA's sizes.
        tokenizer: the InternVL's.

    Returns:
        names of the tensors that were copied unchanged.

    Raises:
        ValueError: a tensor to copy is missing or of another shape.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trained = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(start, local_files_only=True)
    held, wanted = trained.state_dict(), model.state_dict()
    new = {copy: held[name] for name in held if (copy := copied_name(name)) is not None}
    copied = sorted(new)
    new |= _embeddings(trained, processor, held, model)
    other = [name for name in new if name not in wanted or new[name].shape != wanted[name].shape]
    other += [name for name in wanted if ".layer" in name and "lambda" not in name and name not in new]
    if other:
        raise ValueError(
            f"{start} holds a LLaVA of another shape ({other[:3]} differ); start from one whose tower and decoder"
            " have this preset's sizes."
        )
    model.load_state_dict(new, strict=False)
    _copy_words(held[_WORDS[0]], processor.tokenizer, model.get_input_embeddings().weight, tokenizer)
    return copied


def _copy_words(table: Tensor, theirs: Any, own: Tensor, ours: Any) -> None:
    """Copy the embeddings of the tokens that both tokenizers know, in place."""
    known = theirs.get_vocab()
    for token, index in ours.get_vocab().items():
        if token in known:
            own[index] = table[known[token]]


def _embeddings(trained: Any, processor: Any, held: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """What is derived: the tower's embeddings, and the projector up to its first matrix."""
    tower, pixels = trained.model.vision_tower, _pixels(trained, processor)
    gain, shift = held[f"{_TOWER}pre_layrnorm.weight"], held[f"{_TOWER}pre_layrnorm.bias"]
    table = held[f"{_EMBEDDINGS}position_embedding.weight"]
    entering = tower.embeddings(pixels)[:, 1:]
    scale = (gain / entering.std(-1, correction=0).mean())[:, None]

    def fold(matrix: Tensor) -> Tensor:
        """The LayerNorm's linear part, of columns (d, n): their mean taken off, then scaled."""
        return scale * (matrix - matrix.mean(0))

    patches = held[f"{_EMBEDDINGS}patch_embedding.weight"]
    grid = model.model.vision_tower.embeddings.patch_embeddings.patch_shape[0]
    places = fold(positions(table[1:], grid).T).T
    first = held[f"{_EMBEDDINGS}class_embedding"] + table[0]
    features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    ratio = round(1 / model.config.downsample_ratio)
    grouped = _grouped(features, ratio)
    matrix = held[f"{_PROJECTOR}linear_1.weight"]
    width = grouped.shape[-1]
    return {
        f"{_EMBEDDINGS}cls_token": tower.pre_layrnorm(first)[None, None],
        f"{_EMBEDDINGS}position_embeddings": torch.cat([torch.zeros_like(places[:1]), places])[None],
        f"{_EMBEDDINGS}patch_embeddings.projection.weight": fold(patches.flatten(1)).view_as(patches),
        f"{_EMBEDDINGS}patch_embeddings.projection.bias": shift,
        f"{_PROJECTOR}layer_norm.weight": grouped.std(-1, correction=0).mean().expand(width).clone(),
        f"{_PROJECTOR}layer_norm.bias": grouped.mean().expand(width).clone(),
        f"{_PROJECTOR}linear_1.weight": matrix.repeat(1, ratio**2) / ratio**2,
        f"{_PROJECTOR}linear_1.bias": held[f"{_PROJECTOR}linear_1.bias"],
    }


def _pixels(trained: Any, processor: Any) -> Tensor:
    """Training scenes as the LLaVA sees them: (scenes, 3, size, size)."""
    from topv.scenes import scenes

    geometry = read_view(trained.config, processor).geometry
    images = [scene.image for scene in scenes("train", _SCENES, geometry=geometry)]
    pixels: Tensor = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return pixels


def _grouped(features: Tensor, ratio: int) -> Tensor:
    """Features (B, patches, d) laid side by side for every ``ratio`` x ``ratio`` patches: (B, groups, ratio² d)."""
    rows, patches, width = features.shape
    side = round(patches**0.5) // ratio
    square = features.view(rows, side, ratio, side, ratio, width).transpose(2, 3)
    return square.reshape(rows, side * side, ratio * ratio * width)
