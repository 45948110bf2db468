"""Whatever transformers calls its arguments, pruning is right or refused: never silently wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import topv
from kv_caches import with_cache
from tiny_models import prompt, tiny_llava
from topv.runtime import upstream
from topv.runtime.arguments import CACHE, HIDDEN_STATES, MASK, Signature, is_cache, output_cache
from topv.runtime.eager import current_forward
from topv.runtime.record import held

PADDED: list[list[Any]] = [[3, "image", 4], [2, "image", "image", 2]]
METHODS = [topv.TopV(keep=0.5), topv.FastV(keep=0.5), topv.FastV(keep=0.5, attention="full")]


def generated(model: Any, method: topv.Method) -> tuple[torch.Tensor, list[list[int]], dict[str, Any]]:
    """Sequences, kept columns and the report of a padded batch."""
    with topv.prune(model, method) as pruning:
        ids = model.generate(**prompt(PADDED), max_new_tokens=4, do_sample=False)
        return ids, [columns.tolist() for columns in pruning.kept_positions], pruning.report().to_dict()


def rename(module: Any, forward: Callable[..., Any], **names: str) -> None:
    """Let `module` be called by other names: `names[old]` in place of `old`, which `forward` then takes."""
    accepted = Signature(module)
    spelled = {accepted.spell({old: None}).popitem()[0]: new for old, new in names.items()}

    def call_by_new_names(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {spelled.get(name, name): value for name, value in kwargs.items()}

    module.register_forward_pre_hook(call_by_new_names, with_kwargs=True)
    module.forward = forward.__get__(module)


def annotated(self: Any, hidden_states: Any, kv_store: transformers.Cache | None = None, **kwargs: Any) -> Any:
    return type(self).forward(self, hidden_states, **with_cache(kv_store), **kwargs)


def unannotated(self: Any, hidden_states: Any, **kwargs: Any) -> Any:
    return type(self).forward(self, hidden_states, **with_cache(kwargs.pop("kv_store", None)), **kwargs)


def all_renamed(self: Any, x: Any, mask: Any = None, kv_store: Any = None, **kwargs: Any) -> Any:
    return type(self).forward(self, x, attention_mask=mask, **with_cache(kv_store), **kwargs)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (annotated, {CACHE: "kv_store"}),
        (unannotated, {CACHE: "kv_store"}),
        (all_renamed, {CACHE: "kv_store", MASK: "mask"}),
    ],
    ids=["annotated", "by value", "all"],
)
def test_arguments_of_layers_by_other_names(forward: Any, names: dict[str, str], method: topv.Method) -> None:
    want = generated(tiny_llava(), method)
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        rename(layer, forward, **names)
    got = generated(model, method)
    assert torch.equal(got[0], want[0])
    assert got[1:] == want[1:]
    assert got[2]["visual_tokens"] > got[2]["kept_tokens"] > 0


def test_arguments_of_attention_by_other_names() -> None:
    def forward(self: Any, x: Any, kv_store: Any = None, mask: Any = None, **kwargs: Any) -> Any:
        return type(self).forward(self, hidden_states=x, attention_mask=mask, **with_cache(kv_store), **kwargs)

    want = generated(tiny_llava(), topv.FastV(keep=0.5))
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        rename(layer.self_attn, forward, **{CACHE: "kv_store", MASK: "mask", HIDDEN_STATES: "x"})
    got = generated(model, topv.FastV(keep=0.5))
    assert torch.equal(got[0], want[0])
    assert got[1:] == want[1:]


class Session:
    """Holds a KV cache where topv cannot see it."""

    def __init__(self, cache: Any) -> None:
        self.held = cache


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_cache_that_layers_get_out_of_sight_is_refused(method: topv.Method) -> None:
    def forward(self: Any, hidden_states: Any, session: Any = None, **kwargs: Any) -> Any:
        return type(self).forward(self, hidden_states, **with_cache(session and session.held), **kwargs)

    model = tiny_llava()
    decoder = model.model.language_model

    def hide(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = Signature(type(decoder.layers[0]).forward).bind((), kwargs)
        return args, {**{n: v for n, v in given.items() if n != CACHE}, "session": Session(given.get(CACHE))}

    for layer in decoder.layers:
        layer.register_forward_pre_hook(hide, with_kwargs=True)
        layer.forward = forward.__get__(layer)

    def forget(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {name: value for name, value in kwargs.items() if not is_cache(value)} | {"use_cache": True}

    decoder.register_forward_pre_hook(forget, with_kwargs=True)
    said = f"does not see the KV cache.*transformers {transformers.__version__}.*tested with transformers 5.16 to 5.24"
    with pytest.raises(topv.UnsupportedError, match=said):
        generated(model, method)
    assert current_forward() is None


def test_a_layer_without_a_cache_is_refused_when_attaching() -> None:
    def forward(self: Any, hidden_states: Any, attention_mask: Any = None) -> Any:
        return hidden_states

    model = tiny_llava()
    model.model.language_model.layers[3].forward = forward.__get__(model.model.language_model.layers[3])
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(topv.UnsupportedError, match="takes hidden_states, attention_mask, and nothing like cache"):
        topv.attach(model, topv.TopV(keep=0.5))
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before


def test_a_layer_without_a_mask_is_refused_when_attaching() -> None:
    def forward(self: Any, hidden_states: Any, cache: Any = None) -> Any:
        return hidden_states

    model = tiny_llava()
    model.model.language_model.layers[0].forward = forward.__get__(model.model.language_model.layers[0])
    with pytest.raises(topv.UnsupportedError, match="attention mask in LlamaDecoderLayer"):
        topv.attach(model, topv.TopV(keep=0.5))


@pytest.mark.parametrize("named", ["attention_mask", "position_ids"])
def test_a_step_behind_a_cache_that_is_not_seen_is_no_prefill(named: str) -> None:
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    length = inputs["input_ids"].shape[1]
    behind = {"attention_mask": torch.ones(1, length + 1), "position_ids": torch.tensor([[length]])}[named]
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        model(**inputs)
        before = pruning.report().to_dict()
        with pytest.raises(topv.UnsupportedError, match="a single token was given without one"):
            model(input_ids=torch.tensor([[20]]), **{named: behind})
        assert pruning.report().to_dict() == before
        model(input_ids=torch.tensor([[20]]))


def test_a_cache_that_grows_by_something_else_is_refused() -> None:
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    attention = model.model.language_model.layers[1].self_attn

    def twice(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        cache = Signature(module).bind(args, kwargs)[CACHE]
        empty = torch.zeros(1, 2, 3, 8)
        cache.update(empty, empty, 1)

    attention.register_forward_pre_hook(twice, with_kwargs=True)
    said = r"what decoder layer 1 keeps.* holds \d+ entries where \d+ were expected, 0 of them from before"
    with topv.prune(model, topv.TopV(keep=0.5)), pytest.raises(topv.UnsupportedError, match=said), torch.no_grad():
        model(**inputs, use_cache=True)


def test_the_first_generation_alone_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[Any, int]] = []

    def noted(cache: Any, layer: int) -> int:
        looked.append((cache, layer))
        return held(cache, layer)

    monkeypatch.setattr(upstream, "held", noted)
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    with topv.prune(model, topv.TopV(keep=0.5)):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert looked
        looked.clear()
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert not looked


def test_an_untested_transformers_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream.transformers, "__version__", "5.99.1")
    monkeypatch.setattr(upstream, "_warned", set())
    model = tiny_llava()
    with pytest.warns(UserWarning, match=r"transformers 5\.99\.1 is newer .* \(5\.16 to 5\.24\)") as caught:
        topv.attach(model, topv.TopV(keep=0.5)).detach()
    assert Path(caught[0].filename).name == Path(__file__).name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topv.attach(model, topv.TopV(keep=0.5)).detach()


def test_the_installed_transformers_is_within_the_tested_range() -> None:
    release = tuple(map(int, transformers.__version__.split(".")[:2]))
    oldest, newest = (tuple(map(int, version.split("."))) for version in (upstream.OLDEST, upstream.NEWEST))
    assert oldest <= release <= newest


def test_the_range_is_that_of_the_package() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert f'"transformers>={upstream.OLDEST},<{upstream._after(upstream.NEWEST)}"' in pyproject.read_text()


def test_both_names_of_the_cache_are_understood() -> None:
    def old(self: Any, input_ids: Any = None, past_key_values: Any = None) -> Any: ...

    def new(self: Any, input_ids: Any = None, cache: Any = None) -> Any: ...

    cache = transformers.DynamicCache()
    for function in (old, new):
        signature = Signature(function)
        for name in ("past_key_values", "cache"):
            bound = signature.bind((), {"input_ids": 1, name: cache})
            assert bound == {"input_ids": 1, CACHE: cache}
            again = signature.rebuild((), {"input_ids": 1, name: cache}, {CACHE: None})
            assert again == ((), {"input_ids": 1, name: None})
    assert Signature(old).spell({CACHE: cache}) == {"past_key_values": cache}
    assert Signature(new).rebuild((1, None), {}, {CACHE: cache}) == ((1, cache), {})


def test_a_cache_is_named_by_its_annotation_before_there_is_one() -> None:
    signature = Signature(annotated)
    assert signature.spell({CACHE: "tap"})["kv_store"] == "tap"
    assert signature.rebuild((), {"hidden_states": 1}, {CACHE: "tap"}) == ((), {"hidden_states": 1, "kv_store": "tap"})


def test_the_cache_of_an_output_is_found_without_a_deprecated_name() -> None:
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    with torch.no_grad():
        assert is_cache(output_cache(model(**inputs, use_cache=True)))
        assert is_cache(output_cache(model(**inputs, use_cache=True, return_dict=False)))
        assert output_cache(model(**inputs, use_cache=False)) is None
    assert output_cache(torch.zeros(1)) is None
