"""Ways of decoding: candidates that are cropped again, beams, several samples, prompts prefilled in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from ecosystem.bench import KEEP, Bench, bench, relative_error

DYNAMIC = ["qwen2_5_vl", "llava_next"]
"""Families in which the number of tokens follows the image."""

# ---- candidates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DYNAMIC, "gemma3", "lfm2_vl"])
def test_prompt_lookup(name: str) -> None:
    tiny = bench(name)
    inputs = tiny.prompt()
    # Long enough for the text to repeat itself: some candidates are accepted, some are cropped.
    run = tiny.generate(inputs, steps=14, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
    tiny.check(run)
    assert torch.equal(run.out.sequences, tiny.generate(inputs, steps=14).out.sequences)


@pytest.mark.parametrize("assistant", ["same", "other"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "lfm2_vl"])
def test_assisted_decoding(name: str, assistant: str) -> None:
    """An unpruned assistant. transformers shows it no images, so most of its candidates are cropped again."""
    tiny, other = bench(name), Bench(name)
    if assistant == "other":
        torch.manual_seed(7)
        other.recipe.randomise(other.model)
    inputs = tiny.prompt()
    run = tiny.generate(inputs, steps=8, assistant_model=other.model)
    tiny.check(run)
    assert torch.equal(run.out.sequences, tiny.generate(inputs, steps=8).out.sequences)


def test_a_pruned_assistant_is_refused() -> None:
    """transformers does not show an assistant the images, so there is nothing that it could prune."""
    tiny, other = bench("qwen2_5_vl"), Bench("qwen2_5_vl")
    with (
        topv.prune(other.model, topv.TopV(keep=0.3)),
        pytest.raises(topv.LayoutError, match="no images came with it"),
    ):
        tiny.generate(tiny.prompt(), steps=8, assistant_model=other.model)


@pytest.mark.parametrize("candidates", ["lookup", "assistant"])
def test_recurrent_states_cannot_be_cropped(candidates: str) -> None:
    """transformers refuses what its cache cannot take back, pruned or not, and says so."""
    tiny = bench("qwen3_5")
    more: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if candidates == "assistant":
        more = {"assistant_model": bench("qwen2_5_vl").model}
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        tiny.generate(tiny.prompt(), **more)


# ---- rows that are repeated ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DYNAMIC, "gemma3", "qwen3_5"])
def test_beam_search(name: str) -> None:
    tiny = bench(name)
    kind = "wide" if tiny.recipe.wide else "image"
    run = tiny.generate(
        tiny.prompt([[5, kind, 6]]),
        steps=5,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.0,
        output_scores=True,
    )
    steps = run.out.sequences[:, run.inputs["input_ids"].shape[1] :]
    for row in range(3):
        # Scores are normalised before what `generate` forbids is taken away.
        want = tiny.expected(run, row).log_softmax(-1).gather(2, steps[row].view(1, -1, 1)).sum()
        assert torch.allclose(run.out.sequences_scores[row], want, atol=1e-4)


@pytest.mark.parametrize("name", [*DYNAMIC, "gemma3", "qwen3_5", "internvl", "aya_vision", "lfm2_vl", "minicpmv4_6"])
def test_sampling_several_sequences(name: str) -> None:
    tiny = bench(name)
    kind = "wide" if tiny.recipe.wide else "image"
    torch.manual_seed(0)
    run = tiny.generate(tiny.prompt([[5, kind, 6]]), steps=4, do_sample=True, num_return_sequences=2)
    assert not torch.equal(run.out.sequences[0], run.out.sequences[1])
    for row in range(2):
        assert relative_error(run.logits[row : row + 1], tiny.expected(run, row)) <= 1e-5


@pytest.mark.parametrize("name", DYNAMIC)
def test_samples_of_several_images_each_keep_their_own(name: str) -> None:
    """Images of a batch are dealt out to the repeated rows sample by sample."""
    tiny = bench(name)
    samples: list[list[int | str]] = [[4, "image", 3, "wide", 5], [6, "wide", 2]]
    inputs = tiny.prompt(samples)
    with torch.no_grad(), topv.prune(tiny.model, topv.TopV(keep=KEEP)) as pruning:
        tiny.model.generate(**inputs, **tiny.arguments(1))
        want = pruning.kept_positions
        beams = tiny.model.generate(**inputs, **tiny.arguments(3, num_beams=2, num_return_sequences=2))
        kept = pruning.kept_positions
    assert beams.sequences.shape[0] == 4
    assert len(kept) == 4
    for row, columns in enumerate(kept):
        assert torch.equal(columns, want[row // 2])


# ---- prefill in chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", [None, "static"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl"])
def test_chunks_that_hold_whole_images(name: str, implementation: str | None) -> None:
    tiny = bench(name)
    inputs = tiny.prompt([[7, "image", 40]])
    more = {} if implementation is None else {"cache_implementation": implementation}
    assert 60 < inputs["input_ids"].shape[1] < 2 * 60, "two chunks, and the image in the first"
    run = tiny.generate(inputs, prefill_chunk_size=60, **more)
    tiny.check(run)


@pytest.mark.parametrize("name", [*DYNAMIC, "qwen3_5", "lfm2_vl"])
def test_chunks_of_pictures_that_differ_in_size_are_refused(name: str) -> None:
    """`generate` copies their features for each chunk, and with that loses how they are laid out."""
    tiny = bench(name)
    with pytest.raises(topv.UnsupportedError, match="prefill_chunk_size=None"):
        tiny.generate(tiny.prompt([[7, "image", 40]]), prefill_chunk_size=60)


@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl", *DYNAMIC, "chameleon", "ernie4_5_vl_moe"])
def test_chunks_that_cut_an_image_are_refused(name: str) -> None:
    tiny = bench(name)
    with pytest.raises(topv.UnsupportedError, match="prefill_chunk_size=None"):
        tiny.generate(tiny.prompt([[10, "image", 20]]), prefill_chunk_size=20)
