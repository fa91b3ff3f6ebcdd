"""The n-gram models that a trained one is to beat."""

import importlib.util
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

PATH = Path(__file__).resolve().parents[2] / "fixtures" / "trained" / "ngrams.py"


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("ngrams", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ngrams = _module()
texts = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(text=texts, history=st.lists(st.integers(0, 7), max_size=4), order=st.integers(1, 4))
def test_probabilities_are_positive_and_add_up_to_one(
    text: list[int], history: list[int], order: int
) -> None:
    model = ngrams.KneserNey(text, 8, order)
    found = [model.probability(tuple(history), word) for word in range(8)]
    assert min(found) > 0
    assert math.fsum(found) == pytest.approx(1)


def test_a_word_that_follows_many_others_is_likelier_than_one_that_follows_often() -> None:
    # 1 follows 0 eight times, 2 follows eight different words once each
    text = [w for _ in range(8) for w in (0, 1)] + [w for i in range(3, 11) for w in (i, 2)]
    model = ngrams.KneserNey(text, 12, 2)
    assert Counter(text)[1] == Counter(text)[2]
    assert model.probability((11,), 2) > 2 * model.probability((11,), 1)


def test_unigrams_are_counts_plus_one() -> None:
    assert ngrams.unigram_perplexity([2, 0, 0, 1], [1, 0, 1], 3) == pytest.approx(
        math.exp(-(math.log(3 / 6) + math.log(2 / 6)) / 2)
    )


def test_what_is_not_counted_costs_nothing() -> None:
    text, after = [0, 1, 2, 0, 1, 3], (0, 1)  # 1 always follows 0
    seen = [(b, w) for b, w in itertools.pairwise(text) if (b, w) != after]

    def counted(before: int, word: int) -> bool:
        return (before, word) != after

    model = ngrams.KneserNey(text, 4, 2)
    nats = [-math.log(model.probability((b,), w)) for b, w in seen]
    assert model.perplexity(text, counted) == pytest.approx(math.exp(math.fsum(nats) / len(seen)))
    assert ngrams.unigram_perplexity(text, text, 4, counted) == pytest.approx(
        math.exp(-math.log(2 / 7))  # 2, 0 and 3 once each, of three and four words
    )


def test_a_longer_history_helps_where_it_tells() -> None:
    text = [w for _ in range(30) for w in (0, 1, 2, 0, 3, 4)]
    first, second = (ngrams.KneserNey(text, 6, order).perplexity(text) for order in (1, 3))
    assert second < 1.3 < first
