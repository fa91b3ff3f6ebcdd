"""``inspect``: what it lists, and what it says of files that are none of ours."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from cli_helpers import Shrink, Tensors, Write

FIELDS = [
    "file", "name", "role", "layer", "direction", "shape", "dtype", "n_params", "nbytes", "cell",
    "gates", "note",
]  # fmt: skip


def test_rows_of_an_elmo(fixtures: Path, shrink: Shrink) -> None:
    elmo = fixtures / "elmo" / "elmo.hdf5"
    done = shrink("inspect", elmo)
    assert done.status == 0, done.err
    assert list(done.rows[0]) == FIELDS
    parts = [row for row in done.rows if row["name"].endswith("Cell0/LSTMCell/W_0.Wh")]
    assert [row["direction"] for row in parts] == ["forward", "backward"]
    assert {row["role"] for row in parts} == {"Wh"}
    assert all(row["cell"] == "lstm" and len(row["gates"]) == 4 for row in parts)
    assert all(row["note"].startswith("rows ") for row in parts)
    header = done.err.splitlines()[0]
    assert header.startswith(f"{elmo}: hdf5, elmo, {elmo.stat().st_size:,} bytes")


def test_payload_bytes_add_up(lstm: Path, shrink: Shrink, lstm_tensors: Tensors) -> None:
    rows = shrink("inspect", lstm).rows
    assert sum(int(row["nbytes"]) for row in rows) == sum(4 * a.size for a in lstm_tensors.values())
    assert {row["name"]: row["shape"] for row in rows}["rnn.weight_hh_l0"] == "96x24"
    assert {row["name"]: row["note"] for row in rows}["rnn.bias_ih_l0"] == "1-D, no matrix"


def test_many_notes_are_counted_and_not_all_shown(tmp_path: Path, shrink: Shrink) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for number in range(30):
            file[f"w{number:02}"] = "a text"
        file["w"] = np.zeros((4, 4), "f4")
    notes = [line for line in shrink("inspect", path).err.splitlines() if " note: " in line]
    assert len(notes) == 21
    assert notes[-1] == "  note: and 10 more like these; --json has them all"
    (found,) = json.loads(shrink("inspect", path, "--json").out)["checkpoints"]
    assert len(found["notes"]) == 30


def test_json_is_one_document(lstm: Path, shrink: Shrink, lstm_tensors: Tensors) -> None:
    done = shrink("inspect", lstm, "--json")
    document = json.loads(done.out)
    assert document["schema_version"] == 1
    (found,) = document["checkpoints"]
    assert (found["file"], found["format"]) == (str(lstm), "safetensors")
    assert found["nbytes"] == lstm.stat().st_size
    assert found["n_params"] == sum(a.size for a in lstm_tensors.values())
    assert found["n_params_by_role"] == {"Wi": 96 * 16, "Wh": 96 * 24, "other": 192}
    assert [row["name"] for row in found["tensors"]] == list(lstm_tensors)
    assert found["tensors"][1]["shape"] == [96, 24]
    assert done.err == ""


def test_copies_ties_and_optimizer_state_are_told(shared_data: Path, shrink: Shrink) -> None:
    model = shared_data / "awd_lstm" / "whole_module_torch1.2.pt"
    done = shrink("inspect", model)
    assert done.status == 0, done.err
    notes = {row["name"]: row["note"] for row in done.rows}
    assert notes["decoder.weight"] == "tied to encoder.weight"
    copy = "rnns.0.module.weight_hh_l0"
    assert notes[copy] == f"copy of {copy}_raw"
    state = [note for name, note in notes.items() if name.startswith("optimizer.state.")]
    assert state
    assert all("optimizer" in note for note in state)
    # the model alone: decoder tied, copies and averages not counted
    assert "170,068 parameters" in done.err


def test_several_files_and_one_that_is_none(lstm: Path, shrink: Shrink, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    done = shrink("inspect", text, lstm)
    assert done.status == 3
    assert {row["file"] for row in done.rows} == {str(lstm)}
    assert f"ckptshrink: {text}: " in done.err
    document = json.loads(shrink("inspect", text, lstm, "--json").out)
    first, second = document["checkpoints"]
    assert first == {"file": str(text), "error": first["error"]}
    assert second["file"] == str(lstm)


def test_a_recurrent_looking_tensor_of_no_layout_is_listed_and_then_an_error(
    write: Write, shrink: Shrink, tmp_path: Path
) -> None:
    odd = write(tmp_path / "odd.safetensors", {"cell.weight_hh_l0": np.ones((7, 5))})
    done = shrink("inspect", odd)
    assert done.status == 3
    (row,) = done.rows
    assert row["note"].startswith("looks recurrent and fits no layout: ")
    assert f"ckptshrink: cell.weight_hh_l0 [{odd}]: looks recurrent" in done.err
    assert "hint: --target 'cell.weight_hh_l0'" in done.err
    (found,) = json.loads(shrink("inspect", odd, "--json").out)["checkpoints"]
    assert [tensor["name"] for tensor in found["unrecognised"]] == ["cell.weight_hh_l0"]


def bad_inputs(folder: Path) -> dict[str, Path]:
    (folder / "empty").touch()
    (folder / "text.pt").write_text("hello, world\n" * 50)
    (folder / "cut.safetensors").write_bytes((10**6).to_bytes(8, "little") + b'{"a":')
    (folder / "zeros.hdf5").write_bytes(bytes(4096))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    names = ("missing", "empty", "text.pt", "cut.safetensors", "zeros.hdf5", "folder", "pipe")
    return {name: folder / name for name in (*names, "loop")}


@pytest.mark.parametrize("command", ["inspect", "plan", "compress"])
def test_bad_inputs_are_one_line_and_status_3(command: str, shrink: Shrink, tmp_path: Path) -> None:
    more = [] if command == "inspect" else ["--target", "Wh", "--rank", "2"]
    for name, path in bad_inputs(tmp_path).items():
        before = sorted(tmp_path.iterdir())
        done = shrink(command, path, *more)
        assert (done.status, done.out) == (3, ""), (name, done.err)
        message, *hint = done.err.splitlines()
        assert message.startswith("ckptshrink: ")
        assert str(path) in message
        assert "a bug of ours" not in message
        assert all(line.startswith("hint: ") for line in hint)
        assert len(hint) <= 1
        assert sorted(tmp_path.iterdir()) == before


def test_a_missing_file_says_what_is_close(lstm: Path, shrink: Shrink) -> None:
    done = shrink("inspect", lstm.with_name("lstn.safetensors"))
    assert f"did you mean {lstm}?" in done.err


def test_a_wrong_suffix_is_no_matter(lstm: Path, shrink: Shrink) -> None:
    renamed = lstm.rename(lstm.with_name("model.pt"))
    assert shrink("inspect", renamed).status == 0
