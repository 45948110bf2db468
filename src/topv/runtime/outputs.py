"""The decoder's output as callers that index by prompt position expect it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .call import Call
from .compaction import Compaction

__all__ = ["scatter_output"]


def scatter_output(output: Any, call: Call, compactions: Sequence[Compaction | None]) -> Any:
    """The decoder's output with every shortened state put back at its prompt positions.

    Args:
        output: what the decoder returned.
        call: the forward.
        compactions: for each decoder layer, from its slots to the forward's columns; None where it saw all of them.
    """
    plan, depth = call.plan, len(compactions)
    if plan is None or all(compaction is None for compaction in compactions):
        return output

    def full(state: Any, layer: int) -> Any:
        """What decoder layer `layer` has put out, at its prompt positions."""
        compaction = compactions[layer]
        if compaction is None:
            return state
        rejoined = depth - 1 in call.rejoined
        if rejoined and isinstance(state, torch.Tensor) and state.shape[1] == compaction.length:
            state = compaction.gather(state)
        # A decoder may have gone on with the last positions alone, whose logits were asked for.
        if not isinstance(state, torch.Tensor) or state.shape[1] != compaction.index.shape[1]:
            return state
        return compaction.scatter(state, plan.real)

    def all_states(states: tuple[Any, ...], last: Any, last_full: Any) -> tuple[Any, ...]:
        # Entry i is the output of layer i - 1, and transformers puts the last hidden state at the end once more.
        return tuple(
            last_full if state is last else full(state, index - 1) if index else state
            for index, state in enumerate(states)
        )

    if isinstance(output, tuple):
        last = full(output[0], depth - 1)
        return (
            last,
            *(all_states(item, output[0], last) if _is_states(item) else item for item in output[1:]),
        )
    last = full(output.last_hidden_state, depth - 1)
    if output.hidden_states is not None:
        output.hidden_states = all_states(output.hidden_states, output.last_hidden_state, last)
    output.last_hidden_state = last
    return output


def _is_states(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) > 0 and all(x is None or isinstance(x, torch.Tensor) for x in item)
