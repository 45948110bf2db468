"""Memory timelines: KV bytes by the formula, what falls when tokens are pruned, and that no peak rises."""

from __future__ import annotations

import copy
import functools
import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from module_snapshot import snapshot
from tiny_models import IMAGE_TOKEN, PATCH, SIDE, TOKENS, VOCABULARY, prompt, tiny_llava
from topv.errors import InputError
from topv.measure import LiveTensors, kv_cache_bytes, memory_timeline, profile_generation, resident, static_bytes
from topv.measure.memory import AllocatorMeter, GenerationMemory, generate_text, memory_history
from topv.measure.resident import ResidentMeter, settle, touch_weights
from topv.methods import VTW, FastV, MeanCost, Method, Random, TopV, Uniform
from topv.runtime import prune

FLOAT = 4
STEPS = 4
DEEP, SHALLOW = 10, 3
METHODS = [
    TopV(keep=0.5),
    TopV(keep=0.1, recovery=0.5),
    FastV(keep=0.5),
    VTW(),
    Random(keep=0.25),
    Uniform(keep=0.5),
    MeanCost(keep=0.5),
]


def named(method: object) -> str | None:
    """A short name for a method in test ids."""
    if isinstance(method, Method):
        return f"{method.name}-{method.keep}{'-full' if getattr(method, 'attention', None) == 'full' else ''}"
    return None


@functools.cache
def proportionate(layers: int) -> LlavaForConditionalGeneration:
    """A tiny LLaVA with the proportions of a real one: wider than its grid is long, an MLP several times that."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE * PATCH,
        patch_size=PATCH, projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


@functools.cache
def profiled(layers: int, method: object = None, full_logits: bool = False) -> GenerationMemory:
    """The memory of four tokens on one prompt, once for all tests that look at it."""
    inputs = prompt([[3, "image", 4]])
    return profile_generation(proportionate(layers), inputs, method, new_tokens=STEPS, full_logits=full_logits)


@pytest.mark.parametrize("method", [None, *METHODS, FastV(keep=0.5, attention="full")], ids=named)
@pytest.mark.parametrize("samples", [[[3, "image", 4]], [[3, "image", 4], [9, "image", 2]]], ids=["one", "padded"])
def test_kv_bytes_are_those_of_the_formula_at_every_token(method, samples):
    model = tiny_llava()
    inputs = prompt(samples)
    found = profile_generation(model, inputs, method, new_tokens=4)
    batch, length = inputs["input_ids"].shape
    layers, entry = 5, 2 * batch * 2 * 8 * FLOAT
    first = layers * length * entry
    if method is not None:
        assert found.report.kv_bytes_unpruned == first
        first = found.report.kv_bytes
        kept = 0 if isinstance(method, VTW) else found.report.kept_tokens // batch
        pruned = layers - found.report.layer
        # Padding of the prompt goes with the pruned tokens.
        longest = max(sum(TOKENS if part == "image" else part for part in sample) for sample in samples)
        assert first == (found.report.layer * length + pruned * (longest - TOKENS + kept)) * entry
    assert [sample.kv for sample in found.timeline.samples] == [first + step * layers * entry for step in range(4)]
    assert [sample.step for sample in found.timeline.samples] == [1, 2, 3, 4]


def test_recurrent_layers_hold_no_keys():
    recurrent = SimpleNamespace(conv_states=torch.zeros(9), recurrent_states=torch.zeros(9))
    attention = SimpleNamespace(keys=torch.zeros(1, 2, 5, 3), values=torch.zeros(1, 2, 5, 3))
    empty = SimpleNamespace(keys=None, values=None)
    assert kv_cache_bytes(SimpleNamespace(layers=[recurrent, attention, empty])) == 60 * FLOAT


def test_the_model_is_left_as_it_was():
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    with torch.no_grad():
        model(**inputs)
    before = snapshot(model)
    profile_generation(model, inputs, TopV(keep=0.5), new_tokens=2)
    assert snapshot(model) == before


def test_static_bytes_count_tied_weights_once_and_buffers_too():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False), nn.BatchNorm1d(2, affine=False))
    model[1].weight = model[0].weight
    # Two running statistics of two floats, and a counter of eight bytes.
    assert static_bytes(model) == 12 * FLOAT + 2 * 2 * FLOAT + 8
    assert static_bytes(model, "cuda") == 0
    assert profiled(DEEP).timeline.static == static_bytes(proportionate(DEEP))


def test_unpruned_memory_is_accounted_for_to_the_byte():
    """After a decoding step: the cache, the inputs that generate holds, what the vision tower made, logits, ids."""
    inputs = prompt([[3, "image", 4]])
    length = inputs["input_ids"].shape[1]
    samples = profiled(DEEP).timeline.samples
    tower = (TOKENS + 1) * 16 * FLOAT
    features = TOKENS * 64 * FLOAT
    pixels = inputs["pixel_values"].numel() * FLOAT
    for sample in samples[1:]:
        rest = sample.dynamic - sample.kv - pixels - tower - features
        # Logits and scores, the ids, masks and positions of a prompt of this length.
        assert 0 < rest <= 3 * VOCABULARY * FLOAT + 8 * 8 * (length + STEPS)


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_nothing_waits_for_the_garbage_collector(method):
    """When a generation is over, what it held goes at once, as without pruning; a cache in a cycle would stay."""
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    given = sum(tensor.numel() * tensor.element_size() for tensor in inputs.values())
    gc.collect()
    gc.disable()
    try:
        with LiveTensors(static=[*model.parameters(), *model.buffers()], watch=inputs.values()) as live:
            with prune(model, method):
                generate_text(model, inputs, 3)
                # The last results: a few numbers for each token of the prompt.
                assert live.bytes - given <= 40 * inputs["input_ids"].shape[1]
            # Uniform remembers the order of a grid's cells for the next prompt.
            assert live.bytes - given in (0, 8 * TOKENS)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_held_memory_falls_by_what_the_kv_cache_falls(method):
    base, found = profiled(DEEP).timeline, profiled(DEEP, method).timeline
    length = prompt([[3, "image", 4]])["input_ids"].shape[1]
    for ours, whole in zip(found.samples, base.samples, strict=True):
        fell, expected = whole.dynamic - ours.dynamic, whole.kv - ours.kv
        assert 0.95 * expected <= fell <= expected
        # What topv remembers of the prompt: a few numbers for each of its columns.
        assert expected - fell <= 40 * length


def test_as_a_share_of_what_pruning_can_reach():
    """Of dynamic memory less what the caller and the vision tower hold, the share that goes is the KV cache's."""
    base, found = profiled(DEEP).timeline.end, profiled(DEEP, TopV(keep=0.1)).timeline.end
    report = profiled(DEEP, TopV(keep=0.1)).report
    held = base.dynamic - base.kv
    share = 1 - (found.dynamic - held) / (base.dynamic - held)
    formula = (report.kv_bytes_unpruned - report.kv_bytes) / base.kv
    assert share >= 0.95 * formula > 0.4


@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.parametrize("full_logits", [False, True])
def test_no_peak_is_above_the_unpruned_runs(method, full_logits):
    base, found = profiled(DEEP, None, full_logits).timeline, profiled(DEEP, method, full_logits).timeline
    for ours, whole in zip(found.samples, base.samples, strict=True):
        assert ours.peak <= whole.peak
        assert ours.dynamic <= whole.dynamic
    assert found.peak < base.peak


def test_fastv_as_published_holds_a_whole_map():
    """The map of the layer for every head, before and after its scaling; one row is as nothing beside it."""
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    whole, row, full = (
        profile_generation(model, inputs, method, new_tokens=2).timeline
        for method in (None, FastV(keep=0.5), FastV(keep=0.5, attention="full"))
    )
    heads, length = 4, inputs["input_ids"].shape[1]
    assert full.peak >= 2 * heads * length**2 * FLOAT
    assert row.peak < whole.peak < full.peak
    assert full.end == row.end


@pytest.mark.parametrize("method", [None, TopV(keep=0.5)], ids=named)
def test_logits_at_every_position_are_the_callers_in_any_arm(method):
    length = prompt([[3, "image", 4]])["input_ids"].shape[1]
    last, full = profiled(DEEP, method).timeline, profiled(DEEP, method, True).timeline
    assert full.samples[0].dynamic - last.samples[0].dynamic == (length - 1) * VOCABULARY * FLOAT
    assert [sample.dynamic for sample in full.samples[1:]] == [sample.dynamic for sample in last.samples[1:]]


def _held_in_mlp(layers: int, method: object) -> int:
    """Live bytes when the MLP of layer 1, the last whole one, begins its last product."""
    model, inputs = proportionate(layers), prompt([[3, "image", 4]])
    found: list[int] = []

    class Meter(LiveTensors):
        def __enter__(self):
            module = model.model.language_model.layers[1].mlp.down_proj
            self.handle = module.register_forward_pre_hook(lambda *_: found.append(self.bytes))
            return super().__enter__()

        def __exit__(self, *exception):
            super().__exit__(*exception)
            self.handle.remove()

    meter = Meter(static=[*model.parameters(), *model.buffers()], watch=inputs.values())
    profile_generation(model, inputs, method, new_tokens=1, meter=meter)
    return found[0]


def test_no_second_copy_of_the_hidden_states_while_the_last_whole_layer_runs():
    extra = _held_in_mlp(SHALLOW, TopV(keep=0.5)) - _held_in_mlp(SHALLOW, None)
    assert extra < TOKENS * 64 * FLOAT


def test_no_peak_is_above_the_unpruned_runs_in_a_shallow_decoder():
    base, found = profiled(SHALLOW).timeline, profiled(SHALLOW, TopV(keep=0.5)).timeline
    assert found.peak <= base.peak


@pytest.mark.parametrize("method", [FastV(keep=0.5), Random(keep=0.5), Uniform(keep=0.5), VTW(layer=1)], ids=named)
def test_methods_without_such_evidence_never_are_in_a_shallow_decoder(method):
    base, found = profiled(SHALLOW).timeline, profiled(SHALLOW, method).timeline
    assert all(ours.peak <= whole.peak for ours, whole in zip(found.samples, base.samples, strict=True))


def test_every_token_is_generated_past_the_end_of_the_answer():
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    first = generate_text(model, inputs, 1)[0, -1].item()
    model.generation_config.eos_token_id = first
    assert len(profile_generation(model, inputs, None, new_tokens=4).timeline.samples) == 4
    with pytest.raises(InputError, match="new_tokens=0"):
        profile_generation(model, inputs, None, new_tokens=0)


class Scripted:
    """A meter that reads from a list."""

    source = "a list"

    def __init__(self, *readings):
        self.readings = list(readings)
        self.restarts = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def restart(self):
        self.restarts += 1

    def read(self):
        return self.readings.pop(0)


def test_a_timeline_of_any_callable():
    module = nn.Linear(2, 2)
    meter = Scripted((10, 30), (12, 14), (0, 99))
    timeline = memory_timeline(module, lambda: module(module(torch.zeros(1, 2))), meter)
    assert [(s.step, s.dynamic, s.kv, s.peak) for s in timeline.samples] == [(1, 10, 0, 30), (2, 12, 0, 99)]
    assert (timeline.static, timeline.peak, timeline.decode_peak, timeline.source) == (6 * FLOAT, 99, 99, "a list")
    assert meter.restarts == 3
    assert not module._forward_hooks


def test_a_run_that_never_calls_the_module():
    with pytest.raises(InputError, match="never called the Linear"):
        memory_timeline(nn.Linear(2, 2), lambda: None, Scripted((0, 0)))


def test_hooks_go_when_the_run_fails():
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError):
        memory_timeline(module, lambda: module(torch.zeros(1, 3)), Scripted())
    assert not module._forward_hooks


# ---- resident memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not resident._CLEAR.exists(), reason="needs Linux's clear_refs")
def test_resident_memory_sees_a_tensor_come_and_go():
    mib = 2**20
    settle()
    meter = ResidentMeter()
    assert meter.restarts
    with meter:
        big = torch.ones(64 * mib // FLOAT)
        now, peak = meter.read()
        assert 60 * mib <= now <= peak
        del big
        settle()
        meter.restart()
        now, peak = meter.read()
        assert max(now, peak) < 8 * mib


def test_a_peak_that_cannot_be_restarted_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(resident, "_CLEAR", tmp_path / "missing" / "clear_refs")
    meter = ResidentMeter()
    assert not meter.restarts
    assert "since the process began" in meter.source
    meter.restart()
    now, peak = meter.read()
    assert peak >= now


def test_without_proc_the_peak_of_the_process_stands_in(monkeypatch, tmp_path):
    monkeypatch.setattr(resident, "_STATUS", tmp_path / "missing")
    now, peak = resident._read()
    assert now == peak > 10 * 2**20


def test_touching_weights_changes_nothing():
    model = tiny_llava()
    before = snapshot(model)
    touch_weights(model)
    assert snapshot(model) == before


# ---- CUDA ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_its_allocator_is_refused(tmp_path):
    with pytest.raises(InputError, match="on the CPU"):
        AllocatorMeter(nn.Linear(2, 2))
    with pytest.raises(InputError, match="no CUDA device"), memory_history(tmp_path / "history.pickle"):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_allocator_counts_what_live_tensors_count(tmp_path):
    model = copy.deepcopy(proportionate(DEEP)).cuda()
    inputs = {name: tensor.cuda() for name, tensor in prompt([[3, "image", 4]]).items()}
    history = tmp_path / "history.pickle"
    with memory_history(history):
        whole = profile_generation(model, inputs, None, new_tokens=3)
    pruned = profile_generation(model, inputs, TopV(keep=0.5), new_tokens=3)
    assert history.stat().st_size > 0
    assert whole.timeline.source == "CUDA allocator"
    live = LiveTensors(static=[*model.parameters(), *model.buffers()], watch=inputs.values(), device="cuda")
    counted = profile_generation(model, inputs, None, new_tokens=3, meter=live)
    for ours, exact in zip(whole.timeline.samples, counted.timeline.samples, strict=True):
        assert ours.kv == exact.kv
        assert ours.dynamic >= exact.dynamic
    for ours, base in zip(pruned.timeline.samples, whole.timeline.samples, strict=True):
        assert ours.peak <= base.peak
