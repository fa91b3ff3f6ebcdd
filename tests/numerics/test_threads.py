"""Two threads: another way to sum, the same guarantees, and the same bytes every time."""

from collections.abc import Iterator

import pytest
import torch

from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.svd import svd


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(600, 200), (200, 600)])
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("r", [1, 150])
@pytest.mark.usefixtures("two_threads")
def test_the_error_is_the_tail_with_two_threads(
    shape: tuple[int, int], decay: float, r: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    k = min(shape)
    left, _ = torch.linalg.qr(torch.randn(shape[0], k, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(shape[1], k, generator=generator, dtype=torch.float64))
    S = torch.arange(1, k + 1, dtype=torch.float64) ** -decay
    W = ((left * S) @ right.T).float()
    tail = torch.linalg.svdvals(W.double())[r:].square().sum().sqrt()
    first, again = svd(W, r, Options()), svd(W, r, Options())
    error = torch.linalg.norm(W.double() - first.U.double() @ first.V.double())
    eps = torch.finfo(torch.float32).eps
    assert error <= max(tail * (1 + 1e-6), tail + 4 * max(shape) * eps * S[0])
    assert torch.equal(first.U, again.U)
    assert torch.equal(first.V, again.V)
