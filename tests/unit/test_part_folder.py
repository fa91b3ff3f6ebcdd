"""Failed or killed at every call, each kind of target is whole or as it was, and nothing stays."""

import errno
import os
from pathlib import Path

import pytest
from faults import Killed, Write, faults, half_done, made, numbered, tree, visible

from ckptshrink.errors import OutputError
from ckptshrink.io import part_folder, renames
from ckptshrink.io.part_folder import LOCK, PartFolder, part_folders
from ckptshrink.io.staged_file import os_errors
from ckptshrink.io.staging import Staging, check_target


def write_folder(parent: Path, text: bytes) -> None:
    with Staging(parent / "out", overwrite=True) as staging:
        staging.create("model").write(text * 9)
        staging.create("sub/options.json").write(text)
        staging.create("manifest.json").write(text)
        staging.commit()


def write_file(parent: Path, text: bytes) -> None:
    with Staging(parent / "f", single=True, overwrite=True) as staging:
        staging.create("f").write(text)
        staging.commit()


def write_adopted(parent: Path, text: bytes) -> None:
    with Staging(parent / "f", single=True, overwrite=True) as staging:
        path = staging.adopt("f")
        with os_errors(path):  # as a library would be held to
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
            try:
                os.write(descriptor, text)
            finally:
                os.close(descriptor)
        staging.commit()


def write_group(parent: Path, text: bytes) -> None:
    beside = [parent / "a.jsonl", parent / "b.jsonl"]
    with Staging(parent / "run.json", single=True, overwrite=True, beside=beside) as staging:
        for path in beside:
            staging.create(path.name).write(text + path.name.encode())
        staging.create("run.json").write(text)
        staging.commit()


def write_group_new(parent: Path, text: bytes) -> None:
    beside = [parent / "a.jsonl"]
    with Staging(parent / "run.json", single=True, beside=beside) as staging:
        staging.create("a.jsonl").write(text)
        staging.create("run.json").write(text)
        staging.commit()


WRITERS = [write_folder, write_file, write_adopted, write_group]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "plain"])
@pytest.mark.parametrize("before", [b"old", None], ids=["over", "new"])
@pytest.mark.parametrize("write", [*WRITERS, write_group_new], ids=lambda f: f.__name__)
@pytest.mark.parametrize("code", [None, errno.EIO], ids=["kill", "EIO"])
def test_whole_or_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    write: Write,
    before: bytes | None,
    exchange: bool,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of them take seconds
    if write is write_group_new and before is not None:
        before = None  # refuses what is there, so that is another test
    reference = tmp_path / "reference"
    reference.mkdir()
    write(reference, b"new")
    new = tree(reference)
    for number in numbered():
        place = tmp_path / f"{number}"
        place.mkdir()
        if before is not None:
            write(place, before)
        old = tree(place)
        error: BaseException | None = None
        with faults(monkeypatch, number, code, exchange=exchange) as found:
            try:
                write(place, b"new")
            except (Killed, OutputError, OSError) as caught:
                error = caught
        if not found.fired:
            break
        if code is None:
            # without the exchange call, and in a commit of several files, a kill in between is put
            # right by the next run, whatever it writes there
            between = write in {write_group, write_group_new} or not exchange
            if not between:
                assert visible(place) in (old, new)
            for orphan in list(part_folders(place)):
                PartFolder.claim(orphan).discard() if (orphan / LOCK).exists() else orphan.rmdir()
            assert tree(place) in (old, new)
        else:
            assert error is None or isinstance(error, OutputError), error
            assert visible(place) in (old, new)
            there = "is there and whole" in str(error)
            assert visible(place) == (new if error is None or there else old), error
        if before is None and write is write_group_new and visible(place) == new:
            continue
        write(place, b"new")
        assert tree(place) == new
    assert number > 10


def test_a_run_that_ends_between_two_renames_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, b"old")
    old = tree(tmp_path)
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if target.name == "out" and target.parent == tmp_path:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(renames, "_rename", lambda one, other, flag: False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        # `rename_new` puts it back, by a rename too
        patch.setattr(part_folder, "rename_new", lambda one, other: rename(one, other))
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path, b"new")
    assert tree(tmp_path) == old


def test_a_signal_before_the_discarding_begins_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Staging, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Staging, "__exit__", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, b"new")
    left = tree(tmp_path)
    assert any(".part-" in name for name in left)
    part_folder.discard_living()
    assert tree(tmp_path) == {name: data for name, data in left.items() if ".part-" not in name}


def test_a_target_that_was_set_aside_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, b"old")
    old = tree(tmp_path)
    part = half_done(tmp_path, monkeypatch, write_folder)
    living = PartFolder.claim(part)
    with pytest.raises(OutputError, match="has set it aside") as error:
        check_target(tmp_path / "out", overwrite=False)
    assert error.value.hint == f"ckptshrink clean {tmp_path} puts it back once that run is gone"
    living.release()
    with pytest.raises(OutputError, match=r"exists already$"):
        check_target(tmp_path / "out", overwrite=False)
    assert tree(tmp_path) == old


def test_what_appeared_in_the_place_of_the_old_one_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = half_done(tmp_path, monkeypatch, write_folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_bytes(b"by hand")
    before = tree(tmp_path)
    assert not PartFolder.claim(part).discard()
    assert tree(tmp_path) == before


def test_what_is_not_ours_is_never_swept(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).write_bytes(b"")
    (elsewhere / "thesis.tex").write_text("years of work")
    (tmp_path / ".out.part-0123456789ab").symlink_to(elsewhere)
    unmarked = tmp_path / ".out.part-0123456789ac"
    unmarked.mkdir()
    (unmarked / "notes").write_text("mine")
    other_name = tmp_path / ".out.part-backup"
    other_name.mkdir()
    (other_name / LOCK).write_bytes(b"")
    linked = tmp_path / ".out.part-0123456789ad"
    linked.mkdir()
    (linked / LOCK).symlink_to(elsewhere / LOCK)
    fifo = tmp_path / ".out.part-0123456789ae"
    fifo.mkdir()
    os.mkfifo(fifo / LOCK)
    (tmp_path / ".out.part-0123456789af").write_text("a file")
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    write_folder(tmp_path, b"new")
    after = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    assert before.items() <= after.items()


def test_a_link_inside_an_orphan_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.tex").write_text("years of work")
    part = made(tmp_path / "out")
    (part.new / "link").symlink_to(tmp_path / "thesis")
    part.release()
    write_folder(tmp_path, b"new")
    assert (tmp_path / "thesis" / "one.tex").read_text() == "years of work"
    assert not list(part_folders(tmp_path))


def test_a_sweep_that_comes_before_the_lock_costs_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, swept = part_folder._made_lock, []

    def late(path: Path) -> int:
        if not swept:
            swept.append(path.parent)
            path.parent.rmdir()
        return real(path)

    monkeypatch.setattr(part_folder, "_made_lock", late)
    write_folder(tmp_path, b"new")
    assert swept
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_that_is_taken_is_not_ours_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["0" * 12, "1" * 12])
    monkeypatch.setattr(part_folder.secrets, "token_hex", lambda nbytes: next(names))
    taken = tmp_path / f".out.part-{'0' * 12}"
    taken.mkdir()
    (taken / "notes").write_text("mine")
    with Staging(tmp_path / "out") as staging:
        staging.create("model").write(b"x")
        staging.commit()
    assert tree(tmp_path) == {f"{taken.name}/notes": b"mine", "out/model": b"x"}


@pytest.mark.parametrize("signals", [1, 3])
def test_a_signal_that_comes_while_cleaning_up_ends_the_run_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    remove, left = part_folder._remove, [signals]

    def interrupted(folder: Path) -> None:
        if left[0] > 0:
            left[0] -= 2
            raise KeyboardInterrupt
        remove(folder)

    monkeypatch.setattr(part_folder, "_remove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path, b"new")
    monkeypatch.undo()
    write_folder(tmp_path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_written_to_and_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(part_folder.fcntl, "flock", none)
    living = made(tmp_path / "out")
    write_folder(tmp_path, b"new")
    assert [living.path] == list(part_folders(tmp_path))
    assert (tmp_path / "out" / "manifest.json").read_bytes() == b"new"


def test_a_file_system_without_hard_links_takes_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", none)
    for text in (b"one", b"two"):
        write_group(tmp_path, text)
        write_file(tmp_path, text)
    assert tree(tmp_path) == {
        "a.jsonl": b"twoa.jsonl", "b.jsonl": b"twob.jsonl", "run.json": b"two", "f": b"two",
    }  # fmt: skip


def test_a_backup_by_hard_links_keeps_the_old_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path, b"old")
    write_file(tmp_path, b"old")
    write_group(tmp_path, b"old")
    names = ("out/model", "f", "a.jsonl", "run.json")
    backup = tmp_path / "backup"
    backup.mkdir()
    for name in names:
        (backup / Path(name).name).hardlink_to(tmp_path / name)
    before = tree(backup)
    for write in WRITERS:
        write(tmp_path, b"new")
    assert tree(backup) == before


def test_the_name_is_free_until_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for exchange in (True, False):
        with monkeypatch.context() as patch:
            if not exchange:
                patch.setattr(renames, "_rename", lambda one, other, flag: False)
            with (
                pytest.raises(OutputError, match="f: has appeared since this run began"),
                Staging(tmp_path / "f", single=True) as staging,
            ):
                staging.create("f").write(b"ours")
                (tmp_path / "f").write_text("came first")
                staging.commit()
        assert tree(tmp_path) == {"f": b"came first"}
        (tmp_path / "f").unlink()


def test_a_parent_that_is_gone_is_one_line(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    with (
        pytest.raises(OutputError, match="No such file"),
        Staging(parent / "out") as staging,
    ):
        staging.create("model").write(b"x")
        parent.rename(tmp_path / "elsewhere")
        staging.commit()
