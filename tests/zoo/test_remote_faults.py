"""A run that is killed, or that a store fails, at every single call: what is seen of it after.

The calls are those of a whole workspace: what is looked up, what is fetched and what is sent.
"""

from pathlib import Path
from typing import Any

import pytest
import rigged_store
from rigged_store import Killed, files, put, rigged

from ckptshrink.errors import CkptshrinkError, ManifestMismatchError, TransientError
from ckptshrink.manifest import manifest_of
from ckptshrink.zoo import remote
from ckptshrink.zoo.jobs import Job, jobs_of
from ckptshrink.zoo.publishing import FarOutput
from ckptshrink.zoo.records import record_of
from ckptshrink.zoo.settings import Zoo
from ckptshrink.zoo.standing import Hashes
from ckptshrink.zoo.stores import FarFolder
from ckptshrink.zoo.work import Order, work

OUT = "rigged://out"

pytestmark = pytest.mark.usefixtures("store")

Tree = dict[str, bytes]


@pytest.fixture(scope="module")
def source(fixtures: Path) -> Path:
    return fixtures / "safetensors" / "lstm_bfloat16.safetensors"


def job_of(rank: int) -> Job:
    zoo = {"defaults": {"target": "Wh", "rank": rank}, "model": [{"path": "rigged://zoo/lm.st"}]}
    return jobs_of(Zoo.model_validate(zoo), Path("/"), OUT)[0]


@pytest.fixture(scope="module")
def made(source: Path) -> dict[int, Tree]:
    """Return what the store has in the end, for each of two ranks."""
    found = {}
    for rank in (1, 2):
        with rigged_store.empty_store():
            put("/zoo/lm.st", source.read_bytes())
            assert work(Order(job_of(rank), OUT)).status == "done"
            found[rank] = files()
    return found


def set_up(tree: Tree) -> None:
    rigged_store.RiggedFileSystem.store.clear()
    for name, data in tree.items():
        put(name, data)


def run(rank: int, made: dict[int, Tree]) -> None:
    """Do a job, with what was made before in the place of compression."""
    job = job_of(rank)
    with remote.workspace(job, OUT) as place:
        assert place.source.read_bytes() == made[rank]["/zoo/lm.st"]
        for home, folder in ((job.artefact, place.artefact), (job.reports, place.reports)):
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in made[rank].items():
                if name.startswith(f"/out/{home}/"):
                    (folder / name.removeprefix(f"/out/{home}/")).write_bytes(data)


def artefact(job: Job, tree: Tree) -> Tree:
    prefix = f"/out/{job.artefact}/"
    return {n.removeprefix(prefix): data for n, data in tree.items() if n.startswith(prefix)}


def is_artefact(tree: Tree) -> bool:
    """Return whether whoever looks takes a folder for an artefact: by a manifest that holds."""
    try:
        manifest_of(tree.get("manifest.json", b""), "it")
    except ManifestMismatchError:
        return False
    return True


FAULTS: dict[str, dict[str, Any]] = {
    "killed before": {"error": Killed()},
    "killed after": {"error": Killed(), "done": True},
    "failed before": {"error": ConnectionError("reset")},
    "failed after": {"error": ConnectionError("reset"), "done": True},
}


@pytest.mark.parametrize(
    ("start", "kind"),
    [("another", kind) for kind in FAULTS]
    + [("nothing", "killed after"), ("stale", "killed after")],
)
def test_nothing_unfinished_is_seen_as_finished(
    start: str, kind: str, made: dict[int, Tree]
) -> None:
    job = job_of(2)
    old = {"/zoo/lm.st": made[1]["/zoo/lm.st"]} if start == "nothing" else dict(made[1])
    if start == "stale":  # a manifest that holds, and more files than there are now
        old[f"/out/{job.artefact}/shard-2.safetensors"] = b"old"
    before, after = artefact(job, old), artefact(job, made[2])
    raised, states = set(), set()
    for number in range(1, 100):
        set_up(old)
        with rigged(fail_at=number, **FAULTS[kind]) as rig:
            try:
                run(2, made)
            except (Killed, CkptshrinkError) as error:
                raised.add(type(error))
        now = artefact(job, files())
        states.add("old" if now == before else "new" if now == after else "between")
        if now not in (before, after):
            assert not is_artefact(now), number
        with remote.looking(job, OUT, Hashes()) as look:
            assert not look.standing.finished(job.work) or now == after
        if not rig.fired:
            break
        run(2, made)  # the next run finishes it
        assert files() == made[2]
    assert files() == made[2]
    assert number > 10
    assert states == {"old", "between", "new"}
    assert raised == ({Killed} if "killed" in kind else {TransientError})


def test_what_was_there_is_not_sent_again(made: dict[int, Tree]) -> None:
    set_up(made[1])
    with rigged() as rig:
        run(1, made)
    assert {Path(path).name for path in rig.of("put", "rm")} == {"log.txt", "report.html"}


def test_the_manifest_goes_first_and_comes_last(made: dict[int, Tree]) -> None:
    set_up(made[1])
    put(f"/out/{job_of(1).artefact}/stray.bin", b"stray")
    with rigged() as rig:
        run(2, made)
    changes = [(kind, Path(path).name) for kind, path in rig.calls if kind in {"put", "rm"}]
    assert changes[0] == ("rm", "manifest.json")
    last = changes.index(("put", "manifest.json"))
    assert ("rm", "stray.bin") in changes[:last]
    assert all(kind == "put" for kind, _ in changes[last:])
    assert changes[-1] == ("put", "job.json")
    assert not any(name in {"README.md", "model.safetensors"} for _, name in changes[last:])


def test_two_runs_at_once_are_found_out(made: dict[int, Tree], tmp_path: Path) -> None:
    """Another run writes its own between this one's listing and its manifest."""
    set_up({"/zoo/lm.st": made[1]["/zoo/lm.st"]})
    job = job_of(2)
    weights = f"/out/{job.artefact}/model.safetensors"
    other = made[1][weights]

    class Disturbed(FarFolder):
        def send(self, file: Path, place: str) -> None:
            super().send(file, place)
            if place.endswith("manifest.json"):
                put(weights, other[:100] + bytes(len(made[2][weights]) - 100))

    for name, data in artefact(job, made[2]).items():
        path = tmp_path / "artefact" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "reports").mkdir()
    with pytest.raises(TransientError, match="does another run write to it"):
        FarOutput(Disturbed(OUT), job).send(tmp_path / "artefact", tmp_path / "reports")
    assert not is_artefact(artefact(job, files()))


def test_a_record_of_another_artefact_is_no_record_of_this(made: dict[int, Tree]) -> None:
    """A run that was killed between its artefact and its record leaves the record of before."""
    job = job_of(2)
    set_up(made[2])
    record = f"/out/{job.reports}/job.json"
    put(record, made[1][record])
    with remote.looking(job, OUT, Hashes()) as look:
        assert look.standing.manifest is not None
        assert not look.standing.finished(job.work)
    assert work(Order(job, OUT)).status == "done"
    found = record_of(files()[record])
    assert found is not None and found.size is not None
    manifest = manifest_of(files()[f"/out/{job.artefact}/manifest.json"], "it")
    assert found.size.manifest_sha256 == manifest.manifest_sha256


def test_a_real_folder_shows_no_half_of_a_file(
    made: dict[int, Tree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind ``file://`` a file can be seen while it is written, so it is renamed into place."""
    from fsspec.implementations.local import LocalFileSystem

    names = []
    real = LocalFileSystem.put_file

    def noting(self: Any, one: str, other: str, *args: Any, **kwargs: Any) -> Any:
        names.append(Path(other).name)
        return real(self, one, other, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "put_file", noting)
    (tmp_path / "it").write_bytes(b"whole")
    folder = FarFolder(f"file://{tmp_path}/deep/out")
    folder.send(tmp_path / "it", "a/b/manifest.json")
    assert all(name.startswith(".manifest.json.part-") for name in names)
    assert list(folder.tree()) == ["a/b/manifest.json"]
    assert (tmp_path / "deep/out/a/b/manifest.json").read_bytes() == b"whole"
    monkeypatch.setattr(
        LocalFileSystem, "mv", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(TransientError, match="No space left"):
        folder.send(tmp_path / "it", "a/b/other.json")
    assert list(folder.tree()) == ["a/b/manifest.json"]


def test_a_killed_run_leaves_no_files_for_long(store: Path, made: dict[int, Tree]) -> None:
    from ckptshrink.io.part_folder import PartFolder
    from ckptshrink.zoo.scratch import scratch_folder

    with scratch_folder() as folder:
        home = folder.parent.parent.parent
        assert home.parent == store
    orphan = PartFolder.named(home / "files")
    assert orphan.make(folder=True)
    (orphan.new / "files" / "model.bin").write_bytes(b"large")
    orphan.release()  # the kernel does that for a killed process
    with scratch_folder() as folder:
        assert not orphan.path.exists()
        assert [path.name for path in home.iterdir()] == [folder.parent.parent.name]
    assert list(home.iterdir()) == []
    assert home.stat().st_mode & 0o777 == 0o700
