"""What a pruned run must equal, written without the runtime that it judges.

Its own room, above `models` and beside `runtime`: a reference that used the runtime would repeat its mistakes.
"""

from .reference import extended, masked_logits, relative_error

__all__ = ["extended", "masked_logits", "relative_error"]
