"""Archives that lie: cut, damaged, bombs, links, names that lead elsewhere, members twice."""

import errno
import gzip
import io
import os
import random
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnknownFormatError,
    UnsafeCheckpointError,
)
from ckptshrink.io import tar_file
from ckptshrink.io.archive_file import open_archive
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.tar_file import TarIndex

REPO = Path(__file__).resolve().parent.parent.parent
WEIGHTS = (REPO / "fixtures" / "allennlp" / "best.th").read_bytes()
Members = list[tuple[str, dict[str, Any], bytes]]


def tarred(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar archive of members: name, other fields of its header, content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, fields, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in fields.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def good(**more: bytes) -> Members:
    plain = {"config.json": b"{}", "weights.th": WEIGHTS, **more}
    return [(name, {}, content) for name, content in plain.items()]


def resealed(tar: bytes, at: int, change: Callable[[bytearray], None]) -> bytes:
    """Change the header at an offset, and give it the checksum of what it is now."""
    header = bytearray(tar[at : at + 512])
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return tar[:at] + bytes(header) + tar[at + 512 :]


def put(at: int, value: bytes) -> Callable[[bytearray], None]:
    def change(header: bytearray) -> None:
        header[at : at + len(value)] = value

    return change


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HARD = {"type": tarfile.LNKTYPE, "linkname": "weights.th"}
PLAIN = tarred(good())
PAX_SIZE = {"pax_headers": {"size": "99999999"}}

HOSTILE: dict[str, tuple[bytes, type[CheckpointError], str]] = {
    "symbolic link": (tarred([*good(), ("x", LINK, b"")]), UnsafeCheckpointError, "symbolic link"),
    "weights are a link": (
        tarred([("weights.th", LINK, b"")]), UnsafeCheckpointError, "a symbolic link",
    ),
    "hard link": (tarred([*good(), ("x", HARD, b"")]), UnsafeCheckpointError, "a hard link"),
    "device": (
        tarred([*good(), ("x", {"type": tarfile.CHRTYPE}, b"")]),
        UnsafeCheckpointError, "a character device",
    ),
    "pipe": (
        tarred([*good(), ("x", {"type": tarfile.FIFOTYPE}, b"")]),
        UnsafeCheckpointError, "a named pipe",
    ),
    "sparse": (
        resealed(PLAIN, 0, put(156, b"S")), UnsafeCheckpointError, "a sparse file",
    ),
    "sparse of pax": (
        tarred([("x", {"pax_headers": {"GNU.sparse.major": "1"}}, b""), *good()]),
        UnsafeCheckpointError, "a sparse file",
    ),
    "unknown type": (resealed(PLAIN, 0, put(156, b"V")), UnsafeCheckpointError, "of type b'V'"),
    "absolute": (tarred([*good(), ("/etc/x", {}, b"")]), UnsafeCheckpointError, "lie outside"),
    "above": (tarred([*good(), ("a/../../x", {}, b"")]), UnsafeCheckpointError, "lie outside"),
    "above, by a long name": (
        tarred([*good(), ("../" + "y" * 200, {}, b"")], tarfile.GNU_FORMAT),
        UnsafeCheckpointError, "lie outside",
    ),
    "control characters": (
        tarred([*good(), ("a\x1b[2Jb", {}, b"")]), UnsafeCheckpointError, r"a\\x1b\[2Jb",
    ),
    "no UTF-8": (
        resealed(PLAIN, 0, put(0, b"\xff\xfe")), UnsafeCheckpointError, "has a member called b'",
    ),
    "weights twice": (
        tarred([*good(), ("weights.th", {}, WEIGHTS)]),
        UnsafeCheckpointError, "two members called weights.th",
    ),
    "weights twice, one under a dot": (
        tarred([*good(), ("./weights.th", {}, b"")]),
        UnsafeCheckpointError, "two members called weights.th",
    ),
    "file and folder": (
        tarred([*good(), ("config.json/x", {}, b"")]),
        UnsafeCheckpointError, "a folder as well",
    ),
    "folder and file": (
        tarred([("v/x", {}, b""), ("v", {}, b""), *good()]),
        UnsafeCheckpointError, "a folder as well",
    ),
    "no weights": (
        tarred([("config.json", {}, b"{}")]), UnknownFormatError, "without weights.th",
    ),
    "weights are a folder": (
        tarred([("weights.th", {"type": tarfile.DIRTYPE}, b"")]),
        UnknownFormatError, "without weights.th",
    ),
    "weights of something else": (
        tarred([("weights.th", {}, b"hello")]), UnknownFormatError, "not a checkpoint of torch",
    ),
    "weights cut short": (
        tarred([("weights.th", {}, WEIGHTS[:-9])]), CorruptCheckpointError, "has|cut short",
    ),
    "empty weights": (tarred([("weights.th", {}, b"")]), UnknownFormatError, "is empty"),
    "checksum of a header": (
        PLAIN[:20] + b"!" + PLAIN[21:], CorruptCheckpointError, "another checksum",
    ),
    "header in the middle": (
        PLAIN[:1044] + b"!" + PLAIN[1045:], CorruptCheckpointError, "another checksum",
    ),
    "size that is no number": (
        resealed(PLAIN, 0, put(124, b"9x")), CorruptCheckpointError, "broken tar header",
    ),
    "size beyond the end": (
        resealed(PLAIN, 0, put(124, b"77777777777\0")), CorruptCheckpointError, "cut short",
    ),
    "size of 2 ** 88": (
        resealed(PLAIN, 0, put(124, b"\x80" + b"\xff" * 11)), CorruptCheckpointError, "cut short",
    ),
    "size of pax": (
        tarred([("x", PAX_SIZE, b""), *good()]), CorruptCheckpointError, "cut short",
    ),
    "size of pax for all": (
        resealed(tarred([("x", PAX_SIZE, b""), *good()]), 0, put(156, b"g")),
        UnsafeCheckpointError, "one name or size",
    ),
    "extended header of 8 GiB": (
        resealed(PLAIN, 0, lambda h: (put(156, b"x")(h), put(124, b"77777777777\0")(h))[0]),
        UnsafeCheckpointError, "a header of",
    ),
    "broken extended header": (
        resealed(PLAIN, 0, put(156, b"x")), CorruptCheckpointError, "broken extended header",
    ),
    "folder with bytes": (
        resealed(PLAIN, 0, put(156, b"5")), CorruptCheckpointError, "a folder of 2 bytes",
    ),
    "no end": (PLAIN.rstrip(b"\0"), CorruptCheckpointError, "cut short"),
    "two archives": (PLAIN + PLAIN, CorruptCheckpointError, "bytes after its end"),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(name: str, packed: bool, tmp_path: Path) -> None:
    content, kind, words = HOSTILE[name]
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    before = sorted(tmp_path.rglob("*")), open_files()
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert (sorted(tmp_path.rglob("*")), open_files()) == before


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


PACKED = gzip.compress(PLAIN, 1)


def test_a_good_archive_is_read_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "model"
    forms = {f: tarred(good(), f) for f in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)}
    half = len(PLAIN) // 2
    for content in (
        PLAIN,
        PACKED,
        *forms.values(),
        gzip.compress(PLAIN[:half]) + gzip.compress(PLAIN[half:]),
        PACKED + bytes(1000),
        tarred([("x" * 300 + "/" + "y" * 120, {}, b"1"), *good()], tarfile.GNU_FORMAT),
        tarred([("x" * 300 + "/é", {"mtime": 1.5}, b"1"), *good()]),
        tarred([("./", {"type": tarfile.DIRTYPE}, b""), *good()]),
    ):
        path.write_bytes(content)
        before = open_files()
        reader = open_archive(path)
        assert len(reader.checkpoint.tensors) == 39
        reader.close()
        assert open_files() == before


@given(st.integers(0, len(PACKED) - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_cut_or_changed_anywhere(at: int, cut: bool) -> None:
    """An archive cut short is refused; so is a changed byte, unless the archive is the same."""
    content = PACKED[:at] if cut else PACKED[:at] + bytes([PACKED[at] ^ 0x55]) + PACKED[at + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tar.gz"
        path.write_bytes(content)
        try:
            open_checkpoint(path).close()
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert not cut
            # time and system in gzip's header; or the distance to another run of the same bytes
            assert gzip.decompress(content) == PLAIN


def test_any_bytes_of_a_header_end_in_an_error_or_an_index(tmp_path: Path) -> None:
    noise = random.Random(0)
    path = tmp_path / "x"
    for _ in range(300):
        at = noise.randrange(512)
        path.write_bytes(resealed(PLAIN, 0, put(at, noise.randbytes(min(8, 512 - at)))))
        try:
            TarIndex(path).close()
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_a_bomb_is_refused_before_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_file, "_INFLATE_FLOOR", 1 << 20)
    head = tarred([("weights.th", {"size": 0}, b"")])[:512]
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(head + bytes(40 << 20)))
    with pytest.raises(UnsafeCheckpointError, match="unpacks from"):
        open_checkpoint(path)
    assert 64 * path.stat().st_size < 40 << 20


def test_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_file, "_MAX_MEMBERS", 3)
    path = tmp_path / "model.tar.gz"
    path.write_bytes(tarred([*good(), ("a", {}, b""), ("b", {}, b"")]))
    with pytest.raises(UnsafeCheckpointError, match="more than 3 members"):
        open_checkpoint(path)


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(PACKED)

    class Full(io.BytesIO):
        def __init__(self, **_: object) -> None:
            super().__init__()

        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        open_checkpoint(path)
    assert tempfile.gettempdir() in str(caught.value)
    assert "TMPDIR" in str(caught.value.hint)


def test_gzip_of_a_lie_is_not_taken_for_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(PACKED[:10] + zlib.compress(b"text"))
    with pytest.raises(UnknownFormatError, match="packed by gzip"):
        open_checkpoint(path)
