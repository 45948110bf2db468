"""The hooks of an attached method: they bind arguments by name and ask the driver of the running forward."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from ..errors import UnsupportedError
from .arguments import Signature
from .driver import Reader
from .encoder_taps import EncoderTaps
from .session import Session
from .stage import Stage
from .taps import tap_layer
from .wrappers import mark_features

__all__ = ["Hooks"]


class Hooks:
    """Everything that is put on a model while a method is attached.

    Args:
        session: what the hooks share.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._handles: list[Any] = []
        try:
            self._register()
        except BaseException:
            self.remove()
            raise

    def add(self, handle: Any) -> None:
        """Remove `handle` with the others."""
        self._handles.append(handle)

    def remove(self) -> None:
        """Take everything off the model again."""
        while self._handles:
            self._handles.pop().remove()

    def __deepcopy__(self, memo: Any) -> Hooks:
        raise UnsupportedError(
            "a model with a pruning attached cannot be copied. Detach first, and attach to the copy."
        )

    def __reduce__(self) -> Any:
        raise UnsupportedError("a model with a pruning attached cannot be pickled. Detach it before saving.")

    def _register(self) -> None:
        session = self._session
        family, method, decoder = session.family, session.method, session.family.language_model
        for module in session.callable:
            self._before(module, self._open)
            close = functools.partial(self._close, Signature(module))
            self._handles.append(module.register_forward_hook(close, with_kwargs=True, always_call=True))
        self._before(decoder, self._enter_decoder)
        leave = functools.partial(self._leave_decoder, Signature(decoder))
        self._handles.append(decoder.register_forward_hook(leave, with_kwargs=True))
        for index, layer in enumerate(family.layers):
            self._before(layer, functools.partial(self._before_layer, index), takes_states=True)
            if family.asks_for_slots:
                self._handles.append(layer.register_forward_pre_hook(functools.partial(self._count_slots, index)))
                self._handles.append(layer.register_forward_hook(self._count_columns, always_call=True))
            if index >= session.layers[0] and family.rejoins:
                self._handles.append(layer.register_forward_hook(functools.partial(self._after_layer, index)))
        for stage, start in enumerate(session.layers):
            self._handles += tap_layer(family, start - 1, method.needs, functools.partial(self._reader, stage))
        encoder = EncoderTaps(family, method.needs)
        self._handles += encoder.handles
        self._handles += mark_features(family, encoder, session.current)
        self._handles += family.corrections(self._short_layer)
        if family.generator is not None:
            self._handles += session.prompts.follow(family.generator)

    def _before(self, module: nn.Module, hook: Any, *, takes_states: bool = False) -> None:
        hook = functools.partial(hook, Signature(module, takes_states=takes_states))
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    # ---- the whole model, and its decoder -------------------------------------------------------------------

    def _open(self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = signature.bind(args, kwargs)
        if not self._session.traces(inputs.get("input_ids")):
            self._session.open(module, inputs)

    def _close(
        self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self._session.traces(signature.bind(args, kwargs).get("input_ids")):
            self._session.close(module)

    def _enter_decoder(
        self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        inputs = signature.bind(args, kwargs)
        if not self._session.traces(inputs.get("inputs_embeds")):
            self._session.enter(module, inputs)

    def _leave_decoder(
        self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        inputs = signature.bind(args, kwargs)
        driver = self._session.driver(inputs.get("inputs_embeds"))
        return None if driver is None else driver.leave(module, inputs, output)

    # ---- its layers -----------------------------------------------------------------------------------------

    def _before_layer(
        self, index: int, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        driver = self._session.driver(signature.first(args, kwargs))
        if driver is None or not driver.concerns(index):
            return None
        changed = driver.before_layer(index, signature.bind(args, kwargs))
        return signature.rebuild(args, kwargs, changed) if changed else None

    def _after_layer(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        driver = self._session.driver(output[0] if isinstance(output, tuple) else output)
        return None if driver is None else driver.after_layer(index, output)

    def _reader(self, stage: int, states: Any) -> Reader | None:
        """Who reads for a stage in the layer before it, from the states (B, T, D) at hand."""
        driver = self._session.driver(states)
        return None if driver is None else driver.reader(stage)

    def _short_layer(self, index: int) -> Any:
        """Where the columns stand in decoder layer `index`, if it sees a shortened sequence in the running forward."""
        forward = self._session.current()
        stage: Stage | None = None if forward is None else forward.short(index)
        return None if stage is None else stage.slots

    def _count_slots(self, index: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        forward = self._session.current()
        if forward is not None:
            forward.count_slots(index)

    def _count_columns(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward = self._session.current()
        if forward is not None:
            forward.count_columns()
