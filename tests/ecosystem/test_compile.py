"""torch.compile around a pruned model. The "eager" backend compiles nothing, but traces all that a real one would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

import topv
from kv_caches import with_cache
from reference import relative_error
from tiny_models import prompt, tiny_llava

SAMPLE = [[3, "image", 4]]
METHOD = topv.TopV(keep=0.5, layer=1)
STEPS = 3

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")


@pytest.fixture(autouse=True, scope="module")
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    counters.clear()


def graph_breaks() -> int:
    return sum(counters["graph_break"].values())


def graphs() -> int:
    return int(counters["stats"].get("unique_graphs", 0))


@dataclass
class Steps:
    """What decoding with a compiled model came to: its logits, graph breaks, and the graphs known after each step."""

    logits: list[torch.Tensor]
    breaks: int
    graphs: list[int]


def decode(model: Any, inputs: dict[str, torch.Tensor], *, compiled: bool) -> Steps:
    """Prefill a preallocated cache as it is, then take single steps."""
    torch._dynamo.reset()
    counters.clear()
    call = torch.compile(model, backend="eager") if compiled else model
    cache = StaticCache(config=model.config.text_config, max_cache_len=96)
    steps = Steps([], 0, [])
    with torch.no_grad():
        token = model(**inputs, **with_cache(cache)).logits[:, -1:].argmax(-1)
        for _ in range(STEPS):
            logits = call(input_ids=token, **with_cache(cache)).logits
            token = logits[:, -1:].argmax(-1)
            steps.logits.append(logits)
            steps.graphs.append(graphs())
    steps.breaks = graph_breaks()
    return steps


@pytest.fixture(scope="module")
def decoded() -> dict[str, Steps]:
    """The same steps: without pruning compiled, under pruning as they are, under pruning compiled."""
    model, inputs = tiny_llava(layers=2), prompt(SAMPLE)
    runs = {"unpruned": decode(model, inputs, compiled=True)}
    with topv.prune(model, METHOD):
        runs["plain"] = decode(model, inputs, compiled=False)
        runs["compiled"] = decode(model, inputs, compiled=True)
    return runs


@pytest.mark.slow
def test_compiled_decode_steps_are_exact(decoded: dict[str, Steps]) -> None:
    got, want = torch.cat(decoded["compiled"].logits, 1), torch.cat(decoded["plain"].logits, 1)
    assert relative_error(got, want) <= 1e-5
    assert relative_error(torch.cat(decoded["unpruned"].logits, 1), want) > 1e-3


@pytest.mark.slow
def test_compiled_steps_behind_several_pruning_layers() -> None:
    model, inputs = tiny_llava(layers=4), prompt([[3, "image", 4], [2, "image", 1, "image", 3]])
    with topv.prune(model, topv.PyramidDrop(keep=0.4)) as pruning:
        plain = decode(model, inputs, compiled=False)
        kept = [len(own[1]) for own in pruning.kept_by_layer.values()]
        compiled = decode(model, inputs, compiled=True)
    assert kept == sorted(set(kept), reverse=True)
    assert len(kept) == 3
    assert compiled.breaks == 0
    for got, want in zip(compiled.logits, plain.logits, strict=True):
        assert relative_error(got, want) <= 1e-5


def test_no_graph_break_in_a_decode_step(decoded: dict[str, Steps]) -> None:
    assert decoded["compiled"].breaks == decoded["unpruned"].breaks


@pytest.mark.slow
def test_no_recompilation_from_step_to_step(decoded: dict[str, Steps]) -> None:
    assert decoded["unpruned"].graphs[1] == decoded["unpruned"].graphs[-1]
    assert decoded["compiled"].graphs[1] == decoded["compiled"].graphs[-1]


@dataclass
class Whole:
    """Logits of whole forwards, by what was done before each, and the graph breaks of the compiled ones."""

    logits: dict[str, torch.Tensor]
    breaks: dict[str, int]


@pytest.fixture(scope="module")
def whole() -> Whole:
    """Forwards of a prompt: attached, then detached, all through one compiled model."""
    model, inputs = tiny_llava(layers=2), prompt(SAMPLE)
    found = Whole({}, {})
    with torch.no_grad():
        found.logits["unpruned"] = model(**inputs).logits
        with topv.prune(model, METHOD):
            found.logits["pruned"] = model(**inputs).logits
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(model, backend="eager")
        with topv.prune(model, METHOD):
            found.logits["attached"] = compiled(**inputs).logits
            found.breaks["attached"] = graph_breaks()
        counters.clear()
        found.logits["detached"] = compiled(**inputs).logits
        found.breaks["detached"] = graph_breaks()
    return found


@pytest.mark.slow
def test_a_compiled_forward_is_exact_and_detaching_takes_effect(whole: Whole) -> None:
    got, want = whole.logits["attached"], whole.logits["pruned"]
    assert torch.equal(got.isnan(), want.isnan())
    assert relative_error(got.nan_to_num(), want.nan_to_num()) <= 1e-5
    assert relative_error(whole.logits["detached"], whole.logits["unpruned"]) <= 1e-5


@pytest.mark.slow
def test_a_prefill_that_must_be_one_graph_is_refused() -> None:
    """Without fullgraph it is exact, see above; with it the compiler gives topv's reason."""
    torch._dynamo.reset()
    model, inputs = tiny_llava(layers=2), prompt(SAMPLE)
    with topv.prune(model, METHOD), torch.no_grad():
        call = torch.compile(model, backend="eager", fullgraph=True)
        with pytest.raises(Exception, match=r"topv reads on the host.*decoding steps alone"):
            call(**inputs)


@pytest.mark.parametrize("part", ["model", "forward"])
def test_attaching_after_a_compiled_run_takes_effect_or_raises(part: str) -> None:
    torch._dynamo.reset()
    model, inputs = tiny_llava(layers=2), prompt([[6]])
    with torch.no_grad():
        call: Any = model
        if part == "model":
            call = torch.compile(model, backend="eager")
        else:
            model.forward = torch.compile(model.forward, backend="eager")
        call(**inputs)
        try:
            pruning = topv.attach(model, METHOD)
        except topv.UnsupportedError as error:
            assert "compiled" in str(error)  # noqa: PT017
            return
        try:
            call(**inputs)
            assert effective(pruning), "the forward went past every hook"
        finally:
            pruning.detach()


def effective(pruning: topv.Pruning) -> bool:
    """Whether the pruning saw a prefill."""
    try:
        return pruning.report().prompt_tokens > 0
    except RuntimeError:
        return False


def test_a_compiled_model_and_compiled_parts_are_refused() -> None:
    """Nothing was run, nothing is compiled: the wrappers alone are seen."""
    model = tiny_llava(layers=2)
    with pytest.raises(topv.UnsupportedError, match=r"OptimizedModule is compiled.*before it is compiled"):
        topv.attach(torch.compile(model, backend="eager"), METHOD)
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    with pytest.raises(topv.UnsupportedError, match="language_model is compiled"):
        topv.attach(model, METHOD)


def test_generation_that_compiled_the_model_is_seen() -> None:
    model, inputs = tiny_llava(layers=2), prompt(SAMPLE)
    config = CompileConfig(backend="eager", mode=None, fullgraph=False)
    # transformers compiles on accelerators of its own accord, elsewhere when told.
    config._compile_all_devices = True
    call = {**inputs, "max_new_tokens": 3, "do_sample": False, "cache_implementation": "static"}
    with torch.no_grad():
        model.generate(**call, compile_config=config)
    with pytest.raises(topv.UnsupportedError, match="generation with a static cache compiles it too"):
        topv.attach(model, METHOD)
