"""Timing a tiny model, and reading its cache."""

from __future__ import annotations

import pytest
import torch

from module_snapshot import snapshot
from tiny_models import TOKENS, prompt, tiny_llava
from topv.errors import InputError, UnsupportedError
from topv.measure import PrefillProbe, kv_cache_bytes, time_generation
from topv.methods import TopV, Uniform
from topv.runtime import prune
from topv.runtime.arguments import output_cache


@pytest.fixture
def inputs():
    return prompt([[3, "image", 4]])


@pytest.fixture
def model(inputs):
    model = tiny_llava()
    with torch.inference_mode():
        # transformers adds hooks of its own in the first forward.
        model(**inputs)
    return model


def test_every_method_is_timed_against_the_unpruned_model(model, inputs):
    before = snapshot(model)
    runs = []
    timing = time_generation(
        model,
        inputs,
        {"topv": TopV(keep=0.25), "uniform": Uniform(keep=4)},
        decode_steps=2,
        warmup=1,
        repetitions=2,
        on_run=lambda: runs.append(1),
    )
    assert list(timing.prefill.rows) == list(timing.decode.rows) == ["none", "topv", "uniform"]
    assert len(runs) == 9
    for table in (timing.prefill, timing.decode):
        assert all(len(row.seconds) == 2 and row.median > 0 for row in table.rows.values())
        assert [row.ratio is None for row in table.rows.values()] == [True, False, False]
    assert snapshot(model) == before


def test_what_is_timed_is_what_generate_runs(model, inputs):
    """One forward over the prompt, then one per step on the token that greedy decoding chose."""
    calls = []

    def record(module, args, kwargs, output):
        calls.append((kwargs["input_ids"], output_cache(output).get_seq_length(4)))

    method = TopV(keep=0.25)
    handle = model.register_forward_hook(record, with_kwargs=True)
    time_generation(model, inputs, {"topv": method}, baseline="topv", decode_steps=3, warmup=0, repetitions=1)
    handle.remove()
    length = inputs["input_ids"].shape[1]
    kept = length - TOKENS + TOKENS // 4
    assert [ids.shape[1] for ids, _ in calls] == [length, 1, 1, 1]
    assert [entries for _, entries in calls] == [kept, kept + 1, kept + 2, kept + 3]
    with prune(model, method), torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.cat([ids for ids, _ in calls[1:]], dim=1).tolist() == ids[:, length:].tolist()


def test_prefill_alone(model, inputs):
    timing = time_generation(model, inputs, {"none": None}, decode_steps=0, warmup=0, repetitions=1)
    assert timing.decode is None
    with pytest.raises(InputError, match="decode_steps=-1"):
        time_generation(model, inputs, {}, decode_steps=-1)


def test_the_probe_reads_the_cache_of_the_prefill(model, inputs):
    before = snapshot(model)
    with prune(model, TopV(keep=0.5)) as pruning, PrefillProbe(model) as probe, torch.inference_mode():
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert probe.kv_bytes == pruning.report().kv_bytes < pruning.report().kv_bytes_unpruned
    with PrefillProbe(model) as probe, torch.inference_mode():
        output = model(**inputs, use_cache=True)
    assert probe.kv_bytes == kv_cache_bytes(output_cache(output)) == pruning.report().kv_bytes_unpruned
    assert snapshot(model) == before


def test_a_cache_of_another_kind():
    with pytest.raises(UnsupportedError, match="tuple"):
        kv_cache_bytes(())
