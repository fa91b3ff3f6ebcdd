"""AllenNLP's archives: what is read of one, what is carried along, and what is written again."""

import io
import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptshrink.digest import file_sha256
from ckptshrink.errors import CheckpointError, ManifestMismatchError
from ckptshrink.io.archive_file import open_archive
from ckptshrink.io.containers import write_like, write_new
from ckptshrink.io.staging import Staging
from ckptshrink.io.torch_file import open_torch
from ckptshrink.manifest import Manifest, read_manifest
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress, restore

NAMES = ["tagger.tar.gz", "elmo_tagger.tar.gz"]
REQUEST = Request((parse_target("Wi,Wh"),), size=Size(rank=3))


def members(path: Path) -> dict[str, bytes | None]:
    """Return the content of an archive by name, None for folders, in order."""
    with tarfile.open(path) as tar:
        return {
            m.name: file.read() if (file := tar.extractfile(m)) is not None else None for m in tar
        }


def state(path: Path) -> dict[str, torch.Tensor]:
    content = members(path)["weights.th"]
    assert content is not None
    loaded: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def beside(path: Path) -> list[tuple[str, bytes | None]]:
    return [(name, None if name == "weights.th" else x) for name, x in members(path).items()]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_the_weights_inside(fixtures: Path, name: str) -> None:
    path = fixtures / "allennlp" / name
    expected = state(path)
    with closing(open_archive(path)) as reader:
        checkpoint = reader.checkpoint
        assert (checkpoint.root, checkpoint.files) == (path, (path,))
        assert checkpoint.format == "allennlp-archive"
        assert checkpoint.nbytes == path.stat().st_size
        assert list(checkpoint.tensors) == list(expected)
        for key, value in expected.items():
            assert reader.read(key).tobytes() == value.numpy().tobytes()
            assert b"".join(map(bytes, reader.chunks(key))) == value.numpy().tobytes()
        carried = {k: f.read(0, f.size).tobytes() for k, f in checkpoint.carried.items()}
    inside = {k: x for k, x in members(path).items() if x is not None and k != "weights.th"}
    assert carried == {f"archive/{k}": x for k, x in inside.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [True, False])
def test_a_copy_with_nothing_exchanged(
    fixtures: Path, tmp_path: Path, name: str, packed: bool
) -> None:
    source = fixtures / "allennlp" / name
    if not packed:
        plain = tmp_path / "model.tar"
        with tarfile.open(source) as one, tarfile.open(plain, "w") as other:
            for member in one:
                other.addfile(member, one.extractfile(member))
        source = plain
    out = tmp_path / "out.tar.gz"
    with closing(open_archive(source)) as reader, Staging(out, single=True) as staging:
        write_like(reader, {}, staging)
        staging.commit()
    assert members(out) == members(source)
    assert list(members(out)) == list(members(source))
    assert (out.read_bytes()[:2] == b"\x1f\x8b") == packed


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back(fixtures: Path, tmp_path: Path, name: str, dense: bool) -> None:
    source, back = fixtures / "allennlp" / name, tmp_path / "back.tar.gz"
    made = compress(source, tmp_path / "out", REQUEST, dense=dense, compute=Compute("cpu", 1))
    if dense:
        back = made.out
    else:
        restore(made.out, back)
    assert beside(back) == beside(source)
    before, after = state(source), state(back)
    assert [(k, x.shape, x.dtype) for k, x in before.items()] == [
        (k, x.shape, x.dtype) for k, x in after.items()
    ]
    errors = {row.name: row.rel_error for row in made.manifest.tensors}
    assert any(errors.values())
    for key, value in before.items():
        # what stays is there bit by bit, and what was compressed is as far off as the manifest says
        error = errors[key]
        assert error is not None
        found = float((value - after[key]).norm() / value.norm())
        assert found == pytest.approx(error, rel=1e-4, abs=1e-6)
    with tarfile.open(back) as tar:
        assert {(m.mtime, m.uid, m.uname) for m in tar} == {(0, 0, "")}


def test_the_same_bytes_on_every_run(fixtures: Path, tmp_path: Path) -> None:
    made = []
    for k in (0, 1):
        out = tmp_path / str(k)
        compress(fixtures / "allennlp" / NAMES[0], out, REQUEST, compute=Compute("cpu", 1))
        restore(out, tmp_path / f"{k}.tar.gz")
        made.append((read_manifest(out).manifest_sha256, file_sha256(tmp_path / f"{k}.tar.gz")))
    assert made[0] == made[1]


def test_an_artefact_has_configuration_and_vocabulary_as_files(
    fixtures: Path, tmp_path: Path
) -> None:
    source = fixtures / "allennlp" / "tagger.tar.gz"
    compress(source, tmp_path / "out", REQUEST, compute=Compute("cpu", 1))
    config = json.loads((tmp_path / "out" / "archive" / "config.json").read_bytes())
    assert config["model"]["type"] == "simple_tagger"
    manifest = read_manifest(tmp_path / "out")
    assert {f.path for f in manifest.files} >= {"archive/vocabulary/tokens.txt"}
    archive = manifest.container["archive"]
    assert archive["members"] == [n + "/" * (x is None) for n, x in members(source).items()]


@pytest.fixture
def artefact(fixtures: Path, tmp_path: Path) -> Path:
    compress(
        fixtures / "allennlp" / "tagger.tar.gz", tmp_path / "a", REQUEST, compute=Compute("cpu", 1)
    )
    return tmp_path / "a"


def test_a_changed_or_missing_member_is_not_restored(artefact: Path, tmp_path: Path) -> None:
    config = artefact / "archive" / "config.json"
    kept = config.read_bytes()
    config.write_bytes(kept + b" ")
    with pytest.raises(ManifestMismatchError, match="was changed"):
        restore(artefact, tmp_path / "back.tar.gz")
    config.unlink()
    with pytest.raises(ManifestMismatchError, match="is missing"):
        restore(artefact, tmp_path / "back.tar.gz")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    config.symlink_to(secret)
    with pytest.raises(ManifestMismatchError, match="was changed"):
        restore(artefact, tmp_path / "back.tar.gz")
    assert not list(tmp_path.glob("*back*"))


BAD: dict[str, Any] = {
    "none": None,
    "no list": {"is_packed": True, "weights": "weights.th", "members": "weights.th"},
    "no weights": {"is_packed": True, "weights": "weights.th", "members": ["config.json"]},
    "above": {"is_packed": True, "weights": "w", "members": ["w", "../../secret"]},
    "absolute": {"is_packed": True, "weights": "w", "members": ["w", "/etc/passwd"]},
    "twice": {"is_packed": True, "weights": "w", "members": ["w", "x", "x"]},
    "weights twice": {"is_packed": True, "weights": "w", "members": ["w", "w"]},
    "numbers": {"is_packed": 1, "weights": "w", "members": ["w"]},
    "empty name": {"is_packed": True, "weights": "w", "members": ["w", ""]},
}


@pytest.mark.parametrize("name", BAD)
def test_a_manifest_is_believed_no_more_than_an_archive(
    artefact: Path, tmp_path: Path, name: str
) -> None:
    manifest = read_manifest(artefact)
    container = {**manifest.container, "archive": BAD[name]}
    forged: Manifest = manifest.model_copy(update={"container": container}).sealed()
    (artefact / "manifest.json").write_bytes(forged.to_bytes())
    with pytest.raises(ManifestMismatchError, match="no proper record"):
        restore(artefact, tmp_path / "back.tar.gz")
    assert not list(tmp_path.glob("*back*"))


def test_best_th_stands_in_for_weights_th(fixtures: Path, tmp_path: Path) -> None:
    """AllenNLP falls back to it; of both it takes weights.th."""
    best = (fixtures / "allennlp" / "best.th").read_bytes()
    path = tmp_path / "model.tar.gz"
    for names in (["best.th"], ["best.th", "weights.th"]):
        with tarfile.open(path, "w:gz") as tar:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = len(best)
                tar.addfile(entry, io.BytesIO(best))
        with closing(open_archive(path)) as reader:
            assert reader.checkpoint.container["archive"]["weights"] == names[-1]
            assert len(reader.checkpoint.carried) == len(names) - 1


def test_errors_about_the_weights_name_the_archive(fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    data = (fixtures / "allennlp" / "best.th").read_bytes()[:-100]
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("weights.th")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(CheckpointError, match=r"model\.tar\.gz/weights\.th"):
        open_archive(path)


def test_a_reader_outlives_the_file_it_was_unpacked_from(fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes((fixtures / "allennlp" / "tagger.tar.gz").read_bytes())
    with closing(open_archive(path)) as reader, closing(open_archive(path)) as other:
        path.unlink()
        for name in reader.checkpoint.tensors:
            assert (reader.read(name) == other.read(name)).all()


def test_bare_weights_are_a_file_of_torch(fixtures: Path) -> None:
    with closing(open_torch(fixtures / "allennlp" / "best.th")) as reader:
        assert reader.checkpoint.format == "torch-legacy"


def test_no_archive_is_made_of_another_container(tmp_path: Path) -> None:
    with Staging(tmp_path / "x", single=True) as staging, pytest.raises(ManifestMismatchError):
        write_new("allennlp-archive", {}, {}, lambda _: iter(()), open_nothing, staging)


def open_nothing(place: str) -> Any:
    raise AssertionError(place)
