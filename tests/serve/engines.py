"""vLLM engines inside the test's own process, and what transformers answers with the same method."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import topv
from topv.methods import Evidence, Method
from topv.serve import engine_arguments

__all__ = ["Case", "FirstTokens", "ask", "drawn", "engine", "rank", "reference"]

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "block_size": 32,
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 4},
    "kv_cache_memory_bytes": 1 << 27,
}


class Engine:
    """Holds an engine, so that no test's frame keeps it alive: a late end of one would take down the next."""

    llm: Any


@contextlib.contextmanager
def engine(folder: Path, settings: dict[str, Any] | None, **options: Any) -> Iterator[Engine]:
    """An engine for a model in a folder, pruned as the settings say, or unpruned where there are none."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    arguments = {"model": str(folder)} if settings is None else engine_arguments(folder, settings)
    held = Engine()
    held.llm = LLM(**arguments, **OPTIONS | options)
    try:
        yield held
    finally:
        held.llm.llm_engine.engine_core.shutdown()
        del held.llm
        gc.collect()
        cleanup_dist_env_and_memory()


@dataclass(frozen=True)
class Case:
    """A prompt with images."""

    images: Sequence[Image.Image]
    text: str


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the log-probability of each, and the length of the prompt that was seen."""

    tokens: list[int]
    logprobs: torch.Tensor
    prompt: int
    cached: int = 0


class FirstTokens(Method):
    """The control: keep the first tokens of each grid."""

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        ranks = -torch.arange(evidence.coordinates.shape[0], dtype=torch.float32)
        return ranks.expand(len(evidence.images), -1)


def drawn(processor: Any, sizes: Sequence[tuple[int, int]], question: str = "what is this ?", seed: int = 0) -> Case:
    """A prompt with images of noise of these widths and heights."""
    generator = np.random.default_rng(seed)
    images = [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return Case(images, text)


def ask(held: Engine, cases: Sequence[Case], keeps: Sequence[float | int | None], tokens: int = 8) -> list[Answer]:
    """Ask all of a list of prompts at once, each with its own ratio, or the engine's where it is None."""
    from vllm import SamplingParams

    prompts = []
    for case, keep in zip(cases, keeps, strict=True):
        own = {} if keep is None else {"mm_processor_kwargs": {"topv_keep": keep}}
        prompts.append({"prompt": case.text, "multi_modal_data": {"image": list(case.images)}, **own})
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=1)
    return [
        Answer(
            tokens=list(output.outputs[0].token_ids),
            logprobs=torch.tensor([max(p.logprob for p in step.values()) for step in output.outputs[0].logprobs]),
            prompt=len(output.prompt_token_ids),
            cached=output.num_cached_tokens or 0,
        )
        for output in held.llm.generate(prompts, sampling_params=greedy, use_tqdm=False)
    ]


def reference(model: Any, processor: Any, case: Case, method: Method, tokens: int = 8) -> Answer:
    """What transformers answers under a method; the prompt is as long as it is once pruned."""
    inputs = processor(images=list(case.images), text=[case.text], return_tensors="pt")
    with topv.prune(model, method) as pruning, torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=tokens,
            # An id that no token has, so that the end of the answer is an ordinary token.
            eos_token_id=len(processor.tokenizer),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    new = out.sequences[0, inputs["input_ids"].shape[1] :]
    logprobs = torch.stack(out.logits)[:, 0].float().log_softmax(-1).gather(1, new.unsqueeze(1)).squeeze(1)
    report = pruning.report()
    return Answer(new.tolist(), logprobs, report.prompt_tokens - report.visual_tokens + report.kept_tokens)


def rank(model: Any) -> tuple[int, int]:
    """The tensor-parallel rank and the process that a model runs in."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return get_tensor_model_parallel_rank(), os.getpid()
