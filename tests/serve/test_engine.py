"""The bundled model in vLLM: the tokens, answers, blocks and turns of what is served pruned."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import topv
from topv.evaluate import Example, answer_examples, bundled_examples
from topv.methods import Method
from topv.serve import ServeSettings, export_for_vllm

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test-vllm` runs these", allow_module_level=True)

from vllm.exceptions import VLLMValidationError

from serve.engines import Case, Engine, ask, engine, reference
from serve.prompts import prompts_of

TASKS = ("ocr", "counting", "caption")


@pytest.fixture(scope="module")
def mini() -> tuple[Any, Any]:
    return topv.load_mini()


@pytest.fixture(scope="module")
def folder(mini: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_for_vllm(*mini, tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [example for own in bundled_examples("test", 4, TASKS).values() for example in own]


def core(held: Engine) -> Any:
    return held.llm.llm_engine.engine_core.engine_core


def recorded(held: Engine) -> list[list[int]]:
    """Let the model note the tokens that it keeps of every image that it encodes."""
    seen: list[list[int]] = []

    def record(model: Any) -> None:
        write = model.topv_write

        def noted(rows: torch.Tensor, kept: torch.Tensor, picture: Any) -> torch.Tensor:
            seen.append(kept.tolist())
            written: torch.Tensor = write(rows, kept, picture)
            return written

        model.topv_write = noted

    held.llm.apply_model(record)
    return seen


@pytest.mark.parametrize(
    "options",
    [{"method": "topv"}, {"method": "uniform"}, {"method": "random", "seed": 5}],
    ids=lambda options: options["method"],
)
def test_the_same_tokens_and_answers(
    options: dict[str, Any], mini: tuple[Any, Any], folder: Path, examples: list[Example]
) -> None:
    model, processor = mini
    prompts = prompts_of(processor, examples)
    keeps = [(0.5, 0.25)[number % 2] for number in range(len(prompts))]
    methods = [ServeSettings.read({**options, "keep": keep}).method for keep in keeps]
    expected = [reference(model, processor, case, method) for case, method in zip(prompts, methods, strict=True)]
    kept = [kept_cells(model, processor, case, method) for case, method in zip(prompts, methods, strict=True)]
    with engine(folder, {**options, "keep": 0.5}) as held:
        seen = recorded(held)
        found = ask(held, prompts, keeps)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    assert [answer.prompt for answer in found] == [answer.prompt for answer in expected]
    assert {tuple(own) for own in seen} == {tuple(own) for own in kept}


def kept_cells(model: Any, processor: Any, case: Case, method: Method) -> list[int]:
    inputs = processor(images=list(case.images), text=[case.text], return_tensors="pt")
    with topv.prune(model, method) as pruning, torch.inference_mode():
        model(**inputs)
    first = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    return [column - first for column in pruning.kept_positions[0].tolist()]


@pytest.fixture(scope="module")
def held(folder: Path) -> Iterator[Engine]:
    # Twelve blocks hold four prompts and little of what is generated.
    limits = {"image": 16}
    with engine(
        folder, {"keep": 0.5}, num_gpu_blocks_override=13, max_model_len=256, limit_mm_per_prompt=limits
    ) as own:
        yield own


def test_accuracy_is_that_of_the_evaluation(mini: tuple[Any, Any], held: Engine, examples: list[Example]) -> None:
    from vllm import SamplingParams

    model, processor = mini
    expected = answer_examples(model, processor, examples, topv.TopV(stage="encoder", keep=0.5))
    prompts = [{"prompt": c.text, "multi_modal_data": {"image": c.images[0]}} for c in prompts_of(processor, examples)]
    lengths = [SamplingParams(temperature=0, max_tokens=64 if e.task == "caption" else 12) for e in examples]
    outputs = held.llm.generate(prompts, sampling_params=lengths, use_tqdm=False)
    assert [output.outputs[0].text.strip() for output in outputs] == [answer.answer for answer in expected]


def test_preempted_requests_answer_the_same(mini: tuple[Any, Any], held: Engine, examples: list[Example]) -> None:
    prompts = prompts_of(mini[1], examples)[:6]
    alone = ask(held, prompts[:3], [None] * 3, tokens=24) + ask(held, prompts[3:], [None] * 3, tokens=24)
    scheduler = core(held).scheduler
    held.llm.reset_prefix_cache()
    preempted = []
    preempt = scheduler._preempt_request

    def noted(request: Any, *rest: Any, **more: Any) -> None:
        preempted.append(request.request_id)
        preempt(request, *rest, **more)

    scheduler._preempt_request = noted
    try:
        together = ask(held, prompts, [None] * len(prompts), tokens=24)
    finally:
        scheduler._preempt_request = preempt
    assert preempted
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_blocks_shrink_to_the_budget(mini: tuple[Any, Any], held: Engine, examples: list[Example]) -> None:
    from vllm import SamplingParams

    case = prompts_of(mini[1], examples)[0]
    text = len(mini[1].tokenizer(case.text)["input_ids"]) - 1
    pool = core(held).scheduler.kv_cache_manager.block_pool
    one = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    for keep, tokens in ((1.0, 144), (0.5, 72), (0.25, 36), (0.1, 14)):
        held.llm.reset_prefix_cache()
        free = pool.get_num_free_blocks()
        prompt = {"prompt": case.text, "multi_modal_data": {"image": case.images[0]}}
        held.llm.llm_engine.add_request("one", {**prompt, "mm_processor_kwargs": {"topv_keep": keep}}, one)
        held.llm.llm_engine.step()
        assert free - pool.get_num_free_blocks() == -(-(text + tokens) // 32)
        while held.llm.llm_engine.has_unfinished_requests():
            held.llm.llm_engine.step()


def test_another_ratio_never_hits_the_cache(mini: tuple[Any, Any], held: Engine, examples: list[Example]) -> None:
    case = prompts_of(mini[1], examples)[0]
    held.llm.reset_prefix_cache()
    first, other, same = (ask(held, [case], [keep])[0] for keep in (0.5, 0.45, 0.5))
    assert first.cached == other.cached == 0
    assert same.cached == 64
    assert same.tokens == first.tokens


def test_an_aborted_request_leaves_the_others_alone(
    mini: tuple[Any, Any], held: Engine, examples: list[Example]
) -> None:
    from vllm import SamplingParams

    prompts = prompts_of(mini[1], examples)[:3]
    alone = ask(held, prompts, [None] * 3, tokens=20)
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    llm_engine = held.llm.llm_engine
    for number, case in enumerate(prompts):
        prompt = {"prompt": case.text, "multi_modal_data": {"image": case.images[0]}}
        llm_engine.add_request(str(number), prompt, greedy)
    llm_engine.step()
    llm_engine.abort_request(["1"])
    finished = {}
    while llm_engine.has_unfinished_requests():
        for output in llm_engine.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
    assert finished == {"0": alone[0].tokens, "2": alone[2].tokens}
    free = core(held).scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert free == 12


@pytest.mark.parametrize(
    ("keep", "part"),
    [(0.0, "keep=0.0"), (1.5, "keep=1.5"), ("much", "'much'"), (145, "145 tokens of a grid of n=144")],
)
def test_bad_ratios_are_refused(
    mini: tuple[Any, Any], held: Engine, examples: list[Example], keep: Any, part: str
) -> None:
    case = prompts_of(mini[1], examples)[0]
    with pytest.raises(VLLMValidationError, match=part):
        ask(held, [case], [keep])
    assert ask(held, [case], [None])[0].prompt == 79


def test_unpruned_length_is_bounded(mini: tuple[Any, Any], held: Engine, examples: list[Example]) -> None:
    case = prompts_of(mini[1], examples)[0]
    many = Case([case.images[0]] * 15, case.text.replace("<image>", "<image>" * 15))
    with pytest.raises(VLLMValidationError, match=r"2167 tokens before pruning, more than the 2048 positions"):
        ask(held, [many], [1])


def test_placeholders_in_the_text_are_refused(mini: tuple[Any, Any], held: Engine, examples: list[Example]) -> None:
    case = prompts_of(mini[1], examples)[0]
    with pytest.raises(VLLMValidationError, match="73 image placeholder tokens, and its images need 72"):
        ask(held, [Case(case.images, case.text + "<image>")], [None])
