"""What reading the evidence costs: no copy of the tokens, and no second attention map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import topv
from architectures import recipe_of
from tiny_models import prompt, tiny_llava
from topv.budget import keep_count
from topv.models import family_of

SAMPLES = [[3, "image", 4], [3, "image", 4]]


class Calls(TorchFunctionMode):
    """Counts the calls of fused attention and of softmax, by which eager attention is told."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = self.eager = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += function is torch.nn.functional.scaled_dot_product_attention
        self.eager += function is torch.nn.functional.softmax
        return function(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Calls]:
    with torch.no_grad(), Calls() as calls:
        yield calls


@pytest.mark.parametrize(("attention", "fused"), [("full", 3), ("row", 4)])
def test_a_whole_map_takes_the_place_of_the_fast_path(attention: str, fused: int) -> None:
    model, inputs = tiny_llava(layers=4), prompt(SAMPLES)
    with topv.prune(model, topv.FastV(keep=0.5, attention=attention)), counted() as calls:
        model.get_image_features(pixel_values=inputs["pixel_values"])
        tower = calls.fused
        model(**inputs)
    assert (calls.fused - 2 * tower, calls.eager) == (fused, 1)


def test_both_forms_of_fastv_rank_alike() -> None:
    model, inputs = tiny_llava(layers=4), prompt(SAMPLES)
    ranks = []
    for attention in ("full", "row"):
        with topv.prune(model, topv.FastV(keep=0.5, attention=attention)) as pruning, torch.no_grad():
            model(**inputs)
        ranks.append(torch.stack([scores for scores in pruning.importance if scores is not None]))
    assert torch.allclose(*ranks, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[:1]], ids=["batch", "one"])
def test_source_and_target_are_views_of_the_layers_own_states(samples: list[list[Any]]) -> None:
    model, inputs = tiny_llava(layers=4), prompt(samples)
    seen: dict[str, int] = {}
    layer = model.model.language_model.layers[1]

    def note(name: str) -> Any:
        return lambda module, args: seen.__setitem__(name, args[0].untyped_storage().data_ptr())

    read: dict[str, int] = {}

    class Watching(topv.TopV):
        def score(self, evidence: Any, count: int) -> torch.Tensor:
            for name in ("source", "target"):
                read[name] = getattr(evidence, name).untyped_storage().data_ptr()
            return super().score(evidence, count)

    handles = [layer.register_forward_pre_hook(note("source")), layer.mlp.register_forward_pre_hook(note("target"))]
    with topv.prune(model, Watching(keep=0.5)), torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    assert read == seen


def test_text_tokens_are_those_that_show_nothing_and_are_no_padding() -> None:
    model, inputs = tiny_llava(layers=4), prompt([[3, "image", 4], [2, "image", 1, "image", 3]])
    entering: list[torch.Tensor] = []
    read: list[Any] = []

    class Reading(topv.Uniform):
        needs = frozenset({"text"})

        def score(self, evidence: Any, count: int) -> torch.Tensor:
            read.append(evidence)
            return super().score(evidence, count)

    layer = model.model.language_model.layers[1]
    handle = layer.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    with topv.prune(model, Reading(keep=0.5)), torch.no_grad():
        model(**inputs)
    handle.remove()
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != model.config.image_token_id)
    assert len(read) == 1
    for evidence in read:
        for sample, states, mask in zip((0, 1, 1), evidence.text, evidence.text_mask, strict=True):
            assert torch.equal(states[mask], entering[0][sample][text[sample]])
            assert not bool(states[~mask].any())


@pytest.mark.parametrize(("layer", "target"), [(0, None), (2, None), (2, "post_norm")])
def test_text_is_compared_with_tokens_of_the_same_width(layer: int, target: str | None) -> None:
    """A decoder with two residual streams side by side. What a layer reads is their mean, so where a target is read,
    source and text are that mean as well."""
    read: list[Any] = []

    class Reading(topv.CDPruner):
        needs = frozenset({"source", "text"} | ({target} if target else set()))

        def score(self, evidence: Any, count: int) -> torch.Tensor:
            read.append(evidence)
            return super().score(evidence, count)

    recipe = recipe_of("glm5_next")
    torch.manual_seed(0)
    model = recipe.build()
    model.set_attn_implementation("eager")
    inputs = recipe.prompt(model, [[3, "image", 4]])
    entering: list[torch.Tensor] = []
    watched = family_of(model).layers[max(layer - 1, 0)]
    # A hook that was there before topv's sees the states before they are shortened.
    handle = watched.register_forward_pre_hook(
        lambda module, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with topv.prune(model, Reading(keep=0.4, layer=layer)) as pruning, torch.no_grad():
        model(**inputs)
    handle.remove()
    (streams,), (evidence,) = entering, read
    assert streams.shape[2] == 2
    states = (streams.flatten(2) if target is None else streams.mean(2))[0]
    visual = (inputs["input_ids"] == model.config.image_token_id)[0]
    assert torch.equal(evidence.source[0], states[visual])
    assert torch.equal(evidence.text[0], states[~visual])
    assert bool(evidence.text_mask.all())
    count = keep_count(int(visual.sum()), 0.4)
    kept = topv.CDPruner(keep=0.4).score(evidence, count)[0].topk(count).indices
    assert pruning.kept_positions[0].tolist() == visual.nonzero()[:, 0][kept].sort().values.tolist()
