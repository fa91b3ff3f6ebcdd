"""The laws as checks: each says of one result whether a law holds, against float64 truth."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from strategies import singular_values
from torch import Tensor

from ckptshrink.errors import NonFiniteError, RankError
from ckptshrink.linalg.factors import Factors, Options, Pruned
from ckptshrink.linalg.laws import Law
from ckptshrink.linalg.methods import Factorizer
from ckptshrink.linalg.ranks import stored_tensors

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


@dataclass(frozen=True)
class Case:
    """A matrix and the ranks and options to factorize it with."""

    name: str
    W: Tensor
    ranks: tuple[int, ...]
    options: tuple[Options, ...] = (Options(),)

    @cached_property
    def S(self) -> Tensor:
        return singular_values(self.W)

    @cached_property
    def norm(self) -> float:
        return float(self.W.double().norm())

    def tail(self, r: int) -> float:
        return float(self.S[r:].square().sum().sqrt())


@dataclass(frozen=True)
class Outcome:
    """One result of one factorizer, and what is true of it."""

    factorizer: Factorizer
    case: Case
    r: int
    options: Options
    result: Factors | Pruned

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        return self.result.tensors()

    @cached_property
    def error(self) -> float:
        """Frobenius error of the stored tensors, in float64."""
        if isinstance(self.result, Pruned):
            approximation = self.result.dense().double()
        else:
            approximation = self.stored[".U"].double() @ self.stored[".V"].double()
        return float((self.case.W.double() - approximation).norm())

    @property
    def unit(self) -> float:
        """Rounding that a law allows: 4 max(m, n) eps S[0], in the storage dtype."""
        dtype = self.options.dtype or self.case.W.dtype
        return 4 * max(self.case.W.shape) * torch.finfo(dtype).eps * float(self.case.S[0])


Check = Callable[[Outcome], bool]


def _optimal(o: Outcome) -> bool:
    tail = o.case.tail(o.r)
    return o.error <= max(tail * (1 + 1e-6), tail + o.unit)


def _exact(o: Outcome) -> bool:
    options = replace(o.options, exact=True)
    again = replace(o, options=options, result=o.factorizer(o.case.W, o.r, options))
    return again.error <= o.case.tail(o.r) + o.unit


def _not_below(o: Outcome) -> bool:
    return o.result.rel_error * o.case.norm >= o.case.tail(o.r) * (1 - 1e-5) - 1e-7 * o.case.norm


def _not_above_svd_at_r_minus_1(o: Outcome) -> bool:
    bound = o.case.tail(o.r - 1)
    return o.options.solver != "closed" or o.error <= max(bound * (1 + 1e-6), bound + o.unit)


def _nonnegative(o: Outcome) -> bool:
    return bool((o.stored[f".{o.options.nonnegative}"] >= 0).all())


def _keeps_k_largest(o: Outcome) -> bool:
    assert isinstance(o.result, Pruned)
    m, n = o.case.W.shape
    magnitudes = o.case.W.reshape(-1).double().abs()
    order = torch.sort(magnitudes, descending=True, stable=True).indices
    mask = torch.zeros(m * n, dtype=torch.bool)
    mask[order[: min(m * n, o.r * (m + n))]] = True
    values = o.case.W.reshape(-1)[mask].to(o.result.values.dtype)
    return torch.equal(o.result.mask.reshape(-1), mask) and torch.equal(o.result.values, values)


def _deterministic(o: Outcome) -> bool:
    again = o.factorizer(o.case.W, o.r, o.options)
    same = all(_bytes(o.stored[name]) == _bytes(t) for name, t in again.tensors().items())
    return same and again.sq_error == o.result.sq_error


def _reported_truly(o: Outcome) -> bool:
    if o.case.norm == 0.0:
        return o.result.rel_error == o.error == 0.0
    truth = o.error / o.case.norm
    norm = math.sqrt(o.result.sq_norm)
    return abs(o.result.rel_error - truth) <= max(1e-5 * truth, 1e-7) and math.isclose(
        norm, o.case.norm, rel_tol=1e-6
    )


def _shapes_and_dtype(o: Outcome) -> bool:
    m, n = o.case.W.shape
    dtype = CODES[o.options.dtype or o.case.W.dtype]
    found = tuple((name, tuple(t.shape), CODES[t.dtype]) for name, t in o.stored.items())
    wanted = stored_tensors(o.factorizer.name, m, n, o.r, dtype)
    return found == wanted and all(t.is_contiguous() for t in o.stored.values())


def _input_unchanged(o: Outcome) -> bool:
    W = o.case.W.clone()
    result = o.factorizer(W, o.r, o.options)
    memory = W.untyped_storage().data_ptr()
    apart = all(t.untyped_storage().data_ptr() != memory for t in result.tensors().values())
    return apart and _bytes(W) == _bytes(o.case.W)


def _lossless(o: Outcome) -> bool:
    return o.r != min(o.case.W.shape) or o.error <= o.unit


def _predicts(o: Outcome) -> bool:
    predicted = math.sqrt(float(o.factorizer.sq_errors(o.case.W, o.options)[o.r]))
    return abs(predicted - o.error) <= 1e-5 * o.error + o.unit


def _predicts_bound(o: Outcome) -> bool:
    predicted = math.sqrt(float(o.factorizer.sq_errors(o.case.W, o.options)[o.r]))
    return o.options.solver != "closed" or o.error <= predicted * (1 + 1e-5) + o.unit


def _monotone(o: Outcome) -> bool:
    errors = o.factorizer.sq_errors(o.case.W, o.options)
    whole = math.isclose(math.sqrt(float(errors[0])), o.case.norm, rel_tol=1e-6)
    right = errors.dtype == torch.float64 and len(errors) == min(o.case.W.shape) + 1
    return whole and right and bool((errors.diff() <= 0).all()) and bool((errors >= 0).all())


def _refuses(o: Outcome) -> bool:
    return all(
        _raises(o.factorizer, o.case.W, r, o.options, RankError)
        for r in (-1, 0, min(o.case.W.shape) + 1)
    ) and all(
        _raises(o.factorizer, _spoilt(o.case.W, value), o.r, o.options, NonFiniteError)
        for value in (math.nan, math.inf, -math.inf)
    )


def _raises(
    factorizer: Factorizer, W: Tensor, r: int, options: Options, kind: type[Exception]
) -> bool:
    try:
        factorizer(W, r, options)
    except kind:
        return True
    return False


def _spoilt(W: Tensor, value: float) -> Tensor:
    W = W.clone()
    W[-1, 0] = value
    return W


def _bytes(t: Tensor) -> bytes:
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


CHECKS: dict[Law, Check] = {
    Law.OPTIMAL_FROBENIUS: _optimal,
    Law.EXACT_TO_ROUNDING: _exact,
    Law.NOT_BELOW_OPTIMUM: _not_below,
    Law.NOT_ABOVE_SVD_AT_R_MINUS_1: _not_above_svd_at_r_minus_1,
    Law.NONNEGATIVE: _nonnegative,
    Law.KEEPS_K_LARGEST: _keeps_k_largest,
    Law.DETERMINISTIC: _deterministic,
    Law.ERROR_REPORTED_TRULY: _reported_truly,
    Law.SHAPES_AND_DTYPE: _shapes_and_dtype,
    Law.INPUT_UNCHANGED: _input_unchanged,
    Law.FULL_RANK_IS_LOSSLESS: _lossless,
    Law.PREDICTS_ERROR: _predicts,
    Law.PREDICTS_BOUND: _predicts_bound,
    Law.MONOTONE_IN_RANK: _monotone,
    Law.REFUSES_BAD_INPUT: _refuses,
}


@dataclass(frozen=True)
class Violation:
    """A law that a factorizer declares and a result of it breaks."""

    law: Law
    case: str
    r: int
    options: Options = field(repr=False)


def violations(factorizer: Factorizer, case: Case) -> Iterator[Violation]:
    """Yield every declared law that a case shows broken."""
    for options in case.options:
        for r in case.ranks:
            outcome = Outcome(factorizer, case, r, options, factorizer(case.W, r, options))
            for law in sorted(factorizer.laws, key=lambda law: law.name):
                if not CHECKS[law](outcome):
                    yield Violation(law, case.name, r, options)
