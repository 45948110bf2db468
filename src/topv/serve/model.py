"""vLLM's models, told to hand on an image's chosen tokens alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from .checks import EXTENDABLE_ROPE, rope_type, settings_of
from .choosing import Job, choose
from .families.base import Adapter
from .settings import COUNTS, TOKENS
from .taps import TowerTaps

__all__ = ["PrunedModel"]


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
        self.topv_last_position = _last_position(self, hf_config.get_text_config())
        self._topv_taps = TowerTaps(self.topv_adapter.block(self), settings.method.needs)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The chosen tokens of each image: tensors (K, D), in the order of the images."""
        counts = kwargs.pop(COUNTS, None)
        kwargs.pop(TOKENS, None)
        with self._topv_taps.reading() as states:
            whole = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if counts is None:
            return whole
        pictures = self.topv_adapter.pictures(self._topv_config, kwargs)
        evidence = {name: self.topv_adapter.parts(self, kwargs, pictures, read) for name, read in states.items()}
        jobs = [
            Job(picture, own.tolist(), {name: parts[number] for name, parts in evidence.items()})
            for number, (picture, own) in enumerate(zip(pictures, counts, strict=True))
        ]
        device = whole[0].device
        chosen = _agreed(choose(jobs, self._topv_method, device))
        return [
            self.topv_write(rows, kept, picture) for rows, kept, picture in zip(whole, chosen, pictures, strict=True)
        ]


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
