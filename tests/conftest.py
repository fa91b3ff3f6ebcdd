"""What every test can rely on: shared data, fixtures, and a terminal of fixed width."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
os.environ.pop("FORCE_COLOR", None)
# Two threads of a small product wait for each other on a busy machine: one SVD took 18 s. The tests
# that are about threads ask for them.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "100"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag that writes golden files again."""
    parser.addoption(
        "--regen", action="store_true", help="write the files of tests/golden again, to be reviewed"
    )


@pytest.fixture
def regen(request: pytest.FixtureRequest) -> bool:
    """Return whether golden files are written and not compared."""
    return bool(request.config.getoption("--regen"))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Return the folder of small checkpoints that the project's own scripts make."""
    return REPO / "fixtures"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of authentic checkpoints beside the checkout; CI must have it."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("shared/data is not beside the checkout, and CI must have it")
        pytest.skip("shared/data is not beside the checkout")
    return folder
