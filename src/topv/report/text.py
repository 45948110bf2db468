"""Numbers and foreign text in the words that the terminal and the HTML report share."""

from __future__ import annotations

import math

from ..measure.latency import Latency, Ratio

__all__ = ["format_bytes", "format_kept", "format_kv", "format_latency", "format_share", "format_time", "printable"]


def format_share(share: float) -> str:
    """A share as a percentage.

    >>> format_share(0.4689)
    '46.9 %'
    """
    return "not counted" if math.isnan(share) else f"{100 * share:.1f} %"


def format_time(ratio: Ratio | None, seconds: float | None) -> str:
    """A time as a ratio to the unpruned model's with its interval, or for that model the time itself.

    >>> format_time(None, 0.0123)
    '1 (12.3 ms)'
    """
    if ratio is not None:
        return str(ratio)
    return "–" if seconds is None else f"1 ({format_seconds(seconds)})"


def format_latency(latency: Latency | None) -> str:
    """`format_time` of one case's latency."""
    return "–" if latency is None else format_time(latency.ratio, latency.median)


def format_kept(visual: float, kept: float) -> str:
    """Visual tokens before and after, or only before where all stayed.

    >>> format_kept(144, 72.5), format_kept(144, 144)
    ('144 → 72.5', '144')
    """
    before, after = (f"{count:.1f}".removesuffix(".0") for count in (visual, kept))
    return before if before == after else f"{before} → {after}"


def format_kv(count: float, unpruned: float) -> str:
    """Bytes of the KV cache, and how much less than the unpruned model's that is.

    >>> format_kv(768, 1024)
    '768 B (−25.0 %)'
    """
    saved = f" (−{format_share(1 - count / unpruned)})" if count < unpruned else ""
    return format_bytes(count) + saved


def format_bytes(count: float) -> str:
    """A number of bytes with a binary unit.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    value = count
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def format_seconds(seconds: float) -> str:
    """A duration with a unit.

    >>> format_seconds(0.0123), format_seconds(2.5)
    ('12.3 ms', '2.50 s')
    """
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def printable(text: str) -> str:
    r"""Text from a model or a user without control characters, which could steer a terminal.

    >>> printable("a\x1b[2Jb\n")
    'a�[2Jb\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
