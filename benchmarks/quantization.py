"""Accuracy and bytes of quantized weights, a quantized KV cache and pruning, in all combinations.

    python benchmarks/quantization.py --out docs/results/quantization.md --plot docs/results/quantization.png

Weights are quantized by torchao (all linear maps but the one that is tied to the token embeddings), the KV cache by HQQ
as transformers' `QuantizedCache` does: pip install 'topv[quantization]'. Every combination answers the same questions.
Pruning is TopV, or --method, at equal shares of visual FLOPs. The bytes are those of the weights and of the KV cache
after the prefill, for as many prompts at once as --prompts says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import common
import topv
from topv.ask.method_spec import parse_methods
from topv.cli.options import add_model_options, positive_int
from topv.errors import InputError
from topv.evaluate import (
    Answer,
    AnswerStore,
    at_equal_reductions,
    bundled_examples,
    evaluate,
    grids_of,
    markdown,
    provenance,
    view_of,
)
from topv.evaluate.runner import inputs_of
from topv.loading import load_model
from topv.measure.kv_cache import PrefillProbe, held_bytes

WEIGHTS = ("fp32", "int8", "int4")
CACHES = ("fp32", "int8", "int4")
GROUP = 32
"""Numbers that share a scale, in 4-bit weights and in the cache; 8-bit weights share one for each output."""

INSTALL = "Install them with: pip install 'topv[quantization]'"


@dataclass(frozen=True)
class Row:
    """One combination.

    Attributes:
        weights: "fp32", "int8" or "int4".
        cache: the same of the KV cache.
        pruning: the share of visual FLOPs that pruning was to remove; 0 for none.
        accuracy: 95 % interval of the mean over tasks: lower end, mean, upper end, in [0, 1].
        difference: the same of the paired difference to the combination without any of the three.
        weight_bytes: of all parameters and buffers, 4-bit weights counted as 4 bits.
        held_bytes: of all parameters and buffers as they lie in memory here.
        kv_bytes: of the KV cache after the prefill of one prompt, mean over prompts.
        visual_flops_reduction: share of visual FLOPs that pruning removed.
    """

    weights: str
    cache: str
    pruning: float
    accuracy: tuple[float, float, float]
    difference: tuple[float, float, float]
    weight_bytes: int
    held_bytes: int
    kv_bytes: float
    visual_flops_reduction: float

    def total(self, prompts: int) -> float:
        """Bytes of the weights and of the KV cache of so many prompts."""
        return self.weight_bytes + prompts * self.kv_bytes


def quantize_weights(model: nn.Module, kind: str) -> None:
    """Quantize the linear maps of a model in place.

    Raises:
        InputError: when torchao is missing.
    """
    if kind == "fp32":
        return
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_
    except ImportError as error:
        raise InputError(f"quantized weights need torchao ({error}). {INSTALL}") from error
    config = (
        Int8WeightOnlyConfig()
        if kind == "int8"
        else IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP))
    )
    quantize_(model, config, lambda module, name: isinstance(module, nn.Linear) and "lm_head" not in name)


def weight_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the parameters and buffers: with 4-bit weights at 4 bits, and as they lie in memory.

    torchao holds a 4-bit weight in a byte on a CPU, beside a zero point that its symmetric scheme leaves at 0.
    """
    packed = held = 0
    for state in itertools.chain(model.parameters(), model.buffers()):
        own = held_bytes(state)
        held += own
        if type(state).__name__ == "IntxUnpackedToInt8Tensor" and state.target_dtype == torch.int4:
            own = state.qdata.numel() // 2 + held_bytes(state.scale)
        packed += own
    return packed, held


def set_cache(model: Any, kind: str) -> None:
    """Let `generate` keep its KV cache as `kind` says: what follows a prefill reads it quantized.

    Raises:
        InputError: when HQQ is missing.
    """
    settings = model.generation_config
    if kind == "fp32":
        settings.cache_implementation = settings.cache_config = None
        return
    from transformers.utils import is_hqq_available

    if not is_hqq_available():
        raise InputError(f"a quantized KV cache needs hqq. {INSTALL}")
    settings.cache_implementation = "quantized"
    # Groups lie along a head's dimension, so that no token's numbers depend on another token's.
    settings.cache_config = {
        "backend": "hqq",
        "nbits": int(kind.removeprefix("int")),
        "axis_key": 1,
        "axis_value": 1,
        "q_group_size": GROUP,
        "residual_length": 64,
    }


def measure(args: argparse.Namespace) -> tuple[list[Row], str]:
    """Every combination's row, and how they were made."""
    method = parse_methods([args.method])[0].method
    if method is None:
        raise InputError(f"--method {args.method!r} prunes nothing. Expected a method such as topv.")
    rows: list[Row] = []
    base: Mapping[str, Sequence[Answer]] | None = None
    made_with = ""
    for kind in args.weights:
        model, processor = load_model(args.model, dtype="float32", device=args.device)
        view = view_of(model, processor)
        examples = bundled_examples(
            args.split, args.questions, *([args.tasks] if view is None else [args.tasks, view.geometry])
        )
        flat = [example for task in args.tasks for example in examples[task]]
        if not made_with:
            made_with = provenance(args.command_line, model, split=args.split, questions=len(flat))
            made_with += f"\n- Quantized by: {', '.join(_versions('torchao', 'hqq'))}"
        quantize_weights(model, kind)
        packed, held = weight_bytes(model)
        grids = grids_of(model, processor, flat[0])
        configurations = at_equal_reductions(model, [(args.method, method)], args.reductions, grids=grids)
        for cache in args.caches:
            set_cache(model, cache)
            store = None
            if args.work is not None:
                setup = {"model": args.model, "weights": kind, "cache": cache, "split": args.split}
                setup |= {
                    "method": repr(method),
                    "tasks": args.tasks,
                    "questions": len(flat),
                    "reductions": args.reductions,
                    "batch_size": args.batch_size,
                }
                store = AnswerStore(args.work / f"{kind}-{cache}", setup)
            found = evaluate(model, processor, flat, configurations, batch_size=args.batch_size, store=store)
            assert found is not None
            for configuration in configurations:
                answers = common.by_task(found[configuration.key])
                base = answers if base is None else base
                one_each = [examples[task][0] for task in args.tasks]
                kv = [_kv_bytes(model, processor, configuration.method, example) for example in one_each]
                every = found[configuration.key]
                rows.append(
                    Row(
                        weights=kind,
                        cache=cache,
                        pruning=configuration.target or 0.0,
                        accuracy=common.mean_over_tasks(answers),
                        difference=common.mean_over_tasks(answers, base),
                        weight_bytes=packed,
                        held_bytes=held,
                        kv_bytes=sum(kv) / len(kv),
                        visual_flops_reduction=sum(a.visual_flops_reduction for a in every) / len(every),
                    )
                )
                print(_line(rows[-1], args.prompts), file=sys.stderr)
    return rows, made_with


def _versions(*packages: str) -> list[str]:
    """Each package with its version."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return found


def _kv_bytes(model: Any, processor: Any, method: topv.Method | None, example: Any) -> int:
    """Bytes of keys and values that the prefill of one prompt leaves."""
    inputs = inputs_of(processor, [example]).to(model.device)
    with torch.inference_mode(), PrefillProbe(model) as probe:
        if method is None:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        else:
            with topv.prune(model, method):
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert probe.kv_bytes is not None
    return probe.kv_bytes


def frontier(rows: Sequence[Row], prompts: int) -> list[Row]:
    """The rows that no other one beats in accuracy without more bytes, by bytes."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.total(prompts), -row.accuracy[1])):
        if not best or row.accuracy[1] > best[-1].accuracy[1]:
            best.append(row)
    return best


def table(rows: Sequence[Row], prompts: int) -> str:
    """All combinations as Markdown; those on the frontier are marked."""
    marked = frontier(rows, prompts)
    header = ["weights", "KV cache", "visual FLOPs removed", "accuracy", "difference", "weights, MB",
              "KV cache, kB a prompt", f"both, {prompts} prompts, MB", "frontier"]  # fmt: skip
    cells = []
    for row in rows:
        low, mean, high = (100 * value for value in row.accuracy)
        less = [100 * value for value in row.difference]
        shown = f"{less[1]:+.1f} [{less[0]:+.1f}, {less[2]:+.1f}]"
        if less[0] > 0 or less[2] < 0:
            shown = f"**{shown}**"
        cells.append(
            [
                row.weights,
                row.cache,
                f"{100 * row.visual_flops_reduction:.1f} %" if row.pruning else "none",
                f"{mean:.1f} [{low:.1f}, {high:.1f}]",
                "" if row is rows[0] else shown,
                f"{row.weight_bytes / 1e6:.1f}",
                f"{row.kv_bytes / 1e3:.0f}",
                f"{row.total(prompts) / 1e6:.1f}",
                "yes" if row in marked else "",
            ]
        )
    return markdown(header, cells)


def _line(row: Row, prompts: int) -> str:
    return (
        f"weights {row.weights}, cache {row.cache}, {row.pruning:.0%} pruned: {100 * row.accuracy[1]:.1f} %, "
        f"{row.total(prompts) / 1e6:.1f} MB"
    )


_READING = """\
Accuracy in %, the mean over tasks with 95 % intervals by resampling pictures. The difference is paired, to the first
row, and bold where its interval excludes 0. Weights: 8 bits with a scale for each output, or 4 bits with a scale for
every {group}. KV cache: 8 or 4 bits with a scale and a zero point for every {group} numbers. The prefill sees its own
keys and values unquantized, and so does the first token of an answer: only answers of several tokens (words, captions,
descriptions) can tell a quantized cache. Bytes are those of the weights (4-bit ones counted as 4 bits) and of the KV
cache after the prefill. A row is on the frontier where no other is as accurate with fewer bytes.

In memory the weights take {held}: torchao keeps a 4-bit weight in a byte on a CPU."""


def page(rows: Sequence[Row], made_with: str, prompts: int) -> str:
    """The whole page."""
    held = {row.weights: f"{row.held_bytes / 1e6:.1f} MB with {row.weights}" for row in rows}
    reading = _READING.format(group=GROUP, held=", ".join(held.values()))
    parts = ["# Quantized weights, a quantized KV cache, and pruning", made_with, reading, table(rows, prompts)]
    return "\n\n".join(parts) + "\n"


def plot(rows: Sequence[Row], prompts: int, path: Path) -> None:
    """Draw accuracy against bytes, and the frontier."""
    from matplotlib.figure import Figure

    colours = dict(zip(WEIGHTS, ("tab:blue", "tab:green", "tab:red"), strict=True))
    sizes = dict(zip(CACHES, (90, 50, 22), strict=True))
    shares = sorted({row.pruning for row in rows})
    markers = dict(zip(shares, "osD^v", strict=False))
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    line = frontier(rows, prompts)
    axes.plot(
        [row.total(prompts) / 1e6 for row in line], [100 * row.accuracy[1] for row in line], color="0.5", linewidth=1,
        label="frontier", drawstyle="steps-post", zorder=0,
    )  # fmt: skip
    for row in rows:
        axes.scatter(
            row.total(prompts) / 1e6, 100 * row.accuracy[1], color=colours[row.weights], s=sizes[row.cache],
            marker=markers[row.pruning], alpha=0.8, edgecolors="black", linewidths=0.5,
        )  # fmt: skip
    for kind in dict.fromkeys(row.weights for row in rows):
        axes.scatter([], [], color=colours[kind], label=f"weights {kind}")
    for kind in dict.fromkeys(row.cache for row in rows):
        axes.scatter([], [], color="0.6", s=sizes[kind], label=f"KV cache {kind}")
    for share in shares:
        axes.scatter([], [], color="0.6", marker=markers[share], label=f"{share:.0%} of visual FLOPs removed")
    axes.set_xscale("log")
    axes.set_xlabel(f"weights and KV cache of {prompts} prompts, MB")
    axes.set_ylabel("accuracy, %, mean over tasks")
    axes.grid(alpha=0.3, which="both")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:g}")
    figure.legend(fontsize="small", loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write what was asked for."""
    from topv.evaluate import TASKS

    parser = common.parser(__doc__)
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=WEIGHTS)
    parser.add_argument("--caches", nargs="+", default=list(CACHES), choices=CACHES)
    parser.add_argument("--method", default="topv", metavar="SPEC", help="how to prune (topv)")
    parser.add_argument("--reductions", nargs="+", type=float, default=[0.5, 0.75], metavar="SHARE")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--questions", type=positive_int, default=10, metavar="N", help="per task (10)")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N")
    parser.add_argument("--prompts", type=positive_int, default=32, metavar="N", help="whose KV cache counts (32)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep answers there, and go on with them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the frontier")
    add_model_options(parser, answers=False)
    args = parser.parse_args(argv)
    args.command_line = ["python", "benchmarks/quantization.py", *(sys.argv[1:] if argv is None else argv)]
    rows, made_with = measure(args)
    text = page(rows, made_with, args.prompts)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": args.command_line, "made_with": made_with.splitlines()}
        args.json.write_text(json.dumps(record | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if args.plot is not None:
        plot(rows, args.prompts, args.plot)


if __name__ == "__main__":
    main()
