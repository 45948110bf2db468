"""Measuring methods at one batch: what runs, and what is made of its times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import topv
from module_snapshot import snapshot
from tiny_models import TOKENS, prompt, tiny_llava
from topv.errors import InputError
from topv.measure.bench import Case, Measurement, bench, flops_shares, run_once
from topv.measure.flops import count_decoder, count_flops

LAYERS = 5
ROUNDS = 3


class Clock:
    """Seconds that pass only as decoder layers work: as many as they see columns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    @contextmanager
    def running_in(self, model: Any) -> Iterator[None]:
        def work(module: Any, args: Any, output: Any) -> None:
            self.now += output.shape[0] * output.shape[1]

        layers = model.model.language_model.layers
        handles = [layer.mlp.register_forward_hook(work) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def measure(batch: int = 1, **options: Any) -> dict[str, Measurement]:
    model, clock = tiny_llava(layers=LAYERS), Clock()
    inputs = prompt([[3, "image", 4]] * batch)
    methods = {"none": None, "topv": topv.TopV(keep=0.25, layer=2), "vtw": topv.VTW(layer=3)}
    cases = {name: Case(method, inputs) for name, method in methods.items()}
    with clock.running_in(model):
        return bench(model, cases, baseline="none", clock=clock, rounds=ROUNDS, warmup=1, **options)


LENGTH = TOKENS + 7
SHORT = TOKENS // 4 + 7


@pytest.mark.parametrize("batch", [1, 2])
def test_times_are_those_of_the_columns_that_ran(batch: int) -> None:
    found = measure(batch, decode_steps=4)
    whole, pruned = found["none"], found["topv"]
    for measured in found.values():
        assert len(measured.stages) == len(measured.times["prefill"].seconds) == ROUNDS
    assert whole.times["prefill"].median == whole.times["decoder"].median == batch * LAYERS * LENGTH
    assert pruned.times["prefill"].median == batch * (2 * LENGTH + 3 * SHORT)
    assert found["vtw"].times["prefill"].median == batch * (3 * LENGTH + 2 * 7)
    for measured in (whole, pruned):
        assert measured.times["decode"].median == batch * LAYERS
        assert measured.times["total"].median == measured.times["prefill"].median + 4 * batch * LAYERS
        assert measured.times["request"].median == measured.times["total"].median / batch
    assert pruned.times["prefill"].ratio is not None
    assert pruned.times["prefill"].ratio.value == pytest.approx((2 * LENGTH + 3 * SHORT) / (LAYERS * LENGTH))
    assert pruned.throughput_ratio is not None
    assert pruned.throughput_ratio.value == pytest.approx(whole.times["total"].median / pruned.times["total"].median)
    assert whole.throughput_ratio is None
    assert whole.time_over_flops is None


def test_stages_and_counts() -> None:
    found = measure(decode_steps=0)
    whole, pruned = found["none"], found["topv"]
    assert "decode" not in whole.times
    assert (whole.visual_tokens, whole.kept_tokens, whole.prompt_tokens) == (TOKENS, TOKENS, LENGTH)
    assert (pruned.visual_tokens, pruned.kept_tokens, pruned.prompt_tokens) == (TOKENS, TOKENS // 4, LENGTH)
    # The unpruned decoder is cut where the first method's is.
    assert (whole.layer, pruned.layer, found["vtw"].layer) == (2, 2, 3)
    assert whole.stage_medians == {
        "encode": 0,
        "before": 2 * LENGTH,
        "selection": 0,
        "after": 3 * LENGTH,
        "rest": 0,
    }
    assert pruned.stage_medians["after"] == 3 * SHORT
    assert pruned.selection_share.value == 0


def test_time_over_the_flops_share() -> None:
    measured = measure(decode_steps=0)
    pruned, whole = measured["topv"], measured["none"]
    model, inputs = tiny_llava(layers=LAYERS), prompt([[3, "image", 4]])
    lengths = {"visual": TOKENS, "columns": LENGTH, "logits": 1}
    short = count_decoder(model, **lengths, layer=2, kept=TOKENS // 4)
    full = count_flops(model, {**inputs, "logits_to_keep": 1})
    assert pruned.flops_share == short.decoder / full.decoder
    assert pruned.prefill_flops_share == (full.vision + full.projector + full.other + short.total) / full.total
    assert full.vision > 0
    assert (whole.flops_share, whole.prefill_flops_share) == (1, 1)
    columns = (2 * LENGTH + 3 * SHORT) / (LAYERS * LENGTH)
    assert pruned.time_over_flops is not None
    assert pruned.time_over_flops.value == pytest.approx(columns / pruned.flops_share)
    assert pruned.prefill_over_flops is not None
    assert pruned.prefill_over_flops.value == pytest.approx(columns / pruned.prefill_flops_share)


def test_flops_are_the_same_on_a_backend_whose_products_cannot_be_seen() -> None:
    model, inputs = tiny_llava(layers=LAYERS), prompt([[3, "image", 4]])
    with topv.prune(model, topv.TopV(keep=0.25)) as pruning, torch.no_grad():
        model(**inputs)
        shares = flops_shares(model, inputs, pruning)
        model.set_attn_implementation("flex_attention")
        assert flops_shares(model, inputs, pruning) == shares
        assert model.config._attn_implementation == "flex_attention"
    assert 0 < shares[0] < shares[1] < 1


def test_each_method_at_a_batch_of_its_own() -> None:
    model, clock = tiny_llava(layers=LAYERS), Clock()
    cases = {
        "none": Case(None, prompt([[3, "image", 4]])),
        "topv": Case(topv.TopV(keep=0.25, layer=2), prompt([[3, "image", 4]] * 3)),
    }
    with clock.running_in(model):
        found = bench(model, cases, baseline="none", clock=clock, rounds=1, warmup=0, decode_steps=0)
    ratio = found["topv"].throughput_ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(LAYERS * LENGTH / (2 * LENGTH + 3 * SHORT))
    assert found["topv"].kept_tokens == TOKENS // 4


def test_what_is_measured_is_what_generate_runs_and_nothing_stays() -> None:
    model, inputs = tiny_llava(layers=LAYERS), prompt([[3, "image", 4]])
    method = topv.TopV(keep=0.25)
    with torch.inference_mode():
        model(**inputs)
    before = snapshot(model)
    calls: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda m, a, kwargs, o: calls.append(kwargs["input_ids"]), with_kwargs=True)
    case = Case(method, inputs)
    bench(model, {"topv": case}, baseline="topv", decode_steps=3, warmup=0, rounds=1)
    run_once(model, case, decode_steps=3)
    handle.remove()
    assert snapshot(model) == before
    with topv.prune(model, method), torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert [call.shape[1] for call in calls] == 2 * [LENGTH, 1, 1, 1]
    for run in (calls[1:4], calls[5:]):
        assert torch.cat(run, dim=1).tolist() == ids[:, LENGTH:].tolist()


def test_counts_out_of_range() -> None:
    with pytest.raises(InputError, match="decode_steps=-1"):
        measure(decode_steps=-1)
