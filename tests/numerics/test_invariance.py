"""What must not change a factorization, or must change it in a known way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import lstm_like, matrices, normal
from torch import Tensor

from ckptshrink.errors import CorruptCheckpointError, NonFiniteError
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.methods import METHODS
from ckptshrink.linalg.prune import prune
from ckptshrink.linalg.svd import svd

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@settings(max_examples=30, deadline=None)
@given(matrices(torch.float32), st.data())
def test_the_error_is_that_of_the_transpose(W: Tensor, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, min(W.shape)))
    eps = 4 * max(W.shape) * torch.finfo(W.dtype).eps
    one, other = svd(W, r, Options()), svd(W.T.contiguous(), r, Options())
    assert math.isclose(one.rel_error, other.rel_error, rel_tol=1e-5, abs_tol=eps)


@pytest.mark.parametrize("name", ["svd", "semi-nmf", "prune"])
@pytest.mark.parametrize("power", [-60, -12, 12, 60])
def test_scaling_by_a_power_of_two_scales_the_error(name: str, power: int) -> None:
    W = lstm_like(60, 40)
    base = METHODS.get(name)(W, 9, Options())
    scaled = METHODS.get(name)(W * 2.0**power, 9, Options())
    assert math.isclose(base.rel_error, scaled.rel_error, rel_tol=1e-6)
    assert math.isclose(scaled.sq_norm, base.sq_norm * 4.0**power, rel_tol=1e-6)


@pytest.mark.parametrize("name", ["svd", "semi-nmf", "prune"])
def test_permuting_gates_permutes_the_result(name: str) -> None:
    W = lstm_like(80, 30)
    order = torch.cat([torch.arange(20) + 20 * gate for gate in (0, 2, 1, 3)])
    base = METHODS.get(name)(W, 7, Options())
    permuted = METHODS.get(name)(W[order], 7, Options())
    assert math.isclose(base.rel_error, permuted.rel_error, rel_tol=1e-5)


def test_an_orthogonal_change_of_basis_keeps_the_error() -> None:
    W = lstm_like(80, 30)
    turn = torch.linalg.qr(normal(30, 30)).Q
    one, other = svd(W, 7, Options()), svd(W @ turn, 7, Options())
    assert math.isclose(one.rel_error, other.rel_error, rel_tol=1e-5)


@pytest.mark.parametrize("r", [3, 12, 50])
def test_storage_costs_what_its_dtype_rounds(r: int) -> None:
    W = lstm_like(120, 60, dtype=torch.float64)
    errors = {dtype: svd(W, r, Options(dtype=dtype)).rel_error for dtype in DTYPES}
    least = errors[torch.float64]
    for dtype in DTYPES[1:]:
        # rounding is independent of the error, so that their squares add up
        rounding = math.sqrt(max(0.0, errors[dtype] ** 2 - least**2))
        assert rounding <= torch.finfo(dtype).eps + 1e-6
    assert errors[torch.bfloat16] > errors[torch.float16] > least


def test_a_value_that_overflows_the_storage_dtype_is_refused() -> None:
    W = normal(20, 10) * 1e12
    for name in METHODS.names():
        with pytest.raises(NonFiniteError, match="overflows float16"):
            METHODS.get(name)(W, 3, Options(dtype=torch.float16))


def test_what_vanishes_in_the_storage_dtype_is_reported() -> None:
    W = normal(20, 10) * 1e-20
    for name in METHODS.names():
        f = METHODS.get(name)(W, 3, Options(dtype=torch.float16))
        assert f.rel_error > 0.1


def test_the_number_of_bad_values_is_named() -> None:
    W = normal(20, 10)
    W[3, 4], W[5, 6], W[0, 0] = math.nan, math.inf, -math.inf
    for name in METHODS.names():
        with pytest.raises(NonFiniteError, match="3 of 200 values are NaN or infinite"):
            METHODS.get(name)(W, 3, Options())
        with pytest.raises(NonFiniteError, match="3 of 200"):
            METHODS.get(name).sq_errors(W, Options())


@pytest.mark.parametrize("least", [1e-45, 1e-42, 1e-39])
def test_denormal_matrices_are_factorized(least: float) -> None:
    W = torch.full((8, 3), least)
    factors = svd(W, 1, Options())
    error = factors.U.double() @ factors.V.double() - W.double()
    assert float(error.abs().max()) <= 1e-5 * float(W[0, 0])


def test_squares_beyond_float64_are_refused() -> None:
    W = normal(20, 10, dtype=torch.float64)
    for scale in (1e200, 1e-200):
        with pytest.raises(NonFiniteError, match="beyond float64"):
            svd(W * scale, 3, Options())


@pytest.mark.parametrize(
    "W",
    [torch.ones(3), torch.ones(2, 2, 2), torch.ones(2, 2, dtype=torch.int64), torch.ones(0, 4)],
    ids=["a vector", "three axes", "integers", "empty"],
)
def test_what_is_no_matrix_is_refused(W: Tensor) -> None:
    for name in METHODS.names():
        with pytest.raises(CorruptCheckpointError, match="floating matrix"):
            METHODS.get(name)(W, 1, Options())


def test_gradients_are_not_recorded() -> None:
    W = lstm_like(200, 120).requires_grad_()
    for name in METHODS.names():
        result = METHODS.get(name)(W, 9, Options())
        assert not any(t.requires_grad for t in result.tensors().values())


def test_threads_change_rounding_alone() -> None:
    W = lstm_like(300, 200)
    before = torch.get_num_threads()
    try:
        errors = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            errors.append(svd(W, 30, Options()).rel_error)
    finally:
        torch.set_num_threads(before)
    assert math.isclose(*errors, rel_tol=1e-6)


def test_pruning_counts_zeros_and_signed_zeros_in_order() -> None:
    W = torch.tensor([[0.0, -0.0, 1.0], [-0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    f = prune(W, 1, Options())
    assert f.mask.reshape(-1).tolist() == [True] * 6 + [False] * 3
    assert f.sq_error == 0.0
