"""What stands between the model and its caller: quantized weights, adapters, dispatched devices, pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, pipeline

import topv
from ecosystem.bench import KEEP, Bench, relative_error
from topv.scenes import draw_scene

FAMILIES = ["llava", "qwen2_5_vl"]
MIXED = ["gemma3", "qwen3_5"]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_torchao_weights(name: str, bits: int) -> None:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    configs = {
        8: lambda: quantization.Int8WeightOnlyConfig(),
        4: lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.PerGroup(16), version=2
        ),
    }
    tiny = Bench(name)
    inputs = tiny.prompt()
    whole = tiny.generate(inputs)
    quantization.quantize_(tiny.model.model.language_model, configs[bits]())
    run = tiny.generate(inputs)
    tiny.check(run)
    assert relative_error(run.logits[:, 0], whole.logits[:, 0]) > 1e-3, "the weights are quantized"
    assert flops_reduction(tiny, inputs) == flops_reduction(Bench(name), inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes is tested on a GPU")
@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes_weights(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    from transformers import BitsAndBytesConfig

    tiny = Bench("llava")
    inputs = {n: v.cuda() for n, v in tiny.prompt().items()}
    reduction = flops_reduction(tiny, tiny.prompt())
    tiny.model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    tiny.model = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=config, device_map={"": 0}, dtype=torch.float16
    ).eval()
    inputs["pixel_values"] = inputs["pixel_values"].half()
    run = tiny.generate(inputs)
    assert run.logits.isfinite().all()
    assert flops_reduction(tiny, inputs) == reduction


def flops_reduction(tiny: Bench, inputs: dict[str, Any]) -> float:
    """What the report says of one prefill."""
    with torch.no_grad(), topv.prune(tiny.model, topv.TopV(keep=KEEP)) as pruning:
        tiny.model(**inputs)
        return pruning.report().visual_flops_reduction


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("attached", ["wrapper", "inside"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_of_peft(name: str, attached: str) -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    tiny = Bench(name)
    base = tiny.model
    inputs = tiny.prompt()
    without = tiny.generate(inputs)
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj|up_proj)", init_lora_weights=False)
    wrapped = peft.get_peft_model(base, config).eval()
    tiny.model = wrapped if attached == "wrapper" else base
    run = tiny.generate(inputs)
    with wrapped.disable_adapter():
        disabled = tiny.generate(inputs)
    tiny.model = base
    tiny.check(run)
    assert relative_error(run.logits[:, 0], without.logits[:, 0]) > 1e-2, "the adapter is at work"
    assert torch.equal(disabled.logits, without.logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_learns_under_pruning() -> None:
    """Gradients against the masked model: tests/runtime/test_hard_cases.py."""
    peft = pytest.importorskip("peft", exc_type=ImportError)
    tiny = Bench("qwen2_5_vl")
    inputs = tiny.prompt()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = inputs["input_ids"][:, -4:]
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj|up_proj)")
    wrapped = peft.get_peft_model(tiny.model, config).train()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    losses = []
    with topv.prune(wrapped, topv.TopV(keep=KEEP)):
        for _ in range(8):
            loss = wrapped(**inputs, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad.isfinite().all() for p in wrapped.parameters() if p.grad is not None)
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", [*FAMILIES, *MIXED])
def test_a_device_map_with_layers_on_disk(name: str, tmp_path: Path) -> None:
    tiny = Bench(name)
    inputs = tiny.prompt()
    want = tiny.generate(inputs)
    inner = "model.language_model"
    parts = {name: "cpu" for name, _ in tiny.model.model.named_children() if name != "language_model"}
    device_map = {f"model.{part}": device for part, device in parts.items()} | {"lm_head": "cpu"}
    device_map |= {f"{inner}.{part}": "cpu" for part, _ in tiny.model.model.language_model.named_children()}
    del device_map[f"{inner}.layers"]
    device_map |= {f"{inner}.layers.{i}": "disk" if i in (1, 3) else "cpu" for i in range(5)}
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.model = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model",
        device_map=device_map,
        offload_folder=tmp_path / "offload",
        attn_implementation="sdpa",
        dtype=torch.float32,
    ).eval()
    assert next(tiny.model.model.language_model.layers[3].parameters()).is_meta
    got = tiny.generate(inputs)
    assert torch.equal(got.kept, want.kept)
    assert relative_error(got.logits, want.logits) <= 1e-6


def test_weights_offloaded_to_the_cpu() -> None:
    """Every weight waits elsewhere, and comes for one module's call."""
    from accelerate import cpu_offload

    tiny = Bench("llava")
    inputs = tiny.prompt()
    want = tiny.generate(inputs)
    cpu_offload(tiny.model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in tiny.model.model.language_model.layers.parameters())
    got = tiny.generate(inputs)
    assert torch.equal(got.logits, want.logits)


def test_pipeline() -> None:
    model, processor = topv.load_mini()
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    scenes = [draw_scene(index, "test") for index in (3, 4)]

    def chat(scene: Any, image: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [image, {"type": "text", "text": scene.questions[0].prompt}]}]

    settings = {"max_new_tokens": 6, "do_sample": False}
    with topv.prune(model, topv.TopV(keep=0.25)) as pruning, torch.no_grad():
        chats = [chat(scene, {"type": "image", "image": scene.image}) for scene in scenes]
        alone = [pipe(text=one, generate_kwargs=settings, return_full_text=False)[0] for one in chats]
        assert pruning.report().kept_tokens * 4 == pruning.report().visual_tokens
        batch = pipe(text=chats, generate_kwargs=settings, return_full_text=False, batch_size=2)
        texts = [
            processor.apply_chat_template(chat(scene, {"type": "image"}), add_generation_prompt=True)
            for scene in scenes
        ]
        inputs = processor(images=[[s.image] for s in scenes], text=texts, return_tensors="pt", padding=True)
        ids = model.generate(**inputs, **settings)
    want = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [one["generated_text"] for one in alone] == want
    assert [one[0]["generated_text"] for one in batch] == want
