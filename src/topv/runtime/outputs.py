"""The decoder's output as callers that index by prompt position expect it."""

from __future__ import annotations

from typing import Any

import torch

from .forward import Forward

__all__ = ["scatter_output"]


def scatter_output(output: Any, forward: Forward) -> Any:
    """The decoder's output with every shortened state put back at its prompt positions."""
    compaction, plan = forward.compaction, forward.plan
    if compaction is None or plan is None:
        return output

    rejoined = len(forward.family.layers) - 1 in forward.rejoined

    def full(state: Any) -> Any:
        if rejoined and isinstance(state, torch.Tensor) and state.shape[1] == compaction.length:
            state = compaction.gather(state)
        # A decoder may have gone on with the last positions alone, whose logits were asked for.
        if not isinstance(state, torch.Tensor) or state.shape[1] != compaction.index.shape[1]:
            return state
        return compaction.scatter(state, plan.real)

    def all_states(states: tuple[Any, ...], last: Any, last_full: Any) -> tuple[Any, ...]:
        # Entry i is the output of layer i - 1, the layers from forward.layer on ran short, and transformers puts the
        # last hidden state at the end once more.
        return tuple(
            last_full if state is last else full(state) if index > forward.layer else state
            for index, state in enumerate(states)
        )

    if isinstance(output, tuple):
        last = full(output[0])
        return (
            last,
            *(all_states(item, output[0], last) if _is_states(item) else item for item in output[1:]),
        )
    last = full(output.last_hidden_state)
    if output.hidden_states is not None:
        output.hidden_states = all_states(output.hidden_states, output.last_hidden_state, last)
    output.last_hidden_state = last
    return output


def _is_states(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) > 0 and all(x is None or isinstance(x, torch.Tensor) for x in item)
