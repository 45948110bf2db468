"""Attaching methods to models: hooks, evidence, compaction, masks, caches."""

from .pruning import Pruning, attach, prune
from .report import Report

__all__ = ["Pruning", "Report", "attach", "prune"]
