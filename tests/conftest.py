"""What every test can rely on: shared data, fixtures, and a terminal of fixed width."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
os.environ.pop("FORCE_COLOR", None)
os.environ["COLUMNS"] = "100"


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
