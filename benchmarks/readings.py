"""How much foreground each reading of importance keeps, over settings of the cost and the solver.

    python benchmarks/readings.py --scenes 100 --out docs/results/readings.csv

The evidence of layer 1 is captured once for each validation scene; every setting then judges the same tensors. A choice
blind to the picture keeps its keep ratio of the foreground.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import common
import topv
from topv.budget import keep_count
from topv.methods import Evidence, Method
from topv.scenes import draw_scene
from topv.selection import select
from topv.statistics import mean_interval


@dataclass(frozen=True, kw_only=True)
class Capture(Method):
    """Keeps the evidence instead of judging it."""

    target: str = "post_norm"
    seen: list[Evidence] = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"source", self.target})

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        self.seen.append(evidence)
        return evidence.coordinates.new_zeros(len(evidence.images), len(evidence.coordinates))


def capture(model: Any, processor: Any, count: int, target: str, layer: int) -> list[tuple[Evidence, torch.Tensor]]:
    """Evidence and foreground (N,) of each validation scene."""
    found = []
    for seed in range(count):
        scene = draw_scene(seed, "validation")
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": scene.questions[0].prompt}]}],
            add_generation_prompt=True,
        )
        inputs = processor(images=[scene.image], text=[text], return_tensors="pt")
        method = Capture(keep=1, target=target, layer=layer)
        with topv.prune(model, method), torch.inference_mode():
            model(**inputs, logits_to_keep=1)
        found.append((method.seen[0], torch.from_numpy(scene.foreground.flatten())))
    return found


def settings() -> Iterator[tuple[str, topv.Method]]:
    """The methods to compare, with what tells them apart."""
    for normalize, beta in itertools.product((True, False), (0.0, 0.3, 1.0)):
        cost: dict[str, Any] = {"normalize": normalize, "beta": beta, "gamma": 0.0, "recovery": 0.0}
        shown = f"{'unit' if normalize else 'raw'} features, beta {beta:g}"
        yield f"mean cost; {shown}", topv.MeanCost(**cost)
        for eps in (0.03, 0.1, 0.3):
            for iterations in (1, 3, 10):
                yield (
                    f"demand; {shown}, eps {eps:g}, {iterations} iterations",
                    topv.TopV(importance="demand", eps=eps, iterations=iterations, **cost),
                )
            yield f"potential; {shown}, eps {eps:g}", topv.TopV(importance="potential", eps=eps, iterations=100, **cost)
        for rho in (0.1, 1.0):
            yield f"relaxed; {shown}, rho {rho:g}", topv.TopV(importance="relaxed", rho=rho, iterations=100, **cost)


def main() -> None:
    """Print the share of foreground kept under each setting, best first, and write it as CSV."""
    parser = common.parser(__doc__)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--target", nargs="+", default=["post_norm"])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args()

    model, processor = topv.load_mini()
    made_with = common.provenance(model.device)
    rows = []
    for target in options.target:
        captured = capture(model, processor, options.scenes, target, options.layer)
        share = statistics.mean(float(foreground.float().mean()) for _, foreground in captured)
        print(f"target {target}: {len(captured)} validation scenes, {share:.1%} of their patches are foreground")
        for label, method in settings():
            row: dict[str, Any] = {"target": target, "setting": label}
            for keep in options.keep:
                kept = []
                for evidence, foreground in captured:
                    count = keep_count(len(foreground), keep)
                    indices = select(method.score(evidence, count), count).indices[0]
                    kept.append(float(foreground[indices].sum() / foreground.sum()))
                low, mean, high = mean_interval(kept)
                row |= {
                    f"keep_{keep:g}": round(mean, 4),
                    f"low_{keep:g}": round(low, 4),
                    f"high_{keep:g}": round(high, 4),
                }
            rows.append({**row, "scenes": len(captured), "layer": options.layer, **made_with})
    rows.sort(key=lambda row: -row[f"keep_{options.keep[-1]:g}"])
    for row in rows:
        cells = "  ".join(f"keep {keep:g}: {row[f'keep_{keep:g}']:.3f}" for keep in options.keep)
        print(f"{cells}  {row['target']}: {row['setting']}")
    common.write_rows(options.out, rows)


if __name__ == "__main__":
    main()
