"""Folders of transformers from the command line: there and back with all that belongs to them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import Shrink
from safetensors.torch import load_file

FOLDERS = {
    "bert": ("safetensors", "bert"),
    "gpt2": ("torch-zip", "gpt2"),
    "t5": ("torch-shards", "t5"),
    "bert_pruned": ("torch-zip", "masked_bert"),
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            found |= load_file(path)
        elif path.suffix == ".bin":
            found |= torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_there_and_back(name: str, fixtures: Path, shrink: Shrink, tmp_path: Path) -> None:
    source = fixtures / "transformers" / name
    listed = json.loads(shrink("inspect", "--json", source).out)["checkpoints"][0]
    assert (listed["format"], listed["family"]) == FOLDERS[name]
    assert listed["unrecognised"] == []
    out, back, dense = tmp_path / "out", tmp_path / "back", tmp_path / "dense"
    args = (source, "--target", "linear", "--rank", "6")
    made = shrink("compress", *args, "-o", out)
    assert made.status == 0, made.err
    assert shrink("compress", *args, "--format", "dense", "-o", dense).status == 0
    assert shrink("verify", out, "--source", source).status == 0
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    out = out.rename(tmp_path / "moved")
    assert shrink("restore", out, "-o", back).status == 0
    files = sorted(path.name for path in source.iterdir())
    theirs = weights(source)
    for folder in (back, dense):
        assert sorted(path.name for path in folder.iterdir()) == files
        for path in source.iterdir():
            if path.suffix not in {".bin", ".safetensors"}:
                assert (folder / path.name).read_bytes() == path.read_bytes()
        ours = weights(folder)
        assert list(ours) == list(theirs)
        assert {n: (x.shape, x.dtype) for n, x in ours.items()} == {
            n: (x.shape, x.dtype) for n, x in theirs.items()
        }
        changed = {n for n in ours if not torch.equal(ours[n], theirs[n])}
        assert changed == {row["name"] for row in made.rows if row["action"] == "factorize"}
        assert len(changed) >= 6
        # tied names are one storage again where the container can say so
        pointers: dict[int, int] = {}
        for x in theirs.values():
            pointers[x.data_ptr()] = pointers.get(x.data_ptr(), 0) + 1
        assert len({x.data_ptr() for x in ours.values()}) == len(pointers)


def test_globs_name_layers(fixtures: Path, shrink: Shrink, tmp_path: Path) -> None:
    source = fixtures / "transformers" / "bert"
    args = ("--target", "bert.encoder.*", "--rank", "5", "-o", tmp_path / "out")
    made = shrink("compress", source, *args)
    assert made.status == 0, made.err
    factorized = [row["name"] for row in made.rows if row["action"] == "factorize"]
    assert len(factorized) == 12
    assert all(name.startswith("bert.encoder.layer.") for name in factorized)


def test_the_default_place_is_beside_the_folder(
    fixtures: Path, shrink: Shrink, tmp_path: Path
) -> None:
    source = shutil.copytree(fixtures / "transformers" / "gpt2", tmp_path / "my_gpt2")
    done = shrink("compress", f"{source}/", "--target", "linear", "--rank", "4")
    assert done.status == 0, done.err
    assert (tmp_path / "my_gpt2.shrunk" / "vocab.json").is_file()


def test_what_is_left_out_is_said_and_recorded(
    fixtures: Path, shrink: Shrink, tmp_path: Path
) -> None:
    source = shutil.copytree(fixtures / "transformers" / "gpt2", tmp_path / "model")
    (source / "modeling_own.py").write_text("raise SystemExit")
    done = shrink("inspect", source)
    assert "left out of the folder: modeling_own.py" in done.err
    out = tmp_path / "out"
    shrink("compress", source, "--target", "linear", "--rank", "4", "-o", out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert "left out of the folder: modeling_own.py" in manifest["source"]["notes"]
    assert manifest["source"]["sidecars"] == [
        "config.json", "generation_config.json", "merges.txt", "vocab.json",
    ]  # fmt: skip
    assert not (out / "modeling_own.py").exists()
    assert "`from_pretrained` knows no factors" in (out / "README.md").read_text()


def test_a_sidecar_that_was_changed_is_found(
    fixtures: Path, shrink: Shrink, tmp_path: Path
) -> None:
    source, out = fixtures / "transformers" / "gpt2", tmp_path / "out"
    shrink("compress", source, "--target", "linear", "--rank", "4", "-o", out)
    (out / "config.json").write_text("{}")
    assert shrink("verify", out).status == 1
    (out / "config.json").unlink()
    done = shrink("restore", out, "-o", tmp_path / "back")
    assert done.status == 3
    assert "config.json" in done.err
    assert not (tmp_path / "back").exists()


def test_pruning_scores_are_a_note(fixtures: Path, shrink: Shrink) -> None:
    done = shrink("inspect", fixtures / "transformers" / "bert_pruned")
    assert "note: movement pruning: weights are stored without their masks" in done.err
    scores = [row for row in done.rows if row["name"].endswith("mask_scores")]
    assert scores
    assert all(row["role"] == "" and "movement pruning" in row["note"] for row in scores)
