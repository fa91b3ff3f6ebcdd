"""Compress, verify and restore real files of every family, through the library's own functions."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckptshrink.errors import CkptshrinkError, NonFiniteError, OutputError, PlanError
from ckptshrink.gates import GateMatrix
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.manifest import Manifest, TensorRecord, read_manifest
from ckptshrink.payload import Compute, to_tensor
from ckptshrink.plan import Settings
from ckptshrink.planning.opened import open_source, plan_checkpoint
from ckptshrink.planning.request import Request, Size, Target, parse_target
from ckptshrink.rewrite import compress, restore
from ckptshrink.verification import verify

REPO = Path(__file__).resolve().parents[2]
SUFFIXES = {".hdf5", ".h5", ".pt", ".pth", ".safetensors"}


def _checkpoints() -> list[Path]:
    found = [p for p in sorted((REPO / "fixtures").rglob("*")) if p.suffix in SUFFIXES]
    whole = [p for p in found if "-of-" not in p.name]
    return whole + sorted((REPO / "fixtures").rglob("*.index.json"))


CHECKPOINTS = _checkpoints()
ONE_THREAD = Compute("cpu", 1)


def asked(text: str = "all", settings: Settings | None = None, **how: object) -> Request:
    size = Size(**how) if how else None  # type: ignore[arg-type]
    return Request(
        tuple(map(parse_target, text.split())), size=size, settings=settings or Settings()
    )


def payloads(path: Path) -> dict[str, bytes]:
    with closing(open_checkpoint(path)) as reader:
        return {name: reader.read(name).tobytes() for name in reader.checkpoint.tensors}


def matrices(path: Path) -> Iterator[tuple[GateMatrix, torch.Tensor]]:
    reader, recognition = open_source(path)
    with closing(reader):
        for matrix in recognition.matrices:
            ref = reader.checkpoint.tensors[matrix.source]
            whole = to_tensor(reader.read(matrix.source), ref.shape, ref.dtype)
            yield matrix, whole if matrix.part is None else whole[matrix.part.slices]


def source_name(restored: str, source: Iterable[str]) -> str:
    """Return a restored tensor's name in the source: [model, criterion] comes back as two dicts."""
    if restored in source:
        return restored
    item, _, rest = restored.partition(".")
    return {"0": rest, "1": f"criterion.{rest}"}[item]


def digest_of(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def dense_of(out: Path, manifest: Manifest, name: str) -> torch.Tensor:
    """Multiply a row back with nothing but safetensors and the format's own rules."""
    stored = load_file(out / "model.safetensors")
    row = next(r for r in manifest.tensors if r.name == name)
    if row.action == "keep":
        return stored[row.stored_as[0]]
    return (stored[f"{name}.U"].double() @ stored[f"{name}.V"].double()).to(
        stored[f"{name}.U"].dtype
    )


def test_there_are_fixtures_of_every_family() -> None:
    families = set()
    for path in CHECKPOINTS:
        reader, recognition = open_source(path)
        reader.close()
        families.add((recognition.family, reader.checkpoint.format))
    assert {f for f, _ in families} >= {"elmo", "awd-lstm", "awd-qrnn", "torch-rnn", "fastai"}
    torch_formats = {f"torch-{kind}" for kind in ("zip", "legacy", "tar", "shards")}
    assert {c for _, c in families} <= {"hdf5", "safetensors", "torchscript"} | torch_formats
    assert {c for _, c in families} >= {"hdf5", "safetensors", "torchscript", "torch-zip"}


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.name)
def test_half_the_size_verifies_restores_and_repeats(path: Path, tmp_path: Path) -> None:
    before = digest_of(path.parent)
    out = tmp_path / "out"
    result = compress(path, out, asked(ratio=0.5), compute=ONE_THREAD)
    manifest = read_manifest(out)
    assert manifest == result.manifest
    report = verify(out, source=path)
    assert report.differences == ()
    # every tensor of the source has its fate
    source = payloads(path)
    assert {row.tensor for row in manifest.tensors} == set(source)
    # the same again is the same bytes
    compress(path, tmp_path / "again", asked(ratio=0.5), compute=ONE_THREAD)
    assert digest_of(out) == digest_of(tmp_path / "again")
    # what came back is the container it was, with untouched tensors as they were
    single = len(manifest.source.files) == 1
    restored, _ = restore(out, tmp_path / ("back" + path.suffix if single else "back"))
    back = payloads(restored)
    compressed = {row.tensor for row in manifest.tensors if row.action == "factorize"}
    repeats = {row.name: row.of for row in manifest.tensors if row.of}
    assert compressed
    for key, data in back.items():
        name = source_name(key, source)
        if name not in compressed and repeats.get(name) not in compressed:
            assert data == source[name], name
    assert digest_of(path.parent) == before, "the source was written to"


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.name)
def test_full_rank_restores_to_rounding(path: Path, tmp_path: Path) -> None:
    """Every matrix at its full rank, more bytes than dense: values come back to 1e-6 (float32)."""
    settings = Settings(allow_inflate=True)
    compress(path, tmp_path / "out", asked(settings=settings, rank=10**6), compute=ONE_THREAD)
    manifest = read_manifest(tmp_path / "out")
    single = len(manifest.source.files) == 1
    restored, _ = restore(tmp_path / "out", tmp_path / ("back" + path.suffix if single else "back"))
    index = payloads(path)
    reader, _ = open_source(restored)
    with closing(reader):
        names = {source_name(key, index): key for key in reader.checkpoint.tensors}
        for matrix, W in matrices(path):
            ref = reader.checkpoint.tensors[names[matrix.source]]
            whole = to_tensor(reader.read(ref.name), ref.shape, ref.dtype)
            got = whole if matrix.part is None else whole[matrix.part.slices]
            bound = {"F64": 1e-12, "F32": 1e-6, "F16": 2e-3, "BF16": 1.6e-2}[ref.dtype]
            assert torch.linalg.norm((got - W).double()) <= bound * torch.linalg.norm(W.double())


def owner_of(name: str, rows: dict[str, TensorRecord]) -> str:
    row = rows.get(name)
    return name if row is None or row.of is None else owner_of(row.of, rows)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.name)
def test_dense_format_is_the_sources_container(path: Path, tmp_path: Path) -> None:
    with closing(open_checkpoint(path)) as reader:
        index, files = dict(reader.checkpoint.tensors), reader.checkpoint.files
    out = tmp_path / (path.name if len(files) == 1 else "folder")
    manifest = compress(path, out, asked("all", rank=2), dense=True, compute=ONE_THREAD).manifest
    with closing(open_checkpoint(out)) as reader:
        assert list(reader.checkpoint.tensors) == list(index)
        for name, ref in reader.checkpoint.tensors.items():
            assert (ref.shape, ref.dtype) == (index[name].shape, index[name].dtype)
    new, old = payloads(out), payloads(path)
    touched = {row.tensor for row in manifest.tensors if row.action == "factorize"}
    rows = {row.name: row for row in manifest.tensors}
    follows = {name for name, row in rows.items() if row.of and owner_of(row.of, rows) in touched}
    # the optimizer's averages of a compressed weight get its values too
    follows |= {f"optimizer.state.{name}.ax" for name in touched} & set(old)
    assert touched
    for name in old:
        if name in touched or name in follows:
            assert new[name] != old[name], name
        else:
            assert new[name] == old[name], name
    got = {m.key: W for m, W in matrices(out)}
    for row in manifest.tensors:
        if row.action == "factorize":
            values = torch.linalg.svdvals(got[row.name].double())
            assert float(values[2:].sum()) <= 1e-2 * float(values.sum()), "the rank is not 2"


def test_each_method_and_grouping_on_an_elmo(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    errors = {}
    for method in ("svd", "semi-nmf", "prune"):
        for grouping in ("stacked", "per-gate"):
            for dtype in ("keep", "float16", "bfloat16"):
                out = tmp_path / f"{method}-{grouping}-{dtype}"
                request = Request(
                    (Target("Wh"), Target("Wi")), size=Size(ratio=0.5), method=method,
                    grouping=grouping, dtype=dtype,
                )  # fmt: skip
                compress(path, out, request, compute=ONE_THREAD)
                report = verify(out, source=path)
                assert report.passed, report.differences
                assert report.worst is not None
                errors[out.name] = report.worst[1]
                restored, _ = restore(out, tmp_path / f"{out.name}.hdf5")
                assert set(payloads(restored)) == set(payloads(path))
    assert errors["svd-stacked-keep"] <= errors["semi-nmf-stacked-keep"] * (1 + 1e-6)
    assert abs(errors["svd-stacked-float16"] / errors["svd-stacked-keep"] - 1) < 1e-3


def test_an_error_asked_for_is_the_error_in_the_file(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    for limit in (0.6, 0.3, 0.1):
        out = tmp_path / str(limit)
        compress(path, out, asked("Wh", max_error=limit), compute=ONE_THREAD)
        rows = [r for r in read_manifest(out).tensors if r.role == "Wh"]
        assert all(r.rel_error is not None and r.rel_error <= limit for r in rows)
        assert verify(out, source=path).passed


def test_a_budget_is_kept_on_disk(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    sizes = []
    for share in (0.4, 0.6, 0.8):
        out = tmp_path / str(share)
        request = Request((Target("all"),), budget=share)
        compress(path, out, request, compute=ONE_THREAD)
        sizes.append((out / "model.safetensors").stat().st_size)
        assert sizes[-1] <= share * path.stat().st_size
        assert sizes[-1] >= (share - 0.05) * path.stat().st_size
    assert sizes == sorted(sizes)


def test_one_thread_alone_makes_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = REPO / "fixtures" / "safetensors" / "lstm.safetensors"
    compress(source, tmp_path / "a", asked(ratio=0.5), compute=ONE_THREAD)

    def start(thread: threading.Thread) -> None:
        raise AssertionError(f"{thread.name} is started")

    monkeypatch.setattr(threading.Thread, "start", start)
    alone = Compute("cpu", 1, aside=False)
    compress(source, tmp_path / "b", asked(ratio=0.5), compute=alone)
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")


def test_a_plan_runs_as_it_is(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    request = asked("Wh", energy=0.8)
    plan = plan_checkpoint(path, request, device="cpu", threads=1)
    compress(path, tmp_path / "a", plan, compute=ONE_THREAD)
    compress(path, tmp_path / "b", request, compute=ONE_THREAD)
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")
    assert read_manifest(tmp_path / "a").plan_digest == plan.digest


def _spoilt(folder: Path, value: float) -> Path:
    path = folder / "spoilt.hdf5"
    shutil.copy(REPO / "fixtures" / "elmo" / "elmo.hdf5", path)
    with h5py.File(path, "r+") as file:
        file["RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/W_0"][-1, 3] = value
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dense", [False, True])
def test_nonfinite_weights_are_refused_or_left_alone(
    tmp_path: Path, value: float, dense: bool
) -> None:
    path = _spoilt(tmp_path, value)
    with pytest.raises(NonFiniteError, match=r"W_0\.Wh \["):
        compress(path, tmp_path / "out", asked("Wh", rank=4), dense=dense)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spoilt.hdf5"]
    settings = Settings(nonfinite="copy")
    result = compress(path, tmp_path / "out", asked("Wh", settings, rank=4), dense=dense)
    actions = {r.name: r.action for r in result.manifest.tensors if r.role == "Wh"}
    assert sorted(actions.values()) == ["factorize"] * 3 + ["keep"]
    if not dense:
        assert verify(tmp_path / "out", source=path).passed


def test_averages_are_compared_and_can_be_taken(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "awd_lstm" / "whole_module_torch1.2.pt"
    result = compress(path, tmp_path / "out", asked("Wh", rank=8), compute=ONE_THREAD)
    notes = " ".join(result.manifest.source.notes)
    assert "ASGD averages (ax)" in notes
    settings = Settings(use_averaged=True)
    compress(path, tmp_path / "ax", asked("Wh", settings, rank=8), compute=ONE_THREAD)
    assert verify(tmp_path / "ax", source=path).passed
    stored = load_file(tmp_path / "ax" / "model.safetensors")
    averages = payloads(path)["optimizer.state.decoder.bias.ax"]
    assert stored["decoder.bias"].numpy().tobytes() == averages


def test_an_artefact_is_refused_where_it_would_lose_something(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    compress(path, tmp_path / "out", asked("Wh", rank=4))
    kept = digest_of(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        compress(path, tmp_path / "out", asked("Wh", rank=5))
    with pytest.raises(OutputError, match="is the input"):
        compress(path, path, asked("Wh", rank=5), dense=True, overwrite=True)
    with pytest.raises(PlanError):
        compress(path, tmp_path / "out", asked("Wz", rank=5), overwrite=True)
    assert digest_of(tmp_path / "out") == kept
    compress(path, tmp_path / "out", asked("Wh", rank=5), overwrite=True)
    assert digest_of(tmp_path / "out") != kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    compress(path, tmp_path / "one", asked("Wh", rank=4), compute=ONE_THREAD)
    compress(
        path, tmp_path / "many", asked("Wh", rank=4), compute=ONE_THREAD, max_shard_bytes=60_000
    )
    assert verify(tmp_path / "many", source=path).passed
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    one = load_file(tmp_path / "one" / "model.safetensors")
    assert set(index["weight_map"]) == set(one)
    assert len(set(index["weight_map"].values())) > 3
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "many" / shard)[name], one[name])
    restored, _ = restore(tmp_path / "many", tmp_path / "back.hdf5")
    assert set(payloads(restored)) == set(payloads(path))


def test_every_flipped_bit_of_an_artefact_is_found(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    out = tmp_path / "out"
    compress(path, out, asked("Wh", rank=4))
    assert verify(out).passed
    rng = np.random.default_rng(7)
    for file in sorted(out.iterdir()):
        data = file.read_bytes()
        for _ in range(40):
            at, bit = int(rng.integers(len(data))), int(rng.integers(8))
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            file.write_bytes(changed)
            with suppress(CkptshrinkError):
                assert not verify(out).passed, f"{file.name}: byte {at} bit {bit}"
        file.write_bytes(data)
    assert verify(out).passed
    (out / "extra.bin").write_bytes(b"x")
    assert verify(out).differences == ("extra.bin: is not listed in the manifest",)


def test_verify_notices_another_source(tmp_path: Path) -> None:
    path = REPO / "fixtures" / "elmo" / "elmo.hdf5"
    compress(path, tmp_path / "out", asked("Wh", rank=4))
    other = tmp_path / "other.hdf5"
    shutil.copy(path, other)
    with h5py.File(other, "r+") as file:
        file["CNN_proj/b_proj"][0] += 1
    found = verify(tmp_path / "out", source=other).differences
    assert found == ("CNN_proj/b_proj: was to be kept, and differs from the source",)
