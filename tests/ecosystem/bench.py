"""One tiny model of a given architecture, generation under pruning, and what the logits of it must be."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import topv
from tools.probe.recipe import FIRST_TEXT_TOKEN
from tools.probe.recipes import recipes
from topv.models import family_of
from topv.verify.reference import extended, masked_logits, relative_error

__all__ = ["KEEP", "SAMPLE", "STEPS", "Bench", "Run", "bench", "relative_error"]

KEEP = 0.4
SAMPLE: list[int | str] = [7, "image", 6]
STEPS = 6


@dataclass
class Run:
    """What a generation under pruning returned.

    Attributes:
        inputs: the prompt's inputs.
        out: what `generate` returned.
        kept: of the first sample, the columns of visual tokens that stayed.
        visual: BoolTensor (T,), the first sample's columns of visual tokens.
        layer: the first layer that was short.
    """

    inputs: dict[str, Any]
    out: Any
    kept: torch.Tensor
    visual: torch.Tensor
    layer: int

    @property
    def logits(self) -> torch.Tensor:
        """The model's logits at every step, (B, steps, V)."""
        return torch.stack(self.out.logits, 1)


class Bench:
    """A tiny random model, to generate with and to compare with the masked model.

    Args:
        name: the recipe's `model_type`.
        backend: the attention backend to generate with.
    """

    def __init__(self, name: str, backend: str = "sdpa") -> None:
        torch.manual_seed(0)
        self.recipe = recipes()[name]
        self.model = self.recipe.build()
        self.backend = backend
        self.model.set_attn_implementation(backend)

    def prompt(self, samples: Sequence[Sequence[int | str]] = (SAMPLE,), seed: int = 0) -> dict[str, Any]:
        """Inputs for samples of text and pictures."""
        return self.recipe.prompt(self.model, samples, seed=seed)

    def arguments(self, steps: int = STEPS, **more: Any) -> dict[str, Any]:
        """Arguments of `generate`: greedy, of a set length, and text alone."""
        return {
            "max_new_tokens": steps,
            "min_new_tokens": steps,
            "do_sample": False,
            "suppress_tokens": list(range(FIRST_TEXT_TOKEN)),
            "return_dict_in_generate": True,
            "output_logits": True,
            **more,
        }

    def generate(self, inputs: dict[str, Any], steps: int = STEPS, **more: Any) -> Run:
        """Generate under pruning. `more` goes to `generate`."""
        with torch.no_grad(), topv.prune(self.model, topv.TopV(keep=KEEP)) as pruning:
            out = self.model.generate(**inputs, **self.arguments(steps, **more))
            kept = pruning.kept_positions[0]
            visual = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
            for grid in pruning.results.plan.layout.grids:
                if grid.sample == 0:
                    visual[grid.columns] = True
        assert 0 < len(kept) < int(visual.sum()), "something was pruned"
        return Run(inputs, out, kept, visual, pruning.layer)

    def expected(self, run: Run, row: int = 0) -> torch.Tensor:
        """The masked model's logits (1, steps, V) at the steps of row `row`, in one forward without a cache."""
        whole = extended(run.inputs, run.out.sequences[row : row + 1], self.recipe.continuation)
        length = run.inputs["input_ids"].shape[1]
        self.model.set_attn_implementation("eager")
        try:
            want = masked_logits(self.model, family_of(self.model), whole, run.kept, run.visual, run.layer)
        finally:
            self.model.set_attn_implementation(self.backend)
        return want[:, length - 1 : -1]

    def check(self, run: Run, tolerance: float = 1e-5) -> None:
        """Every logit that a one-sample run saw is the masked model's."""
        want = self.expected(run)
        assert run.logits.shape == want.shape
        assert relative_error(run.logits, want) <= tolerance


@functools.lru_cache(maxsize=8)
def bench(name: str, backend: str = "sdpa") -> Bench:
    """One bench per setting, for tests that leave its model as it was."""
    return Bench(name, backend)
