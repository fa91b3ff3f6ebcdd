"""What is carried along with a model's weights, and what is left out and said to be."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckptshrink.errors import ManifestMismatchError, UnknownFormatError, UnsafeCheckpointError
from ckptshrink.io import model_folder
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.model_folder import MAX_SIDECAR, recorded_sidecars, sidecars_of


def opened(path: Path) -> Checkpoint:
    with closing(open_checkpoint(path)) as reader:
        return reader.checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a model's folder with one safetensors file."""
    home = tmp_path / "model"
    home.mkdir()
    save_file({"w": torch.zeros(4, 4)}, home / "model.safetensors")
    (home / "config.json").write_text('{"model_type": "bert"}')
    return home


def test_configuration_and_tokenizer_are_carried_and_programs_are_not(folder: Path) -> None:
    carried = [
        "LICENSE", "added_tokens.json", "chat_template.jinja", "config.json",
        "generation_config.json", "merges.txt", "preprocessor_config.json",
        "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model", "tokenizer.json",
        "tokenizer_config.json", "vocab.json", "vocab.txt",
    ]  # fmt: skip
    left = [
        "README.md", "manifest.json", "modeling_own.py", "run.sh", "tf_model.h5",
        "training_args.bin", "vocab.pkl",
    ]  # fmt: skip
    for name in [*carried, *left, ".gitattributes"]:
        if name != "config.json":
            (folder / name).write_bytes(b"\n")
    (folder / "onnx").mkdir()
    checkpoint = opened(folder)
    assert [path.name for path in checkpoint.sidecars] == carried
    assert checkpoint.notes == (
        f"left out of the folder: {', '.join([*left[:3], 'onnx', *left[3:]])}",
    )
    assert checkpoint.model_type == "bert"
    assert checkpoint.root == folder
    assert not checkpoint.is_single


@given(
    stem=st.sampled_from(["config", "tokenizer", "vocab", "spiece", "config.json", "a", "model"]),
    suffix=st.sampled_from(
        [
            ".py",
            ".pkl",
            ".pt",
            ".bin",
            ".sh",
            ".so",
            ".json.py",
            ".h5",
            ".exe",
            "",
            "/x.json",
            ".pth",
        ]
    ),
)
def test_no_program_nor_pickle_has_a_name_that_is_carried(stem: str, suffix: str) -> None:
    name = stem + suffix
    assert name == "config.json" or not model_folder._CARRIED.fullmatch(name)


def linked_out(path: Path) -> None:
    (path.parent.parent / "secret").write_text("{}")
    path.symlink_to(path.parent.parent / "secret")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_SIDECAR + 1)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link out": (linked_out, "is a link that leads out of its folder"),
    "link to itself": (lambda p: p.symlink_to(p.name), "link"),
    "link to nothing": (lambda p: p.symlink_to("gone"), "there is no such file"),
    "huge": (huge, f"has {MAX_SIDECAR + 1:,} bytes"),
    "folder": (lambda p: p.mkdir(), "is a folder, not a file"),
    "named pipe": (lambda p: os.mkfifo(p), "is a named pipe, not a file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_configuration_that_is_no_plain_file_is_left_out(folder: Path, kind: str) -> None:
    (folder / "config.json").unlink()
    make, why = HOSTILE[kind]
    make(folder / "config.json")
    for path in (folder, folder / "model.safetensors"):
        checkpoint = opened(path)
        assert checkpoint.sidecars == ()
        assert checkpoint.model_type is None
        if path == folder:
            assert len(checkpoint.notes) == 1
            assert checkpoint.notes[0].startswith("left out config.json: ")
            assert why in checkpoint.notes[0]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("{", "not valid"),
        ("[]", "not a JSON object"),
        ('{"model_type": "bert", "model_type": "gpt2"}', "twice"),
        ("[" * 100_000, "nested too deeply"),
        ("\x00", "not valid"),
    ],
)
def test_a_configuration_without_one_meaning_is_carried_and_not_believed(
    folder: Path, text: str, note: str
) -> None:
    (folder / "config.json").write_text(text)
    checkpoint = opened(folder)
    assert [path.name for path in checkpoint.sidecars] == ["config.json"]
    assert checkpoint.model_type is None
    assert note in checkpoint.notes[0]


@pytest.mark.parametrize("value", [3, None, ["bert"], "", "a b", "x" * 61, "\x1b[2J", "ü"])
def test_a_model_type_is_a_short_plain_word(folder: Path, value: object) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": value}))
    assert opened(folder).model_type is None


def test_code_of_the_model_is_named(folder: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text("raise SystemExit")
    notes = opened(folder).notes
    assert "left out of the folder: modeling_own.py" in notes
    assert any("auto_map" in note for note in notes)


def test_a_tied_output_layer_is_listed_where_it_is_not_stored(folder: Path) -> None:
    config = {"architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert any("output layer is tied" in note for note in opened(folder).notes)
    save_file({"lm_head.weight": torch.zeros(4, 4)}, folder / "model.safetensors")
    assert opened(folder).notes == ()


def test_a_pickle_in_the_place_of_a_sentencepiece_model_is_left_out(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(pickle.dumps({"a": 1}))
    (folder / "empty.model").write_bytes(b"")
    checkpoint = opened(folder)
    assert [path.name for path in checkpoint.sidecars] == ["config.json"]
    assert [n for n in checkpoint.notes if "no SentencePiece model" in n] == list(checkpoint.notes)


def test_no_more_files_than_a_model_has(folder: Path) -> None:
    for i in range(model_folder.MAX_SIDECARS):
        (folder / f"x{i}_config.json").write_text("{}")
    found = sidecars_of(folder, ["model.safetensors"])
    assert len(found.carried) == model_folder.MAX_SIDECARS
    assert len(found.notes) == 1


def test_a_folder_of_very_many_files_is_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "MAX_ENTRIES", 5)
    for i in range(6):
        (folder / str(i)).touch()
    with pytest.raises(UnknownFormatError, match="more than 5 entries"):
        opened(folder)


def test_a_snapshot_of_the_hub_s_cache_is_links_into_its_blobs(folder: Path) -> None:
    cache = folder.parent / "models--x"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in folder.iterdir():
        shutil.move(path, cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    checkpoint = opened(snapshot)
    assert [path.name for path in checkpoint.sidecars] == ["config.json"]
    assert checkpoint.model_type == "bert"


def test_safetensors_come_before_pickles_as_transformers_has_it(folder: Path) -> None:
    torch.save({"v": torch.ones(2, 2)}, folder / "pytorch_model.bin")
    checkpoint = opened(folder)
    assert list(checkpoint.tensors) == ["w"]
    assert "left out of the folder: pytorch_model.bin" in checkpoint.notes
    (folder / "model.safetensors").unlink()
    checkpoint = opened(folder)
    assert (checkpoint.format, list(checkpoint.tensors)) == ("torch-zip", ["v"])
    assert checkpoint.container["folder"] == {"weights": "pytorch_model.bin"}


def test_a_file_of_a_model_s_folder_brings_what_lies_beside_it(folder: Path) -> None:
    checkpoint = opened(folder / "model.safetensors")
    assert checkpoint.root == folder / "model.safetensors"
    assert checkpoint.is_single
    assert [path.name for path in checkpoint.sidecars] == ["config.json"]
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    assert opened(folder / "other.safetensors").sidecars == ()


def test_two_indexes_are_one_too_many(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.bin.index.json").write_text('{"weight_map": {"w": "x"}}')
    with pytest.raises(UnknownFormatError, match="2 files") as caught:
        opened(tmp_path)
    assert "a.bin.index.json" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/x.json", "..", ".", "", "other.json"])
def test_a_manifest_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestMismatchError, match="no file beside"):
        recorded_sidecars(tmp_path, [name], {"config.json", "../x", "/etc/passwd", "sub/x.json"})


def test_a_link_in_an_artefact_is_not_followed_out(tmp_path: Path) -> None:
    (tmp_path / "artefact").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "artefact" / "config.json").symlink_to("../secret")
    with pytest.raises(UnsafeCheckpointError):
        recorded_sidecars(tmp_path / "artefact", ["config.json"], {"config.json"})
