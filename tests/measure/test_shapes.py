"""Presets: their sizes, their prompts, and that the small ones run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import topv
from topv.errors import InputError
from topv.measure.random_model import build_random_model, parameter_count, random_inputs
from topv.measure.shapes import PRESETS, preset
from topv.models import family_of

PUBLISHED = [name for name, entry in PRESETS.items() if entry.parameters is not None]
SMALL = [name for name in PRESETS if name.endswith("-cpu")]
CPU = torch.device("cpu")


def test_every_preset_is_either() -> None:
    assert sorted([*PUBLISHED, *SMALL]) == sorted(PRESETS)
    assert len(PUBLISHED) == 6
    assert all(name == entry.name for name, entry in PRESETS.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert parameter_count(PRESETS[name]) == pytest.approx(PRESETS[name].parameters, rel=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_are_small(name: str) -> None:
    # The LLaVA of the speed tables is the largest.
    assert parameter_count(PRESETS[name]) < (400e6 if name == "llava-cpu" else 150e6)


def test_the_llava_of_the_speed_tables() -> None:
    text = PRESETS["llava-cpu"].config(None).text_config
    shape = (text.num_hidden_layers, text.hidden_size, text.intermediate_size)
    assert shape == (24, 896, 4864)
    assert (text.num_attention_heads, text.num_key_value_heads) == (14, 2)


@pytest.mark.parametrize(
    ("small", "large", "divisor"),
    [
        ("internvl2-cpu", "internvl2-2b", 16 / 3),
        ("qwen2.5-vl-cpu", "qwen2.5-vl-7b", 8),
        ("qwen3-vl-cpu", "qwen3-vl-8b", 8),
    ],
)
def test_small_ones_have_the_proportions_of_large_ones(small: str, large: str, divisor: float) -> None:
    def shape(name: str) -> Any:
        return PRESETS[name].config(None).text_config

    assert shape(small).num_hidden_layers == shape(large).num_hidden_layers
    for field in ("hidden_size", "intermediate_size", "vocab_size"):
        assert getattr(shape(small), field) * divisor == pytest.approx(getattr(shape(large), field), rel=0.01)
    heads = [shape(name).num_attention_heads / shape(name).num_key_value_heads for name in (small, large)]
    assert heads[0] == heads[1]


# Sizes at which a test can run them; the geometry of patches and tiles is the preset's own.
REDUCED: dict[str, dict[str, Any]] = {
    "llava-cpu": {},
    "internvl2-cpu": {"tiles": 1},
    "qwen2.5-vl-cpu": {"pixels": (140, 196)},
    "qwen3-vl-cpu": {"pixels": (160, 224)},
}
TOKENS = {"llava-cpu": 576, "internvl2-cpu": 256, "qwen2.5-vl-cpu": 35, "qwen3-vl-cpu": 35}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_ones_run_pruned_and_unpruned(name: str) -> None:
    shapes = PRESETS[name]
    picture = shapes.with_picture(**REDUCED[name])
    model = build_random_model(shapes, device=CPU, dtype=torch.float32, layers=4)
    assert not any(parameter.is_meta for parameter in (*model.parameters(), *model.buffers()))
    inputs = random_inputs(model, picture, batch=1, text_tokens=12)
    with torch.inference_mode():
        whole = model(**inputs, logits_to_keep=1).logits
        with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
            short = model(**inputs, logits_to_keep=1).logits
        report = pruning.report()
    assert whole.isfinite().all()
    assert short.isfinite().all()
    assert not torch.equal(whole, short)
    assert (report.visual_tokens, report.kept_tokens) == (TOKENS[name], (TOKENS[name] + 1) // 2)


@pytest.mark.parametrize("name", SMALL)
def test_buffers_are_those_of_a_model_built_in_the_usual_way(name: str) -> None:
    """No checkpoint holds them, and they are made anew where the model was made without memory."""
    model = build_random_model(PRESETS[name], device=CPU, dtype=torch.float32, layers=2)
    usual: Any = AutoModelForImageTextToText.from_config(PRESETS[name].config(2), dtype=torch.float32)
    expected = dict(usual.named_buffers())
    assert expected
    assert {key: buffer.dtype for key, buffer in model.named_buffers()} == {k: b.dtype for k, b in expected.items()}
    assert all(torch.equal(buffer, expected[key]) for key, buffer in model.named_buffers())


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_hold_a_picture_as_the_layout_expects_it(name: str) -> None:
    """The published shapes at a decoder of two layers, on no memory at all: only the layout looks at the prompt."""
    shapes = PRESETS[name]
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(shapes.config(2), dtype=torch.bfloat16)

    class OnCpu:
        config, device, dtype = model.config, CPU, torch.bfloat16

    inputs = random_inputs(OnCpu(), shapes.picture, batch=2, text_tokens=20)
    family = family_of(model)
    placeholders = family.placeholders(inputs["input_ids"])
    layout = family.layout(placeholders, inputs)
    expected = {"square": 576, "tiles": 1792, "patches": 1296 if "2.5" in name else 1024}[shapes.picture.kind]
    assert layout.visual_tokens == 2 * expected
    assert len(layout.grids) == 2 * shapes.picture.views
    assert inputs["pixel_values"].dtype == torch.bfloat16
    others = ~placeholders
    assert not torch.equal(inputs["input_ids"][0][others[0]], inputs["input_ids"][1][others[1]])


def test_weights_are_drawn_in_place_and_the_seed_decides() -> None:
    state = torch.random.get_rng_state()
    models = [
        build_random_model(PRESETS["internvl2-cpu"], device=CPU, dtype=torch.bfloat16, layers=2, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [model.lm_head.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert {parameter.dtype for parameter in models[0].parameters()} == {torch.bfloat16}
    # Rotary frequencies stay in full precision, as from_pretrained leaves them.
    assert models[0].model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_pictures_that_a_processor_would_not_cut() -> None:
    assert preset("internvl2-2b").with_picture(tiles=12).views == 13
    assert preset("internvl2-2b").with_picture(tiles=1).views == 1
    assert preset("qwen3-vl-8b").with_picture(pixels=(64, 96)).pixels == (64, 96)
    with pytest.raises(InputError, match="llava-cpu cuts no tiles"):
        preset("llava-cpu").with_picture(tiles=2)
    with pytest.raises(InputError, match="scales every picture to 448 x 448"):
        preset("internvl2-8b").with_picture(pixels=(448, 448))
    with pytest.raises(InputError, match="multiples of 28"):
        preset("qwen2.5-vl-7b").with_picture(pixels=(280, 290))
    with pytest.raises(InputError, match="tiles=0"):
        preset("internvl2-8b").with_picture(tiles=0)


def test_names_and_counts_out_of_range() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'llava-1\.5-7b'"):
        preset("llava-7b")
    with pytest.raises(InputError, match="layers=1"):
        PRESETS["llava-cpu"].config(1)
    with pytest.raises(InputError, match="batch=0"):
        random_inputs(None, PRESETS["llava-cpu"].picture, batch=0, text_tokens=1)
