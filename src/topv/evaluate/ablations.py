"""Named sweeps over one choice of TopV at a time, everything else as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from ..errors import InputError, unknown_name
from ..methods import TARGETS, Method, TopV
from ..methods.cost import STAGES

__all__ = ["SWEEPS", "nearest", "sweep"]


_Sweep = Callable[[TopV], list[tuple[str, Method]]]


def _over(name: str, values: Sequence[object]) -> _Sweep:
    def variants(base: TopV) -> list[tuple[str, Method]]:
        return [(f"{name}={_shown(value)}", replace(base, **{name: value})) for value in values]  # type: ignore[arg-type]

    return variants


def _with_plan(vary: _Sweep) -> _Sweep:
    """Under the demand where the base solves no transport problem, and so reads neither eps nor iterations."""

    def variants(base: TopV) -> list[tuple[str, Method]]:
        if base.importance != "coverage":
            return vary(base)
        return [(f"demand, {label}", method) for label, method in vary(replace(base, importance="demand"))]

    return variants


def _with_space(vary: _Sweep) -> _Sweep:
    """Beside beta=1 where the base has no spatial factor, and so nothing that features are weighed against."""

    def variants(base: TopV) -> list[tuple[str, Method]]:
        if base.beta:
            return vary(base)
        return [(f"beta=1, {label}", method) for label, method in vary(replace(base, beta=1.0))]

    return variants


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _stages(base: TopV) -> list[tuple[str, Method]]:
    """Each with the layer that it brings."""
    return [(f"stage={stage}", replace(base, stage=stage, layer=None)) for stage in STAGES]


def _terms(base: TopV) -> list[tuple[str, Method]]:
    """The paper's three factors on and off; beta and gamma as in `TopV.paper()` where the base has none."""
    alpha, beta, gamma = base.alpha or 1.0, base.beta or 1.0, base.gamma or 0.01
    return [
        ("features alone", replace(base, alpha=alpha, beta=0.0, gamma=0.0)),
        ("features and space", replace(base, alpha=alpha, beta=beta, gamma=0.0)),
        ("features and centre", replace(base, alpha=alpha, beta=0.0, gamma=gamma)),
        ("space alone", replace(base, alpha=0.0, beta=beta, gamma=0.0)),
        ("all three", replace(base, alpha=alpha, beta=beta, gamma=gamma)),
    ]


def _readings(base: TopV) -> list[tuple[str, Method]]:
    variants: list[tuple[str, Method]] = [
        (f"{reading}, {iterations} iterations", replace(base, importance=reading, iterations=iterations))
        for reading in ("demand", "potential")
        for iterations in (1, 3, 10, 100)
    ]
    variants.insert(0, ("coverage", replace(base, importance="coverage")))
    return [*variants, *((f"relaxed, rho={rho:g}", replace(base, importance="relaxed", rho=rho)) for rho in (0.1, 1.0))]


SWEEPS: dict[str, _Sweep] = {
    "target": _over("target", TARGETS),
    "stage": _stages,
    "recovery": _over("recovery", (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)),
    "terms": _terms,
    "beta": _over("beta", (0.0, 0.3, 1.0, 2.0, 4.0)),
    "gamma": _over("gamma", (0.0, 0.01, 0.1, 0.3, 1.0)),
    "sigma": _with_space(_over("sigma", (0.5, 1.0, 1.5, 3.0, 10.0))),
    "eps": _with_plan(_over("eps", (0.05, 0.1, 0.3, 1.0))),
    "reading": _readings,
    "iterations": _with_plan(_over("iterations", (1, 3, 10, 30))),
    "normalize": _over("normalize", (True, False)),
    "scale": _with_space(_over("scale", ("max", "mean"))),
    "layer": _over("layer", (1, 2, 3, 4)),
    "budget": _over("budget", ("grid", "image")),
}
"""By name, what makes the variants of a TopV that a sweep compares."""


def sweep(name: str, base: TopV) -> list[tuple[str, Method]]:
    """The labels and methods of a sweep.

    Args:
        name: one of `SWEEPS`.
        base: the setting that is varied.

    Raises:
        InputError: for an unknown name, or a base that does not allow one of the variants.
    """
    if name not in SWEEPS:
        raise InputError(str(unknown_name("sweep", name, SWEEPS)))
    try:
        return SWEEPS[name](base)
    except ValueError as error:
        raise InputError(f"sweep {name!r} cannot start from {base!r}: {error}") from error


def nearest(variants: Sequence[tuple[str, Method]], base: TopV) -> str:
    """The label of the variant that differs from `base` in the fewest settings, the first of several."""
    settings = asdict(base)

    def distance(entry: tuple[str, Method]) -> int:
        return sum(settings.get(name) != value for name, value in asdict(entry[1]).items())

    return min(variants, key=distance)[0]
