"""vLLM's models, told to hand on an image's chosen tokens alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from ..layout import Picture
from ..models.tower_taps import PREFIX, TowerTaps
from .adapter import Adapter
from .checks import EXTENDABLE_ROPE, rope_type, settings_of
from .choosing import Job, choose
from .settings import COUNTS, TOKENS

__all__ = ["PrunedModel", "batches"]


class PrunedModel:
    """Prunes each image once, behind the vision tower. Stands before `LinearPositions` or `GridPositions`, and those
    before a model class of vLLM.

    What `embed_multimodal` returns is what vLLM caches by the image's identity, so a choice is made once per image
    and ratio, and holds in every chunk of a prefill and every prompt that shows the image.
    """

    topv_adapter: ClassVar[Adapter]
    topv_write: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        hf_config = vllm_config.model_config.hf_config
        with _room_for_positions(hf_config.get_text_config(), vllm_config.model_config.max_model_len):
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        # vLLM's own switch, for videos, would let models append positions of their own.
        self.is_multimodal_pruning_enabled = False
        settings = settings_of(hf_config)
        self._topv_method = settings.method
        self._topv_config = hf_config
        # vLLM counts pruned tokens against its budget, and would let the tower run on many more images than it was
        # profiled with.
        self._topv_room = vllm_config.scheduler_config.max_num_batched_tokens / settings.max_keep
        self.topv_last_position = _last_position(self, hf_config.get_text_config())
        # vLLM calls the `forward` of some blocks directly, and its fused norms write into what they are given.
        self._topv_taps = TowerTaps(settings.method.needs, inside=True, copies=True)
        self._topv_taps.attach(self.topv_adapter.block(self))

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The chosen tokens of each image: tensors (K, D + 4), their places with them, in the order of the images."""
        counts = kwargs.pop(COUNTS, None)
        kwargs.pop(TOKENS, None)
        if counts is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        pictures = self.topv_adapter.pictures(self._topv_config, kwargs)
        rows = []
        for images in batches([picture.tokens for picture in pictures], self._topv_room):
            own = kwargs if images == slice(0, len(pictures)) else self.topv_adapter.cut(kwargs, images)
            rows += self._topv_prune(own, pictures[images], counts[images])
        return rows

    def _topv_prune(self, inputs: Mapping[str, Any], pictures: Sequence[Picture], counts: Any) -> list[torch.Tensor]:
        with self._topv_taps.reading() as states:
            whole = super().embed_multimodal(**inputs)  # type: ignore[misc]
        parts = functools.partial(self.topv_adapter.parts, self, inputs, pictures)
        evidence = {f"{PREFIX}{name}": parts(read) for name, read in states.items()}
        if "source" in self._topv_method.needs:
            # Behind the decoder's channels some models write what deeper layers add.
            width = self._topv_config.get_text_config().hidden_size
            evidence["source"] = [
                [rows[part.positions.to(rows.device), :width] for part in picture.parts]
                for rows, picture in zip(whole, pictures, strict=True)
            ]
        jobs = [
            Job(picture, own.tolist(), {name: parts[number] for name, parts in evidence.items()})
            for number, (picture, own) in enumerate(zip(pictures, counts, strict=True))
        ]
        chosen = _agreed(choose(jobs, self._topv_method, whole[0].device))
        return [
            self.topv_write(rows, kept, picture) for rows, kept, picture in zip(whole, chosen, pictures, strict=True)
        ]


def batches(tokens: Sequence[int], room: float) -> list[slice]:
    """Consecutive images whose tokens add up to no more than `room`, or one image alone.

    >>> batches([3, 4, 9, 1, 1], room=7)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 5, None)]
    """
    found, start, held = [], 0, 0
    for number, own in enumerate(tokens):
        if number > start and held + own > room:
            found.append(slice(start, number))
            start, held = number, 0
        held += own
    return [*found, slice(start, len(tokens))]


def _last_position(model: Any, text_config: Any) -> int | None:
    """The last position that a rotary table of a fixed size has; None where there is room for all."""
    if rope_type(text_config) in EXTENDABLE_ROPE:
        return None
    tables = [module.cos_sin_cache for module in model.modules() if hasattr(module, "cos_sin_cache")]
    return min((len(table) - 1 for table in tables), default=None)


@contextmanager
def _room_for_positions(text_config: Any, length: int) -> Iterator[None]:
    """Let rotary tables hold every position of a prompt whose unpruned length is allowed, and of what follows it."""
    before = text_config.max_position_embeddings
    if rope_type(text_config) in EXTENDABLE_ROPE:
        text_config.max_position_embeddings = 2 * max(before, length)
    try:
        yield
    finally:
        text_config.max_position_embeddings = before


def _agreed(chosen: list[torch.Tensor]) -> list[torch.Tensor]:
    """The choice of the first tensor-parallel rank, so that no rounding lets two ranks differ."""
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return chosen
    sizes = [kept.numel() for kept in chosen]
    return list(group.broadcast(torch.cat(chosen), src=0).split(sizes))
