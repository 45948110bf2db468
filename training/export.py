"""Write a training's best weights as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

__all__ = ["export"]

_SHARD = "14900KB"
"""Of tensors: the header of a file comes on top."""


def export(run: Path, folder: Path) -> None:
    """Copy the best model of a run, in bfloat16 shards of at most 15 MB, and its processor.

    Args:
        run: folder of a training.
        folder: where to write; weight files of an earlier export are replaced.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if not (run / "best" / "config.json").is_file():
        raise FileNotFoundError(f"No best weights in {run}; train past the first validation before exporting.")
    model = AutoModelForImageTextToText.from_pretrained(run / "best", dtype=torch.bfloat16, local_files_only=True)
    processor = AutoProcessor.from_pretrained(run / "processor", local_files_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    model.save_pretrained(folder, max_shard_size=_SHARD)
    processor.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
