"""Methods on the command line: `none,fastv,topv:keep=0.25,layer=2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..methods import METHODS, Method
from ..methods.base import BUDGETS, GOALS
from ..methods.settings import UNPRUNED, build_method, method_class, read_settings, setting_types

__all__ = ["UNPRUNED", "MethodSpec", "parse_methods", "split_methods"]


@dataclass(frozen=True)
class MethodSpec:
    """A method as it was asked for.

    Attributes:
        label: its name and the settings that tell it apart, for tables.
        method: the method; None for the unpruned model.
    """

    label: str
    method: Method | None

    @property
    def settings(self) -> dict[str, Any] | None:
        """The method's settings by name; None for the unpruned model."""
        if self.method is None:
            return None
        settings = {name: getattr(self.method, name) for name in setting_types(type(self.method))}
        # Of a budget and the targets that replace it, only one is set.
        return {name: value for name, value in settings.items() if name not in BUDGETS or value is not None}


def parse_methods(
    specs: Sequence[str],
    *,
    keep: Sequence[float | int] = (),
    visual_flops: Sequence[float] = (),
    kv_share: Sequence[float] = (),
    layer: int | None = None,
) -> list[MethodSpec]:
    """Read method specifications.

    A specification is a method's name, or a name with settings: `topv:keep=0.25,importance=potential`. Several
    are separated by commas or given as several strings.

    Args:
        specs: the specifications.
        keep: budgets for methods that have one and whose specification does not set it: one method for each.
        visual_flops: targets instead of budgets: shares of visual FLOPs to save.
        kv_share: targets instead of budgets: shares of KV bytes to leave.
        layer: layer for methods that take a budget and whose specification does not set it.

    Returns:
        The methods in the order given.

    Raises:
        InputError: for unknown names and settings, values that do not fit, and repetitions.
    """
    options = dict(zip(("keep", *GOALS), (keep, visual_flops, kv_share), strict=True))
    given = [name for name, values in options.items() if values]
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{names} each decide how many tokens stay. Give one of them.")
    budgets: list[dict[str, Any]] = [{name: value} for name in given for value in options[name]]
    parsed: list[MethodSpec] = []
    for name, settings in split_methods(specs):
        parsed += _build(name, settings, budgets, layer)
    if not parsed:
        raise InputError(f"no methods given. Expected some of: {', '.join((UNPRUNED, *METHODS))}.")
    labels = [spec.label for spec in parsed]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"method {label!r} is given {labels.count(label)} times. Give each method once.")
    return parsed


def split_methods(specs: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Names with their settings as text; a comma separates settings after a colon, and methods otherwise."""
    found: list[tuple[str, dict[str, str]]] = []
    has_colon = False
    for part in (part.strip() for spec in specs for part in spec.split(",")):
        if not part:
            continue
        name, colon, first = part.partition(":")
        if colon or "=" not in part:
            found.append((name.strip().lower(), {}))
            has_colon = bool(colon)
            setting = first
            if not first:
                continue
        elif not has_colon:
            raise InputError(
                f"setting {part!r} belongs to no method. Settings follow a colon: "
                f"{found[-1][0] if found else 'topv'}:{part}"
            )
        else:
            setting = part
        key, equals, value = (text.strip() for text in setting.partition("="))
        if not equals or not key or not value:
            raise InputError(
                f"setting {setting!r} of method {found[-1][0]!r} is not of the form name=value. "
                "Example: topv:keep=0.25,layer=2"
            )
        if key in found[-1][1]:
            raise InputError(f"setting {key!r} of method {found[-1][0]!r} is given twice.")
        found[-1][1][key] = value
    return found


def _build(name: str, texts: dict[str, str], budgets: Sequence[dict[str, Any]], layer: int | None) -> list[MethodSpec]:
    settings = read_settings(name, texts)
    method = method_class(name)
    if method is None:
        return [MethodSpec(UNPRUNED, None)]
    known = setting_types(method)
    explicit = dict(settings)
    if "keep" in known and layer is not None:
        settings.setdefault("layer", layer)
    if "keep" not in known:
        variants: list[dict[str, Any]] = [{}]
    elif own := {key: settings.pop(key) for key in BUDGETS if key in settings}:
        variants = [own]
    else:
        variants = list(budgets) or [{"keep": method().keep}]
    specs = []
    for variant in variants:
        shown = {**variant, **explicit}
        label = " ".join([name, *(f"{k}={v}" for k, v in shown.items())])
        specs.append(MethodSpec(label, build_method(name, {**variant, **settings})))
    return specs
