"""The classes that lmms-eval makes when it is asked for the model "topv". Only lmms-eval imports this module."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models import get_model
from lmms_eval.utils import simple_parse_args_string
from loguru import logger

from ..errors import InputError, UnsupportedError
from ..methods import Method
from ..runtime import Pruning, attach
from ..runtime.wrappers import Wrapper
from .lmms import INSTALL, base_name, constructor_arguments, read_request

__all__ = ["TopvChat", "TopvSimple", "pruned_class"]


class TopvChat(lmms):
    """What `--model topv` names: stands for the stock class of `base=`, pruned or, under `method=none`, as it is."""

    is_simple = False

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> lmms:
        """The stock class of `base=`, in the form (chat or simple) in which lmms-eval's registry offers it.

        Args:
            arg_string: `--model_args`.
            additional_config: what else the command line sets, such as the batch size; None values are left out.

        Raises:
            InputError: for arguments that neither the method nor the stock class knows, before any model is loaded.
            UnsupportedError: when the model cannot be pruned.
        """
        arguments = simple_parse_args_string(arg_string)
        options = {key: value for key, value in (additional_config or {}).items() if value is not None}
        twice = sorted(arguments.keys() & options.keys())
        if twice:
            raise InputError(f"--model_args repeats {', '.join(twice)}, which lmms-eval's own options set. Use those.")
        base = base_name(arguments)
        try:
            stock = get_model(base, force_simple=cls.is_simple)
        except ImportError as error:
            raise InputError(f"lmms-eval's model {base!r} needs what is not installed ({error}). {INSTALL}") from error
        request = read_request(arguments, constructor_arguments(stock))
        constructed = _placed(stock, request.arguments | options)
        if request.method is None:
            return stock(**constructed)
        return pruned_class(stock)(request.method, **constructed)


class TopvSimple(TopvChat):
    """The same for `--force_simple`."""

    is_simple = True


def _placed(stock: type[lmms], arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with a `device_map` for a class whose own default, "", transformers 5 refuses in a single process."""
    signature = inspect.signature(stock)
    default = signature.parameters.get("device_map")
    if default is None or default.default != "" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return arguments
    return {"device_map": arguments.get("device", signature.parameters["device"].default)} | arguments


@functools.cache
def pruned_class(stock: type[lmms]) -> type[lmms]:
    """A subclass of a stock class whose first argument is the method that prunes its model."""
    name = f"Pruned{stock.__name__}"
    doc = f"lmms-eval's {stock.__name__} with its visual tokens pruned."
    return type(name, (_Pruned, stock), {"__module__": __name__, "__doc__": doc})


class _Failed(BaseException):
    """Carries an error of `generate` through the stock classes, some of which log every `Exception` and go on with an
    empty answer: a score that is no score of the method."""


class _Pruned:
    """What a stock class gains: its model is pruned from its construction until `clean`.

    Args:
        method: how to prune.
        **arguments: those of the stock class.
    """

    model: Any

    def __init__(self, method: Method, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._method = method
        self._calls = self._visual = self._kept = 0
        self._pruning: Pruning | None = attach(self.model, method)
        self._generate = Wrapper(self.model, "generate", self._watched(self.model.generate, self._pruning))

    def generate_until(self, requests: Sequence[Any]) -> Any:
        """The stock class's answers.

        Raises:
            RuntimeError: when generating failed, whatever the stock class makes of that.
        """
        return self._answers("generate_until", requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        """The stock class's answers, as `generate_until`."""
        return self._answers("generate_until_multi_round", requests)

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Scoring given answers is refused.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "tasks that score given answers (loglikelihood) cannot be run pruned: the answer would stand in the prompt "
            "from which tokens are chosen. Use tasks that generate, or method=none."
        )

    def clean(self) -> None:
        """Detach the method, say what was pruned, and do what the stock class does at the end of an evaluation."""
        if self._pruning is not None:
            self._generate.remove()
            self._pruning.detach()
            # Both know the model, whose memory the stock class is about to free.
            del self._generate
            self._pruning = None
            self._say()
        super().clean()  # type: ignore[misc]

    def _answers(self, kind: str, requests: Sequence[Any]) -> Any:
        try:
            return getattr(super(), kind)(requests)
        except _Failed as failed:
            error = failed.__cause__
            raise RuntimeError(f"generating under {self._method!r} failed: {type(error).__name__}: {error}") from error

    def _watched(self, generate: Callable[..., Any], pruning: Pruning) -> Callable[..., Any]:
        """`generate`, whose errors reach `_answers` and whose visual tokens are counted."""

        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                ids = generate(*args, **kwargs)
                report = pruning.report()
            except Exception as error:
                raise _Failed from error
            self._calls += 1
            self._visual += report.visual_tokens
            self._kept += report.kept_tokens
            return ids

        return watched

    def _say(self) -> None:
        if self._visual:
            logger.info(
                f"topv: {self._method!r} kept {self._kept:,} of {self._visual:,} visual tokens "
                f"({self._kept / self._visual:.1%}) in {self._calls:,} calls of generate"
            )
        else:
            logger.warning(f"topv: nothing was pruned: no visual tokens in {self._calls:,} calls of generate")
