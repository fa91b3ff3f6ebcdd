"""Semi-NMF: bounds, the exact case, the search, and the paper's own updates."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import decaying, lstm_like, matrices, normal, tail, with_spectrum
from torch import Tensor

from ckptshrink.errors import PlanError
from ckptshrink.linalg.ding import ding
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.nonnegative import least_direction, loss_of, positive_vector
from ckptshrink.linalg.products import weigh
from ckptshrink.linalg.rowspace import RowSpace, row_space
from ckptshrink.linalg.semi_nmf import semi_nmf
from ckptshrink.linalg.svd import svd


def error(W: Tensor, r: int, options: Options) -> float:
    f = semi_nmf(W, r, options)
    return float((W.double() - f.U.double() @ f.V.double()).norm())


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(["U", "V"]), st.data())
def test_the_error_lies_between_those_of_two_svds(
    W: Tensor, side: str, data: st.DataObject
) -> None:
    r = data.draw(st.integers(1, min(W.shape)))
    found = error(W, r, Options(nonnegative="U" if side == "U" else "V"))
    rounding = 4 * max(W.shape) * torch.finfo(W.dtype).eps * float(W.norm())
    assert tail(W, r) * (1 - 1e-6) - rounding <= found <= tail(W, r - 1) * (1 + 1e-6) + rounding


@pytest.mark.parametrize(("m", "n", "r"), [(400, 60, 45), (300, 100, 80), (90, 80, 70)])
def test_it_equals_the_svd_where_a_positive_vector_lies_in_the_leading_directions(
    m: int, n: int, r: int
) -> None:
    # a random subspace of more than half of all dimensions holds one (Cover, 1965)
    W = lstm_like(m, n)
    assert error(W, r, Options()) <= tail(W, r) * (1 + 1e-6)
    assert error(W.T.contiguous(), r, Options(nonnegative="U")) <= tail(W, r) * (1 + 1e-6)


@pytest.mark.parametrize("r", [1, 2, 10])
def test_it_equals_the_svd_of_a_matrix_with_a_positive_leading_direction(r: int) -> None:
    W = normal(200, 90).abs()
    assert error(W, r, Options()) <= tail(W, r) * (1 + 1e-6)


@pytest.mark.parametrize("r", [2, 10, 40])
@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
def test_the_search_gains_more_than_half_of_what_the_bound_leaves(
    shape: tuple[int, int], r: int
) -> None:
    W = lstm_like(*shape)
    least, bound = tail(W, r), tail(W, r - 1)
    assert error(W, r, Options()) - least <= 0.6 * (bound - least)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("r", [5, 40])
def test_half_precision_is_conditioned_for(dtype: torch.dtype, r: int) -> None:
    W = lstm_like(400, 160)
    # at the floor that float32 takes, bfloat16 came out 28 % above the SVD
    assert error(W, r, Options(dtype=dtype)) <= tail(W, r) * 1.03


def test_rank_deficient_weights_are_kept_whole_by_one_rank_more() -> None:
    W = with_spectrum([3.0, 2.0, 1.0], 50, 40)
    assert semi_nmf(W, 4, Options()).rel_error < 1e-13
    assert semi_nmf(W, 9, Options()).rel_error < 1e-13
    assert semi_nmf(W.T.contiguous(), 4, Options()).rel_error < 1e-13


def test_the_loss_is_that_of_the_best_subspace_that_holds_the_vector() -> None:
    W = lstm_like(80, 30, dtype=torch.float64)
    r, n = 6, 30
    space = row_space(weigh(W), r)
    x = torch.nn.functional.normalize(normal(n, 1, dtype=torch.float64)[:, 0].abs(), dim=0)
    loss = loss_of(x, space, r).value
    # brute force within span(T, x), where the search looks
    T = space.rows[:r]
    Q = torch.linalg.qr(torch.cat([T, x[None]]).T).Q  # (n, r + 1)
    G = Q.T @ W.T @ W @ Q
    inside = Q.T @ x
    complement = torch.linalg.qr(inside[:, None], mode="complete").Q[:, 1:]
    others = torch.linalg.eigvalsh(complement.T @ G @ complement).flip(0)[: r - 1]
    kept = float(inside @ G @ inside) + float(others.sum())
    assert math.isclose(loss, float(space.squares[:r].sum()) - kept, rel_tol=1e-9)


@given(
    squares=st.lists(
        st.sampled_from([9.0, 3.0, 1.0 + 2e-12, 1.0 + 1e-12, 1.0, 0.5]), min_size=2, max_size=8
    ),
    data=st.data(),
)
def test_the_loss_is_a_number_where_squares_are_equal_or_nearly_so(
    squares: list[float], data: st.DataObject
) -> None:
    n = len(squares)
    r = data.draw(st.integers(1, n - 1))
    entries = st.sampled_from([0.0, 1e-12, 1e-5, 0.4, 1.0])
    drawn = data.draw(st.lists(entries, min_size=n, max_size=n).filter(any))
    x = torch.nn.functional.normalize(torch.tensor(drawn, dtype=torch.float64), dim=0)
    D = torch.tensor(sorted(squares, reverse=True), dtype=torch.float64)
    found = loss_of(x, RowSpace(D, torch.eye(n, dtype=torch.float64)), r)
    assert found.gradient is None or bool(found.gradient.isfinite().all())
    # what any r-dimensional subspace that holds x leaves out of the best one, and no more than
    # the last of its directions, which x can always take the place of
    out = float(x[r:].square().sum())
    rho = float((D[r:] * x[r:].square()).sum()) / out if out else float(D[r - 1])
    assert -1e-9 <= found.value <= float(D[r - 1]) - rho + 1e-9


@given(
    squares=st.lists(
        st.sampled_from([0.0, 1e-9, 0.5, 1.0, 1.0 + 1e-13, 3.0]), min_size=2, max_size=9
    ),
    data=st.data(),
)
def test_the_direction_left_out_is_orthogonal_and_captures_least(
    squares: list[float], data: st.DataObject
) -> None:
    entries = st.sampled_from([0.0, 1e-12, -1e-3, 0.4, -1.0])
    drawn = data.draw(st.lists(entries, min_size=len(squares), max_size=len(squares)).filter(any))
    D = torch.tensor(squares, dtype=torch.float64)
    coords = torch.tensor(drawn, dtype=torch.float64)
    coords /= coords.norm()
    d = least_direction(coords, D)
    assert float(d.norm()) == pytest.approx(1)
    assert abs(float(d @ coords)) < 1e-12
    complement = torch.linalg.qr(coords[:, None], mode="complete").Q[:, 1:]
    best = torch.linalg.eigvalsh(complement.T @ (D[:, None] * complement))[0]
    # what the vector has of a direction counts from 1e-6 on; the draws have 1e-12 beside 1e-3 too
    uncounted = float(coords.where(coords.square() <= 1e-12, 0.0).norm())
    assert float(d @ (D * d)) == pytest.approx(float(best), abs=1e-11 + uncounted * max(squares))


@pytest.mark.parametrize("shape", [(80, 30), (30, 80)])
def test_the_gradient_is_that_of_the_loss(shape: tuple[int, int]) -> None:
    W = lstm_like(*shape, dtype=torch.float64)
    r, n = 6, shape[1]
    space = row_space(weigh(W), r)
    x = torch.nn.functional.normalize(normal(n, 1, dtype=torch.float64)[:, 0].abs(), dim=0)
    gradient = loss_of(x, space, r).gradient
    assert gradient is not None
    for seed in range(5):
        way = normal(n, 1, seed=10 + seed, dtype=torch.float64)[:, 0]
        ahead = loss_of(torch.nn.functional.normalize(x + 1e-6 * way, dim=0), space, r)
        back = loss_of(torch.nn.functional.normalize(x - 1e-6 * way, dim=0), space, r)
        slope = (ahead.value - back.value) / 2e-6
        assert math.isclose(slope, float(gradient @ way), rel_tol=1e-4, abs_tol=1e-8)


@pytest.mark.parametrize("floor", [0.0, 0.02, 0.2, 0.5, 1.0])
def test_the_vector_is_a_positive_unit_vector(floor: float) -> None:
    space = row_space(weigh(lstm_like(120, 60)), 8)
    x = positive_vector(space, 8, floor)
    assert math.isclose(float(x.norm()), 1.0, rel_tol=1e-5)
    assert float(x.min()) >= 0.5 * floor * float(x.mean())
    if floor == 1.0:
        assert float(x.max() - x.min()) < 1e-6


@pytest.mark.parametrize("W", [lstm_like(300, 200), lstm_like(200, 300), decaying(300, 200, 2.0)])
def test_rows_are_orthonormal_where_it_matters(W: Tensor) -> None:
    rows = row_space(weigh(W), 60).rows[:60].double()
    assert float((rows @ rows.T - torch.eye(len(rows))).abs().max()) < 1e-5


@pytest.mark.parametrize("shape", [(70, 40), (40, 70)])
@pytest.mark.parametrize("iterations", [0, 1, 10, 60])
def test_multiplicative_updates_are_the_papers(shape: tuple[int, int], iterations: int) -> None:
    W = lstm_like(*shape, dtype=torch.float64)
    r = 8
    generator = torch.Generator().manual_seed(11)
    V = (torch.rand(r, shape[1], generator=generator) + 1e-4).double()
    for _ in range(iterations):
        U = W @ V.T @ torch.linalg.inv(V @ V.T)
        up, down = W.T @ U, U.T @ U
        # G <- G sqrt(([X'F]+ + G [F'F]-) / ([X'F]- + G [F'F]+)), with G = V'
        above = up.clamp(min=0) + V.T @ (-down).clamp(min=0)
        below = (-up).clamp(min=0) + V.T @ down.clamp(min=0) + 1e-9
        V = V * torch.sqrt(above / below).T
    free, nonnegative = ding(weigh(W), r, iterations, seed=11)
    torch.testing.assert_close(nonnegative, V, rtol=1e-8, atol=1e-12)
    least_squares = W @ torch.linalg.pinv(V)
    torch.testing.assert_close(free, least_squares, rtol=1e-7, atol=1e-10)


def test_multiplicative_updates_only_improve_and_the_seed_counts() -> None:
    W = lstm_like(120, 60)
    errors = [
        semi_nmf(W, 10, Options(solver="ding", iterations=i)).rel_error for i in (0, 1, 5, 25, 100)
    ]
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] > svd(W, 10, Options()).rel_error
    one, other = (semi_nmf(W, 10, Options(solver="ding", seed=seed)) for seed in (0, 1))
    assert not torch.equal(one.V, other.V)


def test_rows_that_coincide_are_no_obstacle_to_updates() -> None:
    W = torch.ones(20, 12)
    f = semi_nmf(W, 5, Options(solver="ding", iterations=50))
    assert bool(f.U.isfinite().all() and f.V.isfinite().all())
    assert f.rel_error < 1e-3


def test_a_solver_that_is_none_is_refused() -> None:
    with pytest.raises(PlanError, match="no solver 'newton'"):
        semi_nmf(torch.eye(4), 2, Options(solver="newton"))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="iterations"):
        semi_nmf(torch.eye(4), 2, Options(solver="ding", iterations=-1))
