"""Writing a transformers model to a folder that vLLM reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["export_for_vllm"]

_WRAPPED = ("clip_vision_model", "siglip_vision_model")


def export_for_vllm(model: Any, processor: Any, folder: Path) -> Path:
    """Save a model and its processor, with the names that vLLM's loaders look for.

    transformers 5 saves CLIP and SigLIP towers as `vision_tower.embeddings`; vLLM looks for
    `vision_tower.vision_model.embeddings`, as in checkpoints saved by earlier releases.

    Args:
        model: a vision-language model of transformers.
        processor: its processor.
        folder: written to; made where it is missing.

    Returns:
        The folder.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size="1000GB")
    processor.save_pretrained(folder)
    if getattr(model.config.vision_config, "model_type", None) in _WRAPPED:
        weights = folder / "model.safetensors"
        renamed = {_wrapped(name): tensor for name, tensor in load_file(weights).items()}
        save_file(renamed, weights, metadata={"format": "pt"})
    return folder


def _wrapped(name: str) -> str:
    """A weight's name with the tower inside the model that older releases wrapped it in.

    >>> _wrapped("model.vision_tower.embeddings.class_embedding")
    'model.vision_tower.vision_model.embeddings.class_embedding'
    """
    before, tower, after = name.partition("vision_tower.")
    return f"{before}{tower}vision_model.{after}" if tower and not after.startswith("vision_model.") else name
