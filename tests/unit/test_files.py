import os
import socket
from pathlib import Path

import pytest

from ckptshrink.digest import CHUNK
from ckptshrink.errors import CheckpointError, CorruptCheckpointError
from ckptshrink.io.files import SourceFile


def test_a_range_is_read_in_one_piece_and_in_chunks(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK + 17)
    path = tmp_path / "data"
    path.write_bytes(data)
    file = SourceFile(path)
    assert file.size == len(data)
    whole = file.read(5, 2 * CHUNK + 1)
    assert whole.tobytes() == data[5 : 2 * CHUNK + 6]
    assert whole.flags.writeable
    parts = [bytes(chunk) for chunk in file.chunks(5, 2 * CHUNK + 1)]
    assert [len(part) for part in parts] == [CHUNK, CHUNK, 1]
    assert b"".join(parts) == whole.tobytes()
    assert list(file.chunks(len(data), 0)) == []
    file.close()
    file.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 11), (10, 1), (-1, 2), (0, -1), (0, 1 << 60)])
def test_a_range_outside_the_file_is_refused_before_memory_is_asked_for(
    tmp_path: Path, offset: int, nbytes: int
) -> None:
    (tmp_path / "data").write_bytes(b"0123456789")
    file = SourceFile(tmp_path / "data")
    with pytest.raises(CorruptCheckpointError, match="the file has 10"):
        file.read(offset, nbytes)
    with pytest.raises(CorruptCheckpointError, match="the file has 10"):
        next(file.chunks(offset, nbytes))
    with pytest.raises(CorruptCheckpointError, match="the file has 10"):
        file.read_into(9, memoryview(bytearray(2)))
    file.close()


def test_a_file_cut_short_after_opening_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(100))
    file = SourceFile(path)
    os.truncate(path, 50)
    with pytest.raises(CorruptCheckpointError, match="was cut short"):
        file.read(0, 100)
    file.close()


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in (
            (tmp_path, "a folder"),
            (tmp_path / "pipe", "a named pipe"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a character device"),
        ):
            with pytest.raises(CheckpointError, match=f"is {kind}, not a file"):
                SourceFile(path)


def test_a_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="there is no such file") as caught:
        SourceFile(tmp_path / "modle.pt")
    assert caught.value.hint == f"did you mean {tmp_path / 'model.pt'}?"
    with pytest.raises(CheckpointError) as caught:
        SourceFile(tmp_path / "nowhere" / "model.pt")
    assert caught.value.hint == f"there is no folder {tmp_path / 'nowhere'} either"


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be a path"):
        SourceFile(tmp_path / "a\0b")
    with pytest.raises(CheckpointError, match="can't be read: File name too long"):
        SourceFile(tmp_path / ("a" * 5000))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="can't be read"):
        SourceFile(tmp_path / "loop")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_permission_denied_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(CheckpointError, match="permission denied"):
        SourceFile(path)
