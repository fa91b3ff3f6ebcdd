"""Equality of the error and the tail of the spectrum, which is what catches a faulty SVD."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import lstm_like, matrices, normal, singular_values, tail, with_spectrum
from torch import Tensor

from ckptshrink.linalg import products
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.ranks import rank_for_energy, rank_for_error
from ckptshrink.linalg.svd import svd

EXACT = Options(exact=True)


def unit(W: Tensor) -> float:
    """Return max(m, n) eps S[0]."""
    return max(W.shape) * torch.finfo(W.dtype).eps * float(singular_values(W)[0])


def error(W: Tensor, r: int, options: Options) -> float:
    f = svd(W, r, options)
    return float((W.double() - f.U.double() @ f.V.double()).norm())


@settings(max_examples=60, deadline=None)
@given(matrices(), st.data())
def test_exact_error_is_the_tail_to_rounding(W: Tensor, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(W.shape)))
    assert abs(error(W, r, EXACT) - tail(W, r)) <= 4 * unit(W)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.data())
def test_float64_error_is_the_tail(W: Tensor, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(W.shape)))
    least = tail(W, r)
    assert abs(error(W, r, Options()) - least) <= max(1e-6 * least, 4 * unit(W))


@settings(max_examples=60, deadline=None)
@given(matrices(torch.float32), st.data())
def test_float32_error_is_the_tail(W: Tensor, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(W.shape)))
    least = tail(W, r)
    assert abs(error(W, r, Options()) - least) <= max(1e-6 * least, 4 * unit(W))


@pytest.mark.parametrize("shape", [(700, 300), (300, 700)])
@pytest.mark.parametrize("r", [1, 9, 40, 150, 299])
def test_float32_error_is_the_tail_to_1e_6_on_trained_like_spectra(
    shape: tuple[int, int], r: int
) -> None:
    W = lstm_like(*shape)
    assert abs(error(W, r, Options()) / tail(W, r) - 1) <= 1e-6


@pytest.mark.parametrize("decay", [1.0, 0.97, 0.9, 0.7])
def test_known_spectrum_is_recovered(decay: float) -> None:
    S = torch.tensor([decay**i for i in range(40)], dtype=torch.float64)
    W = with_spectrum(S, 60, 40, dtype=torch.float64)
    found = svd(W, 40, EXACT).spectrum
    assert found is not None
    torch.testing.assert_close(found, S, rtol=0, atol=4 * unit(W))


@settings(max_examples=40, deadline=None)
@given(matrices(torch.float32), st.booleans())
def test_predicted_errors_are_tails(W: Tensor, exact: bool) -> None:
    errors = svd.sq_errors(W, Options(exact=exact))
    S = singular_values(W)
    for r in range(len(S) + 1):
        wanted = float(S[r:].square().sum())
        allowed = 1e-12 * float(S.square().sum()) + 1e-6 * wanted
        assert math.isclose(float(errors[r]), wanted, rel_tol=0, abs_tol=allowed)


def test_full_energy_asks_for_the_rank_of_a_deficient_matrix() -> None:
    W = with_spectrum([5.0, 3.0, 1.0], 40, 30)
    assert rank_for_energy(svd.sq_errors(W, Options()), 1.0) == 3
    assert rank_for_error(svd.sq_errors(W, Options()), 1e-12) == 3


@pytest.mark.parametrize("W", [lstm_like(500, 300), lstm_like(300, 500), normal(500, 300)])
@pytest.mark.parametrize("r", [1, 60, 200])
def test_the_reported_error_comes_from_the_energy_and_is_true(
    W: Tensor, r: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = error(W, r, Options()) / float(W.double().norm())
    monkeypatch.setattr("ckptshrink.linalg.svd.sq_residual", None)  # not called at this size
    assert abs(svd(W, r, Options()).rel_error / truth - 1) < 2e-6


def test_both_factors_have_the_same_norm() -> None:
    f = svd(lstm_like(300, 100), 30, Options())
    assert math.isclose(float(f.U.norm()), float(f.V.norm()), rel_tol=1e-4)
    columns, rows = f.U.norm(dim=0), f.V.norm(dim=1)
    torch.testing.assert_close(columns, rows, rtol=1e-3, atol=0)


@pytest.mark.parametrize("onednn", [True, False])
def test_products_agree_with_torch(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn", lambda: onednn)
    for a, k, b in [(300, 200, 100), (100, 200, 300), (1, 2000, 1000), (3000, 1, 1000), (9, 9, 9)]:
        left, right = normal(a, k), normal(k, b, seed=1)
        exact = left.double() @ right.double()
        for x, y in [(left, right), (left.T.contiguous().T, right.T.contiguous().T)]:
            found = products.matmul(x, y)
            assert found.shape == (a, b)
            assert float((found - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("W", [normal(3000, 700), normal(700, 3000), normal(3000, 700).T])
def test_blocked_products_agree_with_whole_ones(W: Tensor) -> None:
    weight = products.weigh(W)
    assert len(list(weight.slices())) > 1
    exact = W.double()
    m, n = W.shape
    right, left = normal(n, 30), normal(m, 30)
    for found, wanted in [
        (products.times(weight, right), exact @ right.double()),
        (products.left_times(weight, left), left.double().T @ exact),
        (products.mirrored(products.gram(weight, torch.float32)), _short_gram(exact)),
        (products.mirrored(products.gram(weight, torch.float64)), _short_gram(exact)),
    ]:
        assert found.is_contiguous()
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    assert math.isclose(weight.sq_norm, float(exact.square().sum()), rel_tol=2e-8)


def _short_gram(W: Tensor) -> Tensor:
    return W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
