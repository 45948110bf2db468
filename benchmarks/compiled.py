"""Prefill and decoding of a pruned and an unpruned model, each as it is and compiled.

    python benchmarks/compiled.py --preset llava-cpu --layers 12 --out docs/results/compiled.csv
    python benchmarks/compiled.py --preset llava-1.5-7b --device cuda --dtype bfloat16 --mode reduce-overhead

All four arms share one set of weights and run in interleaved rounds. Each has a preallocated cache, in which the pruned
model's later layers are shorter. The pruned prefill is one graph, selection included; so is each decoding step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import StaticCache

import common
import topv
from topv.measure import measure_phases
from topv.measure.random_model import build_random_model, random_inputs
from topv.measure.shapes import preset
from topv.runtime.arguments import cache_argument


class Arm:
    """One model with its cache, and how it is called.

    Args:
        model: the model, with its method attached or with none.
        inputs: the prompt.
        cache: a preallocated cache.
        compiled: options of `torch.compile`, or None to run it as it is.
        pruning: what is attached, or None.
    """

    def __init__(self, model: Any, inputs: dict[str, Any], cache: Any, compiled: dict[str, Any] | None, pruning: Any):
        self._model, self._inputs, self._cache = model, inputs, cache
        self._cached = cache_argument(model, cache)
        self._step: Callable[..., Any] = model
        if compiled is None:
            return
        self._step = torch.compile(model, dynamic=False, **compiled)
        if pruning is not None:
            pruning.compile_prefill(**compiled)
            return
        decoder = model.get_decoder()
        decoder.forward = torch.compile(decoder.forward, fullgraph=True, dynamic=False, **compiled)

    def run(self, steps: int, watch: Any) -> None:
        """Prefill the cache anew, and decode greedily."""
        self._cache.reset()
        with watch.phase("prefill"):
            logits = self._model(**self._inputs, **self._cached, logits_to_keep=1).logits
            token = logits[:, -1:].argmax(-1)
        with watch.phase("decode"):
            for _ in range(steps):
                torch.compiler.cudagraph_mark_step_begin()
                logits = self._step(input_ids=token, **self._cached, logits_to_keep=1).logits
                token = logits[:, -1:].argmax(-1).clone()


def twin(model: Any) -> Any:
    """Another model of the same weights."""
    with torch.device("meta"):
        other = type(model)(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        other.get_submodule(owner)._buffers[leaf] = buffer
    return other.eval()


def main() -> None:
    """Measure, print, and write rows to a CSV file."""
    parser = common.parser(__doc__)
    parser.add_argument("--preset", default="llava-cpu")
    parser.add_argument("--layers", type=int, help="decoder layers (the preset's own)")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--text", type=int, default=64, help="text tokens in the prompt")
    parser.add_argument("--steps", type=int, default=8, help="decoding steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--mode", help="mode of torch.compile, such as reduce-overhead for CUDA graphs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    shape = preset(options.preset)
    model = build_random_model(shape, dtype=dtype, device=device, layers=options.layers)
    inputs = random_inputs(model, shape.picture, batch=options.batch, text_tokens=options.text)
    length = inputs["input_ids"].shape[1] + options.steps
    compiled = {"backend": options.backend, **({"mode": options.mode} if options.mode else {})}

    pruned = [twin(model), twin(model)]
    attached = [topv.attach(each, topv.TopV(keep=options.keep)) for each in pruned]
    arms = {}
    for suffix, how, index in (("", None, 0), (", compiled", compiled, 1)):
        whole = model if how is None else twin(model)
        cache = StaticCache(config=whole.config.get_text_config(), max_cache_len=length)
        arms["unpruned" + suffix] = Arm(whole, inputs, cache, how, None)
        short = attached[index].static_cache(inputs, max_new_tokens=options.steps)
        arms["topv" + suffix] = Arm(pruned[index], inputs, short, how, attached[index])

    with torch.inference_mode(mode=False), torch.no_grad():
        tables = measure_phases(
            {name: functools.partial(arm.run, options.steps) for name, arm in arms.items()},
            baseline="unpruned, compiled",
            warmup=3,
            repetitions=options.rounds,
            synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        )
    made_with = common.provenance(device)
    rows = []
    for phase, table in tables.items():
        print(f"\n{phase}, times x unpruned, compiled")
        print(table)
        for name in arms:
            ratio = table[name].ratio
            rows.append(
                {
                    "arm": name,
                    "phase": phase,
                    "median_ms": round(table[name].median * 1e3, 3),
                    "spread_ms": round(table[name].spread * 1e3, 3),
                    "ratio": "" if ratio is None else round(ratio.value, 4),
                    "ratio_low": "" if ratio is None else round(ratio.low, 4),
                    "ratio_high": "" if ratio is None else round(ratio.high, 4),
                    "preset": options.preset,
                    "layers": model.config.get_text_config().num_hidden_layers,
                    "keep": options.keep,
                    "batch": options.batch,
                    "prompt_tokens": inputs["input_ids"].shape[1],
                    "decode_steps": options.steps,
                    "dtype": options.dtype,
                    "backend": options.backend,
                    "mode": options.mode or "default",
                    "rounds": options.rounds,
                    **made_with,
                }
            )
    common.write_rows(options.out, rows)


if __name__ == "__main__":
    main()
