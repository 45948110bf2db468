"""Which family file serves which model type; families are imported when first asked for."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from ..errors import UnsupportedError
from .family import Family
from .reasons import REASONS, reason_against

__all__ = ["FAMILIES", "family_of"]

FAMILIES: dict[str, str] = {
    "aya_vision": "topv.models.internvl:AyaVision",
    "blip-2": "topv.models.qformer:QFormer",
    "cosmos3_edge": "topv.models.patch_grids:PatchGrids",
    "cosmos3_omni": "topv.models.patch_grids:PatchGrids",
    "deepseek_vl": "topv.models.squares:Squares",
    "exaone4_5": "topv.models.patch_grids:PatchGrids",
    "gemma3": "topv.models.gemma3:Gemma3",
    "gemma4": "topv.models.gemma4:Gemma4",
    "gemma4_unified": "topv.models.gemma4:Gemma4Unified",
    "glm46v": "topv.models.glm:Glm",
    "glm4v": "topv.models.glm:Glm",
    "glm4v_moe": "topv.models.glm:Glm",
    "glm5_next": "topv.models.glm5_next:Glm5Next",
    "glm_ocr": "topv.models.glm:Glm",
    "glmga": "topv.models.glm:Glm",
    "granite_docling": "topv.models.idefics3:GraniteDocling",
    "hyperclovax_vision_v2": "topv.models.patch_grids:PatchGrids",
    "idefics2": "topv.models.idefics2:Idefics2",
    "idefics3": "topv.models.idefics3:Idefics3",
    "inkling2": "topv.models.inkling:Inkling2",
    "inkling_mm_model": "topv.models.inkling:Inkling",
    "instructblip": "topv.models.qformer:QFormer",
    "instructblipvideo": "topv.models.qformer:QFormer",
    "internvl": "topv.models.internvl:InternVl",
    "janus": "topv.models.squares:Squares",
    "kimi_k25": "topv.models.patch_grids:ChunkedVideos",
    "kosmos-2": "topv.models.kosmos:Kosmos2",
    "kosmos-2.5": "topv.models.kosmos:Kosmos25",
    "lfm2_vl": "topv.models.lfm2_vl:Lfm2Vl",
    "lighton_ocr": "topv.models.mistral3:Mistral3",
    "llama4": "topv.models.llama4:Llama4",
    "llava": "topv.models.llava:Llava",
    "llava_next": "topv.models.llava_next:LlavaNext",
    "llava_next_video": "topv.models.llava_next:LlavaNextVideo",
    "llava_onevision": "topv.models.llava_next:LlavaOnevision",
    "minicpm_ocr": "topv.models.minicpm:MiniCpmV",
    "minicpmv4_6": "topv.models.minicpm:MiniCpmV",
    "minicpmv4_7": "topv.models.minicpm:MiniCpmV",
    "mistral3": "topv.models.mistral3:Mistral3",
    "molmo2": "topv.models.molmo2:Molmo2",
    "paddleocr_vl": "topv.models.patch_grids:PatchGrids",
    "paligemma": "topv.models.squares:Squares",
    "phi4_multimodal": "topv.models.phi4_multimodal:Phi4Multimodal",
    "qianfan_ocr": "topv.models.internvl:InternVl",
    "qwen2_5_omni_thinker": "topv.models.patch_grids:PatchGrids",
    "qwen2_5_vl": "topv.models.patch_grids:PatchGrids",
    "qwen2_vl": "topv.models.patch_grids:PatchGrids",
    "qwen3_5": "topv.models.patch_grids:PatchGrids",
    "qwen3_5_moe": "topv.models.patch_grids:PatchGrids",
    "qwen3_omni_moe_thinker": "topv.models.patch_grids:PatchGrids",
    "qwen3_vl": "topv.models.patch_grids:PatchGrids",
    "qwen3_vl_moe": "topv.models.patch_grids:PatchGrids",
    "qwen4_exp": "topv.models.qwen4_exp:Qwen4Exp",
    "shieldgemma2": "topv.models.gemma3:Gemma3",
    "smolvlm": "topv.models.idefics3:Idefics3",
    "unlimited_ocr": "topv.models.unlimited_ocr:UnlimitedOcr",
    "video_llama_3": "topv.models.patch_grids:CompressedVideos",
    "video_llava": "topv.models.squares:VideoLlava",
    "vipllava": "topv.models.llava:Llava",
}
"""transformers' `config.model_type` to "module:Class"."""


def family_of(model: nn.Module) -> Family:
    """The family that serves `model`.

    Raises:
        UnsupportedError: when none does.
    """
    # An adapter library's wrapper: the model inside it is what runs.
    unwrap: Any = getattr(model, "get_base_model", None)
    if unwrap is not None:
        model = unwrap()
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    reason = reason_against(model)
    if reason is not None:
        raise UnsupportedError(f"{type(model).__name__} cannot be pruned: {REASONS[reason]}.")
    if model_type not in FAMILIES:
        return _generic(model, model_type)
    module, _, name = FAMILIES[model_type].partition(":")
    family: type[Family] = getattr(importlib.import_module(module), name)
    return family(model)


def _generic(model: nn.Module, model_type: str | None) -> Family:
    """The generic rule for a model that no family file serves."""
    family = Family(model)
    if not (family.image_ids | family.video_ids):
        raise UnsupportedError(
            f"{type(model).__name__} (model_type {model_type!r}) is not a model that topv can prune: its config names "
            f"no image token. Model types with families of their own: {', '.join(sorted(FAMILIES))}. Pass the "
            "vision-language model itself, not its decoder or a wrapper around it."
        )
    return family
