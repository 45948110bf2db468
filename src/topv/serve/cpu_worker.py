"""vLLM's worker for CPUs, whose runner does not ask a pruned model for positions by itself."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

__all__ = ["PruningCPUWorker"]


class PruningCPUWorker(CPUWorker):
    """`CPUWorker` whose runner asks the model for the positions of the tokens that stay, as it does on a GPU."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then switch on what `GPUModelRunner.load_model` does and `CPUModelRunner`'s leaves out."""
        super().load_model(*args, **kwargs)
        self.model_runner.is_multimodal_pruning_enabled = True
