"""A zoo of three small models in two folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import rigged_store
from zoo_helpers import Zoo, lstm

# --doctest-modules imports what it collects a second time, and fsspec would then know the store of
# that copy, and the fixture below clear the other's
collect_ignore = ["rigged_store.py"]


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    for number, name in enumerate(["a", "deep/er/b", "c"]):
        lstm(tmp_path / "zoo" / f"{name}.safetensors", number)
    return Zoo(tmp_path)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Yield the folder for temporary files, which must be empty in the end; the store is, too."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with rigged_store.empty_store():
        yield temporary
    assert [path for path in temporary.rglob("*") if not path.is_dir()] == []
