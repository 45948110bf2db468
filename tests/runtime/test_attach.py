"""Attaching leaves no trace behind: not after detaching, not after errors, not across threads or interleaved runs."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import topv
from kv_caches import with_cache
from module_snapshot import snapshot
from tiny_models import prompt, shared_llava, tiny_llava
from topv.runtime.eager import current_forward

INPUTS = [[3, "image", 4], [2, "image", 1, "image", 3]]


@pytest.mark.parametrize(
    "method", [topv.TopV(), topv.FastV(), topv.FastV(attention="full"), topv.VTW(), topv.MeanCost(target="attention")]
)
def test_detaching_leaves_nothing(method: topv.Method) -> None:
    model, inputs = tiny_llava(), prompt(INPUTS)
    with torch.no_grad():
        # transformers adds hooks of its own when states are first captured.
        want = model(**inputs, output_hidden_states=True)
    before, weights = snapshot(model), {k: v.clone() for k, v in model.state_dict().items()}
    with topv.prune(model, method) as pruning:
        assert snapshot(model) != before
        with torch.no_grad():
            assert not torch.equal(model(**inputs).logits[:, -1], want.logits[:, -1])
    assert snapshot(model) == before
    assert current_forward() is None
    with torch.no_grad():
        again = model(**inputs, output_hidden_states=True)
    assert torch.equal(again.logits, want.logits)
    assert all(torch.equal(a, b) for a, b in zip(again.hidden_states, want.hidden_states, strict=True))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    pruning.detach()
    assert pruning.report().visual_tokens > 0, "results stay readable after detaching"


def test_attaching_twice_raises_and_changes_nothing() -> None:
    model = tiny_llava()
    pruning = topv.attach(model, topv.TopV())
    attached = snapshot(model)
    for again in (model, model.model):
        with pytest.raises(topv.UnsupportedError, match="already has a pruning attached"):
            topv.attach(again, topv.FastV())
    assert snapshot(model) == attached
    pruning.detach()
    topv.attach(model, topv.FastV()).detach()


def test_an_exception_in_the_middle_leaves_nothing() -> None:
    model, inputs = tiny_llava(), prompt(INPUTS)
    method = topv.TopV(keep=0.5)

    class Boom(RuntimeError):
        pass

    def explode(*args: Any) -> None:
        raise Boom

    with topv.prune(model, method) as pruning, torch.no_grad():
        want = model(**inputs).logits
        kept = pruning.kept_positions
        for place in (
            model.model.vision_tower,
            model.model.language_model.layers[0],
            model.model.language_model.layers[1].mlp,
            model.model.language_model.layers[4],
            model.lm_head,
        ):
            handle = place.register_forward_hook(explode)
            cache = DynamicCache(config=model.config.text_config)
            with pytest.raises(Boom):
                model(**inputs, **with_cache(cache))
            handle.remove()
            assert current_forward() is None
            assert torch.equal(model(**inputs).logits.nan_to_num(), want.nan_to_num())
            assert all(torch.equal(a, b) for a, b in zip(pruning.kept_positions, kept, strict=True))
    with pytest.raises(Boom), topv.prune(model, method):
        raise Boom
    topv.attach(model, method).detach()


def test_a_thousand_attachments_leak_nothing() -> None:
    model, inputs = tiny_llava(), prompt([[2, "image", 2]])
    with torch.no_grad():
        model(**inputs)
        before = snapshot(model)
        for _ in range(10):
            with topv.prune(model, topv.TopV()):
                model(**inputs)
        gc.collect()
        objects = len(gc.get_objects())
        for turn in range(1000):
            with topv.prune(model, topv.TopV()):
                if turn % 100 == 0:
                    model(**inputs)
        gc.collect()
    assert snapshot(model) == before
    assert len(gc.get_objects()) - objects < 200


def test_a_forgotten_pruning_dies_with_its_model() -> None:
    import weakref

    model = tiny_llava()
    topv.attach(model, topv.TopV())
    gone = weakref.ref(model.model.language_model)
    del model
    gc.collect()
    assert gone() is None


def test_interleaved_generations() -> None:
    model = shared_llava()
    first, second = prompt(INPUTS), prompt([[1, "image", 5], ["image", 2]], seed=3)

    def steps(inputs: dict[str, torch.Tensor]) -> Any:
        cache = DynamicCache(config=model.config.text_config)
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(**inputs, **with_cache(cache), position_ids=positions)
        for _ in range(6):
            token = out.logits[:, -1:].argmax(-1)
            yield token
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], 1)
            positions = mask.sum(1, keepdim=True) - 1
            out = model(input_ids=token, attention_mask=mask, **with_cache(cache), position_ids=positions)

    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        alone = [torch.cat(list(steps(inputs)), 1) for inputs in (first, second)]
        together = list(zip(steps(first), steps(second), strict=True))
        for number in range(2):
            assert torch.equal(torch.cat([pair[number] for pair in together], 1), alone[number])


def test_two_threads() -> None:
    model = shared_llava()
    prompts = [prompt(INPUTS), prompt([[1, "image", 5], ["image", 2], [7]], seed=3)]
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
        want, kept = [], []
        for inputs in prompts:
            want.append(model.generate(**inputs, max_new_tokens=6, do_sample=False))
            kept.append(pruning.kept_positions)
        failures: list[str] = []

        def work(number: int) -> None:
            for _ in range(5):
                ids = model.generate(**prompts[number], max_new_tokens=6, do_sample=False)
                same = [torch.equal(a, b) for a, b in zip(pruning.kept_positions, kept[number], strict=True)]
                if not (torch.equal(ids, want[number]) and all(same)):
                    failures.append(f"thread {number}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

        silent: list[str] = []

        def no_prefill() -> None:
            try:
                pruning.report()
            except RuntimeError as error:
                silent.append(str(error))

        thread = threading.Thread(target=no_prefill)
        thread.start()
        thread.join()
        assert silent
        assert "no prefill has run in this thread" in silent[0]


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "offload"])
def test_dispatched_models(device_map: Any, tmp_path: Any) -> None:
    from accelerate import dispatch_model

    inputs = prompt(INPUTS)
    model = tiny_llava()
    with topv.prune(model, topv.FastV(keep=0.5)) as pruning:
        want = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        kept = pruning.kept_positions
    if device_map == "offload":
        inner = "model.language_model"
        whole = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
        whole += [f"{inner}.embed_tokens", f"{inner}.norm", f"{inner}.rotary_emb"]
        device_map = dict.fromkeys(whole, "cpu")
        device_map |= {f"{inner}.layers.{i}": "disk" if i in (1, 2, 3) else "cpu" for i in range(5)}
    model = dispatch_model(model, device_map, offload_dir=str(tmp_path), main_device="cpu")
    with topv.prune(model, topv.FastV(keep=0.5)) as pruning:
        got = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert all(torch.equal(a, b) for a, b in zip(pruning.kept_positions, kept, strict=True))
    assert torch.equal(got, want)
