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
axis.

References
----------
.. [1] TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal
   Vision Language Model. CVPR 2025, arXiv:2503.18278.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

from ._checks import require_coordinates, require_number

__all__ = ["Scale", "central_distance", "cost_matrix", "feature_distance", "mean_cost", "spatial_distance"]

Scale = Literal["max", "mean"]


@torch.no_grad()
def feature_distance(source: Tensor, target: Tensor, *, normalize: bool = False, scale: Scale = "max") -> Tensor:
    r"""Pairwise L2 distance between sources and targets, scaled within each grid: the factor F.

    :math:`\|s_i - t_j\|^2` is expanded to :math:`\|s_i\|^2 + \|t_j\|^2 - 2 \langle s_i, t_j \rangle`, so that
    BLAS does the work and nothing of size N x N x D exists. The expansion cancels when tokens are close
    together and far from the origin, so their common centre is removed first, and the product runs in float64
    on a CPU (about twice the time of float32, and exact to float32 for any offset). Other devices, where
    float64 can be 64 times slower, multiply in float32: there a distance below about 1e-3 of the largest one
    drowns in rounding. If TensorFloat-32 is allowed there, which would cost 1e-2, float64 is used as well.

    Parameters
    ----------
    source, target : Tensor, shape (B, N, D)
        Tokens of B grids, any floating dtype. Finite (:func:`check_finite`).
    normalize : bool
        L2-normalise each token first; a zero token stays zero.
    scale : {"max", "mean"}
        Divide by the grid's largest distance, so that F lies in [0, 1], or by its mean distance, so that F
        averages 1 and one far-off token does not flatten the others. A grid whose distances are all 0 gives F
        = 0.

    Returns
    -------
    distance : Tensor, shape (B, N, N), float32

    Examples
    --------
    >>> import torch
    >>> tokens = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 10.0]]])
    >>> feature_distance(tokens, tokens)[0, 0]
    tensor([0.0000, 0.5000, 1.0000])
    """
    if source.dim() != 3 or source.shape != target.shape or 0 in source.shape:
        raise ValueError(
            f"source has shape {tuple(source.shape)} and target {tuple(target.shape)}; expected the same "
            "non-empty (B, N, D): B grids of N tokens of width D"
        )
    if not source.is_floating_point() or not target.is_floating_point():
        raise ValueError(f"source is {source.dtype} and target {target.dtype}; expected floating-point tokens")
    if scale not in ("max", "mean"):
        raise ValueError(f"scale={scale!r}; expected 'max' or 'mean'")
    device = source.device
    dtype = torch.float64 if _multiplies_in_double(device) else torch.float32
    batch, n, _ = source.shape
    distance = torch.empty(batch, n, n, dtype=torch.float32, device=device)
    with torch.autocast(device.type, enabled=False):
        for grid in range(batch):
            s, t = _centred(source[grid].to(dtype), target[grid].to(dtype), normalize)
            square = torch.mm(s, t.T).mul_(-2.0)
            square.add_((s * s).sum(1)[:, None]).add_((t * t).sum(1))
            pair = square.clamp_min_(0.0).sqrt_()
            whole = pair.amax() if scale == "max" else pair.mean(1).mean()
            distance[grid] = pair.div_(torch.where(whole > 0, whole, 1.0))
    return distance


@torch.no_grad()
def spatial_distance(coordinates: Tensor, *, sigma: float) -> Tensor:
    r"""How far apart two cells are, on a scale set by sigma: the factor S.

    :math:`S_{ij} = 1 - \exp(-d(i, j)^2 / 2 \sigma^2)`: 0 on the diagonal, near 1 beyond about 3 sigma.

    Parameters
    ----------
    coordinates : Tensor, shape (N, 2) or (B, N, 2)
        (h, w) of each token, integer or floating.
    sigma : float
        Width in cells, above 0; infinity gives S = 0.

    Returns
    -------
    distance : Tensor, shape (N, N) or (B, N, N), float32

    Examples
    --------
    >>> import torch
    >>> spatial_distance(torch.tensor([[0, 0], [0, 1], [0, 9]]), sigma=1.0)[0]
    tensor([0.0000, 0.3935, 1.0000])
    """
    require_coordinates(coordinates)
    require_number("sigma", sigma, "a width in grid cells above 0, such as 3.0", low=0.0, strict=True, inf=True)
    # One axis at a time, and divided before squaring: no (N, N, 2) temporary, no overflow for a tiny sigma.
    scaled = coordinates.to(torch.float32) / max(sigma, 1e-6)
    h, w = scaled[..., 0], scaled[..., 1]
    square = (h[..., :, None] - h[..., None, :]).square_()
    square += (w[..., :, None] - w[..., None, :]).square_()
    return square.mul_(-0.5).expm1_().neg_()


@torch.no_grad()
def central_distance(coordinates: Tensor) -> Tensor:
    r"""Distance of each cell from the centre of the grid, scaled to [0, 1]: the factor E.

    The centre is that of the bounding box of the coordinates. A grid of a single cell gives 0.

    Parameters
    ----------
    coordinates : Tensor, shape (N, 2) or (B, N, 2)

    Returns
    -------
    distance : Tensor, shape (N,) or (B, N), float32

    Examples
    --------
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

    Parameters
    ----------
    source, target : Tensor, shape (B, N, D)
        Source and target tokens, any floating dtype.
    coordinates : Tensor, shape (N, 2) or (B, N, 2)
        (h, w) cell of each token, shared or per grid, on the same device.
    alpha, beta, gamma : float
        Weights of F, S and E, at least 0. A factor of weight 0 is not computed.
    sigma : float
        Width of the spatial Gaussian in cells, above 0.
    normalize, scale
        As in :func:`feature_distance`.

    Returns
    -------
    cost : Tensor, shape (B, N, N), float32
        Rows are sources, columns are targets.

    Examples
    --------
    >>> import torch
    >>> tokens = torch.tensor([[[0.0], [1.0], [4.0]]])
    >>> cells = torch.tensor([[0, 0], [0, 1], [0, 2]])
    >>> cost_matrix(tokens, tokens, cells, alpha=1.0, beta=0.0, gamma=0.5, sigma=3.0)[0]
    tensor([[0.5000, 0.7500, 1.5000],
            [0.2500, 0.0000, 0.7500],
            [1.5000, 1.2500, 0.5000]])

    References
    ----------
    .. [1] TopV, arXiv:2503.18278.
    """
    weights = {"alpha": alpha, "beta": beta, "gamma": gamma}
    for name, value in weights.items():
        require_number(
            name,
            value,
            "a finite weight of at least 0; 0 leaves its factor out",
            low=0.0,
            strict=False,
            inf=False,
        )
    require_number("sigma", sigma, "a width in grid cells above 0, such as 3.0", low=0.0, strict=True, inf=True)
    if source.dim() == 3:
        require_coordinates(coordinates, source.shape[0], source.shape[1])
    if alpha or source.dim() != 3:
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

        The control that the solve has to beat. High means far from every target, not replaceable, so kept
        first. A
    central factor inside ``cost`` would therefore *favour* the rim: build the cost with gamma = 0 and use
    :func:`subtract_central`.

    Parameters
        ----------
        cost : Tensor, shape (B, N, N)

        Returns
        -------
        importance : Tensor, shape (B, N), the dtype of ``cost``

        Examples
        --------
        >>> import torch
        >>> mean_cost(torch.tensor([[[0.0, 1.0], [1.0, 0.5]]]))
        tensor([[0.5000, 0.7500]])
    """
    return cost.contiguous().mean(-1)


def _multiplies_in_double(device: torch.device) -> bool:
    """float64 where it is cheap (a CPU), or where float32 products are not really float32 (TF32 allowed)."""
    if device.type != "cuda":
        return device.type == "cpu"
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # torch >= 2.9; reading the older name there may raise
    return bool(precision == "tf32" if precision is not None else matmul.allow_tf32)


def _centred(source: Tensor, target: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """One grid's tokens about their common centre, times a power of two that keeps their squares in range."""
    largest = torch.maximum(source.abs().amax(), target.abs().amax())
    factor = torch.exp2(-torch.frexp(largest).exponent.clamp(-126, 126).to(source.dtype))
    source, target = source * factor, target * factor
    if normalize:
        source, target = unit(source, dim=-1, eps=1e-30), unit(target, dim=-1, eps=1e-30)
    centre = (source.mean(0) + target.mean(0)) / 2
    return source - centre, target - centre
