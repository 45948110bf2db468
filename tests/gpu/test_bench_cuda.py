"""On a CUDA device: stages by events, presets in place, and the memory that a run takes."""

from __future__ import annotations

import pytest
import torch

import topv
from tiny_models import prompt, tiny_llava
from topv.measure.bench import Case, bench, run_once
from topv.measure.fitting import peak_bytes
from topv.measure.random_model import build_random_model, random_inputs
from topv.measure.shapes import PRESETS
from topv.measure.stages import Stages, marks_for
from topv.models import family_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_marking_stages_never_waits_for_the_device() -> None:
    model = tiny_llava().cuda()
    inputs = {name: tensor.cuda() for name, tensor in prompt([[3, "image", 4]]).items()}
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        model(**inputs)
        stages = Stages(family_of(model), marks_for(torch.device("cuda")))
        layers = model.model.language_model.layers
        with stages.watching():
            handles = [
                layers[0].register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("error")),
                layers[-1].register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("default")),
            ]
            try:
                with stages.run():
                    model(**inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                for handle in handles:
                    handle.remove()
    times = stages.times()
    assert sum(times.split(2).values()) == pytest.approx(times.total)
    assert times.selection > 0
    assert all(seconds > 0 for seconds in times.layers)


def test_a_preset_is_made_on_the_device_and_measured() -> None:
    device = torch.device("cuda")
    model = build_random_model(PRESETS["llava-cpu"], device=device, dtype=torch.bfloat16, layers=4)
    inputs = random_inputs(model, PRESETS["llava-cpu"].picture, batch=2, text_tokens=16)
    cases = {"none": Case(None, inputs), "topv": Case(topv.TopV(keep=0.25), inputs)}
    found = bench(model, cases, baseline="none", rounds=3, warmup=1, decode_steps=2)
    assert found["topv"].kept_tokens == 144
    for measured in found.values():
        assert all(times.total > 0 for times in measured.stages)
    peaks = {
        name: peak_bytes(lambda case=case: run_once(model, case, decode_steps=2), model, device)
        for name, case in cases.items()
    }
    assert peaks["none"] is not None
    assert peaks["topv"] is not None
    assert peaks["topv"] <= peaks["none"]
    huge = torch.cuda.get_device_properties(device).total_memory
    assert peak_bytes(lambda: torch.empty(2 * huge, dtype=torch.uint8, device=device), model, device) is None
