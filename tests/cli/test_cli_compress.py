"""``compress``: what it writes, what it says, and what it leaves alone."""

import hashlib
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import Shrink, Tensors, Write


def digest_of(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def test_the_common_case(fixtures: Path, shrink: Shrink, tmp_path: Path) -> None:
    elmo = tmp_path / "elmo.hdf5"
    elmo.write_bytes((fixtures / "elmo" / "elmo.hdf5").read_bytes())
    before = digest_of(elmo)
    done = shrink("compress", elmo, "--target", "Wh", "--rank", "4")
    assert done.status == 0, done.err
    out = tmp_path / "elmo.shrunk"
    assert {"model.safetensors", "manifest.json", "README.md"} <= {f.name for f in out.iterdir()}
    assert digest_of(elmo) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elmo.hdf5", "elmo.shrunk"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert [row["name"] for row in done.rows] == [t["name"] for t in manifest["tensors"]]


def test_the_summary_has_the_sizes_of_the_file_system(
    lstm: Path, artefact: Path, shrink: Shrink
) -> None:
    done = shrink("compress", lstm, "--target", "Wh:rank=4", "-o", artefact, "--overwrite")
    after = sum(file.stat().st_size for file in artefact.iterdir())
    lines = done.err.splitlines()
    assert lines[0] == f"wrote {artefact}"
    assert lines[1].startswith(f"size        {lstm.stat().st_size:,} → {after:,} bytes (")
    assert "smaller     1 matrix (rnn.weight_hh_l0)" in lines
    assert "stayed      1 matrix (rnn.weight_ih_l0): not targeted" in lines
    (worst,) = [line for line in lines if line.startswith("worst error ")]
    assert re.fullmatch(r"worst error 0\.\d+ at rnn\.weight_hh_l0", worst)
    assert lines[-1] == f"next        ckptshrink verify {artefact} --source {lstm}"


def test_the_next_command_works_as_typed(
    write: Write, lstm_tensors: Tensors, shrink: Shrink, program: Shrink, tmp_path: Path
) -> None:
    folder = tmp_path / "a folder; with $odd 'names' ümlaut"
    folder.mkdir()
    write(folder / "-q my model.safetensors", lstm_tensors)
    done = program("compress", "--target", "Wh:rank=4", "--", "-q my model.safetensors", cwd=folder)
    assert done.status == 0, done.err
    last = done.err.splitlines()[-1].removeprefix("next").strip()
    name, *args = shlex.split(last)
    assert name == "ckptshrink"
    verified = program(*args, cwd=folder)
    assert verified.status == 0, verified.err


def test_a_file_that_did_not_get_smaller_says_so(
    write: Write, shrink: Shrink, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    small = {"fc.weight": rng.standard_normal((6, 5)), "rest": rng.standard_normal(40)}
    path = write(tmp_path / "small.safetensors", small)
    done = shrink("compress", path, "--target", "fc.weight", "--rank", "5", "--allow-inflate")
    assert done.status == 0, done.err
    assert "it did not get smaller: " in done.err
    assert "not smaller 1 matrix (fc.weight), factorized because of --allow-inflate" in done.err


def test_json_is_one_document_with_the_summary(lstm: Path, shrink: Shrink, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = shrink("compress", lstm, "--target", "Wh", "--rank", "4", "-o", out, "--json")
    document = json.loads(done.out)
    assert document["schema_version"] == 1
    assert document["nbytes_before"] == lstm.stat().st_size
    assert document["nbytes_after"] == sum(file.stat().st_size for file in out.iterdir())
    assert document["factorized"] == ["rnn.weight_hh_l0"]
    assert document["stayed"] == [{"reason": "not targeted", "names": ["rnn.weight_ih_l0"]}]
    assert document["worst"]["name"] == "rnn.weight_hh_l0"
    assert document["manifest"] == json.loads((out / "manifest.json").read_text())


def test_dry_run_writes_nothing_and_says_where(lstm: Path, shrink: Shrink, tmp_path: Path) -> None:
    before = digest_of(tmp_path)
    args = ("compress", lstm, "--target", "Wh", "--rank", "4", "--dry-run")
    done = shrink(*args)
    assert done.status == 0, done.err
    assert f"would write {tmp_path / 'lstm.shrunk'}: about " in done.err
    planned = shrink("plan", lstm, "--target", "Wh", "--rank", "4")
    assert done.out == planned.out
    document = json.loads(shrink(*args, "--json").out)
    assert document["dry_run"] is True
    assert document["nbytes_needed"] == sum(
        item["nbytes_after"] for item in document["plan"]["items"]
    )
    assert document["nbytes_free"] > 0
    assert digest_of(tmp_path) == before


def test_dry_run_refuses_what_a_run_would(lstm: Path, artefact: Path, shrink: Shrink) -> None:
    done = shrink("compress", lstm, "--target", "Wh:rank=4", "-o", artefact, "--dry-run")
    assert (done.status, done.out) == (4, "")


def test_an_existing_output_is_kept_without_overwrite(
    lstm: Path, artefact: Path, shrink: Shrink
) -> None:
    before = digest_of(artefact)
    done = shrink("compress", lstm, "--target", "Wi:rank=3", "-o", artefact)
    assert (done.status, done.out) == (4, "")
    assert done.err.splitlines() == [
        f"ckptshrink: {artefact}: exists already",
        "hint: give another -o, or --overwrite",
    ]
    assert digest_of(artefact) == before
    assert (
        shrink("compress", lstm, "--target", "Wi:rank=3", "-o", artefact, "--overwrite").status == 0
    )
    assert digest_of(artefact) != before


def test_the_input_is_never_the_output(lstm: Path, shrink: Shrink) -> None:
    before = digest_of(lstm)
    for out in (lstm, lstm.parent, lstm.parent / "x" / ".." / lstm.name):
        done = shrink("compress", lstm, "--target", "Wh:rank=4", "-o", out, "--overwrite")
        assert (done.status, done.out) == (4, ""), out
    link = lstm.with_name("hard.safetensors")
    os.link(lstm, link)
    args = ("--target", "Wh:rank=4", "--format", "dense", "--overwrite", "-o", link)
    assert shrink("compress", lstm, *args).status == 4
    assert digest_of(lstm) == before


@pytest.mark.parametrize("out", ["x" * 300, "no/such/folder", "lstm.safetensors/inside"])
def test_an_output_that_cannot_be_is_status_4(
    out: str, lstm: Path, shrink: Shrink, tmp_path: Path
) -> None:
    done = shrink("compress", lstm, "--target", "Wh:rank=4", "-o", tmp_path / out)
    assert (done.status, done.out) == (4, "")
    assert sorted(tmp_path.iterdir()) == [lstm]


def test_no_permission_to_write_is_status_4(lstm: Path, shrink: Shrink, unwritable: Path) -> None:
    done = shrink("compress", lstm, "--target", "Wh:rank=4", "-o", unwritable / "x")
    assert (done.status, done.out) == (4, "")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_values_are_refused_or_copied(
    value: float, write: Write, lstm_tensors: Tensors, shrink: Shrink, tmp_path: Path
) -> None:
    weight = lstm_tensors["rnn.weight_hh_l0"].copy()
    weight[3, 5] = value
    path = write(tmp_path / "bad.safetensors", {**lstm_tensors, "rnn.weight_hh_l0": weight})
    done = shrink("compress", path, "--target", "Wh", "--rank", "4")
    assert done.status == 3
    assert done.err.startswith(f"ckptshrink: rnn.weight_hh_l0 [{path}]: ")
    assert sorted(tmp_path.iterdir()) == [path]
    args = ("compress", path, "--target", "Wh,Wi", "--rank", "4", "--nonfinite", "copy")
    copied = shrink(*args)
    assert copied.status == 0, copied.err
    fates = {row["role"]: row["action"] for row in copied.rows if row["role"]}
    assert fates == {"Wi": "factorize", "Wh": "keep"}


def test_dense_keeps_the_container(fixtures: Path, shrink: Shrink, tmp_path: Path) -> None:
    elmo = fixtures / "elmo" / "elmo.hdf5"
    out = tmp_path / "smaller.hdf5"
    args = ("--target", "Wh", "--rank", "4", "--format", "dense", "-o", out)
    done = shrink("compress", elmo, *args)
    assert done.status == 0, done.err
    assert "--format dense keeps every shape" in done.err
    assert done.err.splitlines()[-1] == f"next        ckptshrink inspect {out}"
    listed, original = shrink("inspect", out), shrink("inspect", elmo)
    assert [(r["name"], r["shape"]) for r in listed.rows] == [
        (r["name"], r["shape"]) for r in original.rows
    ]


def test_the_same_run_gives_the_same_bytes(lstm: Path, shrink: Shrink, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        args = ("--target", "all", "--rank", "4", "--threads", "1", "-o", tmp_path / name)
        assert shrink("compress", lstm, *args).status == 0
        digests.append(digest_of(tmp_path / name))
    assert digests[0] == digests[1]


def test_from_another_folder_with_relative_and_unicode_paths(
    lstm: Path, program: Shrink, tmp_path: Path
) -> None:
    folder = tmp_path / "日本 語" / "sub"
    folder.mkdir(parents=True)
    out = folder.parent / "résultat"
    relative = os.path.relpath(lstm, folder)
    args = ("--target", "Wh:rank=4", "-o", "../résultat")
    done = program("compress", relative, *args, cwd=folder)
    assert done.status == 0, done.err
    assert (out / "manifest.json").is_file()
    assert program("verify", "../résultat", "--source", relative, cwd=folder).status == 0


def test_shards(lstm: Path, shrink: Shrink, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("--target", "Wh:rank=4", "--max-shard-size", "4KB", "-o", out)
    done = shrink("compress", lstm, *args)
    assert done.status == 0, done.err
    assert (out / "model.safetensors.index.json").is_file()
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert shrink("verify", out, "--source", lstm).status == 0


def test_a_write_that_fails_is_status_4_and_leaves_nothing(
    command: list[str], lstm: Path, tmp_path: Path
) -> None:
    # a limit on the size of a file stands in for a full disk: both are an error of write(2)
    line = f"ulimit -f 8; {shlex.join(command)} compress {lstm} --target Wh:rank=4"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "can't be written: File too large; nothing was left behind" in done.stderr
    assert sorted(tmp_path.iterdir()) == [lstm]
