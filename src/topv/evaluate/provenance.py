"""What an evaluation was run with, so that its figures can be made again."""

from __future__ import annotations

import datetime
import hashlib
import shlex
from collections.abc import Sequence
from typing import Any

import torch

from ..measure.environment import describe_environment
from .configurations import Configuration

__all__ = ["provenance", "setup_of", "weights_digest"]

_LOOKED_AT = 1024
"""Numbers of each tensor that tell weights apart."""


def provenance(command: Sequence[str], model: Any, *, split: str, questions: int) -> str:
    """Markdown lines naming the command, the model and its weights, the data, the versions and the device.

    Args:
        command: the command line.
        model: the model.
        split: the split of the bundled scenes.
        questions: how many questions were asked, over all tasks.
    """
    environment = describe_environment()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    versions = ", ".join(f"{name} {environment.versions[name]}" for name in ("topv", "torch", "transformers"))
    return "\n".join(
        [
            f"- Command: `{shlex.join(command)}`",
            f"- Model: {type(model).__name__}, {parameters / 1e6:.1f} M parameters, {dtype}",
            f"- Weights: digest {weights_digest(model)}",
            f"- Questions: {questions} of the {split} split",
            f"- Versions: {versions}; {environment.device_name(model.device)}",
            f"- Date: {datetime.datetime.now(datetime.timezone.utc).date().isoformat()}",
        ]
    )


def setup_of(
    model: Any,
    configurations: Sequence[Configuration],
    *,
    name: str,
    split: str,
    tasks: Sequence[str],
    questions: int,
    batch_size: int,
    frames: int = 1,
) -> dict[str, Any]:
    """What answers depend on, for an `AnswerStore`, so that none is taken for the answer to something else.

    Args:
        model: the model.
        configurations: how it is pruned.
        name: what the model was called.
        split: the split of the bundled scenes.
        tasks: the tasks, in their order.
        questions: how many questions are asked, over all tasks.
        batch_size: questions per batch.
        frames: frames of each clip; 1 for pictures.
    """
    versions = describe_environment().versions
    return {
        "model": name,
        "weights": weights_digest(model),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "split": split,
        "tasks": list(tasks),
        "questions": questions,
        "batch_size": batch_size,
        "frames": frames,
        "configurations": {c.key: repr(c.method) for c in configurations},
        "versions": {name: versions[name] for name in ("topv", "torch", "transformers")},
    }


@torch.no_grad()
def weights_digest(model: Any) -> str:
    """A digest of the names, shapes and some numbers of all parameters, enough to tell two trainings apart."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.is_meta or type(parameter.data) is not torch.Tensor:
            continue  # kept elsewhere, or quantized: its numbers cannot be read in place
        numbers = parameter.detach().flatten()
        looked_at = numbers[:: max(1, len(numbers) // _LOOKED_AT)][:_LOOKED_AT]
        digest.update(looked_at.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
