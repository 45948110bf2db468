"""The forwards of an attached method: opened by a call of the model, current in its context, closed when it returns."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..methods import Method
from ..models import Family
from ..models.encoded import recall
from .compiled import CompiledPrefill
from .driver import Driver
from .eager import EagerForward, current_forward, set_forward
from .encoder_taps import encoder_states
from .opening import open_call
from .results import Results
from .traced_step import TracedStep, can_trace, is_traced_step
from .upstream import FirstGeneration
from .wrappers import PromptNote

__all__ = ["Session"]

_BREAK = (
    "topv reads on the host, from the prompt, how many tokens of a prefill stay, so a prefill cannot be one graph. "
    "Compile without fullgraph=True, or compile the decoding steps alone: they are."
)


class Session:
    """What the hooks of one attached method share.

    Args:
        family: the model's parts.
        method: the method that prunes.

    Attributes:
        layers: the pruning layers.
        callable: the parts of the model whose call begins a forward, outermost first.
        prompts: the prompts that `generate` of a part was given.
        can_trace: whether decoding steps can be traced in one graph.
        compiled: the compiled prefill, or None.
    """

    def __init__(self, family: Family, method: Method) -> None:
        self.family = family
        self.method = method
        self.layers = method.pruning_layers(len(family.layers))
        parts = (family.model, family.multimodal, family.generator)
        self.callable = [module for module in dict.fromkeys(parts) if module is not None]
        self.prompts = PromptNote()
        self.can_trace = can_trace(family) and self.layers[0] > 0 and not method.compact_early_layers
        self.compiled: CompiledPrefill | None = None
        self._step = TracedStep()
        self._first = FirstGeneration(family)
        self._of_thread = threading.local()

    @property
    def results(self) -> Results | None:
        """The latest prefill of the calling thread, or None."""
        return getattr(self._of_thread, "results", None)

    def _keep(self, results: Results) -> None:
        self._of_thread.results = results

    def driver(self, states: Any) -> Driver | None:
        """How the decoder runs at the moment, given its ids or states (B, T, ...); None where topv has no part in it.

        The one place that tells an eager forward, a traced decoding step and a traced prefill apart.
        """
        if torch.compiler.is_compiling():
            # A forward that runs beside the traced one in another thread is not compiling.
            traced = None if self.compiled is None else self.compiled.traced
            if traced is not None:
                return traced
            if self.traces(states):
                return self._step
        return self.current()

    def traces(self, states: Any) -> bool:
        """Whether a compiler traces a decoding step, given its ids or states (B, T, ...)."""
        return self.can_trace and is_traced_step(states)

    def current(self) -> EagerForward | None:
        """The eager forward of this session that is running in this thread, or None."""
        forward = current_forward()
        same_thread = forward is not None and forward.thread == threading.get_ident()
        return forward if same_thread and forward is not None and forward.owner is self else None

    def open(self, module: nn.Module, inputs: dict[str, Any]) -> None:
        """Begin the forward of a call of `module`, unless it is part of one that runs.

        Raises:
            UnsupportedError: when the call asks for something that pruning cannot give.
            LayoutError: when the prompt's visual tokens and its pictures disagree.
        """
        if torch.compiler.is_compiling():
            # A compiler told to accept no break shows this as its reason.
            torch._dynamo.graph_break(msg=_BREAK)
        running = self.current()
        if running is not None and self._is_inside(module, running):
            running.joined.add(module)
            return
        # What is left of this session's own earlier forward was interrupted; another's goes on when this one ends.
        outer = current_forward() if running is None else running.outer
        set_forward(outer)
        if inputs.get("output_attentions") or getattr(self.family.text_config, "output_attentions", False):
            raise UnsupportedError(
                "output_attentions=True cannot be honoured while a pruning is attached: the layers beyond the pruning "
                "layer attend over fewer tokens, so their maps have no common shape. Detach to read attention maps."
            )
        forward = self._begin(module, inputs)
        forward.outer = outer
        set_forward(forward)

    def _is_inside(self, module: nn.Module, running: EagerForward) -> bool:
        """Whether a call of `module` is a part of the running forward, rather than a new one."""
        order = self.callable.index
        return order(module) > order(running.opened_by) and module not in running.joined

    def _begin(self, module: nn.Module, inputs: dict[str, Any]) -> EagerForward:
        if inputs.get("input_ids") is None and module is self.family.generator:
            inputs = inputs | {"input_ids": self.prompts.read(inputs.get("inputs_embeds"))}
        call = open_call(self.family, self.method, self.layers, module, inputs)
        forward = EagerForward(call, owner=self, opened_by=module, check=self._first.check, report=self._keep)
        if call.prunes and any(name.startswith("encoder_") for name in self.method.needs):
            ids = inputs["input_ids"]
            marks = self.family.placeholders(ids, inputs).cpu()
            forward.evidence.note_placeholders(self.family.kinds(marks, ids.cpu()), recall(inputs).copies)
            forward.evidence.encoder.update(encoder_states(inputs))
        return forward

    def close(self, module: nn.Module) -> None:
        """End the forward that a call of `module` began."""
        forward = self.current()
        if forward is not None and forward.opened_by is module:
            set_forward(forward.outer)

    def enter(self, module: nn.Module, inputs: dict[str, Any]) -> None:
        """Let the running forward enter the decoder.

        Raises:
            UnsupportedError: when the decoder was called by itself, or the call cannot be pruned.
        """
        forward = self.current()
        if forward is None or forward.in_decoder:
            raise UnsupportedError(
                f"{type(module).__name__} was called by itself, so topv cannot see which positions hold visual tokens. "
                f"Call {type(self.family.model).__name__}, or detach."
            )
        forward.enter(module, inputs)
        if self._first.is_due(forward):
            self._first.note(forward)

    def interrupt(self) -> None:
        """Forget the forward that is running in this thread, if it is this session's."""
        if self.current() is not None:
            set_forward(None)
