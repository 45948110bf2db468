"""What the plugin stands on in vLLM, looked up in its sources without importing them.

    python -m topv.serve.symbols                     the installed vLLM
    python -m topv.serve.symbols path/to/vllm        another one's sources: the folder that holds `config`, `v1`, ...

Prints what is missing or has changed, and exits with 1 if anything has.
"""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError

__all__ = ["SYMBOLS", "missing_symbols"]

SYMBOLS: dict[str, dict[str, tuple[str, ...]]] = {
    "config/vllm.py": {"VllmConfig.try_verify_and_update_config": ("self",)},
    "distributed/parallel_state.py": {"get_tp_group": (), "GroupCoordinator.broadcast": ("self", "input_", "src")},
    "engine/arg_utils.py": {"EngineArgs.create_engine_config": ("self",), "EngineArgs.from_cli_args": ("cls", "args")},
    "entrypoints/cli/serve.py": {
        "FlexibleArgumentParser": (),
        "ServeSubcommand.cmd": ("args",),
        "make_arg_parser": (),
        "validate_parsed_serve_args": (),
    },
    "exceptions.py": {"VLLMValidationError": ()},
    "model_executor/models/clip.py": {"CLIPEncoderLayer": (), "CLIPEncoderLayer.layer_norm1": ()},
    "model_executor/models/config.py": {"MODELS_CONFIG_MAP": ()},
    "model_executor/models/intern_vit.py": {"InternVisionEncoderLayer.norm1": (), "InternVisionEncoderLayer.mlp": ()},
    "model_executor/models/interns1.py": {
        "InternS1DummyInputsBuilder": (),
        "InternS1ForConditionalGeneration.embed_multimodal": ("self",),
        "InternS1ForConditionalGeneration.pixel_shuffle": ("self", "x", "scale_factor"),
        "InternS1MultiModalProcessor": (),
        "InternS1ProcessingInfo": (),
    },
    "model_executor/models/interns1_vit.py": {
        "InternS1VisionLayer.layernorm_before": (),
        "InternS1VisionLayer.mlp": (),
    },
    "model_executor/models/internvl.py": {
        "InternVLChatModel.embed_multimodal": ("self",),
        "InternVLChatModel.pixel_shuffle": ("self", "x", "scale_factor"),
        "InternVLDummyInputsBuilder": (),
        "InternVLMultiModalProcessor": (),
        "InternVLProcessingInfo": (),
    },
    "model_executor/models/llava.py": {
        "LlavaDummyInputsBuilder": (),
        "LlavaForConditionalGeneration.embed_multimodal": ("self",),
        "LlavaForConditionalGeneration.forward": ("self", "input_ids", "positions", "intermediate_tensors"),
        "LlavaMultiModalProcessor": (),
        "LlavaProcessingInfo": (),
    },
    "model_executor/models/llava_next.py": {
        "LlavaNextForConditionalGeneration.embed_multimodal": ("self",),
        "LlavaNextMultiModalProcessor": (),
        "LlavaNextProcessingInfo": (),
    },
    "model_executor/models/llava_onevision.py": {
        "LlavaOnevisionDummyInputsBuilder": (),
        "LlavaOnevisionForConditionalGeneration.embed_multimodal": ("self",),
        "LlavaOnevisionMultiModalProcessor": (),
        "LlavaOnevisionProcessingInfo": (),
    },
    "model_executor/models/qwen2_5_vl.py": {
        "Qwen2_5_VLDummyInputsBuilder": (),
        "Qwen2_5_VLForConditionalGeneration.embed_multimodal": ("self",),
        "Qwen2_5_VLForConditionalGeneration.recompute_mrope_positions": (
            "self", "input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens",
        ),
        "Qwen2_5_VLMultiModalProcessor": (),
        "Qwen2_5_VLProcessingInfo": (),
        "Qwen2_5_VisionBlock.norm1": (),
        "Qwen2_5_VisionBlock.mlp": (),
    },
    "model_executor/models/qwen3_vl.py": {
        "Qwen3VLDummyInputsBuilder": (),
        "Qwen3VLForConditionalGeneration.embed_multimodal": ("self",),
        "Qwen3VLForConditionalGeneration.get_mrope_input_positions": ("self", "input_tokens", "mm_features"),
        "Qwen3VLMultiModalProcessor": (),
        "Qwen3VLProcessingInfo.get_supported_mm_processor_kwargs": ("self",),
        "Qwen3_VisionBlock.norm1": (),
        "Qwen3_VisionBlock.mlp": (),
    },
    "model_executor/models/registry.py": {"ModelRegistry": ()},
    "model_executor/models/siglip.py": {"SiglipEncoderLayer.layer_norm1": (), "SiglipEncoderLayer.mlp": ()},
    "multimodal/inputs.py": {"MultiModalFieldConfig.batched": ("modality", "keep_on_cpu")},
    "multimodal/processing/context.py": {
        "BaseProcessingInfo.get_supported_mm_limits": ("self",),
        "BaseProcessingInfo.validate_num_items": ("self", "modality", "num_items"),
    },
    "multimodal/processing/processor.py": {
        "BaseMultiModalProcessor.apply": ("self", "inputs", "timing_ctx"),
        "BaseMultiModalProcessor.get_dummy_inputs": ("self", "seq_len", "mm_counts", "mm_options"),
        "BaseMultiModalProcessor._apply_hf_processor_main": ("self", "mm_items", "hf_kwargs"),
        "BaseMultiModalProcessor._get_mm_fields_config": ("self", "hf_inputs", "hf_processor_mm_kwargs"),
        "BaseMultiModalProcessor._get_mm_hashes": ("self", "inputs"),
        "BaseMultiModalProcessor._get_prompt_updates": (
            "self", "mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs",
        ),
        "BaseMultiModalProcessor._maybe_apply_prompt_updates": ("self", "mm_items", "mm_res"),
        "PromptReplacement": (),
        "PromptUpdateDetails.from_seq": ("seq",),
    },
    "transformers_utils/config.py": {"uses_mrope": ("config",), "_mrope_section": ("config",)},
    "v1/worker/cpu_worker.py": {"CPUWorker": ()},
    "v1/worker/gpu/model_states/mm_pruning.py": {"MultiModalPruner": (), "maybe_create_mm_pruner": ()},
    "v1/worker/gpu_model_runner.py": {
        "GPUModelRunner._gather_mm_embeddings": ("self",),
        "GPUModelRunner.is_multimodal_pruning_enabled": (),
    },
}  # fmt: skip
"""Files of vLLM, in them names, and of functions the parameters that must be there, in this order among others."""


def missing_symbols(root: Path) -> list[str]:
    """What of `SYMBOLS` is not in vLLM's sources as it should be, in words; empty when all is.

    Args:
        root: the folder of the package `vllm`.
    """
    found = []
    for file, names in SYMBOLS.items():
        path = root / file
        if not path.is_file():
            found.append(f"{file} is not there")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, parameters in names.items():
            node = _find(tree, name.split("."))
            if node is None:
                found.append(f"{file} has no {name}")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                known = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if [own for own in known if own in parameters] != list(parameters):
                    found.append(
                        f"{file}: {name} takes {', '.join(known)}; expected {', '.join(parameters)} among them"
                    )
    return found


def _find(tree: ast.AST, names: list[str]) -> ast.AST | None:
    """The definition of a dotted name: a class, a function, a module's variable or import, or an attribute that is set
    on `self`."""
    name, *rest = names
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return _find(node, rest) if rest else node
        if isinstance(node, ast.ImportFrom) and not rest and name in {own.asname or own.name for own in node.names}:
            return node
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not rest and any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node
    if rest or not isinstance(tree, ast.ClassDef):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store):
            return node
    return None


def main(arguments: list[str]) -> int:
    """Look the symbols up.

    Raises:
        InputError: when vLLM is neither installed nor given.
    """
    if arguments:
        root = Path(arguments[0])
    else:
        spec = find_spec("vllm")
        if spec is None or spec.origin is None:
            raise InputError("vLLM is not installed. Give the folder of its sources.")
        root = Path(spec.origin).parent
    found = missing_symbols(root)
    print("\n".join(found) if found else f"{root}: all {sum(map(len, SYMBOLS.values()))} symbols are there")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
