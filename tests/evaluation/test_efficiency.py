"""E(r): the paper's own table, its signs, and where there is no such number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptshrink.evaluation.efficiency import efficiency, efficiency_of, parameter_reduction
from ckptshrink.evaluation.metrics import metric

DENSE = 24_221_600
BASELINE = 58.99
"""Perplexity that the table's entries were made with; the table does not print it."""

TABLE = {
    "Wh 10": (0.457649, {58.11: -0.02, 58.18: -0.02, 57.94: -0.03}),
    "Wh 400": (0.240281, {57.84: -0.02, 57.81: -0.02, 57.19: -0.04}),
    "Wi 10": (0.364757, {81.4: 1.04, 88.12: 1.35, 82.23: 1.08}),
    "Wi 400": (0.147389, {58.47: -0.01, 58.04: -0.01, 57.65: -0.02}),
}
"""Winata et al. 2019, Penn Treebank with fine-tuning: share of parameters removed, and E(r) by
perplexity, for Semi-NMF, SVD and pruning."""


@pytest.mark.parametrize("row", TABLE)
def test_the_papers_table_comes_out(row: str) -> None:
    share, entries = TABLE[row]
    before = metric("ppl", BASELINE, better="lower")
    left = round(DENSE * (1 - share))
    for ppl, printed in entries.items():
        found = efficiency_of(metric("ppl", ppl, better="lower"), before, left, DENSE)
        assert found is not None
        assert math.trunc(found * 100) / 100 == printed  # the table cuts off, and does not round


def test_a_loss_is_divided_by_what_is_gone_and_a_gain_by_what_is_left() -> None:
    assert efficiency(0.06, 0.25) == pytest.approx(0.24)
    assert efficiency(-0.06, 0.25) == pytest.approx(-0.08)
    assert efficiency(0.0, 0.25) == 0
    up, base = (metric("accuracy", value, better="higher") for value in (0.76, 0.8))
    assert efficiency_of(up, base, 50, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("reduction", [0.0, -0.2, 1.0, 1.5, math.nan])
def test_there_is_no_efficiency_of_a_model_that_did_not_shrink(reduction: float) -> None:
    assert efficiency(0.1, reduction) is None


def test_there_is_none_without_parameters_or_finite_numbers() -> None:
    worse, base = (metric("ppl", value, better="lower") for value in (70.0, 60.0))
    assert parameter_reduction(0, 5) is None
    assert parameter_reduction(100, 25) == 0.75
    assert efficiency_of(worse, base, None, 100) is None
    assert efficiency_of(worse, base, 50, None) is None
    assert efficiency_of(worse, base, 50, 0) is None
    assert efficiency_of(worse, base, 100, 100) is None
    assert efficiency_of(worse, base, 200, 100) is None
    assert efficiency_of(metric("ppl", math.nan, better="lower"), base, 50, 100) is None
    assert efficiency(1e308, 1e-10) is None


@given(st.floats(-1e6, 1e6), st.floats(0.001, 0.999))
def test_its_sign_is_that_of_the_loss(loss: float, reduction: float) -> None:
    found = efficiency(loss, reduction)
    assert found is not None
    assert math.copysign(1, found) == math.copysign(1, loss) or loss == 0
    assert abs(found) >= abs(loss)
