"""What holds for every method that chooses tokens one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from topv.layout import coordinates
from topv.methods import CDPruner, DivPrune, Evidence, FacilityLocation, Method, TopV, VisionZip
from topv.methods.greedy import ranking

SHAPE = (6, 8)
METHODS = [
    DivPrune(),
    CDPruner(),
    CDPruner(theta=0.5),
    FacilityLocation(beta=0.2),
    FacilityLocation(stage="encoder"),
    FacilityLocation(stage="projector"),
    TopV(),
    VisionZip(),
]


def evidence(grids: int, dtype: torch.dtype = torch.float32) -> Evidence:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    source, encoder = random(grids, 48, 16), random(grids, 48, 12)
    mask = torch.arange(7).expand(grids, -1) >= torch.arange(grids).unsqueeze(1) % 7
    return Evidence(
        SHAPE,
        coordinates(SHAPE),
        tuple(range(grids)),
        source=source,
        target=source + 0.3 * random(grids, 48, 16),
        encoder_source=encoder,
        encoder_target=encoder + 0.3 * random(grids, 48, 12),
        encoder_attention=random(grids, 48).float().softmax(1),
        text=random(grids, 7, 16).masked_fill(~mask.unsqueeze(2), 0),
        text_mask=mask,
    )


def alone(seen: Evidence, grid: int) -> Evidence:
    """One grid of `seen`, with no more padding than it needs itself."""
    one: dict[str, Any] = {
        name: value[grid : grid + 1]
        for name, value in vars(seen).items()
        if isinstance(value, torch.Tensor) and name != "coordinates"
    }
    kept = one["text_mask"][0]
    one["text"], one["text_mask"] = one["text"][:, kept], one["text_mask"][:, kept]
    return Evidence(SHAPE, seen.coordinates, (grid,), **one)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grids_together_are_each_alone(method: Method, dtype: torch.dtype) -> None:
    seen = evidence(5, dtype)
    together = method.score(seen, 20)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    for grid in range(5):
        single = method.score(alone(seen, grid), 20)[0]
        assert torch.allclose(single, together[grid], rtol=1e-5, atol=1e-7)
        assert torch.equal(single.argsort(stable=True), together[grid].argsort(stable=True))


@pytest.mark.parametrize("method", METHODS[:5], ids=repr)
def test_a_smaller_budget_keeps_the_first_picks(method: Method) -> None:
    seen = evidence(2)
    most = method.score(seen, 48)
    for count in (1, 5, 47):
        some = method.score(seen, count)
        assert torch.equal(
            some.argsort(descending=True, stable=True)[:, :count], most.argsort(descending=True)[:, :count]
        )
        assert (some == some.amin(1, keepdim=True)).sum(1).tolist() == [48 - count] * 2


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_evidence_that_is_missing_is_named(method: Method) -> None:
    with pytest.raises(ValueError, match=r"needs .* got None"):
        method.score(Evidence(SHAPE, coordinates(SHAPE), (0,)), 3)


def test_all_of_them_may_precede_the_decoder() -> None:
    for method in (DivPrune(), CDPruner(), VisionZip(), FacilityLocation(stage="encoder")):
        assert method.pruning_layer(4) == 0
    for cls in (DivPrune, CDPruner, VisionZip):
        assert cls(layer=2).pruning_layer(4) == 2  # type: ignore[abstract]
    assert FacilityLocation().pruning_layer(4) == 2


def test_a_ranking_keeps_picks_above_the_rest() -> None:
    """The second pick is worth nothing, the third more by rounding alone, and no token that was not picked passes."""
    picks = [torch.tensor([3, 0]), torch.tensor([1, 2]), torch.tensor([0, 1])]
    values = [torch.tensor([5.0, -1.0]), torch.tensor([0.0, -2.0]), torch.tensor([1e-9, -2.0])]
    scores = ranking(picks, values, 4)
    assert scores[:, :][0].tolist()[:2] == [0.0, 0.0]
    assert scores[0, 3] == 5.0
    assert scores[0, 2] < 0
    assert scores[1].tolist()[:3] == [-1.0, -2.0, -2.0]
    assert scores[1, 3] < -2.0
