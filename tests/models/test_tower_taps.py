"""Evidence is read where it enters and leaves the parts of a tower's block, however the block is called."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from topv.errors import UnsupportedError
from topv.methods import TARGETS
from topv.models.tower_taps import PREFIX, TowerTaps


class Attention(nn.Module):
    def forward(self, scale: float, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden_states * scale, None


class Mlp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 100


class Fused(nn.Module):
    """A norm that writes into what it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        (states,) = (*args, *kwargs.values())
        return states.mul_(2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.mlp = Fused(), Attention(), Mlp()

    def forward(self, x: torch.Tensor, *, by_name: bool = False) -> torch.Tensor:
        x = self.norm1(x)
        x = (self.attn(scale=3.0, hidden_states=x) if by_name else self.attn(3.0, x))[0]
        return self.mlp(x=x) if by_name else self.mlp(x)


NEEDS = frozenset(PREFIX + name for name in ("source", *TARGETS))
# A block is given ones, its norm doubles them, attention makes them six, and the MLP adds a hundred.
READ = {"source": 1.0, "pre_norm": 2.0, "attention": 6.0, "post_norm": 6.0, "mlp": 106.0}


def ones() -> torch.Tensor:
    return torch.ones(1, 2, 3, dtype=torch.float64)


@pytest.mark.parametrize("by_name", [False, True])
def test_past_the_hooks_of_a_block(by_name: bool) -> None:
    block = Block()
    taps = TowerTaps(NEEDS, inside=True, copies=True)
    taps.attach(block)
    with taps.reading() as read:
        block.forward(ones(), by_name=by_name)
    assert {name: states.unique().item() for name, states in read.items()} == READ
    assert all(states.dtype == torch.float32 and states.shape == (1, 2, 3) for states in read.values())


def test_source_is_what_enters_a_block_and_is_not_copied() -> None:
    block, given = Block(), ones().requires_grad_().clone()
    taps = TowerTaps(frozenset({"encoder_source", "text"}))
    taps.attach(block)
    with taps.reading() as read:
        block(given)
    assert read.keys() == {"source"}
    assert read["source"].data_ptr() == given.data_ptr()
    assert read["source"].dtype == torch.float64
    assert not read["source"].requires_grad


def test_weights_come_of_the_attentions_arguments() -> None:
    def weigh(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> torch.Tensor:
        assert module is block.attn
        return args[1] + args[0]

    block = Block()
    taps = TowerTaps(frozenset({"encoder_weights"}), weigh=weigh)
    taps.attach(block)
    block(ones())
    with taps.reading() as read:
        block(ones())
    assert read["weights"].unique().item() == 5.0


def test_nothing_is_read_elsewhere() -> None:
    block = Block()
    taps = TowerTaps(NEEDS)
    handles = taps.attach(block)
    with taps.reading() as read:
        other = threading.Thread(target=block, args=(ones(),))
        other.start()
        other.join()
    block(ones())
    assert read == {}
    for handle in handles:
        handle.remove()
    with taps.reading() as read:
        block(ones())
    assert read == {}


def test_nothing_is_put_on_for_nothing() -> None:
    taps = TowerTaps(frozenset({"source", "mlp"}))
    assert not taps.wanted
    assert taps.attach(nn.Identity()) == []


def test_what_cannot_be_read() -> None:
    with pytest.raises(ValueError, match=r"unknown evidence of the vision tower: hue, weights. Known: attention, mlp"):
        TowerTaps(frozenset({"encoder_hue", "encoder_weights"}))
    with pytest.raises(UnsupportedError, match="Identity has none of self_attn, attention, attn"):
        TowerTaps(NEEDS).attach(nn.Identity())
    bare = Block()
    del bare.norm1
    with pytest.raises(UnsupportedError, match="Block has none of layer_norm1"):
        TowerTaps(NEEDS, inside=True).attach(bare)
