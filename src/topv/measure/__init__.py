"""Measuring what pruning buys: latency, KV-cache bytes, and budgets for a wanted saving in FLOPs."""

from .environment import Environment, describe_environment
from .flops_target import keep_for_reduction, layer_for_reduction
from .generation import GenerationTiming, time_generation
from .kv_cache import PrefillProbe, kv_cache_bytes
from .latency import Latency, LatencyTable, Ratio, Stopwatch, measure_latency, measure_phases

__all__ = [
    "Environment",
    "GenerationTiming",
    "Latency",
    "LatencyTable",
    "PrefillProbe",
    "Ratio",
    "Stopwatch",
    "describe_environment",
    "keep_for_reduction",
    "kv_cache_bytes",
    "layer_for_reduction",
    "measure_latency",
    "measure_phases",
    "time_generation",
]
