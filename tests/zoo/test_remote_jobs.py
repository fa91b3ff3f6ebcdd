"""A job whose source, or output, or both are URLs: what it leaves, and what a second run asks."""

import json
import os
import shutil
from pathlib import Path

import pytest
import rigged_store
from rigged_store import files, put, put_tree, rigged

from ckptshrink.manifest import manifest_of
from ckptshrink.verification import verify
from ckptshrink.zoo import remote
from ckptshrink.zoo.jobs import Job, jobs_of
from ckptshrink.zoo.records import record_of
from ckptshrink.zoo.settings import Zoo
from ckptshrink.zoo.standing import Hashes
from ckptshrink.zoo.work import Answer, Order, give_up, work

LSTM = "safetensors/lstm_bfloat16.safetensors"

pytestmark = pytest.mark.usefixtures("store")


def jobs(
    path: str, out: str = "rigged://out", folder: Path = Path("/"), rank: int = 1
) -> list[Job]:
    zoo = {"defaults": {"target": "Wh", "rank": rank}, "model": [{"path": path}]}
    return jobs_of(Zoo.model_validate(zoo), folder, out)


def job(path: str, out: str = "rigged://out", **kwargs: int) -> Job:
    (only,) = jobs(path, out, **kwargs)
    return only


def is_finished(job: Job, out: str) -> bool:
    with remote.looking(job, out, Hashes()) as look:
        return look.standing.finished(job.work)


def artefact_of(job: Job, folder: Path) -> Path:
    """Return what the store has of an artefact as a folder of this machine."""
    prefix = f"/out/{job.artefact}/"
    for name, data in files().items():
        if name.startswith(prefix):
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (LSTM, LSTM),
        ("safetensors/sharded", "safetensors/sharded"),
        ("safetensors/sharded", "safetensors/sharded/model.safetensors.index.json"),
        ("transformers/t5", "transformers/t5/pytorch_model.bin.index.json"),
        ("elmo/packed", "elmo/packed/elmo_packed.hdf5"),
    ],
    ids=["file", "folder of shards", "index", "torch index", "own options"],
)
def test_an_artefact_of_a_url_is_that_of_the_file(
    source: str, named: str, fixtures: Path, tmp_path: Path
) -> None:
    target = "Wh" if not source.startswith("transformers") else "linear"
    near = fixtures / source
    if near.is_dir():
        put_tree(near, f"/zoo/{source}")
    else:
        put(f"/zoo/{source}", near.read_bytes())
    zoo = {"defaults": {"target": target, "rank": 1}}
    one, other = (
        jobs_of(Zoo.model_validate(zoo | {"model": [{"path": path}]}), tmp_path, out)[0]
        for path, out in (
            (f"rigged://zoo/{named}", "rigged://out"),
            (str(fixtures / named), str(tmp_path / "out")),
        )
    )
    answer = work(Order(one, "rigged://out"))
    assert answer.status == "done", answer
    assert work(Order(other, str(tmp_path / "out"))).status == "done"
    local = tmp_path / "out" / other.artefact
    prefix = f"/out/{one.artefact}/"
    far = {n.removeprefix(prefix): d for n, d in files().items() if n.startswith(prefix)}
    assert far == {
        path.relative_to(local).as_posix(): path.read_bytes()
        for path in local.rglob("*")
        if path.is_file()
    }
    assert is_finished(one, "rigged://out")


def test_a_folder_has_its_left_out_files_named_and_not_fetched(fixtures: Path) -> None:
    put_tree(fixtures / "transformers" / "gpt2", "/zoo/gpt2")
    for name in ("training_args.bin", "modeling_own.py", "onnx/model.onnx", ".cache"):
        put(f"/zoo/gpt2/{name}", b"print('no')")
    gpt2 = jobs_of(
        Zoo.model_validate(
            {"model": [{"path": "rigged://zoo/gpt2", "target": "linear", "rank": 1}]}
        ),
        Path("/"),
        "rigged://out",
    )[0]
    with rigged() as rig:
        assert work(Order(gpt2, "rigged://out")).status == "done"
    assert {Path(path).name for path in rig.of("get", "read")} == {
        "config.json", "generation_config.json", "merges.txt", "pytorch_model.bin", "vocab.json",
        "job.json", "manifest.json",
    }  # fmt: skip
    manifest = manifest_of(files()["/out/zoo/gpt2.shrunk/manifest.json"], "it")
    assert any("modeling_own.py, onnx, training_args.bin" in note for note in manifest.source.notes)


@pytest.mark.parametrize(("far_source", "far_out"), [(True, True), (True, False), (False, True)])
def test_a_second_run_fetches_nothing(
    far_source: bool, far_out: bool, fixtures: Path, tmp_path: Path
) -> None:
    put("/zoo/lstm.safetensors", (fixtures / LSTM).read_bytes())
    source = "rigged://zoo/lstm.safetensors" if far_source else str(fixtures / LSTM)
    out = "rigged://out" if far_out else str(tmp_path / "out")
    first = job(source, out)
    assert not is_finished(first, out)
    assert work(Order(first, out)).status == "done"
    before = files()
    with rigged() as rig:
        assert is_finished(first, out)
    assert not rig.of("get", "put", "rm")
    assert {Path(path).name for path in rig.of("read")} <= {"job.json", "manifest.json"}
    assert len(rig.calls) <= 4
    # asked to do it all the same, a worker sends nothing
    with rigged() as rig:
        assert work(Order(first, out)).status == "done"
    assert not rig.of("put", "rm")
    assert files() == before
    assert not is_finished(job(source, out, rank=2), out)


def test_a_changed_source_is_done_again_and_a_touched_one_is_not(
    fixtures: Path, tmp_path: Path
) -> None:
    home = tmp_path / "zoo"
    home.mkdir()
    file = home / "lstm.safetensors"
    shutil.copy(fixtures / LSTM, file)
    first = job(f"file://{file}")
    assert work(Order(first, "rigged://out")).status == "done"
    assert is_finished(first, "rigged://out")
    artefact = {n: d for n, d in files().items() if ".shrunk/" in n}
    os.utime(file, ns=(1, 1))
    assert not is_finished(first, "rigged://out")  # the store says no more than that
    with rigged() as rig:
        assert work(Order(first, "rigged://out")).status == "done"
    assert [Path(path).name for path in rig.of("put")] == ["job.json"]
    assert is_finished(first, "rigged://out")
    assert {n: d for n, d in files().items() if ".shrunk/" in n} == artefact
    shutil.copy(fixtures / "safetensors" / "lstm_float16.safetensors", file)
    assert not is_finished(first, "rigged://out")
    assert work(Order(first, "rigged://out")).status == "done"
    assert is_finished(first, "rigged://out")
    assert {n: d for n, d in files().items() if ".shrunk/" in n} != artefact


def test_what_is_wrong_in_the_store_is_done_again(fixtures: Path, tmp_path: Path) -> None:
    first = job(str(fixtures / LSTM))
    assert work(Order(first, "rigged://out")).status == "done"
    good = files()
    weights = next(name for name in good if name.endswith("model.safetensors"))
    manifest = weights.replace("model.safetensors", "manifest.json")
    for name, data in [
        (weights, good[weights][:-1]),
        (weights.replace("model", "stray"), b"stray"),
        (manifest, good[manifest].replace(b'"rank": 1', b'"rank": 2', 1)),
        (manifest, good[manifest][:100]),
        (manifest, b"\xff"),
    ]:
        put(name, data)
        assert not is_finished(first, "rigged://out"), name
        assert work(Order(first, "rigged://out")).status == "done"
        again = files()
        assert {n: d for n, d in again.items() if "/reports/" not in n} == {
            n: d for n, d in good.items() if "/reports/" not in n
        }
        assert is_finished(first, "rigged://out")
    # the same size with other bytes is not seen from a listing, and is by whoever fetches it
    put(weights, b"\0" * len(good[weights]))
    assert is_finished(first, "rigged://out")
    assert work(Order(first, "rigged://out")).status == "done"
    assert files()[weights] == good[weights]


def test_a_source_that_is_gone_is_a_failure_of_its_own(fixtures: Path) -> None:
    gone = job("rigged://zoo/gone.safetensors")
    answer = work(Order(gone, "rigged://out"))
    assert answer.status == "failed"
    assert answer.message == (
        "read: rigged://zoo/gone.safetensors: there is no such file or folder"
    )
    with remote.looking(gone, "rigged://out", Hashes()) as look:
        assert look.standing.given_up
    put("/zoo/gone.safetensors", (fixtures / LSTM).read_bytes())
    with remote.looking(gone, "rigged://out", Hashes()) as look:
        assert not look.standing.given_up
    assert work(Order(gone, "rigged://out")).status == "done"


def test_a_source_that_is_broken_is_given_up_by_its_url_until_it_changes() -> None:
    put("/zoo/broken/model.safetensors", b"\x10\0\0\0\0\0\0\0no header there")
    put("/zoo/broken/config.json", b"{}")
    broken = job("rigged://zoo/broken")
    answer = work(Order(broken, "rigged://out"))
    assert answer.status == "failed"
    assert "rigged://zoo/broken" in answer.message
    assert "/tmp" not in answer.message.replace("...", "")
    log = files()["/out/reports/zoo/broken/log.txt"].decode()
    assert "/source/" not in log
    with rigged() as rig, remote.looking(broken, "rigged://out", Hashes()) as look:
        assert look.standing.given_up
        assert not rig.of("get")
    before = files()
    assert work(Order(broken, "rigged://out")).status == "failed"  # no second attempt: as it was
    assert files() == before
    put("/zoo/broken/config.json", b"{ }")
    with remote.looking(broken, "rigged://out", Hashes()) as look:
        assert not look.standing.given_up


def test_a_store_that_fails_is_tried_again_and_ends_nothing(fixtures: Path) -> None:
    put("/zoo/lstm.safetensors", (fixtures / LSTM).read_bytes())
    first = job("rigged://zoo/lstm.safetensors")
    number = 0
    while True:
        number += 1
        with rigged(fail_at=number, error=ConnectionError("no route")) as rig:
            answer: Answer | None = None
            if number <= 8:  # by then it has all that it needs, and would compress
                answer = work(Order(first, "rigged://out"))
        if answer is None or not rig.fired:
            break
        assert answer.status == "again", rig.calls
        assert answer.message.startswith("rigged://"), answer.message
        with rigged(fail_at=number, error=ConnectionError("no route")):
            assert not is_finished(first, "rigged://out")
    assert number > 5


def test_nothing_is_known_of_a_job_that_is_given_up_but_its_record(fixtures: Path) -> None:
    first = job(str(fixtures / LSTM))
    assert work(Order(first, "rigged://out")).status == "done"
    before = files()
    with rigged() as rig:
        answer = give_up(Order(first, "rigged://out", attempt=3), "its worker was lost")
    assert not rig.of("get", "read", "rm")
    assert answer.status == "failed"
    after = files()
    record = record_of(after["/out/" + first.reports + "/job.json"])
    assert record is not None and record.failed is not None and record.failed.transient
    assert {n: d for n, d in after.items() if ".shrunk/" in n} == {
        n: d for n, d in before.items() if ".shrunk/" in n
    }


def test_a_crash_is_given_up_until_the_url_has_something_else(fixtures: Path) -> None:
    put("/zoo/lstm.safetensors", (fixtures / LSTM).read_bytes())
    first = job("rigged://zoo/lstm.safetensors")
    give_up(Order(first, "rigged://out"), "its worker crashed", crashed=True)
    with remote.looking(first, "rigged://out", Hashes()) as look:
        assert look.standing.given_up
    put("/zoo/lstm.safetensors", b"another")
    with remote.looking(first, "rigged://out", Hashes()) as look:
        assert not look.standing.given_up
    with rigged(fail_at=1, error=ConnectionError("down")):
        give_up(Order(first, "rigged://out"), "its worker crashed", crashed=True)
    with remote.looking(first, "rigged://out", Hashes()) as look:
        assert not look.standing.given_up  # nothing is known of what crashed it


def test_what_a_task_found_is_fetched_and_kept(fixtures: Path, tmp_path: Path) -> None:
    put("/zoo/lstm.safetensors", (fixtures / LSTM).read_bytes())
    script = "import json, os; print(json.dumps({'size': 1.0}))"
    zoo = Zoo.model_validate(
        {
            "defaults": {"target": "Wh", "rank": 1},
            "model": [
                {
                    "path": "rigged://zoo/lstm.safetensors",
                    "tasks": {
                        "size": {
                            "task": "command",
                            "command": f'python -c "{script}"',
                            "better": {"size": "lower"},
                        }
                    },
                }
            ],
        }
    )
    (scored,) = jobs_of(zoo, tmp_path, "rigged://out")
    answer = work(Order(scored, "rigged://out"))
    assert answer.status == "done", answer
    record = record_of(files()[f"/out/{scored.reports}/job.json"])
    assert record is not None
    documents = set(record.tasks["size"].documents)
    assert documents
    with rigged() as rig:
        assert is_finished(scored, "rigged://out")
    assert not rig.of("get", "put", "rm")
    # without one of its documents, the task alone is done again: the artefact is fetched, and kept
    fs = rigged_store.RiggedFileSystem()
    fs.rm_file(f"/out/{scored.reports}/{sorted(documents)[0]}")
    assert not is_finished(scored, "rigged://out")
    with rigged() as rig:
        assert work(Order(scored, "rigged://out")).status == "done"
    assert not any(".shrunk/" in path for path in rig.of("put", "rm"))
    assert rig.of("put")[-1].endswith("/job.json")
    assert is_finished(scored, "rigged://out")


def test_an_artefact_in_a_store_is_whole(fixtures: Path, tmp_path: Path) -> None:
    first = job(str(fixtures / LSTM))
    assert work(Order(first, "rigged://out")).status == "done"
    found = verify(artefact_of(first, tmp_path / "it"), source=fixtures / LSTM)
    assert found.passed
    assert json.loads(files()[f"/out/{first.reports}/job.json"])["status"] == "done"
