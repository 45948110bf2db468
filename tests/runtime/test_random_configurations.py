"""Hundreds of random settings, each held to the same exactness."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import topv
from reference import generated_reference, hidden_columns, positions, relative_error, staged_forward
from tiny_models import IMAGE_TOKEN, TOKENS, prompt, shared_llava

keeps = st.one_of(st.floats(0.01, 1.0), st.integers(1, TOKENS))
layers = st.integers(1, 4)
budgets = st.sampled_from(["grid", "image", "sample"])
targets = st.sampled_from(["pre_norm", "attention", "post_norm", "mlp"])
costs = {
    "alpha": st.floats(0.1, 2),
    "beta": st.floats(0, 2),
    "gamma": st.floats(0, 1),
    "sigma": st.floats(0.5, 10),
    "normalize": st.booleans(),
    "scale": st.sampled_from(["max", "mean"]),
    "recovery": st.floats(0, 0.9),
}
methods = st.one_of(
    st.builds(
        topv.TopV,
        keep=keeps,
        layer=layers,
        target=targets,
        importance=st.sampled_from(["coverage", "demand", "potential", "relaxed"]),
        eps=st.floats(0.01, 2),
        rho=st.floats(0, 2),
        iterations=st.integers(1, 6),
        **costs,
    ),
    st.builds(topv.MeanCost, keep=keeps, layer=layers, target=targets, **costs),
    st.builds(topv.FacilityLocation, keep=keeps, layer=layers, target=targets, **costs),
    st.builds(topv.DivPrune, keep=keeps, layer=layers),
    st.builds(topv.CDPruner, keep=keeps, layer=layers, theta=st.one_of(st.none(), st.floats(0, 0.9))),
    st.builds(topv.VisionZip, keep=keeps, layer=layers, contextual=st.floats(0, 0.9)),
    st.builds(topv.FastV, keep=keeps, layer=layers, attention=st.sampled_from(["row", "full"])),
    st.builds(topv.VTW, layer=layers),
    st.builds(topv.PyramidDrop, keep=keeps, layer=layers, stages=st.integers(2, 6), budget=budgets),
    st.builds(topv.SparseVLM, keep=keeps, layer=layers, budget=budgets),
    st.builds(topv.Random, keep=keeps, layer=layers, seed=st.integers(0, 9)),
    st.builds(topv.Uniform, keep=keeps, layer=layers),
)


@st.composite
def samples(draw: Any) -> list[int | str]:
    """Text and zero to two images in any order, with at least one token."""
    parts: list[int | str] = []
    for _ in range(draw(st.integers(0, 2))):
        text = draw(st.integers(0, 3))
        parts += [text, "image"] if text else ["image"]
    text = draw(st.integers(0 if parts else 1, 4))
    return [*parts, text] if text else parts


batches = st.lists(samples(), min_size=1, max_size=4)
options: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=350, **options)
@given(
    method=methods,
    batch=batches,
    padding=st.sampled_from(["left", "right"]),
    backend=st.sampled_from(["eager", "sdpa"]),
    seed=st.integers(0, 99),
)
def test_forward(method: topv.Method, batch: Any, padding: str, backend: str, seed: int) -> None:
    model, inputs = shared_llava(5, backend), prompt(batch, padding=padding, seed=seed)
    real = inputs["attention_mask"].bool()
    with topv.prune(model, method) as pruning, torch.no_grad():
        got = model(**inputs, position_ids=positions(real)).logits
    by_layer = hidden_columns(inputs, pruning.kept_by_layer, IMAGE_TOKEN)
    want = staged_forward(model, inputs, by_layer).logits
    hidden = by_layer[pruning.layers[-1]]
    stays = real & ~hidden
    assert relative_error(got[stays], want[stays]) <= 1e-5
    assert got[hidden].isnan().all()


@settings(max_examples=150, **options)
@given(
    method=methods,
    batch=batches,
    backend=st.sampled_from(["eager", "sdpa"]),
    seed=st.integers(0, 99),
    steps=st.integers(1, 16),
)
def test_generation(method: topv.Method, batch: Any, backend: str, seed: int, steps: int) -> None:
    model, inputs = shared_llava(5, backend), prompt(batch, seed=seed)
    with topv.prune(model, method) as pruning:
        out = model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            suppress_tokens=[IMAGE_TOKEN],
            return_dict_in_generate=True,
            output_logits=True,
        )
    want = generated_reference(model, inputs, out.sequences, by_layer=pruning.kept_by_layer)
    assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5
