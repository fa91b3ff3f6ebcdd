"""Where output goes if nothing says where, and sizes as they are shown."""

from pathlib import Path

import pytest

from ckptshrink_cli import render
from ckptshrink_cli.paths import default_out, shell


@pytest.mark.parametrize(
    ("source", "factored", "dense"),
    [
        ("elmo.hdf5", "elmo.shrunk", "elmo.shrunk.hdf5"),
        ("zoo/model.v2.pt", "zoo/model.v2.shrunk", "zoo/model.v2.shrunk.pt"),
        ("weights", "weights.shrunk", "weights.shrunk"),
        (".hidden", ".hidden.shrunk", ".hidden.shrunk"),
        ("m.safetensors.index.json", "m.shrunk", "m.shrunk"),
    ],
)
def test_beside_the_source(source: str, factored: str, dense: str) -> None:
    assert default_out(Path(source), dense=False) == Path(factored)
    assert default_out(Path(source), dense=True) == Path(dense)


def test_a_folder_is_a_source_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model.v1"
    folder.mkdir()
    expected = tmp_path / "model.v1.shrunk"
    assert default_out(folder, dense=False) == expected
    monkeypatch.chdir(folder)
    assert default_out(Path(), dense=False) == expected
    assert default_out(Path("../model.v1/."), dense=True) == Path("../model.v1.shrunk")


def test_a_path_as_it_is_typed() -> None:
    assert shell("a b") == "'a b'"
    assert shell("-x") == "./-x"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (374_434_792, "374 MB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_have_three_digits(nbytes: int, text: str) -> None:
    assert render.size(nbytes) == text


def test_raw_values_keep_a_row_one_line() -> None:
    row = {"a": None, "b": (2, 3), "c": "x\ty\nz", "d": 0.25}
    assert render.as_tsv([row], list("abcd")) == "a\tb\tc\td\n\t2x3\tx\\ty\\nz\t0.25\n"
