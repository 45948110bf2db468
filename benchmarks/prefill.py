"""Decoder prefill time against its share of FLOPs, on a LLaVA-shaped model with random weights.

    python benchmarks/prefill.py --out docs/results/prefill.csv

The decoder is 24 layers deep and 896 wide (the proportions of a 0.5 B language model), the prompt holds 576 visual
tokens. Pruned and unpruned prefills run in interleaved rounds; a share of 0.7 of the FLOPs should take 0.7 of the time.
"""

from __future__ import annotations

import argparse
import csv
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import topv
from topv.measure import count_decoder, describe_environment, measure_phases

SIDE, PATCH = 24, 14
IMAGE_TOKEN = 3


def build(layers: int, width: int, device: str, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """A LLaVA with a real decoder and a vision tower too small to matter."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=SIDE * PATCH,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=1024,
            hidden_size=width,
            intermediate_size=4864 * width // 896,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=2,
        ),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).to(device=device, dtype=dtype).eval()


def main() -> None:
    """Measure, print, and append rows to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--text", type=int, default=64, help="text tokens in the prompt")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model = build(options.layers, options.width, options.device, dtype)
    tokens = SIDE * SIDE
    text = torch.randint(10, 1024, (1, options.text))
    inputs = {
        "input_ids": torch.cat([text[:, :8], torch.full((1, tokens), IMAGE_TOKEN), text[:, 8:]], dim=1),
        "pixel_values": torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH, dtype=dtype),
    }
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    whole = inputs["input_ids"].shape[1]
    methods: dict[str, topv.Method | None] = {"none": None}
    for keep in options.keep:
        methods |= {f"topv@{keep:g}": topv.TopV(keep=keep), f"fastv@{keep:g}": topv.FastV(keep=keep)}

    shares: dict[str, float] = {}

    def candidate(name: str, method: topv.Method | None) -> Callable[[Any], None]:
        def run(watch: Any) -> None:
            pruning = None if method is None else topv.attach(model, method)
            with watch.phase("prefill"):
                model(**inputs, use_cache=True, logits_to_keep=1)
            if pruning is None:
                shares[name] = 1.0
            else:
                pruning.detach()
                kept = pruning.report().kept_tokens
                pruned = count_decoder(model, visual=tokens, columns=whole, layer=pruning.layer, kept=kept)
                shares[name] = pruned.decoder / count_decoder(model, visual=tokens, columns=whole).decoder

        return run

    with torch.inference_mode():
        table = measure_phases(
            {name: candidate(name, method) for name, method in methods.items()},
            baseline="none",
            warmup=2,
            repetitions=options.repetitions,
            synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        )["prefill"]

    environment = describe_environment()
    rows = []
    for name in methods:
        ratio = table[name].ratio
        rows.append(
            {
                "method": name,
                "layers": options.layers,
                "width": options.width,
                "visual_tokens": tokens,
                "text_tokens": options.text,
                "median_ms": round(table[name].median * 1e3, 2),
                "spread_ms": round(table[name].spread * 1e3, 2),
                "time_ratio": round(ratio.value, 4) if ratio else 1.0,
                "time_ratio_low": round(ratio.low, 4) if ratio else 1.0,
                "time_ratio_high": round(ratio.high, 4) if ratio else 1.0,
                "flops_share": round(shares[name], 4),
                "time_over_flops_share": round((ratio.value if ratio else 1.0) / shares[name], 4),
                "dtype": options.dtype,
                "attention": "sdpa",
                "rounds": options.repetitions,
                "device": environment.device_name(device),
                "torch": environment.versions["torch"],
                "transformers": environment.versions["transformers"],
                "topv": environment.versions["topv"],
                "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            }
        )
    for row in rows:
        print(
            f"{row['method']:<12} {row['median_ms']:9.1f} ms ± {row['spread_ms']:<7.1f} time x {row['time_ratio']:.3f} "
            f"[{row['time_ratio_low']:.3f}, {row['time_ratio_high']:.3f}]  FLOPs x {row['flops_share']:.3f}  "
            f"time / FLOPs share {row['time_over_flops_share']:.3f}"
        )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
