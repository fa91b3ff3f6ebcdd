"""The chunked softmax loss is torch's own loss of all logits, and so are its gradients."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ckptshrink.training import softmax
from ckptshrink.training.softmax import IGNORED, cross_entropy


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = nn.functional.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        logits = logits.float()
    return nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def drawn(
    n: int, words: int, width: int, *, bias: bool, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator).mul_(3).requires_grad_()

    targets = torch.randint(words, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < 0.2] = IGNORED
    return tensor(n, width), tensor(words, width), tensor(words) if bias else None, targets


def gradients(loss: Any, given: tuple[Any, ...], factor: float = 0.7) -> list[Tensor]:
    inputs = [t for t in given[:3] if t is not None]
    return [loss(*given).detach(), *torch.autograd.grad(loss(*given) * factor, inputs)]


@settings(deadline=None)
@given(
    n=st.integers(1, 80), words=st.integers(1, 40), width=st.integers(1, 6),
    bias=st.booleans(), rows=st.integers(1, 90), seed=st.integers(0, 99),
)  # fmt: skip
def test_loss_and_gradients_are_those_of_all_logits(
    n: int, words: int, width: int, bias: bool, rows: int, seed: int
) -> None:
    made = drawn(n, words, width, bias=bias, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "_LOGITS", {"cpu": rows * words})
        patch.setattr(softmax, "_LEAST_ROWS", 1)
        found = gradients(cross_entropy, made)
    for mine, theirs in zip(found, gradients(reference, made), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-10)


def test_under_autocast_it_is_as_near_the_truth_as_torchs_own() -> None:
    made = drawn(200, 500, 32, bias=True, seed=3, dtype=torch.float32)
    exact = gradients(reference, tuple(t.double() if t.is_floating_point() else t for t in made))
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = gradients(cross_entropy, made), gradients(reference, made)
    for ours, other, true in zip(mine, theirs, exact, strict=True):
        assert ours.dtype == torch.float32
        wrong = (ours - true).norm() / true.norm()
        assert wrong < max(1.2 * (other - true).norm() / true.norm(), 1e-3)


def test_huge_logits_overflow_nothing() -> None:
    x = torch.tensor([[1e4, 0.0]], requires_grad=True)
    weight, targets = torch.eye(2), torch.tensor([1])
    nats = cross_entropy(x, weight, None, targets)
    (grad,) = torch.autograd.grad(nats, [x])
    assert float(nats.detach()) == 1e4
    assert grad.tolist() == [[1.0, -1.0]]


def test_targets_that_are_all_ignored_cost_nothing() -> None:
    x, weight, bias, targets = drawn(5, 4, 3, bias=True, seed=0)
    found = gradients(cross_entropy, (x, weight, bias, torch.full_like(targets, IGNORED)))
    assert all(float(t.abs().sum()) == 0 for t in found)


def test_only_what_is_asked_for_has_a_gradient() -> None:
    x, weight, _, targets = drawn(5, 4, 3, bias=False, seed=0)
    nats = cross_entropy(x.detach(), weight, None, targets)
    (grad,) = torch.autograd.grad(nats, [weight])
    (wanted,) = torch.autograd.grad(reference(x.detach(), weight, None, targets), [weight])
    torch.testing.assert_close(grad, wanted)
    assert not cross_entropy(x.detach(), weight.detach(), None, targets).requires_grad
