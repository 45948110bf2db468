"""Probing one architecture: does pruning mean on it what it should mean?"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from topv.errors import TopVError
from topv.methods import TopV
from topv.models import Family, family_of
from topv.models.matrix import COLUMNS, Outcome
from topv.models.reasons import REASONS, reason_against
from topv.runtime import Pruning, prune
from topv.verify.reference import extended, masked_logits, relative_error

from .recipe import FIRST_TEXT_TOKEN, Recipe

__all__ = ["probe"]

_BACKENDS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention"}
_TOLERANCE = 1e-5
_EFFECT = 1e-3
_BATCH_TOLERANCE = 1e-4
_KEEP = 0.4
_STEPS = 5


class _NotOffered(Exception):
    """The architecture cannot do this, pruned or not."""


class _Mismatch(Exception):
    """A probe that ran and gave a wrong answer."""


@dataclass
class _Bench:
    """A tiny model with everything that the probes need."""

    recipe: Recipe
    model: Any
    family: Family

    def run(self, samples: list[list[int | str]], seed: int = 0) -> dict[str, Any]:
        return self.recipe.prompt(self.model, samples, seed=seed)

    @property
    def text_only(self) -> dict[str, Any]:
        """Arguments that keep generation from writing placeholders, which would call for pictures."""
        return {"suppress_tokens": list(range(FIRST_TEXT_TOKEN)), "do_sample": False, "output_logits": True}

    @contextlib.contextmanager
    def backend(self, name: str) -> Iterator[None]:
        try:
            self.model.set_attn_implementation(name)
        except ValueError as error:
            self.model.set_attn_implementation("eager")
            raise _NotOffered(f"transformers offers no {name} attention for it") from error
        # Compiling flex_attention's kernels would take minutes and prove nothing about masks.
        stance = torch.compiler.set_stance("force_eager") if name == "flex_attention" else contextlib.nullcontext()
        try:
            with stance, torch.no_grad():
                yield
        finally:
            self.model.set_attn_implementation("eager")


def probe(recipe: Recipe, columns: tuple[str, ...] = COLUMNS) -> Outcome:
    """Build the recipe's model and fill in the given columns."""
    outcome = Outcome(recipe.model_type)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = recipe.build()
        try:
            family = family_of(model)
        except TopVError as error:
            reason = reason_against(model)
            outcome.reason = str(error) if reason is None else f"{reason}: {REASONS[reason]}"
            return outcome
        outcome.family = "generic" if type(family) is Family else type(family).__name__
        model.set_attn_implementation("eager")
        bench = _Bench(recipe, model, family)
        failure = _unpruned_failure(bench)
        if failure is not None:
            outcome.reason = f"fails unpruned: {REASONS['fails unpruned']} ({failure})"
            return outcome
        for column in columns:
            _fill(outcome, column, bench)
    return outcome


def _unpruned_failure(bench: _Bench) -> str | None:
    """What the model raises without topv, or None."""
    try:
        with torch.no_grad():
            bench.model(**bench.run([[7, "image", 6]]))
    except Exception as error:  # Whatever a foreign model's code raises is a finding about that model.
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return None


def _fill(outcome: Outcome, column: str, bench: _Bench) -> None:
    test, applies = _TESTS[column], _APPLIES.get(column)
    if applies is not None and not applies(bench.recipe):
        outcome.cells[column] = "-"
        return
    try:
        test(bench)
        outcome.cells[column] = "yes"
    except _NotOffered as error:
        outcome.cells[column] = "-"
        outcome.notes[column] = str(error)
    except Exception as error:  # Whatever a foreign model's code raises is a finding about that model.
        outcome.cells[column] = "no"
        outcome.notes[column] = f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _excuse_backend(bench: _Bench, inputs: dict[str, Any], backend: str) -> None:
    """Tell a backend on which the unpruned model itself differs from its eager self.

    Raises:
        _NotOffered: when it does.
    """
    with bench.backend(backend):
        own = bench.model(**inputs).logits
    with torch.no_grad():
        eager = bench.model(**inputs).logits
    error = relative_error(own, eager)
    if error > _EFFECT:
        raise _NotOffered(f"unpruned, its {backend} attention differs from eager attention as well, by {error:.1e}")


def _compare_forward(bench: _Bench, inputs: dict[str, Any], backend: str) -> None:
    with bench.backend(backend), prune(bench.model, TopV(keep=_KEEP)) as pruning:
        logits = bench.model(**inputs).logits
    kept, visual = _kept(pruning, inputs)
    want = masked_logits(bench.model, bench.family, inputs, kept, visual, pruning.layer)
    stays = ~visual
    stays[kept] = True
    try:
        _require_close("logits", logits[:, stays], want[:, stays], _TOLERANCE)
    except _Mismatch:
        _excuse_backend(bench, inputs, backend)
        raise
    with torch.no_grad():
        unpruned = bench.model(**inputs).logits
    if relative_error(logits[:, stays], unpruned[:, stays]) < _EFFECT:
        raise _Mismatch("pruning changes too little on this model for the comparison to prove anything")


def _kept(pruning: Pruning, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept columns of the only sample, and a BoolTensor (T,) of all that could be pruned."""
    visual = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    for grid in pruning.results.plan.layout.grids:
        visual[grid.columns] = True
    kept = pruning.kept_positions[0]
    if not 0 < len(kept) < int(visual.sum()):
        raise _Mismatch(f"{len(kept)} of {int(visual.sum())} visual tokens were kept; expected fewer, and some")
    return kept, visual


def _require_close(what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    if not bool(got.isfinite().all()):
        raise _Mismatch(f"{what} hold NaN or infinity")
    error = relative_error(got, want)
    if error > tolerance:
        raise _Mismatch(f"{what} are off by {error:.1e}, more than {tolerance:.0e}")


def _forward(backend: str) -> Callable[[_Bench], None]:
    def test(bench: _Bench) -> None:
        _compare_forward(bench, bench.run([[7, "image", 6]]), _BACKENDS[backend])
        if bench.recipe.wide:
            _compare_forward(bench, bench.run([[7, "wide", 6]]), _BACKENDS[backend])

    return test


def _generate(bench: _Bench) -> None:
    inputs = bench.run([[7, "image", 6]])
    with torch.no_grad(), prune(bench.model, TopV(keep=_KEEP)) as pruning:
        out = bench.model.generate(
            **inputs,
            max_new_tokens=_STEPS,
            min_new_tokens=_STEPS,
            **bench.text_only,
            return_dict_in_generate=True,
        )
        kept, visual = _kept(pruning, inputs)
    length = inputs["input_ids"].shape[1]
    whole = extended(inputs, out.sequences, bench.recipe.continuation) | bench.recipe.continued(bench.model, length)
    want = masked_logits(bench.model, bench.family, whole, kept, visual, pruning.layer)
    _require_close("generated logits", torch.stack(out.logits, 1), want[:, length - 1 : -1], _TOLERANCE)


def _batch(bench: _Bench) -> None:
    try:
        _compare_batch(bench)
    except _Mismatch:
        try:
            _compare_batch(bench, keep=None)
        except _Mismatch as error:
            _compare_batch_forward(bench)
            raise _NotOffered(f"unpruned, its batches differ from their samples alone as well: {error}") from error
        raise


def _compare_batch_forward(bench: _Bench) -> None:
    """Hold a padded batch to itself, unpruned and with the pruned tokens hidden."""
    both = bench.run(_two_samples(bench))
    with bench.backend("eager"), prune(bench.model, TopV(keep=_KEEP)) as pruning:
        logits = bench.model(**both).logits
    kept, visual = pruning.kept_positions, torch.zeros_like(both["input_ids"], dtype=torch.bool)
    for grid in pruning.results.plan.layout.grids:
        visual[grid.sample, grid.columns] = True
    want = masked_logits(bench.model, bench.family, both, kept, visual, pruning.layer)
    stays = both["attention_mask"].bool() & ~visual
    for row, columns in enumerate(kept):
        stays[row, columns] = True
    _require_close("a batch's logits", logits[stays], want[stays], _TOLERANCE)


def _two_samples(bench: _Bench) -> list[list[int | str]]:
    """One sample with much text, one with more pictures where a sample can hold several."""
    long: list[int | str] = [9, "wide" if bench.recipe.wide else "image", 5]
    other: list[int | str] = [2, "image", 3, "image", 4] if bench.recipe.several_images else [2, "image", 3]
    return [long, other]


def _compare_batch(bench: _Bench, keep: float | None = _KEEP) -> None:
    """Hold each of two samples in a padded batch to itself alone; None keeps the model unpruned."""
    long, other = _two_samples(bench)
    for samples in ([long, other], [other, long]):
        both = bench.run(samples)
        logits, kept = _generated(bench, both, keep)
        alone = _first_alone(bench, samples, both)
        lone_logits, lone_kept = _generated(bench, alone, keep)
        padding = int((both["attention_mask"][0] == 0).sum())
        if keep is not None and not torch.equal(kept[0] - padding, lone_kept[0]):
            raise _Mismatch(f"sample {samples[0]} keeps other tokens in a batch than alone")
        # Behind a step at which rounding chose another token, logits cannot be compared.
        same = (logits[0].argmax(-1) == lone_logits[0].argmax(-1)).long().cumprod(0)
        steps = min(len(same), int(same.sum()) + 1)
        _require_close("a batch's logits", logits[0, :steps], lone_logits[0, :steps], _BATCH_TOLERANCE)


def _first_alone(bench: _Bench, samples: list[list[int | str]], both: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a batch's first sample by itself, with the batch's own text and pictures."""
    alone = bench.run([samples[0]])
    shape = alone["input_ids"].shape
    real = both["attention_mask"][0].bool()
    for name, value in alone.items():
        if isinstance(value, torch.Tensor) and value.shape != shape:
            # Pictures stand sample by sample, and are padded behind their contents.
            alone[name] = both[name][tuple(slice(0, size) for size in value.shape)]
    return alone | {"input_ids": both["input_ids"][:1, real]}


def _generated(bench: _Bench, inputs: dict[str, Any], keep: float | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits (B, 3, V) of three generated tokens, and the kept columns of each sample."""
    pruned = contextlib.nullcontext() if keep is None else prune(bench.model, TopV(keep=keep))
    with torch.no_grad(), pruned as pruning:
        out = bench.model.generate(
            **inputs,
            max_new_tokens=3,
            min_new_tokens=3,
            **bench.text_only,
            return_dict_in_generate=True,
        )
        return torch.stack(out.logits, 1), [] if pruning is None else pruning.kept_positions


def _images(bench: _Bench) -> None:
    _compare_forward(bench, bench.run([[5, "image", 3, "wide" if bench.recipe.wide else "image", 6]]), "eager")


def _video(bench: _Bench) -> None:
    _compare_forward(bench, bench.run([[5, "video", 6]]), "eager")


_TESTS: dict[str, Callable[[_Bench], None]] = {
    "eager": _forward("eager"),
    "sdpa": _forward("sdpa"),
    "flex": _forward("flex"),
    "generate": _generate,
    "batch": _batch,
    "images": _images,
    "video": _video,
}
_APPLIES: dict[str, Callable[[Recipe], bool]] = {
    "images": lambda recipe: recipe.several_images,
    "video": lambda recipe: recipe.video,
}
