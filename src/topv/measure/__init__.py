"""Measuring what pruning buys: latency, memory, KV-cache bytes, and budgets for a wanted saving in FLOPs."""

from .environment import Environment, describe_environment
from .flops_target import keep_for_reduction, layer_for_reduction
from .generation import GenerationTiming, time_generation
from .kv_cache import PrefillProbe, kv_cache_bytes
from .latency import Latency, LatencyTable, Ratio, Stopwatch, measure_latency, measure_phases
from .live_tensors import LiveTensors
from .memory import GenerationMemory, MemoryTimeline, memory_timeline, profile_generation, static_bytes

__all__ = [
    "Environment",
    "GenerationMemory",
    "GenerationTiming",
    "Latency",
    "LatencyTable",
    "LiveTensors",
    "MemoryTimeline",
    "PrefillProbe",
    "Ratio",
    "Stopwatch",
    "describe_environment",
    "keep_for_reduction",
    "kv_cache_bytes",
    "layer_for_reduction",
    "measure_latency",
    "measure_phases",
    "memory_timeline",
    "profile_generation",
    "static_bytes",
    "time_generation",
]
