"""What a flash kernel is handed in a conversation's second turn with a new image, layer by layer.

tests/runtime/test_flash.py has the stand-in's reasons, and the results of the same turn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import flash_attention_mask

import topv
from ecosystem.bench import Bench
from kv_caches import with_cache

NAME = "flash_recorder"
BATCH: list[list[int | str]] = [[3, "image", 4], [2, "wide", 3]]


@pytest.fixture
def recorded() -> tuple[Bench, list[dict[str, Any]]]:
    """A LLaVA-NeXT decoder on a kernel that notes what it is called with."""
    calls: list[dict[str, Any]] = []

    def kernel(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        queries, keys = query.shape[2], key.shape[2]
        if hasattr(module, "layer_idx"):
            calls.append(
                {
                    "layer": module.layer_idx,
                    "queries": queries,
                    "keys": keys,
                    "mask": attention_mask,
                    "positions": kwargs.get("position_ids"),
                }
            )
        groups = query.shape[1] // key.shape[1]
        seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(len(query), 1, -1, -1)
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None, :]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
        return out.nan_to_num().transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, kernel)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    tiny = Bench("llava_next")
    tiny.model.model.language_model.config._attn_implementation_internal = NAME
    return tiny, calls


@pytest.mark.parametrize("samples", [BATCH[:1], BATCH], ids=["single", "batch"])
def test_second_turn_with_a_new_image(recorded: tuple[Bench, list[dict[str, Any]]], samples: Any) -> None:
    tiny, calls = recorded
    inputs, turn = tiny.prompt(samples), tiny.prompt([[1, "image", 5]] * len(samples), seed=1)
    length, added = inputs["input_ids"].shape[1], turn["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], turn["attention_mask"]], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), topv.prune(tiny.model, topv.TopV(keep=0.5)) as pruning:
        cache = DynamicCache(config=tiny.model.config.get_text_config())
        tiny.model(**inputs, position_ids=positions[:, :length], **with_cache(cache))
        dropped = [dropped_tokens(pruning, row) for row in range(len(samples))]
        held = cache.layers[2].keys.shape[-2]
        calls.clear()
        turn |= {"attention_mask": mask, "position_ids": positions[:, length:]}
        tiny.model(**turn, **with_cache(cache))
        again = [dropped_tokens(pruning, row) for row in range(len(samples))]
    assert [call["layer"] for call in calls] == [0, 1, 2, 3, 4]
    assert len(set(again)) == 1, "the new images are of one size"
    for call in calls:
        short = call["layer"] >= 2
        assert call["queries"] == (added - again[0] if short else added)
        assert call["keys"] == (held if short else length) + call["queries"]
        real = mask.sum(1) - (torch.tensor(dropped) + again[0]) * short
        if call["mask"] is None:
            assert (real == call["keys"]).all(), "nothing is hidden where nothing is padding"
        else:
            assert call["mask"].shape == (len(samples), call["keys"]), "one mask column for each key"
            assert torch.equal(call["mask"].sum(1).long(), real), "as many real keys as each row has"
        if short:
            assert call["positions"] is None, "gapped positions would look like several packed sequences"


def dropped_tokens(pruning: topv.Pruning, row: int) -> int:
    """Visual tokens of a row that the latest prefill did not keep."""
    layout = pruning.results.plan.layout
    return sum(grid.tokens for grid in layout.grids if grid.sample == row) - len(pruning.kept_positions[row])
