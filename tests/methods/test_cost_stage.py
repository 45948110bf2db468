"""Where the transport problem is posed, and among which tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from topv.layout import coordinates
from topv.methods import Evidence, FacilityLocation, MeanCost, TopV

KINDS = [TopV, FacilityLocation, MeanCost]


def evidence() -> Evidence:
    generator = torch.Generator().manual_seed(0)
    source, target, encoder_source, encoder_target = (
        torch.randn(2, 48, width, generator=generator) for width in (16, 16, 12, 12)
    )
    return Evidence(
        (6, 8),
        coordinates((6, 8)),
        (0, 1),
        source=source,
        target=target,
        encoder_source=encoder_source,
        encoder_target=encoder_target,
    )


def chosen(method: TopV | FacilityLocation | MeanCost, seen: Evidence) -> torch.Tensor:
    return method.score(seen, 12).topk(12).indices.sort().values


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_tower_what_all_tokens_of_a_grid_share_counts_for_nothing(kind: type[TopV]) -> None:
    seen = evidence()
    shared = 20 * torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(1))
    assert seen.encoder_source is not None
    assert seen.encoder_target is not None
    moved = replace(seen, encoder_source=seen.encoder_source + shared, encoder_target=seen.encoder_target - shared)
    assert torch.equal(chosen(kind(stage="encoder"), moved), chosen(kind(stage="encoder"), seen))
    raw = kind(stage="encoder", normalize=False)
    assert not torch.equal(chosen(raw, moved), chosen(raw, seen))


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_projector_tokens_are_sources_and_targets(kind: type[TopV]) -> None:
    seen = evidence()
    own = replace(seen, target=seen.source)
    assert torch.equal(kind(stage="projector").score(seen, 12), kind().score(own, 12))
    with pytest.raises(ValueError, match="tokens of the projector"):
        kind(stage="projector").score(replace(seen, source=None), 12)
