"""The whole way there and back, for every checkpoint of the fixtures."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from cli_helpers import Shrink

from ckptshrink.io.detect import open_checkpoint

FIXTURES = Path(__file__).resolve().parent.parent.parent / "fixtures"

SUFFIXES = (
    "*.hdf5", "*.h5", "*.keras", "*.pt", "*.safetensors", "*.index.json", "*.th", "*.tar.gz",
    "*.bin",
)  # fmt: skip
FILES = sorted(
    path.relative_to(FIXTURES).as_posix()
    for suffix in SUFFIXES
    for path in FIXTURES.rglob(suffix)
    if "-of-0" not in path.name  # a shard is no checkpoint of its own
    and "trained" not in path.parts  # those are large, and of families that are here already
)


def test_there_are_fixtures_of_every_format(shrink: Shrink) -> None:
    paths = [FIXTURES / name for name in FILES]
    listed = json.loads(shrink("inspect", "--json", *paths).out)["checkpoints"]
    formats = {found["format"] for found in listed}
    torch_formats = {f"torch-{kind}" for kind in ("zip", "legacy", "tar", "shards")}
    others = {"torchscript", "hdf5", "keras", "safetensors", "allennlp-archive"}
    assert formats == torch_formats | others


@pytest.mark.parametrize("name", FILES)
def test_there_and_back(name: str, shrink: Shrink, tmp_path: Path) -> None:
    source, out, back = FIXTURES / name, tmp_path / "out", tmp_path / "back"
    before = source.read_bytes()
    listed = shrink("inspect", source)
    assert listed.status == 0, listed.err
    args = ("--target", "all", "--rank", "3", "-o", out)
    made = shrink("compress", source, *args)
    assert made.status == 0, made.err
    actions = {row["name"]: row["action"] for row in made.rows}
    assert {row["name"] for row in listed.rows} == set(actions)
    assert "factorize" in actions.values()
    assert shrink("verify", out, "--source", source).status == 0
    assert shrink("restore", out, "-o", back).status == 0
    again = shrink("inspect", back)
    assert again.status == 0, again.err
    # Of a whole module the state dict comes back, which has no _flat_weights and no masked copies;
    # of [model, criterion, optimizer] a list of two, whose names begin with their place in it.
    kept = [row for row in listed.rows if actions[row["name"]] in {"factorize", "keep"}]
    shapes = {row["name"]: row["shape"] for row in again.rows}
    for row in kept:
        plain = row["name"].removeprefix("criterion.")
        places = [shapes.get(f"{prefix}{plain}") for prefix in ("", "0.", "1.")]
        assert row["shape"] in places, row["name"]
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", [name for name in FILES if "awd_lstm." in name])
def test_averages_are_taken_only_when_asked(name: str, shrink: Shrink, tmp_path: Path) -> None:
    notes = {}
    for flags in ([], ["--use-averaged"]):
        out = tmp_path / f"out{len(flags)}"
        args = ("--target", "Wh", "--rank", "3", "-o", out, *flags)
        done = shrink("compress", FIXTURES / name, *args)
        assert done.status == 0, done.err
        assert shrink("verify", out, "--source", FIXTURES / name).status == 0
        notes[len(flags)] = done.err
    assert "ASGD averages (ax)" in notes[0]


def test_a_checkpoint_without_averages_has_none_to_take(shrink: Shrink, tmp_path: Path) -> None:
    args = ("--target", "Wh", "--rank", "3", "--use-averaged", "-o", tmp_path / "out")
    done = shrink("compress", FIXTURES / "elmo" / "elmo.hdf5", *args)
    assert done.status == 3
    assert "keeps no ASGD averages" in done.err


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("keras/lm")])
def test_a_dense_keras_file_differs_in_what_was_compressed_alone(
    name: str, shrink: Shrink, tmp_path: Path
) -> None:
    source, out = FIXTURES / name, tmp_path / name.replace("/", "_")
    made = shrink(
        "compress", source, "--target", "Wh", "--rank", "2", "--format", "dense", "-o", out
    )
    assert made.status == 0, made.err
    changed = {row["name"] for row in made.rows if row["action"] == "factorize"}
    assert len(changed) == 3
    with closing(open_checkpoint(source)) as old, closing(open_checkpoint(out)) as new:
        assert list(old.checkpoint.tensors) == list(new.checkpoint.tensors)
        assert old.checkpoint.container == new.checkpoint.container
        for tensor in old.checkpoint.tensors:
            same = old.read(tensor).tobytes() == new.read(tensor).tobytes()
            assert same == (tensor not in changed)
