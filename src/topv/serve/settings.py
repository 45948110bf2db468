"""What is pruned in a served model: read from `hf_overrides["topv"]`, and from a request's `topv_keep`.

Nothing here imports vLLM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..budget import validate_keep
from ..errors import InputError, unknown_name
from ..methods import METHODS, TARGETS, Method
from ..methods.settings import build_method, method_class, setting_types

__all__ = ["COUNTS", "KEEP_ARGUMENT", "SERVED_METHODS", "TOKENS", "ServeSettings"]

KEEP_ARGUMENT = "topv_keep"
"""The name under `mm_processor_kwargs` by which a request sets its own keep ratio."""

COUNTS = "topv_counts"
"""The field that carries how many tokens of each budget of an image stay: LongTensor (budgets,)."""
TOKENS = "topv_tokens"
"""The field that carries an image's placeholders before and after pruning: LongTensor (2,)."""

SERVED_METHODS = ("topv", "meancost", "facilitylocation", "divprune", "uniform", "random")
"""Methods that need nothing but the vision tower and the projector, so that an image's choice holds in every prompt."""

_READABLE = frozenset({"source", "encoder_source", *(f"encoder_{target}" for target in TARGETS)})
_SHOWN = '{"keep": 0.5, "max_keep": 1.0, "method": "topv"}'


@dataclass(frozen=True)
class ServeSettings:
    """How images are pruned.

    Attributes:
        method: the method with its `keep`, before the decoder (`layer` 0).
        max_keep: the largest ratio in (0, 1] that the engine makes room for, and so the largest a request may set.
    """

    method: Method
    max_keep: float = 1.0

    @classmethod
    def read(cls, options: Any) -> ServeSettings:
        """Settings from a mapping: "keep", "max_keep", "method" and any setting of the method.

        Raises:
            InputError: for an unknown name, a value that does not fit, or a method that cannot be served.
        """
        if not isinstance(options, Mapping):
            raise InputError(f"topv={options!r} in hf_overrides is not a mapping. Expected something like {_SHOWN}.")
        given = dict(options)
        max_keep = _max_keep(given.pop("max_keep", 1.0))
        name = str(given.pop("method", "topv")).lower()
        if name not in SERVED_METHODS:
            if name in METHODS:
                raise InputError(
                    f"method {name!r} cannot be served: it reads more than one image's vision tower. Methods that can: "
                    f"{', '.join(SERVED_METHODS)}."
                )
            raise InputError(str(unknown_name("method", name, SERVED_METHODS)))
        kind = method_class(name)
        known = {} if kind is None else setting_types(kind)
        for setting in given:
            if setting not in known:
                raise InputError(f"topv in hf_overrides: {unknown_name('setting', setting, ('max_keep', *known))}")
        if "stage" in known:
            given.setdefault("stage", "encoder")
        if given.get("stage") != "decoder":
            given.setdefault("layer", 0)
        method = build_method(name, given)
        if method is None:
            raise InputError(f"method {name!r} prunes nothing. Serve the model with `vllm serve` instead.")
        _check_servable(method)
        settings = cls(method, max_keep)
        settings.keep_of(None)
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `read` turns into the same settings, of plain values."""
        defaults = type(self.method)()
        names = setting_types(type(self.method))
        changed = {n: getattr(self.method, n) for n in names if getattr(self.method, n) != getattr(defaults, n)}
        changed.pop("layer", None)
        return {"method": self.method.name, **changed, "keep": self.method.keep, "max_keep": self.max_keep}

    def keep_of(self, asked: Any) -> float | int:
        """The keep that holds for a request, given what it asks for, or None.

        Raises:
            InputError: when that is no ratio in (0, max_keep], nor a count.
        """
        try:
            keep = validate_keep(self.method.keep if asked is None else asked)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise InputError(f"{KEEP_ARGUMENT}={asked!r}: {error}") from error
        if isinstance(keep, float) and keep > self.max_keep:
            raise InputError(
                f"keep={keep!r} is above max_keep={self.max_keep!r}, which this server has room for. Ask for less, or "
                "start it with a larger max_keep."
            )
        return keep

    def with_keep(self, keep: float | int) -> Method:
        """The method with this budget."""
        return self.method.with_budget(keep=keep)

    def salt(self, digest: str, keep: float | int) -> str:
        """The identity of a pruned image, from that of the image: two choices of tokens never share it."""
        return hashlib.sha256(f"{digest} {self.with_keep(keep)!r}".encode()).hexdigest()


def _max_keep(value: Any) -> float:
    try:
        keep = validate_keep(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"max_keep={value!r}: {error}") from error
    if isinstance(keep, int):
        raise InputError(f"max_keep={value!r} is a count. Expected a ratio in (0, 1], such as 1.0.")
    return keep


def _check_servable(method: Method) -> None:
    if method.goal is not None:
        raise InputError(
            f"{method.goal[0]}={method.goal[1]} depends on the whole prompt, which is not known when an image's "
            "placeholders are counted. Give keep instead; `topv eval` says what it saves."
        )
    if method.budget == "sample":
        raise InputError(
            "budget='sample' is shared by all images of a prompt, but a served image is pruned once for every prompt "
            "that shows it. Expected budget='grid' or budget='image'."
        )
    if not method.needs <= _READABLE or method.layer != 0:
        raise InputError(
            f"{method!r} prunes inside the decoder, or reads the prompt. vLLM keeps one number of tokens for all "
            "layers, so a served method reads the vision tower or the projector alone: stage='encoder' or "
            "stage='projector', and layer=0."
        )
