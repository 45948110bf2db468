"""Reading and changing a module call's arguments, however the caller passed them and whatever transformers calls them.

An argument that topv reads goes by one word here. transformers' own word for it differs between releases (the KV cache
was `past_key_values` before 5.24 and is `cache` since), so it is told by the parameter's known names, else by its
annotation, else by what the value is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache

__all__ = ["CACHE", "HIDDEN_STATES", "MASK", "Signature", "cache_argument", "is_cache", "output_cache"]

CACHE = "cache"
"""topv's word for the KV cache among a call's arguments."""

HIDDEN_STATES = "hidden_states"
"""topv's word for the states (B, T, D) that a layer, or a part of it, takes."""

MASK = "attention_mask"
"""topv's word for the attention mask."""

_CACHE_NAMES = (CACHE, "past_key_values", "cache_params", "past_key_value")


class Signature:
    """How a module's `forward` is called.

    Args:
        module: the module, or a function.
        takes_states: whether its first argument holds hidden states, as a decoder layer's and its parts' does.

    Attributes:
        names: its positional parameters, in order.
    """

    def __init__(self, module: nn.Module | Callable[..., Any], *, takes_states: bool = False) -> None:
        function = module.forward if isinstance(module, nn.Module) else module
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.names = [p.name for p in parameters if p.kind in kinds]
        self.takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        known = [p.name for p in parameters]
        self._spelled: dict[str, str] = {}
        if (cache := _cache_parameter(parameters)) is not None:
            self._spelled[CACHE] = cache
        if takes_states and self.names and HIDDEN_STATES not in known:
            self._spelled[HIDDEN_STATES] = self.names[0]
        if MASK not in known and (masks := [name for name in known if name in ("mask", "causal_mask")]):
            self._spelled[MASK] = masks[0]
        # Of a whole model's arguments pictures may have the shape of a mask.
        self._kinds: dict[str, Callable[[Any], bool]] = {CACHE: is_cache, **({MASK: _is_mask} if takes_states else {})}
        self._words = {**dict.fromkeys(_CACHE_NAMES, CACHE), **{name: word for word, name in self._spelled.items()}}

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments, by topv's words where it has one and by name elsewhere."""
        words = self._words
        given = {words.get(name, name): value for name, value in zip(self.names, args, strict=False)}
        for name, value in kwargs.items():
            word = words.get(name, name)
            # Both spellings may come, one of them empty.
            if given.get(word) is None:
                given[word] = value
        for word, is_kind in self._kinds.items():
            found = None if word in given else _first(given, is_kind)
            if found is not None:
                given[word] = given.pop(found)
        return given

    def first(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The module's first argument: hidden states, for a module that takes them; None where it was left out."""
        return args[0] if args else kwargs.get(self.names[0]) if self.names else None

    def rebuild(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], changed: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`args` and `kwargs` with the values of `changed`, which go by topv's words, put where their old ones were."""
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        places = {name: index for index, name in enumerate(self.names[: len(args)])}
        new_args, new_kwargs = list(args), dict(kwargs)
        for word, value in changed.items():
            name = self._name_in(given, word)
            if name in places:
                new_args[places[name]] = value
            else:
                new_kwargs[name] = value
        return tuple(new_args), new_kwargs

    def spell(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`arguments`, which go by topv's words, as keywords that the module takes; what it does not take is left
        out."""
        spelled = {self._spelled.get(word, word): value for word, value in arguments.items()}
        return spelled if self.takes_more else {name: value for name, value in spelled.items() if name in self._named}

    def accepts(self, word: str) -> bool:
        """Whether the module takes an argument that topv calls `word`, by name or among any others."""
        return self.takes_more or self._spelled.get(word, word) in self._named

    @property
    def _named(self) -> set[str]:
        return {*self.names, *self._spelled.values()}

    def _name_in(self, given: Mapping[str, Any], word: str) -> str:
        """What the caller of `given` calls the argument that goes by `word`."""
        names = [name for name in given if self._words.get(name, name) == word]
        held = next((name for name in names if given[name] is not None), None)
        if not names and word in self._kinds:
            held = _first(given, self._kinds[word])
        return held or next(iter(names), self._spelled.get(word, word))


def is_cache(value: Any) -> bool:
    """Whether `value` is a KV cache of transformers, or acts as one."""
    if isinstance(value, Cache):
        return True
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str, tuple, list, dict, nn.Module)):
        return False
    return callable(getattr(value, "get_seq_length", None)) and callable(getattr(value, "update", None))


def output_cache(output: Any) -> Any:
    """The KV cache in what a model, its decoder or its `generate` returned, or None."""
    if not isinstance(output, (tuple, list, Mapping)):
        return None
    values: Iterable[Any] = output.values() if isinstance(output, Mapping) else output
    return next((value for value in values if is_cache(value)), None)


def cache_argument(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The keyword argument by which `module` takes a KV cache: `cache` since transformers 5.24, `past_key_values`
    before."""
    return Signature(module).spell({CACHE: cache})


def _cache_parameter(parameters: list[inspect.Parameter]) -> str | None:
    """The parameter that holds the KV cache, by its name or else by its annotation."""
    names = [p.name for p in parameters]
    for name in _CACHE_NAMES:
        if name in names:
            return name
    return next((p.name for p in parameters if "Cache" in _annotation(p)), None)


def _annotation(parameter: inspect.Parameter) -> str:
    if parameter.annotation is inspect.Parameter.empty or parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return ""
    return parameter.annotation if isinstance(parameter.annotation, str) else repr(parameter.annotation)


def _is_mask(value: Any) -> bool:
    """Whether `value` is an attention mask: of flex attention, or (B, 1, queries, keys)."""
    if isinstance(value, BlockMask):
        return True
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or value.shape[1] != 1:
        return False
    return value.dtype == torch.bool or value.is_floating_point()


def _first(given: Mapping[str, Any], is_kind: Callable[[Any], bool]) -> str | None:
    """The name of the first of `given` of a kind, or None."""
    for name, value in given.items():
        if is_kind(value):
            return name
    return None
