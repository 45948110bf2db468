"""What an evaluation was run with, so that its figures can be made again."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from typing import Any

from ..measure.environment import describe_environment

__all__ = ["provenance"]


def provenance(command: Sequence[str], model: Any, *, split: str, questions: int) -> str:
    """Markdown lines naming the command, the model, the data, the versions and the device.

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
            f"- Questions: {questions} of the {split} split",
            f"- Versions: {versions}; {environment.device_name(model.device)}",
            f"- Date: {datetime.datetime.now(datetime.timezone.utc).date().isoformat()}",
        ]
    )
