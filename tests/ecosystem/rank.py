"""One process of a tensor-parallel model: `python rank.py MODEL_DIRECTORY RANK WORLD_SIZE`. Not a test itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText
from transformers.distributed import DistributedConfig

import topv
from ecosystem.bench import KEEP, Bench
from tools.probe.recipes import recipes
from topv.runtime.arguments import output_cache

__all__ = ["main"]


def main(folder: Path, rank: int, world: int) -> None:
    """Load a share of the model, generate, and write what came of it to `folder/RANK.pt`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    try:
        tiny = Bench.__new__(Bench)
        tiny.recipe, tiny.backend = recipes()["qwen2_5_vl"], "sdpa"
        tiny.model = AutoModelForImageTextToText.from_pretrained(
            folder,
            distributed_config=DistributedConfig(tp_plan="auto"),
            attn_implementation="sdpa",
            dtype=torch.float32,
        ).eval()
        inputs = tiny.prompt()
        run = tiny.generate(inputs)
        found = {"logits": run.logits, "TopV": run.kept, "keys": output_cache(run.out).layers[-1].keys.shape}
        with torch.no_grad(), topv.prune(tiny.model, topv.FastV(keep=KEEP)) as pruning:
            tiny.model(**inputs)
            found["FastV"] = pruning.kept_positions[0]
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
