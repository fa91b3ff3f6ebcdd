"""Every registered factorizer, held to every law it declares on every matrix of one table.

The second half plants faults, and asks that the suite sees them.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from laws import CHECKS, Case, violations
from strategies import decaying, low_rank, lstm_like, normal, with_spectrum
from torch import Tensor

from ckptshrink.errors import NonFiniteError
from ckptshrink.linalg.factors import Factors, Options, Pruned
from ckptshrink.linalg.laws import Law
from ckptshrink.linalg.methods import METHODS, Factorizer
from ckptshrink.linalg.prune import prune
from ckptshrink.linalg.semi_nmf import semi_nmf
from ckptshrink.linalg.svd import svd

EVERY_OPTION = (
    Options(),
    Options(nonnegative="U"),
    Options(exact=True),
    Options(dtype=torch.float16),
    Options(dtype=torch.bfloat16),
    Options(solver="ding", iterations=3, seed=5),
    Options(solver="ding", iterations=3, nonnegative="U"),
)

CASES = (
    Case("gauss, tall", normal(40, 24), (1, 7, 23, 24), EVERY_OPTION),
    Case("gauss, wide", normal(24, 40), (1, 7, 23, 24), EVERY_OPTION),
    Case("lstm-like, tall", lstm_like(96, 40), (1, 5, 20, 40), EVERY_OPTION),
    Case("lstm-like, wide", lstm_like(40, 96), (1, 5, 20, 40)),
    Case("large", lstm_like(320, 264), (2, 60)),
    Case("large and wide", lstm_like(264, 320), (2, 60), (Options(), Options(nonnegative="U"))),
    Case("large enough for a Krylov space", lstm_like(560, 520), (2, 9)),
    Case("steep, tall", decaying(64, 40, 1.5), (1, 10, 30, 40), EVERY_OPTION[:3]),
    Case("steep, wide", decaying(40, 64, 3.0), (1, 10, 30, 40), EVERY_OPTION[:3]),
    Case("rank 9 exactly", low_rank(50, 30, 9), (1, 8, 9, 10, 29, 30), EVERY_OPTION[:3]),
    Case("rank 9 exactly, wide", low_rank(30, 50, 9), (1, 8, 9, 10, 30)),
    Case("repeated singular values", with_spectrum([3.0] * 6 + [1.0] * 14, 30, 20), (3, 6, 9, 20)),
    Case("large, repeated", with_spectrum([2.0] * 6 + [1.0] * 506, 540, 512).float(), (4, 6, 8)),
    Case("identity", torch.eye(24), (1, 5, 24), EVERY_OPTION[:3]),
    Case("a cluster cut inside", decaying(300, 280, 1e-6), (30, 140, 270)),
    Case("large identity", torch.eye(512), (3,)),
    Case("zeros", torch.zeros(9, 12), (1, 4, 9), EVERY_OPTION),
    Case("large zeros", torch.zeros(512, 512), (2,)),
    Case("one row", normal(1, 33), (1,), EVERY_OPTION),
    Case("one column", normal(33, 1), (1,), EVERY_OPTION),
    Case("one entry", torch.tensor([[-2.5]]), (1,), EVERY_OPTION),
    Case("positive", normal(30, 20).abs(), (1, 6, 20)),
    Case("few distinct magnitudes", normal(30, 20).round(), (1, 5, 12, 20)),
    Case("1e-20", lstm_like(40, 24) * 1e-20, (1, 8, 24)),
    Case("1e20", lstm_like(24, 40) * 1e20, (1, 8, 24)),
    Case("one row of 1e18 above 1e-3", torch.cat([normal(1, 20) * 1e18, normal(20, 20)]), (1, 9)),
    Case("float64", lstm_like(40, 24, dtype=torch.float64), (1, 8, 23, 24), EVERY_OPTION),
    Case("float64, 1e-40", lstm_like(40, 24, dtype=torch.float64) * 1e-40, (8, 24)),
    Case("float64, steep", decaying(40, 24, 6.0, dtype=torch.float64), (1, 8, 23, 24)),
    Case("float16", lstm_like(40, 24, dtype=torch.float16), (1, 8, 24), EVERY_OPTION[:3]),
    Case("bfloat16", lstm_like(24, 40, dtype=torch.bfloat16), (1, 8, 24), EVERY_OPTION[:3]),
    Case("a view with strides", normal(60, 50)[5:45:2, 3:33], (1, 9, 20)),
    Case("a transposed view", lstm_like(24, 90).T, (1, 9, 24), EVERY_OPTION[:3]),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", METHODS.names())
def test_declared_laws_hold(name: str, case: Case) -> None:
    assert list(violations(METHODS.get(name), case)) == []


def test_every_law_has_a_check_and_every_method_a_source() -> None:
    assert set(CHECKS) == set(Law)
    for name in METHODS.names():
        factorizer: Factorizer = METHODS.get(name)
        assert factorizer.name == name
        assert factorizer.source
        assert {
            Law.DETERMINISTIC,
            Law.ERROR_REPORTED_TRULY,
            Law.SHAPES_AND_DTYPE,
            Law.INPUT_UNCHANGED,
            Law.MONOTONE_IN_RANK,
            Law.REFUSES_BAD_INPUT,
        } <= factorizer.laws


Make = Callable[[Tensor, int, Options], Factors | Pruned]


class Faulty:
    """A factorizer with one thing wrong, that declares what the sound one does."""

    def __init__(self, sound: Factorizer, make: Make | None = None) -> None:
        self.name, self.source, self.laws = sound.name, sound.source, sound.laws
        self._make = make or sound
        self._sound = sound

    def __call__(self, W: Tensor, r: int, options: Options) -> Factors | Pruned:
        return self._make(W, r, options)

    def sq_errors(self, W: Tensor, options: Options) -> Tensor:
        return self._sound.sq_errors(W, options)


def pair(W: Tensor, U: Tensor, V: Tensor) -> Factors:
    """Return a pair in W's dtype, truly reported."""
    U, V = U.to(W.dtype).contiguous(), V.to(W.dtype).contiguous()
    sq_error = float((W.double() - U.double() @ V.double()).square().sum())
    return Factors(U, V, sq_error, float(W.double().square().sum()))


def by(
    split: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]],
    compute: torch.dtype = torch.float64,
) -> Make:
    """Return an SVD whose pair is made by `split` from U, S, Vh and r."""

    def make(W: Tensor, r: int, options: Options) -> Factors:
        svd(W, r, options)  # refuses what is to be refused
        U, S, Vh = torch.linalg.svd(W.to(compute), full_matrices=False)
        return pair(W, *split(U, S, Vh, r))

    return make


def by_bare_gram(W: Tensor, r: int, options: Options) -> Factors:
    svd(W, r, options)
    vectors = torch.linalg.eigh(W.T @ W).eigenvectors[:, -r:]
    return pair(W, W @ vectors, vectors.T)


def unseeded(W: Tensor, r: int, options: Options) -> Factors:
    f = svd(W, r, options)
    assert isinstance(f, Factors)
    sign = torch.where(torch.rand(r) < 0.5, -1.0, 1.0).to(f.U)
    return dataclasses.replace(f, U=f.U * sign, V=f.V * sign[:, None])


def reports_the_tail(W: Tensor, r: int, options: Options) -> Factors:
    f = svd(W, r, options)
    tail = float(torch.linalg.svdvals(W.double())[r:].square().sum())
    return dataclasses.replace(f, sq_error=tail)


def writes_to_input(W: Tensor, r: int, options: Options) -> Factors:
    f = svd(W, r, options)
    W[0, 0] += 1
    return f


def lets_nan_pass(W: Tensor, r: int, options: Options) -> Factors:
    try:
        return svd(W, r, options)
    except NonFiniteError:
        return svd(W.nan_to_num(), r, options)


def keeps_dtype(W: Tensor, r: int, options: Options) -> Factors:
    return svd(W, r, dataclasses.replace(options, dtype=W.dtype))


def slightly_negative(W: Tensor, r: int, options: Options) -> Factors:
    f = semi_nmf(W, r, options)
    return dataclasses.replace(f, V=f.V - 1e-6)


def two_ranks_short(W: Tensor, r: int, options: Options) -> Factors:
    semi_nmf(W, r, options)  # refuses what is to be refused
    f = semi_nmf(W, max(1, r - 2), options)
    gap = r - f.U.shape[1]
    U = torch.nn.functional.pad(f.U, (0, gap))
    return dataclasses.replace(f, U=U, V=torch.nn.functional.pad(f.V, (0, 0, 0, gap)))


def keeps_every_tie(W: Tensor, r: int, options: Options) -> Pruned:
    f = prune(W, r, options)
    mask = W.abs() >= f.values.abs().min()
    return dataclasses.replace(f, mask=mask, values=W[mask].to(f.values.dtype))


def keeps_last_ties(W: Tensor, r: int, options: Options) -> Pruned:
    f = prune(W.flip(0, 1), r, options)
    mask = f.mask.flip(0, 1)
    return dataclasses.replace(f, mask=mask, values=W[mask].to(f.values.dtype))


class OffByOne(Faulty):
    """Predicts the error of the rank above."""

    def sq_errors(self, W: Tensor, options: Options) -> Tensor:
        errors = self._sound.sq_errors(W, options)
        return torch.cat([errors[:1], errors[2:], errors[-1:]])


class Rising(Faulty):
    """Predicts errors in the wrong order."""

    def sq_errors(self, W: Tensor, options: Options) -> Tensor:
        return self._sound.sq_errors(W, options).flip(0)


SMALL = Case("gauss", normal(40, 24), (7, 24), EVERY_OPTION[:1])
SQUARE = Case("gauss, square", normal(24, 24), (7,))
TIES = Case("few distinct magnitudes", normal(30, 20).round(), (5,))
STEEP = Case("steep", decaying(300, 260, 1.5), (200,))
HALF = Case("bfloat16 storage", normal(40, 24), (7, 23), (Options(dtype=torch.bfloat16),))
DOUBLE = Case("float64", normal(40, 24, dtype=torch.float64), (7, 24))

FAULTS: dict[str, tuple[Factorizer, Case, Law]] = {
    "keeps the smallest values": (
        Faulty(svd, by(lambda U, S, Vh, r: (U[:, -r:] * S[-r:], Vh[-r:]))),
        SMALL,
        Law.OPTIMAL_FROBENIUS,
    ),
    "scales by S twice": (
        Faulty(svd, by(lambda U, S, Vh, r: (U[:, :r] * S[:r] ** 2, Vh[:r]))),
        SMALL,
        Law.OPTIMAL_FROBENIUS,
    ),
    "takes V for Vh": (
        Faulty(svd, by(lambda U, S, Vh, r: (U[:, :r] * S[:r], Vh.T[:r]))),
        SQUARE,
        Law.OPTIMAL_FROBENIUS,
    ),
    "stops at rank r - 1": (
        Faulty(
            svd, by(lambda U, S, Vh, r: (U[:, :r] * (S[:r] * (torch.arange(r) < r - 1)), Vh[:r]))
        ),
        SMALL,
        Law.FULL_RANK_IS_LOSSLESS,
    ),
    "float32 Gram matrix without its gate": (
        Faulty(svd, by_bare_gram),
        STEEP,
        Law.OPTIMAL_FROBENIUS,
    ),
    "float32 in silence": (
        Faulty(svd, by(lambda U, S, Vh, r: (U[:, :r] * S[:r], Vh[:r]), torch.float32)),
        DOUBLE,
        Law.FULL_RANK_IS_LOSSLESS,
    ),
    "random factors": (
        Faulty(svd, by(lambda U, S, Vh, r: (torch.randn_like(U[:, :r]), Vh[:r]))),
        SMALL,
        Law.OPTIMAL_FROBENIUS,
    ),
    "unseeded signs": (Faulty(svd, unseeded), SMALL, Law.DETERMINISTIC),
    "reports the spectrum's tail": (Faulty(svd, reports_the_tail), HALF, Law.ERROR_REPORTED_TRULY),
    "writes to its input": (Faulty(svd, writes_to_input), SMALL, Law.INPUT_UNCHANGED),
    "lets NaN pass": (Faulty(svd, lets_nan_pass), SMALL, Law.REFUSES_BAD_INPUT),
    "ignores the storage dtype": (Faulty(svd, keeps_dtype), HALF, Law.SHAPES_AND_DTYPE),
    "predicts the rank above": (OffByOne(svd), SMALL, Law.PREDICTS_ERROR),
    "predicts too little": (OffByOne(semi_nmf), SMALL, Law.PREDICTS_BOUND),
    "predicts rising errors": (Rising(prune), SMALL, Law.MONOTONE_IN_RANK),
    "an SVD for a Semi-NMF": (Faulty(semi_nmf, svd), SMALL, Law.NONNEGATIVE),
    "entries of -1e-6": (Faulty(semi_nmf, slightly_negative), SMALL, Law.NONNEGATIVE),
    "two ranks short": (Faulty(semi_nmf, two_ranks_short), SMALL, Law.NOT_ABOVE_SVD_AT_R_MINUS_1),
    "keeps every tie": (Faulty(prune, keeps_every_tie), TIES, Law.KEEPS_K_LARGEST),
    "keeps the last ties": (Faulty(prune, keeps_last_ties), TIES, Law.KEEPS_K_LARGEST),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    faulty, case, law = FAULTS[fault]
    writable = dataclasses.replace(case, W=case.W.clone())
    assert law in {violation.law for violation in violations(faulty, writable)}


@pytest.mark.parametrize("sound", [svd, semi_nmf, prune], ids=lambda f: f.name)
@pytest.mark.parametrize("case", [SMALL, SQUARE, TIES, STEEP, HALF, DOUBLE], ids=lambda c: c.name)
def test_what_faults_are_planted_in_is_sound(sound: Factorizer, case: Case) -> None:
    assert list(violations(sound, case)) == []
