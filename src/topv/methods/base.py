"""What a pruning method is: a dataclass that scores visual tokens from the evidence it asks for."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from ..budget import keep_count, validate_keep
from .evidence import TARGETS, Evidence

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BUDGETS", "GOALS", "TARGETS", "Evidence", "Method"]

GOALS = ("visual_flops", "kv_share")
"""The settings that ask for a saving rather than for a number of tokens."""

BUDGETS = ("keep", *GOALS)
"""The settings that decide how many tokens stay. Each method takes one of them."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A pruning method. Subclasses are frozen dataclasses that override `score`.

    Args:
        keep: share in (0, 1] of the visual tokens that share a budget to keep (float), or how many (int); 0.5 when
            neither it nor a target is given, and None when a target is.
        layer: number of decoder layers that see every token; the sequence is shorter from layer index `layer` on. 0
            needs a method that reads no decoder layer.
        budget: what `keep` is a share or a count of: each "grid" by itself, all grids of an "image" (its tiles and
            thumbnail, a video's frames) together, or all of a "sample". Where grids share a budget their scores are
            compared as they are.
        compact_early_layers: whether the layers that saw every token forget the pruned ones once the prefill is over,
            so that all layers of the KV cache are as short. Tokens generated later do not see pruned tokens in any
            layer, which they otherwise do in the first `layer` ones.
        visual_flops: target instead of `keep`: the share in [0, 1) of each sample's visual FLOPs to save. The runtime
            gives every budget of the sample the same ratio, the one whose saving is nearest.
        kv_share: target instead of `keep`: the share in (0, 1] of each sample's KV bytes, text included, to leave.

    Raises:
        ValueError: when a setting is out of range, or more than one of `keep`, `visual_flops`, `kv_share` is given.
        TypeError: when `keep` or a target is not a number.
    """

    keep: float | int | None = None
    layer: int | None = 2
    budget: Literal["grid", "image", "sample"] = "grid"
    compact_early_layers: bool = False
    visual_flops: float | None = None
    kv_share: float | None = None

    has_importance: ClassVar[bool] = True
    """Whether the scores say how important each token is (False for random or purely positional choices)."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in vars(cls):
            # The dataclass decorator writes its own only where it finds none.
            cls.__repr__ = Method.__repr__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            settings = " and ".join(f"{name}={getattr(self, name)!r}" for name in given)
            raise ValueError(
                f"{settings}: each decides how many tokens stay, so give one of them. To change the budget of a method "
                "use its `with_budget`."
            )
        for name in BUDGETS[1:]:
            share = getattr(self, name)
            if share is not None:
                object.__setattr__(self, name, _validate_share(name, share))
        if self.goal is None:
            object.__setattr__(self, "keep", validate_keep(0.5 if self.keep is None else self.keep))
        if self.layer is not None and not _is_count(self.layer):
            raise ValueError(
                f"layer={self.layer!r} must be an integer of at least 0: the number of decoder layers that see "
                "every token."
            )
        if self.layer == 0 and not self.can_precede_decoder:
            raise ValueError(
                f"layer=0 must be at least 1 for {type(self).__name__}, which needs a decoder layer that sees "
                "every token."
            )
        if not isinstance(self.compact_early_layers, bool):
            raise ValueError(f"compact_early_layers={self.compact_early_layers!r} must be True or False.")
        if self.budget not in ("grid", "image", "sample"):
            raise ValueError(f"budget={self.budget!r} must be 'grid', 'image' or 'sample': who shares what is kept.")

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.repr and not (f.name in BUDGETS and getattr(self, f.name) is None)
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"

    @property
    def goal(self) -> tuple[str, float] | None:
        """The target that decides how many tokens stay, by name and share; None where `keep` does."""
        for name in GOALS:
            share: float | None = getattr(self, name)
            if share is not None:
                return name, share
        return None

    def with_budget(
        self,
        *,
        keep: float | int | None = None,
        visual_flops: float | None = None,
        kv_share: float | None = None,
    ) -> Self:
        """The same method with another budget or target, in place of its own."""
        return replace(self, keep=keep, visual_flops=visual_flops, kv_share=kv_share)

    @property
    def name(self) -> str:
        """The method's name in tables and on the command line."""
        return type(self).__name__.lower()

    @property
    def needs(self) -> frozenset[str]:
        """The evidence to read: names of `READINGS`, of those that fill one field at most one."""
        return frozenset()

    @property
    def can_precede_decoder(self) -> bool:
        """Whether the evidence is there before any decoder layer has run, so that `layer` may be 0."""
        return all(name in ("source", "text") or name.startswith("encoder_") for name in self.needs)

    @property
    def uses_places(self) -> bool:
        """Whether `score` reads the tokens' coordinates, so that it needs grids whose tokens have a place."""
        return False

    def pruning_layer(self, depth: int) -> int:
        """`layer`, resolved for a decoder of `depth` layers.

        Raises:
            ValueError: when the decoder has no layer of that index.
        """
        layer = self.default_layer(depth) if self.layer is None else self.layer
        first = 0 if self.can_precede_decoder else 1
        if not first <= layer < depth:
            raise ValueError(
                f"layer={layer} leaves nothing to prune: the decoder has {depth} layers, so layer must be "
                f"between {first} and {depth - 1}."
            )
        return layer

    def default_layer(self, depth: int) -> int:
        """What `layer` stands for where it is None."""
        return depth // 2

    def pruning_layers(self, depth: int) -> tuple[int, ...]:
        """The layers from which on the sequence is shorter than before, ascending: `pruning_layer`, or several.

        Raises:
            ValueError: when the decoder has no layer of the first's index.
        """
        return (self.pruning_layer(depth),)

    def shares(self, ratio: Fraction, stages: int) -> tuple[Fraction, ...]:
        """The share of the tokens that stays from each of `stages` pruning layers on, for a ratio in (0, 1].

        None is above the one before, none falls as the ratio rises, and at 1 all are 1. One alone is the ratio.
        """
        return (ratio,)

    def raters(
        self, visual: torch.Tensor, visual_mask: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        """How much the attention of each text token counts: float32 (B, M), summing to 1 in each row.

        Args:
            visual: (B, V, D), each sample's visual tokens where they enter the decoder, padded on the left with zeros.
            visual_mask: BoolTensor (B, V), false at padding.
            text: (B, M, D), the text tokens that may count, padded likewise.
            text_mask: BoolTensor (B, M); at least one is true in each row.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define raters().")

    def count(self, tokens: int) -> int:
        """How many of the `tokens` tokens that share a budget stay, recovered ones included.

        Raises:
            ValueError: when something else than `keep` decides, which takes the model and the whole prompt to resolve.
        """
        if self.keep is None:
            raise ValueError(f"{self!r} sets no count, so how many tokens stay depends on the model and the prompt.")
        return keep_count(tokens, self.keep)

    def recovered(self, count: int, tokens: int) -> int:
        """How many of the `count` kept tokens are a uniform sample of the otherwise pruned ones."""
        return 0

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        """Score each token: float32 (G, N); the `count` highest stay, ties going to the lower index."""
        raise NotImplementedError(f"{type(self).__name__} does not define score().")


def _validate_share(name: str, share: Any) -> float:
    if isinstance(share, bool) or not isinstance(share, Real):
        raise TypeError(f"{name}={share!r} is of type {type(share).__name__}; expected a share such as 0.5.")
    given: float = float(share)
    if name == "visual_flops" and not 0 <= given < 1:
        raise ValueError(f"visual_flops={given!r} must be in [0, 1): the share of visual FLOPs to save, such as 0.5.")
    if name == "kv_share" and not 0 < given <= 1:
        raise ValueError(f"kv_share={given!r} must be in (0, 1]: the share of KV bytes to leave, such as 0.6.")
    return given


def _is_count(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return operator.index(value) >= 0
    except TypeError:
        return False
