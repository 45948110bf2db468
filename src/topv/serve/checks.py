"""What a pruned model refuses, told before the engine starts."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import TopVError, UnsupportedError
from .settings import KEEP_ARGUMENT, ServeSettings
from .supported import ARCHITECTURES

__all__ = ["EXTENDABLE_ROPE", "ConfigChecks", "adapter_of", "check_arguments", "rope_type", "settings_of"]

EXTENDABLE_ROPE = ("default", "linear", "llama3")
"""Rotary embeddings whose frequencies do not depend on how long their table is."""

_CPU_WORKERS = ("auto", "vllm.v1.worker.cpu_worker.CPUWorker")
_CPU_WORKER = "topv.serve.cpu_worker.PruningCPUWorker"


def settings_of(hf_config: Any) -> ServeSettings:
    """The settings that `hf_overrides["topv"]` brought into a model's configuration.

    Raises:
        UnsupportedError: when there are none.
        InputError: when they are not valid.
    """
    options = getattr(hf_config, "topv", None)
    if options is None:
        raise UnsupportedError(
            'a pruned architecture is asked for, but hf_overrides has no "topv". Add it: '
            '--hf-overrides \'{"architectures": ["TopV..."], "topv": {"keep": 0.5}}\', or use `topv serve`.'
        )
    return ServeSettings.read(options)


def adapter_of(architecture: str) -> Any:
    """The adapter of an architecture, by its own name or the pruned one's."""
    module, _, name = ARCHITECTURES[architecture.removeprefix("TopV")].partition(":")
    return getattr(importlib.import_module(module), name).topv_adapter


class ConfigChecks:
    """vLLM calls this when the configuration of an engine with a pruned architecture is complete."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing to do before the engine's own configuration is known."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what pruning cannot serve, and switch on what it needs.

        Raises:
            UnsupportedError: naming the option.
            InputError: when the settings are not valid.
        """
        model_config = vllm_config.model_config
        settings_of(model_config.hf_config)
        adapter = adapter_of(model_config.architecture)
        adapter.check(model_config.hf_config)
        _check_multimodal(model_config.multimodal_config)
        _check_engine(vllm_config)
        if not adapter.mrope:
            _check_windows(model_config)
            # With three sections the runner keeps positions in three rows, and asks the model for them.
            model_config.hf_config.mrope_section = [1, 1, 1]
        _let_model_place_tokens(vllm_config)


def rope_type(text_config: Any) -> str:
    """The kind of a decoder's rotary embedding."""
    return str((getattr(text_config, "rope_parameters", None) or {}).get("rope_type", "default"))


def _check_windows(model_config: Any) -> None:
    text = model_config.hf_config.get_text_config()
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None) or ()
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    if window is not None and slides and window < model_config.max_model_len:
        raise UnsupportedError(
            f"the decoder's attention slides over {window} tokens, which vLLM would count without the pruned ones. "
            f"Serve prompts that fit into the window: --max-model-len {window}"
        )


def check_arguments(arguments: Any) -> None:
    """Refuse a server's parsed command line as the engine would, before anything is started.

    Raises:
        UnsupportedError: naming the option.
        InputError: when the settings are not valid.
    """
    from pydantic import ValidationError
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    except ValidationError as error:
        # Errors of `verify_and_update_config` arrive wrapped.
        own = [problem.get("ctx", {}).get("error") for problem in error.errors()]
        for problem in own:
            if isinstance(problem, TopVError):
                raise problem from None
        raise


def _check_multimodal(mm: Any) -> None:
    _refuse(mm.language_model_only, "--language-model-only", "no image is ever encoded")
    _refuse(mm.enable_mm_embeds, "--enable-mm-embeds", "embeddings do not show what the vision tower saw")
    _refuse(mm.mm_encoder_tp_mode == "data", "--mm-encoder-tp-mode data", "a rank sees only some of the images")
    _refuse(bool(mm.video_pruning_rate), "--video-pruning-rate", "videos are not served by a pruned model")
    _refuse(
        mm.get_limit_per_prompt("image") == 0, "--limit-mm-per-prompt", "it allows no image, so none could be pruned"
    )
    processor = mm.mm_processor_kwargs or {}
    _refuse(
        KEEP_ARGUMENT in processor, f"--mm-processor-kwargs {KEEP_ARGUMENT}", "the server's own ratio is topv's keep"
    )


def _check_engine(vllm_config: Any) -> None:
    compilation = vllm_config.compilation_config
    _refuse(getattr(compilation, "compile_mm_encoder", False), "compile_mm_encoder", "a compiled tower cannot be read")
    _refuse(
        getattr(compilation, "cudagraph_mm_encoder", False), "cudagraph_mm_encoder", "a captured tower cannot be read"
    )
    lora = vllm_config.lora_config
    _refuse(
        lora is not None and getattr(lora, "enable_tower_connector_lora", False),
        "--enable-tower-connector-lora",
        "vLLM counts the tower's tokens from the pruned placeholders",
    )
    _refuse(
        vllm_config.speculative_config is not None,
        "--speculative-config",
        "drafting over pruned images has not been made to agree with the model",
    )


def _let_model_place_tokens(vllm_config: Any) -> None:
    """Let the runner ask the model for the positions of the tokens that stay."""
    parallel = vllm_config.parallel_config
    _refuse(
        parallel.pipeline_parallel_size > 1,
        "--pipeline-parallel-size",
        "vLLM tells only the first rank the positions of the tokens that stay",
    )
    # vLLM asks for positions only where its own pruning, of videos, is switched on. Videos are refused.
    vllm_config.model_config.multimodal_config.video_pruning_rate = 0.5
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _refuse(
            parallel.worker_cls not in (*_CPU_WORKERS, _CPU_WORKER),
            f"--worker-cls {parallel.worker_cls}",
            f"on a CPU it takes {_CPU_WORKER}",
        )
        parallel.worker_cls = _CPU_WORKER


def _refuse(given: bool, option: str, reason: str) -> None:
    if given:
        raise UnsupportedError(f"{option} cannot be combined with topv's pruning: {reason}. Leave it out.")
