r"""The cost of covering target j by source i, from three factors.

For one grid of N visual tokens with sources :math:`s_i` and targets :math:`t_j` in :math:`\mathbb{R}^D`:

.. math::
    C_{ij} = \alpha F_{ij} + \beta S_{ij} + \gamma E_i

    F_{ij} = \|s_i - t_j\|_2 \ \text{scaled within the grid}, \qquad
    S_{ij} = 1 - \exp(-d(i, j)^2 / 2 \sigma^2), \qquad
    E_i = \|x_i - \bar x\|_2 \ \text{scaled to } [0, 1]

where :math:`x_i` is the (h, w) cell of token i, d the Euclidean distance between cells and :math:`\bar x` the
centre of the grid's bounding box. Rows are sources and columns are targets throughout.

Each grid's result is bitwise independent of the other grids in the batch: products are made grid by grid (a
batched product may be blocked by the size of the batch), and every reduction runs along the last, contiguous
axis. So does a grid's precision: which of its pairs are near depends on that grid alone.

References:
    .. [1] TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal
       Vision Language Model. CVPR 2025, arXiv:2503.18278.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._checks import require_coordinates, require_number
from .distance import Distances, Precision

__all__ = ["Scale", "central_distance", "cost_matrix", "feature_distance", "mean_cost", "spatial_distance"]

Scale = Literal["max", "mean"]


@torch.no_grad()
def feature_distance(source: Tensor, target: Tensor, *, normalize: bool = False, scale: Scale = "max") -> Tensor:
    r"""Pairwise L2 distance between sources and targets, scaled within each grid: the factor F.

    Multiplied by BLAS in float32 about the tokens' common centre. On a CPU, pairs too close for that are done again
    in float64, so the result is as good as float32 whatever the offset. On other devices a distance below about
    1e-3 of the largest one drowns in rounding; if TensorFloat-32 is allowed there, which would cost 1e-2, products
    run in float64. The bounds are in ``transport/distance.py``.

    Args:
        source: (B, N, D), tokens of B grids, any floating dtype. Finite (:func:`check_finite`).
        target: as `source`.
        normalize: L2-normalise each token first; a zero token stays zero.
        scale: divide by the grid's largest distance, so that F lies in [0, 1], or by its mean distance, so that F
            averages 1 and one far-off token does not flatten the others. A grid whose distances are all 0 gives F = 0.

    Returns:
        (B, N, N), float32.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 10.0]]])
        >>> feature_distance(tokens, tokens)[0, 0]
        tensor([0.0000, 0.5000, 1.0000])
    """
    check_tokens(source, target, scale)
    batch, n, _ = source.shape
    distance = torch.empty(batch, n, n, dtype=torch.float32, device=source.device)
    for grid in range(batch):
        whole = write_distances(source[grid], target[grid], distance[grid], normalize=normalize, scale=scale)
        distance[grid] /= whole
    return distance


def write_distances(source: Tensor, target: Tensor, out: Tensor, *, normalize: bool, scale: Scale) -> Tensor:
    """Write one grid's distances to ``out``, (N, N), float32, unscaled; return what to divide by, never 0."""
    with torch.autocast(source.device.type, enabled=False):
        pairs = Distances(source, target, normalize=normalize, precision=precision_for(source, target))
        pairs.write(slice(0, len(source)), out)
        whole = out.amax() if scale == "max" else out.mean(1).mean()
        return torch.where(whole > 0, whole, 1.0)


@torch.no_grad()
def spatial_distance(coordinates: Tensor, *, sigma: float) -> Tensor:
    r"""How far apart two cells are, on a scale set by sigma: the factor S.

    :math:`S_{ij} = 1 - \exp(-d(i, j)^2 / 2 \sigma^2)`: 0 on the diagonal, near 1 beyond about 3 sigma.

    Args:
        coordinates: (N, 2) or (B, N, 2), (h, w) of each token, integer or floating.
        sigma: width in cells, above 0; infinity gives S = 0.

    Returns:
        (N, N) or (B, N, N), float32.

    Examples:
        >>> import torch
        >>> spatial_distance(torch.tensor([[0, 0], [0, 1], [0, 9]]), sigma=1.0)[0]
        tensor([0.0000, 0.3935, 1.0000])
    """
    require_coordinates(coordinates)
    require_number("sigma", sigma, "a width in grid cells above 0, such as 3.0", low=0.0, strict=True, inf=True)
    return spatial_distance_between(coordinates, coordinates, sigma=sigma)


def spatial_distance_between(sources: Tensor, targets: Tensor, *, sigma: float) -> Tensor:
    """S between two sets of cells, (..., R, 2) and (..., N, 2): (..., R, N), float32."""
    # One axis at a time, and divided before squaring: no (R, N, 2) temporary, no overflow for a tiny sigma.
    sources, targets = (cells.to(torch.float32) / max(sigma, 1e-6) for cells in (sources, targets))
    square = (sources[..., :, None, 0] - targets[..., None, :, 0]).square_()
    square += (sources[..., :, None, 1] - targets[..., None, :, 1]).square_()
    return square.mul_(-0.5).expm1_().neg_()


@torch.no_grad()
def central_distance(coordinates: Tensor) -> Tensor:
    r"""Distance of each cell from the centre of the grid, scaled to [0, 1]: the factor E.

    The centre is that of the bounding box of the coordinates. A grid of a single cell gives 0.

    Args:
        coordinates: (N, 2) or (B, N, 2).

    Returns:
        (N,) or (B, N), float32.

    Examples:
        >>> import torch
        >>> central_distance(torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3], [0, 4]]))
        tensor([1.0000, 0.5000, 0.0000, 0.5000, 1.0000])
    """
    require_coordinates(coordinates)
    x = coordinates.to(torch.float32)
    centre = (x.amin(-2, keepdim=True) + x.amax(-2, keepdim=True)) / 2
    x = x - centre
    distance = (x[..., 0].square() + x[..., 1].square()).sqrt_()
    furthest = distance.amax(-1, keepdim=True)
    return distance / torch.where(furthest > 0, furthest, 1.0)


@torch.no_grad()
def cost_matrix(
    source: Tensor,
    target: Tensor,
    coordinates: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    sigma: float,
    normalize: bool = False,
    scale: Scale = "max",
) -> Tensor:
    r"""Transport cost of B grids, :math:`C_{ij} = \alpha F_{ij} + \beta S_{ij} + \gamma E_i`.

    Whether gamma belongs here depends on the reading of importance: E is constant along a row, so it cancels
    exactly under hard source marginals, and raises the row mean of distant cells. See :func:`importance`.

    Args:
        source: (B, N, D), source and target tokens, any floating dtype.
        target: as `source`.
        coordinates: (N, 2) or (B, N, 2), (h, w) cell of each token, shared or per grid, on the same device.
        alpha: weight of F, at least 0. A factor of weight 0 is not computed.
        beta: weight of S, likewise.
        gamma: weight of E, likewise.
        sigma: width of the spatial Gaussian in cells, above 0.
        normalize: as in :func:`feature_distance`.
        scale: as in :func:`feature_distance`.

    Returns:
        (B, N, N), float32: rows are sources, columns are targets.

    Examples:
        >>> import torch
        >>> tokens = torch.tensor([[[0.0], [1.0], [4.0]]])
        >>> cells = torch.tensor([[0, 0], [0, 1], [0, 2]])
        >>> cost_matrix(tokens, tokens, cells, alpha=1.0, beta=0.0, gamma=0.5, sigma=3.0)[0]
        tensor([[0.5000, 0.7500, 1.5000],
                [0.2500, 0.0000, 0.7500],
                [1.5000, 1.2500, 0.5000]])

    References:
        .. [1] TopV, arXiv:2503.18278.
    """
    check_cost(source, target, coordinates, alpha=alpha, beta=beta, gamma=gamma, sigma=sigma, scale=scale)
    if alpha:
        cost = feature_distance(source, target, normalize=normalize, scale=scale).mul_(alpha)
    else:
        batch, n, _ = source.shape
        cost = torch.zeros(batch, n, n, dtype=torch.float32, device=source.device)
    if beta:
        cost += spatial_distance(coordinates, sigma=sigma).mul_(beta)
    if gamma:
        cost += central_distance(coordinates).mul_(gamma)[..., :, None]
    return cost


@torch.no_grad()
def mean_cost(cost: Tensor) -> Tensor:
    r"""Mean cost from each source to all targets, :math:`\frac{1}{N} \sum_j C_{ij}`: importance without
    transport.

    The control that the solve has to beat. High means far from every target, not replaceable, so kept first. A
    central factor inside ``cost`` would therefore *favour* the rim: build the cost with gamma = 0 and use
    :func:`subtract_central`.

    Args:
        cost: (B, N, N).

    Returns:
        (B, N), the dtype of ``cost``.

    Examples:
        >>> import torch
        >>> mean_cost(torch.tensor([[[0.0, 1.0], [1.0, 0.5]]]))
        tensor([[0.5000, 0.7500]])
    """
    return cost.contiguous().mean(-1)


def precision_for(source: Tensor, target: Tensor) -> Precision:
    """How products are made: see ``transport/distance.py``."""
    if source.device.type == "cpu":
        # A traced graph cannot depend on how many pairs are near.
        double = torch.float64 in (source.dtype, target.dtype) or torch.compiler.is_compiling()
        return "double" if double else "repaired"
    return "double" if source.device.type == "cuda" and _rounds_to_tf32() else "single"


def _rounds_to_tf32() -> bool:
    """Whether float32 products on CUDA are not really float32."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # torch >= 2.9; reading the older name there may raise
    return bool(precision == "tf32" if precision is not None else matmul.allow_tf32)


def check_tokens(source: Tensor, target: Tensor, scale: Scale) -> None:
    if source.dim() != 3 or source.shape != target.shape or 0 in source.shape:
        raise ValueError(
            f"source has shape {tuple(source.shape)} and target {tuple(target.shape)}; expected the same "
            "non-empty (B, N, D): B grids of N tokens of width D"
        )
    if not source.is_floating_point() or not target.is_floating_point():
        raise ValueError(f"source is {source.dtype} and target {target.dtype}; expected floating-point tokens")
    if scale not in ("max", "mean"):
        raise ValueError(f"scale={scale!r}; expected 'max' or 'mean'")


def check_cost(
    source: Tensor,
    target: Tensor,
    coordinates: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    sigma: float,
    scale: Scale,
) -> None:
    """Raise on any argument of :func:`cost_matrix` that does not fit."""
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        require_number(
            name,
            value,
            "a finite weight of at least 0; 0 leaves its factor out",
            low=0.0,
            strict=False,
            inf=False,
        )
    require_number("sigma", sigma, "a width in grid cells above 0, such as 3.0", low=0.0, strict=True, inf=True)
    check_tokens(source, target, scale)
    require_coordinates(coordinates, source.shape[0], source.shape[1])
