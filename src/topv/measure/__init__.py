"""Measuring what pruning buys: latency, FLOPs, memory and KV-cache bytes."""

from .environment import Environment, describe_environment
from .flops import FlopsCount, count_decoder, count_flops
from .generation import GenerationTiming, time_generation
from .kv_cache import PrefillProbe, kv_cache_bytes
from .latency import Latency, LatencyTable, Ratio, Stopwatch, measure_latency, measure_phases
from .live_tensors import LiveTensors
from .memory import GenerationMemory, MemoryTimeline, memory_timeline, profile_generation, static_bytes

__all__ = [
    "Environment",
    "FlopsCount",
    "GenerationMemory",
    "GenerationTiming",
    "Latency",
    "LatencyTable",
    "LiveTensors",
    "MemoryTimeline",
    "PrefillProbe",
    "Ratio",
    "Stopwatch",
    "count_decoder",
    "count_flops",
    "describe_environment",
    "kv_cache_bytes",
    "measure_latency",
    "measure_phases",
    "memory_timeline",
    "profile_generation",
    "static_bytes",
    "time_generation",
]
