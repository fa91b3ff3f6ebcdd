"""``verify`` and ``restore``: from an artefact back to a checkpoint, and every way that fails."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import Shrink, Tensors, Write
from numpy.typing import NDArray


def test_an_untouched_artefact_is_right(artefact: Path, lstm: Path, shrink: Shrink) -> None:
    done = shrink("verify", artefact)
    assert (done.status, done.out) == (0, "difference\n")
    assert "are right" in done.err
    against = shrink("verify", artefact, "--source", lstm)
    assert against.status == 0
    assert "worst error 0." in against.err


def test_json(artefact: Path, lstm: Path, shrink: Shrink) -> None:
    document = json.loads(shrink("verify", artefact, "--source", lstm, "--json").out)
    assert document["schema_version"] == 1
    assert (document["passed"], document["differences"]) == (True, [])
    assert document["n_tensors"] == 4
    assert document["worst"]["name"] == "rnn.weight_hh_l0"
    assert json.loads(shrink("verify", artefact, "--json").out)["worst"] is None


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "manifest.json"])
@pytest.mark.parametrize("offset", [0, 40, -1])
def test_a_changed_bit_is_status_1(name: str, offset: int, artefact: Path, shrink: Shrink) -> None:
    flip(artefact / name, offset)
    done = shrink("verify", artefact)
    assert done.status == 1
    found = json.loads(shrink("verify", artefact, "--json").out)
    assert found["passed"] is False
    assert len(found["differences"]) >= 1


def test_missing_and_added_files_are_told(artefact: Path, shrink: Shrink) -> None:
    (artefact / "README.md").unlink()
    (artefact / "extra\x1b[31m.txt").touch()
    done = shrink("verify", artefact)
    assert done.status == 1
    told = [row["difference"] for row in done.rows]
    assert any("README.md: is missing" in line for line in told)
    assert any("is not listed" in line for line in told)
    assert "\x1b" not in done.out + done.err


def test_without_a_manifest_it_is_no_artefact(artefact: Path, shrink: Shrink) -> None:
    (artefact / "manifest.json").unlink()
    done = shrink("verify", artefact)
    assert done.status == 1
    assert "hint: is it an artefact made by: ckptshrink compress?" in done.err


def test_another_source_differs(
    artefact: Path, write: Write, lstm_tensors: Tensors, shrink: Shrink, tmp_path: Path
) -> None:
    changed = {**lstm_tensors, "rnn.bias_ih_l0": lstm_tensors["rnn.bias_ih_l0"] + 1}
    other = write(tmp_path / "other.safetensors", changed)
    done = shrink("verify", artefact, "--source", other)
    assert done.status == 1
    assert [row["difference"].partition(":")[0] for row in done.rows] == ["rnn.bias_ih_l0"]


def test_what_cannot_be_verified_at_all_is_status_3(
    artefact: Path, lstm: Path, shrink: Shrink, tmp_path: Path
) -> None:
    assert shrink("verify", tmp_path / "none").status == 3
    assert shrink("verify", lstm).status == 3
    assert shrink("verify", artefact, "--source", tmp_path / "none").status == 3


def test_restore_gives_the_container_back(fixtures: Path, shrink: Shrink, tmp_path: Path) -> None:
    elmo, out = fixtures / "elmo" / "elmo.hdf5", tmp_path / "out"
    assert shrink("compress", elmo, "--target", "Wh:rank=4", "-o", out).status == 0
    back = tmp_path / "back.hdf5"
    done = shrink("restore", out, "-o", back)
    assert done.status == 0, done.err
    assert done.rows == [{"out": str(back), "nbytes": str(back.stat().st_size)}]
    listed, original = shrink("inspect", back), shrink("inspect", elmo)
    assert {(r["name"], r["shape"]) for r in listed.rows} == {
        (r["name"], r["shape"]) for r in original.rows
    }


def test_restore_is_equal_where_nothing_was_compressed(
    artefact: Path, lstm: Path, shrink: Shrink, tmp_path: Path
) -> None:
    back = tmp_path / "back.safetensors"
    assert shrink("restore", artefact, "-o", back).status == 0
    before, after = payloads(lstm), payloads(back)
    assert before.keys() == after.keys()
    equal = {name for name in before if np.array_equal(before[name], after[name])}
    assert equal == set(before) - {"rnn.weight_hh_l0"}


def payloads(path: Path) -> dict[str, NDArray[np.float32]]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[8 + length :], "<f4")[
            entry["data_offsets"][0] // 4 : entry["data_offsets"][1] // 4
        ]
        for name, entry in header.items()
    }


def test_restore_dry_run_writes_nothing(artefact: Path, shrink: Shrink, tmp_path: Path) -> None:
    back = tmp_path / "back.safetensors"
    done = shrink("restore", artefact, "-o", back, "--dry-run", "--json")
    assert done.status == 0, done.err
    document = json.loads(done.out)
    assert (document["dry_run"], document["out"]) == (True, str(back))
    assert not back.exists()


def test_restore_refuses_an_existing_file_and_the_artefact_itself(
    artefact: Path, shrink: Shrink, tmp_path: Path
) -> None:
    back = tmp_path / "back.safetensors"
    back.write_text("mine")
    for more in ([], ["--dry-run"]):
        assert shrink("restore", artefact, "-o", back, *more).status == 4
    assert back.read_text() == "mine"
    for inside in (artefact, artefact / "model.safetensors", artefact / "manifest.json"):
        assert shrink("restore", artefact, "-o", inside, "--overwrite").status == 4
    assert shrink("verify", artefact).status == 0
    assert shrink("restore", artefact, "-o", back, "--overwrite").status == 0


def test_restore_of_what_is_no_artefact_is_status_3(
    lstm: Path, artefact: Path, shrink: Shrink, tmp_path: Path
) -> None:
    assert shrink("restore", tmp_path / "none", "-o", tmp_path / "x").status == 3
    assert shrink("restore", lstm, "-o", tmp_path / "x").status == 3
    flip(artefact / "manifest.json", 100)
    assert shrink("restore", artefact, "-o", tmp_path / "x").status == 3
    assert not (tmp_path / "x").exists()
