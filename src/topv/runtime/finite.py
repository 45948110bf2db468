"""Whether what is to be judged are finite numbers."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import EvidenceError

__all__ = ["FiniteCheck"]


class FiniteCheck:
    """Looks for NaN and infinity among visual tokens, without making a layer wait for the answer.

    Args:
        layer: the decoder layer that the tokens enter.
    """

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self._pending: list[tuple[torch.Tensor, Any]] = []

    def look(self, tokens: list[torch.Tensor]) -> None:
        """Check `tokens`, as `expect`."""
        self.expect(torch.stack([states.isfinite().all() for states in tokens]).all())

    def expect(self, finite: torch.Tensor) -> None:
        """Check a flag that says whether all were finite.

        Raises:
            EvidenceError: when it is false, on a CPU; on a GPU `finish` raises.
        """
        if not finite.is_cuda:
            self._raise_unless(bool(finite))
            return
        # The copy is read when the forward ends, by when it has long arrived.
        copied = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(finite.device))
        self._pending.append((copied, event))

    def finish(self) -> None:
        """Raise what a check on the device has found meanwhile.

        Raises:
            EvidenceError: when a visual token held NaN or infinity.
        """
        for copied, event in self._pending:
            event.synchronize()
            self._raise_unless(bool(copied))

    def _raise_unless(self, finite: bool) -> None:
        if not finite:
            raise EvidenceError(
                f"the visual tokens entering decoder layer {self._layer} hold NaN or infinity, so no method can rank "
                "them. Look for an overflow in a lower layer (float16 is prone to it; try bfloat16 or float32) or for "
                "NaN in the pixel values."
            )
