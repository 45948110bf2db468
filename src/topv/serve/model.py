"""vLLM's models, told to hand on an image's chosen tokens alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .checks import settings_of
from .choosing import Job, choose
from .families.base import Adapter
from .processing import COUNTS, TOKENS
from .taps import TowerTaps

__all__ = ["PrunedModel"]


class PrunedModel:
    """Prunes each image once, behind the vision tower. Stands before a model class of vLLM.

    What `embed_multimodal` returns is what vLLM caches by the image's identity, so a choice is made once per image
    and ratio, and holds in every chunk of a prefill and every prompt that shows the image.
    """

    topv_adapter: ClassVar[Adapter]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        hf_config = vllm_config.model_config.hf_config
        settings = settings_of(hf_config)
        self.topv_adapter.check(hf_config)
        self._topv_method = settings.method
        self._topv_config = hf_config
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
        evidence = {
            name: self.topv_adapter.parts(self, kwargs, pictures, read) for name, read in states.items()
        }
        jobs = [
            Job(picture, own.tolist(), {name: parts[number] for name, parts in evidence.items()})
            for number, (picture, own) in enumerate(zip(pictures, counts, strict=True))
        ]
        device = whole[0].device
        chosen = _agreed(choose(jobs, self._topv_method, device))
        return [self._topv_rows(rows, kept, picture) for rows, kept, picture in zip(whole, chosen, pictures, strict=True)]

    def _topv_rows(self, rows: torch.Tensor, kept: torch.Tensor, picture: Any) -> torch.Tensor:
        """What is handed on of an image's rows (N, D)."""
        return rows[kept]


def _agreed(chosen: list[torch.Tensor]) -> list[torch.Tensor]:
    """The choice of the first tensor-parallel rank, so that no rounding lets two ranks differ."""
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return chosen
    sizes = [kept.numel() for kept in chosen]
    return list(group.broadcast(torch.cat(chosen), src=0).split(sizes))
