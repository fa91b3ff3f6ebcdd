"""What URLs find, what is refused of them, and what is never shown."""

import errno
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rigged_store
from rigged_store import files, put, rigged

from ckptshrink.errors import (
    CheckpointError,
    CkptshrinkError,
    MissingError,
    NothingMatchedError,
    OutputError,
    PlanError,
    TransientError,
    UnsafeCheckpointError,
)
from ckptshrink.zoo import remote
from ckptshrink.zoo.failures import is_transient
from ckptshrink.zoo.jobs import Job, jobs_of
from ckptshrink.zoo.settings import Zoo
from ckptshrink.zoo.sources import fetch, survey
from ckptshrink.zoo.stores import FarFolder, NearFolder, store_of
from ckptshrink.zoo.summary import Summary
from ckptshrink.zoo.urls import is_inside, path_of, scrubbed, shown
from ckptshrink.zoo.work import Order, work

pytestmark = pytest.mark.usefixtures("store")


def jobs(*paths: str, out: str = "rigged://out", **more: Any) -> list[Job]:
    zoo = {"defaults": {"target": "Wh", "rank": 1}, "model": [{"path": list(paths)} | more]}
    return jobs_of(Zoo.model_validate(zoo), Path("/"), out)


def fill(*places: str) -> None:
    for place in places:
        put(place, place.encode())


def test_a_glob_finds_files_and_takes_shards_by_their_index() -> None:
    fill(
        "/zoo/b.pt", "/zoo/a/lm.pt", "/zoo/a/lm.txt", "/zoo/m/model-00001-of-00002.safetensors",
        "/zoo/m/model-00002-of-00002.safetensors", "/zoo/m/model.safetensors.index.json",
        "/zoo/n/model-00001-of-00002.bin",
    )  # fmt: skip
    assert remote.matching("rigged://zoo/**/*.pt") == ["rigged://zoo/a/lm.pt", "rigged://zoo/b.pt"]
    assert remote.matching("rigged://zoo/*/*.safetensors") == [
        "rigged://zoo/m/model.safetensors.index.json"
    ]
    assert remote.matching("rigged://zoo/*/*.bin") == [
        "rigged://zoo/n/model-00001-of-00002.bin"
    ]  # whose index is not there
    assert remote.matching("rigged://zoo/?.p[ty]") == ["rigged://zoo/b.pt"]
    assert remote.matching("rigged://zoo/*/") == [
        "rigged://zoo/a", "rigged://zoo/m", "rigged://zoo/n",
    ]  # fmt: skip
    assert remote.matching("rigged://zoo/*.h5") == []
    assert remote.matching("rigged://nowhere/*.h5") == []
    assert remote.matching("rigged://zoo/not/there.pt") == ["rigged://zoo/not/there.pt"]


def test_names_are_places_and_an_output_is_no_input() -> None:
    fill("/zoo/a.pt", "/zoo/small/a.pt.shrunk/model.pt", "/zoo/smaller/b.pt")
    found = jobs("rigged://zoo/**/*.pt", out="rigged://zoo/small/")
    assert [job.name for job in found] == ["zoo/a.pt", "zoo/smaller/b.pt"]
    with pytest.raises(NothingMatchedError, match="'rigged://zoo/none/\\*' matches nothing"):
        jobs("rigged://zoo/none/*")


@pytest.mark.parametrize(
    "lie",
    [
        "/zoo/../../etc/passwd",
        "/zoo//a.pt",
        "/zoo/a\0.pt",
        "/elsewhere/a.pt",
        "/zoo/./a.pt",
        "x.pt",
    ],
)
def test_a_listing_with_names_that_are_none_is_refused(lie: str, tmp_path: Path) -> None:
    fill("/zoo/model.safetensors", "/zoo/config.json")
    lies = {"/zoo": [{"name": lie, "size": 3, "type": "file"}]}
    with rigged(lies=lies):
        for call in (lambda: survey("rigged://zoo"), lambda: FarFolder("rigged://zoo").tree()):
            with pytest.raises(CheckpointError, match="no name of a file in it"):
                call()
        with suppress(CheckpointError):  # where the glob matches it
            found = remote.matching("rigged://zoo/**/*")
            assert found == ["rigged://zoo/config.json", "rigged://zoo/model.safetensors"]


@pytest.mark.parametrize(
    "shard", ["../secret", "/etc/passwd", "a/../../b", "", "a\0b", "..", "a//b", "./a"]
)
def test_an_index_names_no_file_outside(shard: str, tmp_path: Path) -> None:
    import json

    put("/secret", b"secret")
    put("/zoo/model.safetensors.index.json", json.dumps({"weight_map": {"w": shard}}).encode())
    room = tmp_path / "room"
    room.mkdir()
    with pytest.raises(UnsafeCheckpointError, match="no plain name"):
        fetch(survey("rigged://zoo/model.safetensors.index.json"), room)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in kept] == ["model.safetensors.index.json"]


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    put("/zoo/m.index.json", b'{"weight_map": {"w": "gone.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"names the shard 'gone.safetensors'.*not there"):
        fetch(survey("rigged://zoo/m.index.json"), tmp_path)


def test_shards_below_the_index_are_fetched_and_part_of_its_identity(tmp_path: Path) -> None:
    put("/zoo/m.index.json", b'{"weight_map": {"w": "deep/one.safetensors"}}')
    put("/zoo/deep/one.safetensors", b"one")
    put("/zoo/deep/README.md", b"not asked for")
    found = survey("rigged://zoo/m.index.json")
    assert fetch(found, tmp_path) == tmp_path / "zoo/m.index.json"
    assert (tmp_path / "zoo/deep/one.safetensors").read_bytes() == b"one"
    put("/zoo/deep/README.md", b"another")
    assert survey("rigged://zoo/m.index.json").identity == found.identity
    put("/zoo/deep/one.safetensors", b"two")
    assert survey("rigged://zoo/m.index.json").identity != found.identity


def test_a_folder_without_weights_says_what_is_in_it() -> None:
    fill("/zoo/a.pt", "/zoo/config.json")
    with pytest.raises(CheckpointError, match="without a model's weights") as caught:
        survey("rigged://zoo")
    assert caught.value.hint == "name the file: a.pt"


def test_a_listing_of_names_alone_is_asked_of_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server's page has no sizes, and without what each file says none could be told."""
    fill("/zoo/model.safetensors", "/zoo/config.json")
    real = rigged_store.RiggedFileSystem.ls

    def names_alone(self: Any, path: str, detail: bool = True, **kwargs: Any) -> Any:
        found = real(self, path, detail=True)
        return [{"name": e["name"], "type": e["type"], "size": None} for e in found]

    monkeypatch.setattr(rigged_store.RiggedFileSystem, "ls", names_alone)
    for url in ("rigged://zoo", "rigged://zoo/model.safetensors"):
        before = survey(url)
        assert before.identity
        put("/zoo/config.json", b"another of length")
        assert survey(url).identity not in {before.identity, ""}
        put("/zoo/config.json", b"/zoo/config.json")


@pytest.mark.parametrize("name", ["m.index.json", "model.safetensors"])
def test_a_folder_that_can_not_be_listed_is_asked_for_the_usual_names(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put("/zoo/m.index.json", b'{"weight_map": {"w": "one.safetensors"}}')
    fill("/zoo/one.safetensors", "/zoo/model.safetensors", "/zoo/config.json", "/zoo/modeling.py")

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("no listing")

    monkeypatch.setattr(rigged_store.RiggedFileSystem, "ls", refused)
    found = survey(f"rigged://zoo/{name}")
    fetch(found, tmp_path)
    there = {path.name for path in (tmp_path / "zoo").iterdir()}
    assert there == {name, "config.json"} | ({"one.safetensors"} if "index" in name else set())
    # what the shards are is not known without reading the index
    assert bool(found.identity) == ("index" not in name)


def test_an_artefact_is_no_source(fixtures: Path) -> None:
    put("/zoo/lm.safetensors", (fixtures / "safetensors/lstm_bfloat16.safetensors").read_bytes())
    assert work(Order(jobs("rigged://zoo/lm.safetensors")[0], "rigged://out")).status == "done"
    (artefact,) = jobs("rigged://out/zoo/lm.safetensors.shrunk", out="rigged://two")
    answer = work(Order(artefact, "rigged://two"))
    assert "is what ckptshrink made of a checkpoint" in answer.message


def test_a_source_that_comes_short_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put("/zoo/lm.pt", b"whole")
    monkeypatch.setattr(
        rigged_store.RiggedFileSystem, "get_file", lambda self, one, to: Path(to).write_bytes(b"x")
    )
    with pytest.raises(TransientError, match="1 bytes of it came, and the store says 5"):
        fetch(survey("rigged://zoo/lm.pt"), tmp_path)


def test_a_full_disk_is_met_before_and_while_fetching(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put("/zoo/lm.pt", b"whole")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        rigged(fail_at=2, error=full),
        pytest.raises(TransientError, match="No space left") as caught,
    ):
        fetch(survey("rigged://zoo/lm.pt"), tmp_path)
    assert "TMPDIR" in str(caught.value.hint)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3))
    (tmp_path / "two").mkdir()
    with pytest.raises(TransientError, match=r"takes 5 bytes here, and .* has 3 free"):
        fetch(survey("rigged://zoo/lm.pt"), tmp_path / "two")


def from_(error: Exception, cause: Exception) -> Exception:
    """Return an error as it is once it was raised from another one."""
    error.__cause__ = cause
    return error


class HttpError(Exception):
    """As aiohttp has it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='https://host/lm.pt?token=hunter2'")
        self.status = status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("lm.pt"), MissingError),
        (PermissionError("no"), CheckpointError),
        (PermissionError(errno.EACCES, "no"), CheckpointError),
        (HttpError(404), MissingError),
        (HttpError(403), CheckpointError),
        (HttpError(503), TransientError),
        (HttpError(429), TransientError),
        (TimeoutError(), TransientError),
        (ConnectionResetError(errno.ECONNRESET, "reset"), TransientError),
        (OSError("some library's"), TransientError),
        (RuntimeError("loop"), TransientError),
        (ValueError("Repository id must be 'namespace/name'"), CheckpointError),
        (NotImplementedError(), CheckpointError),
        (from_(FileNotFoundError("lm.pt"), HttpError(503)), TransientError),
        (from_(FileNotFoundError("lm.pt"), ConnectionRefusedError(111, "no")), TransientError),
        (from_(FileNotFoundError("lm.pt"), HttpError(404)), MissingError),
        (from_(FileNotFoundError("lm.pt"), HttpError(403)), CheckpointError),
        (from_(FileNotFoundError("lm.pt"), KeyError("lm.pt")), MissingError),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, Exception) else value.__name__,
)
def test_errors_of_libraries_are_ours_and_of_the_right_kind(
    error: Exception, kind: type[CkptshrinkError]
) -> None:
    put("/zoo/lm.pt", b"whole")
    folder = FarFolder("rigged://zoo")
    with rigged(fail_at=1, error=error), pytest.raises(CkptshrinkError) as caught:
        folder.fetch("lm.pt", Path("/dev/null"), None)
    assert type(caught.value) is kind
    assert is_transient(caught.value) == (kind is TransientError)
    assert str(caught.value).startswith("rigged://zoo/lm.pt: ")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_a_store_that_takes_nothing_is_an_error_of_the_output() -> None:
    with rigged(fail_at=1, error=PermissionError("no")), pytest.raises(OutputError):
        FarFolder("rigged://out").send(Path(__file__), "a")


SECRET = "rigged://me:hunter2@zoo/lm.safetensors?token=swordfish"


def test_no_secret_of_a_url_is_shown(
    fixtures: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    put("/me:hunter2@zoo/lm.safetensors?token=swordfish", b"\x10\0\0\0\0\0\0\0broken")
    caplog.set_level(logging.WARNING)  # what is shown where nobody asked for more
    (broken,) = jobs(SECRET)
    said = [repr(broken), repr(Order(broken, "rigged://me:hunter2@out"))]
    answer = work(Order(broken, "rigged://out"))
    assert answer.status == "failed"
    for error in (OSError(f"GET {SECRET}: swordfish"), ValueError("hunter2"), HttpError(403)):
        for number in (1, 2):
            with rigged(fail_at=number, error=error):
                said.append(repr(work(Order(broken, "rigged://out", retry=True))))
    try:
        jobs(SECRET.replace("lm", "*"), exclude="*")
    except NothingMatchedError as error:
        said.append(f"{error} {error.hint}")
    kept = {name: data for name, data in files().items() if name.startswith("/out/")}
    assert any(name.endswith("log.txt") for name in kept)
    said += [*kept, *(data.decode() for data in kept.values()), caplog.text, *capfd.readouterr()]
    for text in said:
        assert "hunter2" not in text and "swordfish" not in text
    assert any("rigged://zoo/lm.safetensors" in text for text in said)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sftp://me:pass@host:22/lm.pt", "sftp://host:22/lm.pt"),
        ("sftp://me:pa/ss@host/lm.pt", "sftp://host/lm.pt"),
        ("abfs://box@account.host/lm.pt", "abfs://box@account.host/lm.pt"),
        ("hf://org/repo@refs%2Fpr%2F1/lm.pt", "hf://org/repo@refs%2Fpr%2F1/lm.pt"),
        ("https://host:8080/a?X-Amz-Signature=ab#c", "https://host:8080/a"),
        ("s3://bucket/a?.pt", "s3://bucket/a?.pt"),
        ("s3://bucket/a.pt?versionId=3", "s3://bucket/a.pt"),
        ("s3://bucket/a\x1b[31m.pt", "s3://bucket/a\\x1b[31m.pt"),
        ("plain/path?a=b", "plain/path?a=b"),
    ],
)
def test_what_is_shown_of_urls(url: str, told: str) -> None:
    assert shown(url) == told
    assert "pass" not in path_of(url)


def test_secrets_are_taken_out_of_what_libraries_say() -> None:
    url = "https://me:hunter2@host/lm.pt?token=sword/fish&x=1"
    said = f"Cannot connect to {url!r} as me:hunter2 (token sword/fish)"
    assert scrubbed(said, url) == "Cannot connect to 'https://host/lm.pt' as *** (token ***)"


@pytest.mark.parametrize("name", ["a/b", "model-00001-of-00002.bin", "ü", "a b", "..a"])
def test_ordinary_names_are_inside(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize(
    ("url", "message", "hint"),
    [
        ("nope://a/b", "no scheme that fsspec knows", None),
        ("simplecache::s3://a/b", None, None),
        ("zip://a::memory://b", "a chain of URLs", None),
        ("memory://", "leads nowhere", None),
        ("dropbox://a/b", "the library for dropbox:// is not installed", "dropbox"),
    ],
)
def test_a_url_that_nothing_opens_is_refused_at_once(
    url: str, message: str | None, hint: str | None
) -> None:
    if message is None:
        assert not remote.is_url(url)
        return
    for call in (lambda: remote.matching(url), lambda: store_of(url)):
        with pytest.raises(PlanError, match=message) as caught:
            call()
        assert hint is None or hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [("fsspec", "s3://a/b", "cluster"), ("fsspec", "hf://a/b", "hub"),
     ("huggingface_hub", "hf://a/b", "hub")],
)  # fmt: skip
def test_a_missing_package_says_what_to_install(
    module: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "hf", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PlanError) as caught:
        remote.matching(url)
    assert caught.value.hint == f"pip install 'ckptshrink[{extra}]'"


def test_a_store_that_can_not_be_listed_is_no_empty_one() -> None:
    fill("/zoo/a.pt")

    class Silent(rigged_store.RiggedFileSystem):
        """Walks over what it can't list, as fsspec does."""

        protocol = "silent"

        def glob(self, path: str, *args: Any, **kwargs: Any) -> Any:
            return {}

        def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
            raise ConnectionError("no network")

    import fsspec

    fsspec.register_implementation("silent", Silent, clobber=True)
    with pytest.raises(TransientError, match="no network"):
        remote.matching("silent://zoo/*.pt")


def test_a_summary_is_kept_in_the_store_and_written_once(fixtures: Path) -> None:
    lstm = str(fixtures / "safetensors/lstm_bfloat16.safetensors")
    found = jobs(lstm, "rigged://zoo/gone.pt")
    for job in found:
        work(Order(job, "rigged://out"))
    summary = Summary(found, "rigged://out")
    with rigged() as rig:
        assert summary.write()
    assert [Path(path).name for path in rig.of("put")] == ["zoo.csv", "index.html", "zoo.json"]
    assert [Path(path).name for path in rig.of("read")].count("job.json") == len(found)
    assert summary.json == "rigged://out/zoo.json"
    with rigged() as rig:
        assert not summary.write()
    assert not rig.of("put", "rm", "get")
    rows = list(summary.rows())
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert files()["/out/zoo.csv"].decode().count("\n") == 3
    mark = Summary(found, "rigged://out", (1, 2))
    assert mark.write()
    assert "/out/zoo-1-of-2.json" in files()


def test_a_summary_of_a_folder_is_as_it_was(fixtures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = jobs(str(fixtures / "safetensors/lstm_bfloat16.safetensors"), out=str(out))
    work(Order(found[0], str(out)))
    summary = Summary(found, out)
    assert summary.write()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not summary.write()
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert summary.json == str(out / "zoo.json")


def test_an_output_is_checked_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = NearFolder(tmp_path / "deep" / "out")
    folder.check()
    assert folder.root.is_dir()
    before = folder.root.stat().st_mtime_ns
    folder.check()
    assert folder.root.stat().st_mtime_ns == before
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        NearFolder(tmp_path / "file").check()
    with pytest.raises(OutputError):
        NearFolder(tmp_path / "file" / "out").check()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="is not writable"):
        folder.check()
    with rigged() as rig:
        store_of("rigged://new/out").check()
    assert not rig.of("put", "rm")
    with rigged(fail_at=1, error=PermissionError("no")), pytest.raises(OutputError):
        store_of("rigged://out").check()
    with rigged(fail_at=1, error=OSError("down")), pytest.raises(TransientError):
        store_of("rigged://out").check()


def test_local_paths_import_nothing_of_stores(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from ckptshrink.zoo import remote
from ckptshrink.zoo.jobs import jobs_of
from ckptshrink.zoo.settings import Zoo
from ckptshrink.zoo.standing import Hashes
from ckptshrink.zoo.stores import store_of
from ckptshrink.zoo import batch, publishing, sources, summary
zoo = Zoo.model_validate({"model": [{"path": "lm.pt", "target": "Wh", "rank": 1}]})
out = sys.argv[1]
(job,) = jobs_of(zoo, Path(out), out)
store_of(out).check()
with remote.looking(job, out, Hashes()) as look:
    assert not look.standing.finished(job.work)
with remote.workspace(job, out) as place:
    assert place.source == Path(out) / "lm.pt"
print(sorted({"fsspec", "huggingface_hub", "distributed", "dask", "aiohttp"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


def test_the_command_shows_no_secret(
    tmp_path: Path, fixtures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ckptshrink_cli.main import run

    lstm = fixtures / "safetensors/lstm_bfloat16.safetensors"
    put("/me:hunter2@zoo/lm.safetensors?token=swordfish", lstm.read_bytes())
    toml = f'[[model]]\npath = ["{SECRET}"]\ntarget = "Wh"\nrank = 1\n'
    (tmp_path / "zoo.toml").write_text(toml)
    args = ["batch", str(tmp_path / "zoo.toml"), "-o", "rigged://me:hunter2@out"]
    for more in (["--print-config"], ["--dry-run"], ["--dry-run", "--json"]):
        assert run([*args, *more]) == 0
        said = "".join(capfd.readouterr())
        assert "hunter2" not in said and "swordfish" not in said
    assert "zoo/lm.safetensors" in said


def test_a_link_that_nobody_named_is_not_followed(tmp_path: Path) -> None:
    home, room = tmp_path / "zoo", tmp_path / "room"
    home.mkdir()
    (tmp_path / "secret").write_text("secret")
    (home / "model.safetensors").write_bytes(b"weights")
    (home / "config.json").symlink_to(tmp_path / "secret")
    (home / "m.index.json").write_text('{"weight_map": {"w": "one.safetensors"}}')
    (home / "one.safetensors").symlink_to(tmp_path / "secret")
    for number, name in enumerate(["", "/model.safetensors", "/m.index.json"]):
        if name == "/m.index.json":
            (home / "config.json").unlink()
        (room / str(number)).mkdir(parents=True)
        with pytest.raises(UnsafeCheckpointError, match="is a link"):
            fetch(survey(f"file://{home}{name}"), room / str(number))
    assert not any("secret" in path.read_text() for path in room.rglob("*") if path.is_file())
    (home / "mine.pt").symlink_to(home / "model.safetensors")
    (room / "named").mkdir()
    assert fetch(survey(f"file://{home}/mine.pt"), room / "named").read_bytes() == b"weights"
