"""What `generate` offers works under pruning: beams, sampling, streaming, returned states, stopping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import output_capturing

import topv
from architectures import expands_images
from reference import generated_reference, masked_forward, positions, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, TOKENS, prompt, shared_llava

BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]
METHODS = [topv.TopV(keep=0.5), topv.FastV(keep=0.25), topv.VTW(), topv.Random(keep=0.3, seed=4)]


def beam_log_probability(model: Any, inputs: Any, sequences: torch.Tensor, kept: Any, layer: int) -> torch.Tensor:
    logits = generated_reference(model, inputs, sequences, positions=kept, layer=layer)
    generated = sequences[:, inputs["input_ids"].shape[1] :]
    return logits.log_softmax(-1).gather(2, generated.unsqueeze(2)).squeeze(2).sum(1)


@expands_images
@pytest.mark.parametrize("method", METHODS)
def test_beam_search_scores_are_the_masked_models(method: topv.Method) -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, method) as pruning:
        out = model.generate(
            **inputs,
            max_new_tokens=6,
            num_beams=3,
            num_return_sequences=3,
            do_sample=False,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        kept = pruning.kept_positions
    assert len(kept) == 12, "beams are rows of the prefill"
    for beams in (kept[row : row + 3] for row in range(0, 12, 3)):
        assert all(torch.equal(beams[0], other) for other in beams)
    wide = {
        "input_ids": inputs["input_ids"].repeat_interleave(3, 0),
        "attention_mask": inputs["attention_mask"].repeat_interleave(3, 0),
        "pixel_values": torch.cat(
            [inputs["pixel_values"][a:b].repeat(3, 1, 1, 1) for a, b in ((0, 1), (1, 3), (3, 4))]
        ),
    }
    want = beam_log_probability(model, wide, out.sequences, kept, pruning.layer)
    assert torch.allclose(out.sequences_scores, want, atol=1e-4)


@expands_images
@pytest.mark.parametrize("method", METHODS)
def test_sampling_and_several_sequences(method: topv.Method) -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    torch.manual_seed(0)
    with topv.prune(model, method) as pruning:
        out = model.generate(
            **inputs,
            max_new_tokens=5,
            do_sample=True,
            suppress_tokens=[IMAGE_TOKEN],
            num_return_sequences=2,
            return_dict_in_generate=True,
            output_logits=True,
        )
        kept = pruning.kept_positions
    wide = {
        "input_ids": inputs["input_ids"].repeat_interleave(2, 0),
        "attention_mask": inputs["attention_mask"].repeat_interleave(2, 0),
        "pixel_values": torch.cat(
            [inputs["pixel_values"][a:b].repeat(2, 1, 1, 1) for a, b in ((0, 1), (1, 3), (3, 4))]
        ),
    }
    want = generated_reference(model, wide, out.sequences, positions=kept, layer=pruning.layer)
    assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5


def test_one_new_token() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5)):
        one = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        many = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(one, many[:, : one.shape[1]])


@pytest.mark.parametrize("method", METHODS)
def test_without_a_cache_every_step_is_a_prefill_of_its_own(method: topv.Method) -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, method) as pruning:
        out = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            use_cache=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        length = inputs["input_ids"].shape[1]
        for step, logits in enumerate(out.logits):
            ids = out.sequences[:, : length + step]
            mask = torch.cat([inputs["attention_mask"], torch.ones(4, step, dtype=torch.long)], dim=1)
            whole = {"input_ids": ids, "attention_mask": mask, "pixel_values": inputs["pixel_values"]}
            with torch.no_grad():
                model(**whole, position_ids=positions(mask), use_cache=False)
            kept = pruning.kept_positions
            pruning.detach()
            want = masked_forward(model, whole, pruned_columns(whole, kept, IMAGE_TOKEN), pruning.layer).logits[:, -1]
            pruning = topv.attach(model, method)
            assert relative_error(logits, want) <= 1e-5
        pruning.detach()


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


class StopAtLength(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = input_ids.shape[1] >= 46
        return torch.full((len(input_ids),), done, dtype=torch.bool)


def test_streamer_and_stopping_criteria() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    streamer = Collect()
    with topv.prune(model, topv.TopV(keep=0.5)):
        ids = model.generate(
            **inputs,
            max_new_tokens=12,
            do_sample=False,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([StopAtLength()]),
        )
    assert ids.shape[1] == 46
    assert streamer.tokens == ids[0].tolist()
    assert streamer.ended


def test_returned_hidden_states_have_full_length() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5, layer=2)) as pruning:
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_hidden_states=True
        )
    length = inputs["input_ids"].shape[1]
    hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
    first = out.hidden_states[0]
    assert all(state.shape == (4, length, 32) for state in first)
    assert not any(state.isnan().any() for state in first[:3]), "layers before the pruning layer saw everything"
    assert all(state[hidden].isnan().all() for state in first[3:])
    assert all(state.shape == (4, 1, 32) for step in out.hidden_states[1:] for state in step)


@pytest.mark.skipif(
    not hasattr(output_capturing, "select_hidden_states"), reason="this transformers captures all states or none"
)
def test_selected_hidden_states() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5, layer=2)), torch.no_grad():
        some = model(**inputs, output_hidden_states=[1, 2, 4]).hidden_states
        every = model(**inputs, output_hidden_states=True).hidden_states
    assert [state is not None for state in some] == [False, True, True, False, True, False]
    assert torch.equal(some[4].nan_to_num(), every[4].nan_to_num())


def test_tuple_outputs() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        named = model(**inputs)
        plain = model(**inputs, return_dict=False)
    assert torch.equal(plain[0].nan_to_num(), named.logits.nan_to_num())


def test_logits_to_keep() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        last = model(**inputs, logits_to_keep=1).logits
        every = model(**inputs).logits
    assert last.shape[1] == 1
    assert torch.allclose(last, every[:, -1:])


def test_no_attention_mask() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4], [1, "image", 6]])
    assert inputs["attention_mask"].all()
    without = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        assert torch.equal(
            model.generate(**without, max_new_tokens=5, do_sample=False),
            model.generate(**inputs, max_new_tokens=5, do_sample=False),
        )
        assert torch.allclose(model(**without).logits[:, -1], model(**inputs).logits[:, -1])


def test_text_only_prompts_pass_untouched() -> None:
    model, inputs = shared_llava(), prompt([[6], [3]])
    with torch.no_grad():
        want = model(**inputs).logits
        with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
            got = model(**inputs).logits
    assert torch.equal(got, want)
    report = pruning.report()
    assert (report.visual_tokens, report.kept_tokens, report.prompt_tokens) == (0, 0, 9)
    assert report.kv_bytes == report.kv_bytes_unpruned


def test_positional_input_ids() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        model(inputs["input_ids"], inputs["pixel_values"])
    assert pruning.report().kept_tokens == TOKENS // 2


def test_base_model_can_be_pruned_too() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    with topv.prune(model.model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        state = model.model(**inputs).last_hidden_state
        through_head = model(**inputs).logits
    assert pruning.report().kept_tokens == TOKENS // 2
    assert torch.allclose(model.lm_head(state).nan_to_num(), through_head.nan_to_num())


def test_inner_model_called_directly_is_pruned() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        model.model(**inputs)
    assert pruning.report().kept_tokens == TOKENS // 2
