"""A zoo of three small models in two folders."""

from pathlib import Path

import pytest
from zoo_helpers import Zoo, lstm


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    for number, name in enumerate(["a", "deep/er/b", "c"]):
        lstm(tmp_path / "zoo" / f"{name}.safetensors", number)
    return Zoo(tmp_path)
