"""Every base, in every form that lmms-eval offers: its own class runs, pruned, and is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import topv
from topv.errors import InputError, UnsupportedError
from topv.evaluate.lmms import BASES, constructor_arguments
from topv.methods import METHODS
from topv.methods.settings import setting_types
from topv.mini import load_mini

if find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed: `make test-lmms` runs these", allow_module_level=True)

from lmms_eval.api.instance import Instance, unwrap_generation_output
from lmms_eval.models import get_model
from loguru import logger

from lmms.checkpoints import save_checkpoint
from module_snapshot import snapshot

PIXELS = "min_pixels=3136,max_pixels=6272"
CASES = [
    # model type, base, forms that lmms-eval has, further arguments
    ("llava", "llava_hf", ("chat", "simple"), ""),
    ("llava_next", "llava_hf", ("chat", "simple"), ""),
    ("llava_onevision", "llava_hf", ("chat", "simple"), ""),
    ("internvl", "internvl_hf", ("chat",), ",device_map=cpu,min_patches=1,max_patches=2"),
    ("qwen2_vl", "qwen2_vl", ("simple",), f",device_map=cpu,{PIXELS}"),
    ("qwen2_5_vl", "qwen2_5_vl", ("chat", "simple"), f",device_map=cpu,{PIXELS}"),
    ("qwen3_vl", "qwen3_vl", ("chat", "simple"), f",device_map=cpu,{PIXELS}"),
    ("qwen3_5", "qwen3_5", ("chat", "simple"), f",device_map=cpu,{PIXELS}"),
]
META = {"task": "drawn", "doc_id": 0, "repeats": 1}
PROMPTS = ("what colour is the star?", "how many circles are there?")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    model, processor = load_mini()
    model.save_pretrained(folder / "llava")
    processor.save_pretrained(folder / "llava")
    for model_type in dict.fromkeys(case[0] for case in CASES):
        if model_type != "llava":
            save_checkpoint(model_type, folder / model_type)
    return folder


def make(folder: Path, base: str, rest: str, *, form: str = "chat") -> Any:
    """What lmms-eval makes for `--model topv`."""
    entry = get_model("topv", force_simple=form == "simple")
    return entry.create_from_arg_string(f"pretrained={folder},base={base},{rest}", {"device": "cpu", "batch_size": 1})


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (56, 56, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def requests(lm: Any) -> list[Instance]:
    """Two questions, as lmms-eval would ask them of `lm`."""
    docs = [{"image": picture(i), "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    lm.task_dict["drawn"] = {"test": docs}
    found = []
    for number, doc in enumerate(docs):
        options = {"max_new_tokens": 4, "temperature": 0, "do_sample": False}

        def visuals(doc: dict[str, Any]) -> list[Image.Image]:
            return [doc["image"]]

        def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
            content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["prompt"]}]
            return [{"role": "user", "content": content}]

        if lm.is_simple:
            arguments: tuple[Any, ...] = (doc["prompt"], options, visuals, number, "drawn", "test")
        else:
            arguments = (doc["prompt"], messages, options, number, "drawn", "test")
        found.append(
            Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=META | {"doc_id": number})
        )
    return found


def answers(lm: Any) -> list[str]:
    return [unwrap_generation_output(answer)[0] for answer in lm.generate_until(requests(lm))]


@contextlib.contextmanager
def recorded(model: Any) -> Iterator[list[tuple[dict[str, Any], torch.Tensor]]]:
    """What `model.generate` is called with meanwhile, and what it returns."""
    generate, calls = model.generate, []

    def recording(**inputs: Any) -> torch.Tensor:
        calls.append((inputs, generate(**inputs)))
        return calls[-1][1]

    model.generate = recording
    try:
        yield calls
    finally:
        model.generate = generate


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """What lmms-eval logs meanwhile."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="INFO", format="{message}")
    try:
        yield lines
    finally:
        logger.remove(sink)


def tree(model: Any) -> dict[str, Any]:
    """A model's modules, to compare with another's: with the number of hooks, since hooks have ids of their own."""
    return {name: (kind, names, [*map(len, hooks)], f) for name, (kind, names, hooks, f) in snapshot(model).items()}


@pytest.mark.parametrize(
    ("model_type", "base", "form", "rest"),
    [(kind, base, form, rest) for kind, base, forms, rest in CASES for form in forms],
)
def test_the_stock_class_runs_pruned(checkpoints: Path, model_type: str, base: str, form: str, rest: str) -> None:
    stock = make(checkpoints / model_type, base, f"method=none{rest}", form=form)
    # A first forward lets transformers put hooks of its own on its models.
    unpruned = answers(stock)
    lm = make(checkpoints / model_type, base, f"method=topv,keep=0.3,layer=2{rest}", form=form)
    assert isinstance(lm, get_model(base, force_simple=form == "simple"))
    assert lm.is_simple == (form == "simple")
    model = lm.model
    with recorded(model) as calls:
        found = answers(lm)
    assert len(unpruned) == len(found) == len(calls) == len(PROMPTS)
    with logged() as lines:
        lm.clean()
    assert tree(model) == tree(stock.model)

    kept = visual = 0
    for inputs, ids in calls:
        with topv.prune(model, topv.TopV(keep=0.3, layer=2)) as pruning:
            assert torch.equal(model.generate(**inputs), ids)
        kept += pruning.report().kept_tokens
        visual += pruning.report().visual_tokens
    assert 0 < kept < 0.4 * visual
    assert any(f"kept {kept:,} of {visual:,} visual tokens" in line for line in lines)


def test_bases_without_a_chat_form_are_taken_in_the_simple_one(checkpoints: Path) -> None:
    lm = make(checkpoints / "qwen2_vl", "qwen2_vl", f"keep=0.3,device_map=cpu,{PIXELS}", form="chat")
    assert lm.is_simple
    lm.clean()


def test_none_is_the_stock_class(checkpoints: Path) -> None:
    for form in ("chat", "simple"):
        lm = make(checkpoints / "llava", "llava_hf", "method=none", form=form)
        assert type(lm) is get_model("llava_hf", force_simple=form == "simple")


@pytest.mark.parametrize("form", ["chat", "simple"])
def test_an_error_ends_the_evaluation(checkpoints: Path, form: str) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no such luck")

    stock = make(checkpoints / "llava", "llava_hf", "method=none", form=form)
    stock.model.register_forward_pre_hook(fail)
    # Here the stock class answers nothing, and goes on.
    assert answers(stock) == ["", ""]
    pruned = make(checkpoints / "llava", "llava_hf", "method=topv", form=form)
    pruned.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"generating under TopV\(.* failed: ValueError: no such luck"):
        answers(pruned)
    pruned.clean()


def test_nothing_pruned_is_said(checkpoints: Path) -> None:
    lm = make(checkpoints / "llava", "llava_hf", "method=topv")
    with logged() as lines:
        lm.clean()
    assert any("nothing was pruned" in line for line in lines)


def test_likelihoods_are_refused(checkpoints: Path) -> None:
    lm = make(checkpoints / "llava", "llava_hf", "method=topv", form="simple")
    with pytest.raises(UnsupportedError, match="loglikelihood"):
        lm.loglikelihood([])
    lm.clean()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("base=llava", ["unknown base 'llava'", "Did you mean 'llava_hf'", ", ".join(sorted(BASES))]),
        ("method=topv", ["base= is missing", ", ".join(BASES)]),
        ("base=llava_hf,method=topw", ["unknown method 'topw'", "'topv'"]),
        ("base=llava_hf,keeep=0.5", ["unknown argument 'keeep'", "'keep'", "Settings of topv: alpha", "attn_impl"]),
        # This class takes any argument, and ignores those that it does not know.
        ("base=internvl_hf,max_patch=4", ["unknown argument 'max_patch'", "'max_patches'"]),
        ("base=llava_hf,method=none,keep=0.5", ["unknown argument 'keep'", "'none'", "no settings"]),
        ("base=llava_hf,layer=2.5", ["topv:layer=2.5", "an integer"]),
        ("base=llava_hf,keep=1.5", ["keep=1.5", "(0, 1]"]),
        ("base=llava_hf,batch_size=2", ["repeats batch_size"]),
    ],
)
def test_refused_before_the_model_loads(arguments: str, parts: list[str], tmp_path: Path) -> None:
    entry = get_model("topv")
    with pytest.raises(InputError) as error:
        entry.create_from_arg_string(f"pretrained={tmp_path / 'nothing'},{arguments}", {"batch_size": 1})
    for part in parts:
        assert part in str(error.value)


def test_a_method_that_does_not_fit_the_model(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match="layer=12 leaves nothing to prune"):
        make(checkpoints / "llava", "llava_hf", "layer=12")


@pytest.mark.parametrize("base", BASES)
def test_no_setting_shares_its_name_with_an_argument(base: str) -> None:
    for form in (False, True):
        known = constructor_arguments(get_model(base, force_simple=form))
        assert {"pretrained", "device", "batch_size", "device_map"} <= known
        for method in METHODS.values():
            assert not known & set(setting_types(method))
