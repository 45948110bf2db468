"""The choice of a set on a CUDA device: the CPU's choice, by the kernel and without it, and no wait for the host."""

from __future__ import annotations

import importlib

import pytest
import torch

from topv.transport import coverage

module = importlib.import_module("topv.transport.coverage")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("tokens", "count"), [(144, 62), (576, 266), (2304, 300)])
def test_the_kernel_chooses_as_the_host_does(tokens: int, count: int) -> None:
    pytest.importorskip("triton")
    price = torch.randint(0, 1 << 20, (3, tokens, tokens), dtype=torch.int32)
    looking = torch.stack([module._choose_among(grid, count) for grid in price])
    assert torch.equal(module._choose_blindly(price.cuda(), count).cpu(), looking)


def test_the_host_does_not_wait() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(2, 576, 1024, generator=generator).cuda().bfloat16()
    cells = torch.cartesian_prod(torch.arange(24), torch.arange(24)).cuda()
    settings = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0, "sigma": 3.0, "normalize": True}
    coverage(source, source, cells, 100, **settings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        coverage(source, source, cells, 100, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
