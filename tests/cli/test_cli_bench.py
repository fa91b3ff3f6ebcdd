"""``bench``: what it prints and in which form; how long things take is no test."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import Shrink, Tensors, Write

QUICK = ("--batch", "1,3", "--steps", "4", "--rounds", "2")
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def rows_of(shrink: Shrink, *args: object) -> list[dict[str, Any]]:
    done = shrink("bench", *args, "--json")
    assert done.status == 0, done.err
    rows: list[dict[str, Any]] = json.loads(done.out)["rows"]
    return rows


def test_each_layer_and_their_sum_at_each_batch_size(artefact: Path, shrink: Shrink) -> None:
    rows = rows_of(shrink, artefact, *QUICK)
    assert [(row["name"], row["batch"]) for row in rows] == [
        ("rnn", 1), ("all layers", 1), ("rnn", 3), ("all layers", 3),
    ]  # fmt: skip
    layer, everything = rows[:2]
    assert (layer["inputs"], layer["hidden"], layer["projected"]) == (16, 24, None)
    assert (layer["rank_Wi"], layer["rank_Wh"]) == (None, 4)
    assert everything["dense_seconds"] == pytest.approx(layer["dense_seconds"])
    for row in rows:
        assert row["steps"] == 4
        assert row["dense"].startswith("nn.LSTM")
        assert row["route"] in {"loop", "compiled", "dense"}
        assert 0 < row["ratio_least"] <= row["ratio"] <= row["ratio_most"] < math.inf
        for who in ("dense", "factored"):
            assert 0 < row[f"{who}_seconds"] < math.inf
            tokens = row["batch"] * row["steps"] / row[f"{who}_seconds"]
            assert row[f"{who}_tokens_per_second"] == pytest.approx(tokens, abs=0.1)


def test_json_says_what_was_measured(artefact: Path, lstm: Path, shrink: Shrink) -> None:
    args = (artefact, "--against", lstm, *QUICK, "--threads", "1", "--device", "cpu")
    document = json.loads(shrink("bench", *args, "--json").out)
    assert document["schema_version"] == 1
    assert (document["file"], document["against"]) == (str(artefact), str(lstm))
    assert (document["device"], document["threads"], document["rounds"]) == ("cpu", 1, 2)
    assert document["notes"] == []


def test_values_go_to_standard_output_and_what_they_mean_to_standard_error(
    artefact: Path, shrink: Shrink
) -> None:
    done = shrink("bench", artefact, *QUICK, "--threads", "1")
    assert done.status == 0, done.err
    assert [row["name"] for row in done.rows] == ["rnn", "all layers"] * 2
    assert {row["rank_Wh"] for row in done.rows} == {"4", ""}
    lines = done.err.splitlines()
    assert lines[0] == "on cpu, 1 thread"
    assert [line.partition(":")[0] for line in lines[1:]] == ["batch 1", "batch 3"]
    quiet = shrink("bench", artefact, *QUICK, "-q")
    assert quiet.err == ""


def test_threads_are_set_and_given_back(artefact: Path, shrink: Shrink) -> None:
    before = torch.get_num_threads()
    document = json.loads(shrink("bench", artefact, *QUICK, "--threads", "2", "--json").out)
    assert document["threads"] == 2
    assert torch.get_num_threads() == before


def test_a_dense_checkpoint_is_measured_too(lstm: Path, shrink: Shrink) -> None:
    layer, *_ = rows_of(shrink, lstm, *QUICK)
    assert (layer["rank_Wi"], layer["rank_Wh"]) == (None, None)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("torch/awd_lstm.zip.pt", 3),
        ("torch/awd_gru.zip.pt", 3),
        ("torch/fastai_v1.zip.pt", 3),
        ("torch/lstm_cells.zip.pt", 2),
        ("torch/lstm_state.zip.pt", 4),
        ("torch/word_language_model.zip.pt", 2),
        ("safetensors/lstm_float16.safetensors", 2),
        ("safetensors/sharded/model.safetensors.index.json", 2),
        ("elmo/elmo.hdf5", 4),
        ("elmo/one_layer/lm_weights.hdf5", 2),
    ],
)
def test_every_recurrent_layer_is_in_it(
    name: str, layers: int, shrink: Shrink, tmp_path: Path
) -> None:
    source, out = FIXTURES / name, tmp_path / "out"
    made = shrink("compress", source, "--target", "Wi,Wh", "--rank", "3", "-o", out)
    assert made.status == 0, made.err
    args = (out, "--against", source, "--batch", "2", "--steps", "2", "--rounds", "1")
    *rows, everything = rows_of(shrink, *args)
    assert len({(row["name"], row["layer"], row["direction"]) for row in rows}) == layers
    assert len(rows) == layers
    assert {(row["rank_Wi"], row["rank_Wh"]) for row in rows} == {(3, 3)}
    assert everything["dense_seconds"] == pytest.approx(sum(r["dense_seconds"] for r in rows))


def test_the_clips_of_an_elmo_are_in_its_rival_too(shrink: Shrink) -> None:
    elmo = FIXTURES / "elmo" / "elmo.hdf5"
    done = shrink("bench", elmo, "--batch", "1", "--steps", "2", "--rounds", "1")
    assert {row["dense"] for row in done.rows} == {"dense loop"}
    assert "note: nn.LSTM can't clip as ELMo does" in done.err


def test_an_elmo_without_its_options_says_what_was_assumed(shrink: Shrink, tmp_path: Path) -> None:
    alone = tmp_path / "elmo.hdf5"
    alone.write_bytes((FIXTURES / "elmo" / "elmo.hdf5").read_bytes())
    done = shrink("bench", alone, "--batch", "1", "--steps", "2", "--rounds", "1")
    assert done.status == 0, done.err
    assert "note: no options file says where cells and states are clipped; taken as 3" in done.err


def test_a_model_without_recurrent_weights_is_refused(
    shrink: Shrink, write: Write, tmp_path: Path
) -> None:
    plain = write(tmp_path / "plain.safetensors", {"linear.weight": np.ones((4, 3))})
    qrnn = FIXTURES / "torch" / "awd_qrnn.zip.pt"
    for path, said in ((plain, "to time"), (qrnn, "to time, only qrnn")):
        done = shrink("bench", path, *QUICK)
        assert (done.status, done.out) == (3, "")
        message, hint = done.err.splitlines()
        assert message == f"ckptshrink: {path}: has no LSTM or GRU layer {said}"
        assert hint == "hint: ckptshrink inspect lists what there is"


def test_another_model_is_no_rival(
    artefact: Path, lstm_tensors: Tensors, write: Write, shrink: Shrink, tmp_path: Path
) -> None:
    narrow = {name: array[..., :8] for name, array in lstm_tensors.items() if "ih_l0" in name}
    narrow |= {"rnn.weight_hh_l0": np.ones((96, 24)), "rnn.bias_ih_l0": np.ones(96)}
    other = write(tmp_path / "other.safetensors", narrow)
    done = shrink("bench", artefact, "--against", other, *QUICK)
    assert done.status == 3
    assert "lstm 8→24" in done.err
    assert "lstm 16→24" in done.err
    awd = FIXTURES / "torch" / "awd_lstm.zip.pt"
    done = shrink("bench", artefact, "--against", awd, *QUICK)
    assert done.status == 3
    assert "has no layer rnn layer 0 forward" in done.err
    assert "hint: --against takes the checkpoint" in done.err


def test_the_same_layers_under_other_names_are_rivals(
    artefact: Path, lstm_tensors: Tensors, write: Write, shrink: Shrink, tmp_path: Path
) -> None:
    renamed = {name.replace("rnn.", "model.lstm."): a for name, a in lstm_tensors.items()}
    other = write(tmp_path / "other.safetensors", renamed)
    assert shrink("bench", artefact, "--against", other, *QUICK).status == 0


WRONG = {
    "a batch of 0": (("--batch", "0"), "is at least 1"),
    "a batch below 0": (("--batch", "8,-1"), "got -1"),
    "a batch that is no number": (("--batch", "8,x"), "'x' is no whole number"),
    "no batch": (("--batch", ""), "is no whole number"),
    "a batch too many": (("--batch", "1,"), "is no whole number"),
    "a batch beyond measure": (("--batch", "1000000000"), "at most"),
    "no step": (("--steps", "0"), "is at least 1"),
    "half a round": (("--rounds", "0.5"), "no whole number"),
    "no threads": (("--threads", "0"), "is at least 1"),
    "no such device": (("--device", "tpu"), "cuda"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(case: str, shrink: Shrink) -> None:
    args, expected = WRONG[case]
    done = shrink("bench", "x", *args)
    assert (done.status, done.out) == (2, "")
    message, hint = done.err.splitlines()
    assert expected in message
    assert hint == "hint: ckptshrink bench -h"


def test_what_can_not_be_read_is_status_3(artefact: Path, shrink: Shrink, tmp_path: Path) -> None:
    assert shrink("bench", tmp_path / "none", *QUICK).status == 3
    assert shrink("bench", artefact, "--against", tmp_path / "none", *QUICK).status == 3
    (artefact / "model.safetensors").unlink()
    assert shrink("bench", artefact, *QUICK).status == 3


def test_more_than_memory_holds_is_said_in_one_line(artefact: Path, shrink: Shrink) -> None:
    done = shrink("bench", artefact, "--batch", "1000000", "--steps", "1000000")
    assert done.status == 3
    assert "there is no memory for 1000000 steps of 1000000 sequences" in done.err
    assert "hint: a smaller --batch, or fewer --steps" in done.err


def test_a_batch_size_given_twice_is_measured_once(artefact: Path, shrink: Shrink) -> None:
    rows = rows_of(shrink, artefact, "--batch", "2,2", "--steps", "2", "--rounds", "1")
    assert [row["batch"] for row in rows] == [2, 2]  # the layer and the sum


def test_help_and_its_defaults_are_those_of_the_library(shrink: Shrink) -> None:
    import inspect

    from ckptshrink.runtime.bench import bench

    text = " ".join(shrink("bench", "-h").out.split())
    defaults = {n: p.default for n, p in inspect.signature(bench).parameters.items()}
    assert f"(default {','.join(map(str, defaults['batches']))})" in text
    assert f"Steps of each sequence (default {defaults['steps']})" in text
    assert f"take turns (default {defaults['rounds']})" in text
