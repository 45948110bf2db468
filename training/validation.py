"""Accuracy during training: an answer counts when greedy decoding would write it exactly.

With the true answer fed in, greedy decoding reproduces it if and only if every next-token choice is right, so
one packed forward pass scores all questions of a scene at once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from topv.scenes import TASKS
from topv.scenes.canvas import IGNORED

from .architecture import Architecture, Frame
from .batches import Batch
from .objective import answer_logits, to_tensors

__all__ = ["exact_matches", "validate"]


def exact_matches(logits: Tensor, batch: Batch) -> dict[str, list[bool]]:
    """For every task, whether each packed question of the batch is answered exactly; logits (B, A, V)."""
    targets = torch.from_numpy(batch.targets).to(logits.device)
    wrong = ((logits.argmax(-1) != targets) & (targets != IGNORED)).cpu().numpy()
    found: dict[str, list[bool]] = defaultdict(list)
    for row, tasks in enumerate(batch.tasks):
        for segment, task in enumerate(tasks, start=1):
            found[TASKS[task]].append(not wrong[row][batch.segments[row] == segment].any())
    return found


@torch.no_grad()
def validate(
    architecture: Architecture, model: Any, batches: list[Batch], frame: Frame, dtype: torch.dtype, device: str
) -> dict[str, float]:
    """Exact-match accuracy per task over some batches, and their plain mean as ``"mean"``."""
    hits: dict[str, list[bool]] = defaultdict(list)
    was_training = model.training
    model.eval()
    for batch in batches:
        held = to_tensors(batch, device)
        # Compiled layers would be compiled anew for every length that is validated on.
        with torch.autocast(device, dtype, enabled=dtype != torch.float32), torch.compiler.set_stance("force_eager"):
            _, visual = architecture.see(model, held["pixels"])
            logits = answer_logits(model, visual, held["tokens"], held["segments"], held["offsets"], dtype, frame)
        for task, matched in exact_matches(logits, batch).items():
            hits[task] += matched
    model.train(was_training)
    accuracy = {task: sum(hits[task]) / len(hits[task]) for task in TASKS if hits[task]}
    return accuracy | {"mean": sum(accuracy.values()) / max(1, len(accuracy))}
