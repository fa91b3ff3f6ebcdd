"""A changed bit, byte, name or file of an artefact is found; ``benchmarks/flips.py`` in full."""

import importlib.util
import random
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from ckptshrink.verification import verify

_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "flips.py"


@pytest.fixture(scope="module")
def flips() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flips", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flips"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artefacts(flips: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = flips.make(tmp_path_factory.mktemp("artefacts"))
    return made


def test_a_flipped_bit_is_found(flips: ModuleType, artefacts: dict[str, Path]) -> None:
    rng = random.Random(7)
    for name, artefact in artefacts.items():
        every = random.Random(8).sample(list(flips.header_places(artefact, rng)), 20)
        for path, byte, bit in [*islice(flips.random_places(artefact, rng), 40), *every]:
            flips.flip(path, byte, bit)
            assert flips.is_found(artefact), f"{name}: {path.name}, byte {byte}, bit {bit}"
            flips.flip(path, byte, bit)
        assert verify(artefact).passed, name


@pytest.mark.parametrize("name", ["hdf5", "torch zip pruned", "safetensors, shards"])
def test_other_changes_are_found(
    flips: ModuleType, artefacts: dict[str, Path], tmp_path: Path, name: str
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    missed = [what for what, found in flips.tamper(artefacts[name], scratch) if not found]
    assert missed == []
