"""What a job will take, told from shapes."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptshrink.zoo.footprint import BASE, footprint_of
from ckptshrink.zoo.recipes import work_of
from ckptshrink.zoo.settings import Recipe

MB = 1_000_000
SHAPE = (4600, 1150)


def peak(folder: Path, dtype: type = np.float32, tasks: bool = False, **keys: object) -> int:
    path = folder / "a.safetensors"
    # zeros, as a sparse file would be: nothing but the shape is looked at
    save_file({"weight": np.zeros(SHAPE, dtype)}, path)
    given: dict[str, object] = {"target": "weight", "rank": 100}
    if tasks:
        given["tasks"] = {"lm": {"data": "test.txt"}}
    return footprint_of(work_of(Recipe.model_validate(given | keys), folder), path).peak


@pytest.mark.parametrize(
    ("keys", "measured"),
    [({}, 404), ({"exact": True}, 462), ({"method": "semi-nmf"}, 404), ({"method": "prune"}, 393)],
)
def test_the_estimate_is_above_what_was_measured_and_not_by_far(
    tmp_path: Path, keys: dict[str, object], measured: int
) -> None:
    assert measured * MB < peak(tmp_path, **keys) < 1.5 * measured * MB


def test_pruning_to_an_error_sorts_a_matrix(tmp_path: Path) -> None:
    by_error = peak(tmp_path, method="prune", rank=None, energy=0.5)
    assert 401 * MB < by_error < 1.5 * 401 * MB


def test_precision_counts_as_it_is_computed_in(tmp_path: Path) -> None:
    single, double, half = (peak(tmp_path, t) for t in (np.float32, np.float64, np.float16))
    assert half < single < double
    assert single - half == SHAPE[0] * SHAPE[1] * 2  # as it is stored, and no more


def test_scoring_takes_more(tmp_path: Path) -> None:
    assert peak(tmp_path, tasks=True) > peak(tmp_path)


def test_a_source_that_can_not_be_read_takes_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(1000))
    recipe = Recipe.model_validate({"target": "all", "rank": 1})
    found = footprint_of(work_of(recipe, tmp_path), path)
    assert found.peak == BASE + 1000
    assert found.error is not None
