"""What cannot be served pruned is refused while the engine is configured, before anything is started."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from topv.errors import InputError, UnsupportedError
from topv.serve import engine_arguments

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test-vllm` runs these", allow_module_level=True)

from serve.checkpoints import save_tiny


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for model_type in ("llava", "llava_next", "qwen3_vl"):
        save_tiny(model_type, folder / model_type)
    return folder


def configure(folder: Path, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    arguments: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "block_size": 32}
    arguments |= engine_arguments(folder, {"keep": 0.5})
    return EngineArgs(**arguments | options).create_engine_config()


def test_what_is_supported_is_configured(checkpoints: Path) -> None:
    config = configure(checkpoints / "llava")
    assert config.model_config.architecture == "TopVLlavaForConditionalGeneration"
    assert config.model_config.uses_mrope
    assert config.model_config.hf_config.topv == {"method": "topv", "stage": "encoder", "keep": 0.5, "max_keep": 1.0}
    assert config.parallel_config.worker_cls == "topv.serve.cpu_worker.PruningCPUWorker"


@pytest.mark.parametrize(
    ("model_type", "options", "part"),
    [
        ("llava", {"enable_mm_embeds": True}, "--enable-mm-embeds"),
        ("llava", {"language_model_only": True}, "--language-model-only"),
        ("llava", {"limit_mm_per_prompt": {"image": 0}}, "--limit-mm-per-prompt"),
        ("llava", {"mm_processor_kwargs": {"topv_keep": 0.3}}, "--mm-processor-kwargs topv_keep"),
        ("llava", {"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ("llava", {"worker_cls": "somewhere.Else"}, "--worker-cls somewhere.Else"),
        ("llava", {"compilation_config": {"compile_mm_encoder": True}}, "compile_mm_encoder"),
        ("llava", {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "--speculative-config"),
        ("qwen3_vl", {"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data"),
        ("qwen3_vl", {"video_pruning_rate": 0.5}, "--video-pruning-rate"),
    ],
)
def test_options(checkpoints: Path, model_type: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=f"{part}.* cannot be combined with topv's pruning"):
        configure(checkpoints / model_type, **options)


def edited(source: Path, destination: Path, **changes: Any) -> Path:
    """A copy of a checkpoint's configuration, changed; "text_config" and "vision_config" in part."""
    destination.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (destination / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (destination / "config.json").write_text(json.dumps(config))
    return destination


@pytest.mark.parametrize(
    ("model_type", "changes", "part"),
    [
        ("llava", {"vision_feature_layer": [-1, -2]}, "several layers"),
        ("llava_next", {"vision_feature_layer": [-1, -2]}, "several layers"),
        ("llava_next", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ("llava", {"text_config": {"model_type": "mistral", "sliding_window": 128}}, "slides over 128 tokens"),
    ],
)
def test_variants(checkpoints: Path, tmp_path: Path, model_type: str, changes: dict[str, Any], part: str) -> None:
    folder = edited(checkpoints / model_type, tmp_path / "edited", **changes)
    with pytest.raises(ValueError, match=part):
        configure(folder)


def test_an_architecture_that_is_not_supported(checkpoints: Path, tmp_path: Path) -> None:
    folder = edited(checkpoints / "llava", tmp_path / "edited", architectures=["VipLlavaForConditionalGeneration"])
    with pytest.raises(UnsupportedError, match="'VipLlavaForConditionalGeneration' cannot be served pruned"):
        engine_arguments(folder, {"keep": 0.5})


def test_overrides_that_topv_fills_in(checkpoints: Path) -> None:
    with pytest.raises(InputError, match="hf_overrides has 'topv'"):
        engine_arguments(checkpoints / "llava", {}, hf_overrides={"topv": {"keep": 0.5}})


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({}, 'hf_overrides has no "topv"'),
        ({"topv": {"keep": 2.0}}, "keep=2.0"),
        ({"topv": {"method": "fastv"}}, "'fastv' cannot be served"),
    ],
)
def test_overrides_by_hand(checkpoints: Path, overrides: dict[str, Any], part: str) -> None:
    architectures = ["TopVLlavaForConditionalGeneration"]
    with pytest.raises(ValueError, match=part):
        configure(checkpoints / "llava", hf_overrides={**overrides, "architectures": architectures})


def test_vllms_own_models_are_left_alone(checkpoints: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    arguments = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "block_size": 32}
    config = EngineArgs(model=str(checkpoints / "llava"), **arguments).create_engine_config()
    assert config.model_config.architecture == "LlavaForConditionalGeneration"
    assert not config.model_config.uses_mrope
    assert "topv" not in config.parallel_config.worker_cls
