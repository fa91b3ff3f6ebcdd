import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import ManifestMismatchError, OutputError
from ckptshrink.io.hdf5_file import Hdf5Reader, open_hdf5, write_like, write_new
from ckptshrink.tensors import TensorRef

CODES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "?": "BOOL",
}  # fmt: skip
W_0 = "RNN_0/RNN/MultiRNNCell/Cell{}/LSTMCell/W_0"


def by_h5py(path: Path, name: str) -> NDArray[Any]:
    with h5py.File(path, "r") as file:
        data = np.asarray(file[name][()])
        return data.astype(data.dtype.newbyteorder("<"))


def names_in(group: h5py.Group) -> Iterator[str]:
    """Yield the path of every dataset by every name that it has."""
    for item in group.values():
        if isinstance(item, h5py.Dataset):
            yield item.name.removeprefix("/")
        else:
            yield from names_in(item)


def check_read(path: Path, reader: Hdf5Reader) -> None:
    """Compare everything with h5py, which finds its datasets in its own way."""
    with h5py.File(path, "r") as file:
        assert set(reader.checkpoint.tensors) == set(names_in(file))
    for name, ref in reader.checkpoint.tensors.items():
        expected = by_h5py(path, name)
        data = reader.read(name)
        assert data.flags.writeable
        assert data.dtype == np.uint8
        assert data.tobytes() == expected.tobytes()
        assert data.tobytes() == b"".join(bytes(chunk) for chunk in reader.chunks(name))
        assert ref.shape == expected.shape
        assert ref.dtype == CODES[expected.dtype.str.lstrip("<>|").replace("b1", "?")]
        assert (ref.nbytes, ref.file) == (expected.nbytes, path.name)


def elmo_files(fixtures: Path) -> list[Path]:
    return sorted((fixtures / "elmo").rglob("*.hdf5"))


def test_fixtures_are_read_as_h5py_reads_them(fixtures: Path) -> None:
    files = elmo_files(fixtures)
    assert len(files) == 5
    for path in files:
        with closing(open_hdf5(path)) as reader:
            check_read(path, reader)
            assert reader.checkpoint.format == "hdf5"
            assert reader.checkpoint.notes == ()
            offsets = [dataset.storage.offset for dataset in reader.datasets.values()]
            # the library is needed for packed datasets only
            assert all(o is None for o in offsets) == (path.name == "elmo_packed.hdf5")
            assert any(o is None for o in offsets) == (path.name == "elmo_packed.hdf5")


@pytest.mark.parametrize("folder", ["elmo_allennlp", "elmo_bilm_tf"])
def test_published_elmos_are_read_as_h5py_reads_them(shared_data: Path, folder: str) -> None:
    for path in sorted((shared_data / folder).glob("*.hdf5")):
        with closing(open_hdf5(path)) as reader:
            check_read(path, reader)
            expected = (path.parent / "options.json",) if path.name == "lm_weights.hdf5" else ()
            assert reader.checkpoint.sidecars == expected


def every_kind(path: Path, **how: Any) -> None:
    x = np.random.default_rng(1).standard_normal((10, 100)).astype("<f4")
    with h5py.File(path, "w", **how) as f:
        f["contiguous"] = x
        f.create_dataset("gzip", data=x, chunks=(4, 50), compression=5, shuffle=True)
        f.create_dataset("sums", data=x, chunks=(4, 50), compression=1, fletcher32=True)
        f.create_dataset("sum", data=x, chunks=(4, 50), fletcher32=True)
        f.create_dataset("lzf", data=x, chunks=(4, 50), compression="lzf", shuffle=True)
        f.create_dataset("plain chunks", data=x, chunks=(4, 50), maxshape=(None, 100))
        f.create_dataset("sparse", (10, 100), "f4", chunks=(4, 50), compression=1)[0, 0] = 1
        f["a/b/c/big-endian"] = x.astype(">f8")
        f["half"] = x.astype("f2")
        f["true"] = x > 0
        f["scalar"] = np.int64(-3)
        f["empty"] = np.zeros((0, 3), "f4")
        f["alias"] = f["contiguous"]
        f.create_dataset("unwritten", (10, 10), "f4", fillvalue=2.5)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        f.create_dataset("compact", data=x[0], dcpl=compact)
        odd = h5py.h5t.STD_I32LE.copy()
        odd.set_precision(20)
        h5py.h5d.create(f.id, b"20 bits", odd, h5py.h5s.create_simple((5,)))
        f["20 bits"][:] = np.arange(-2, 3)
        f.create_group("nothing in it").attrs["a"] = 1.5
        f["contiguous"].attrs["list"] = np.arange(3, dtype=">i2")
        f["contiguous"].attrs["names"] = np.array([b"weight", b"bias"])
        f["contiguous"].attrs["name"] = np.bytes_("\u00e4".encode())
        f["contiguous"].attrs["flag"] = True
        f.attrs["version"] = np.array("2.4", h5py.string_dtype("utf-8", 3))


KINDS: list[dict[str, Any]] = [{}, {"libver": "latest"}, {"userblock_size": 1024}]


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_every_kind_of_dataset_is_read_as_h5py_reads_it(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    path = tmp_path / "x.h5"
    every_kind(path, **how)
    with closing(open_hdf5(path)) as reader:
        check_read(path, reader)
        tensors = reader.checkpoint.tensors
        pair = {tensors["alias"].shares_with, tensors["contiguous"].shares_with}
        assert pair in ({None, "alias"}, {None, "contiguous"})
        assert all(ref.shares_with is None for n, ref in tensors.items() if n[0] not in "ac")


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_a_file_written_anew_from_its_record_holds_the_same(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    path, again = tmp_path / "x.h5", tmp_path / "again.h5"
    every_kind(path, **how)
    with closing(open_hdf5(path)) as reader:
        source = reader.checkpoint
        record = json.loads(json.dumps(source.container, allow_nan=False))
        write_new(record, source.tensors, reader.chunks, again)
    with closing(open_hdf5(again)) as reader:
        check_read(again, reader)
        assert list(reader.checkpoint.tensors) == list(source.tensors)
        assert reader.checkpoint.container == record
    with h5py.File(path, "r") as old, h5py.File(again, "r") as new:
        for name in source.tensors:
            assert new[name].dtype == old[name].dtype
            assert np.array_equal(new[name][()], old[name][()])
            for kept in ("chunks", "compression", "compression_opts", "shuffle", "fletcher32"):
                assert getattr(new[name], kept) == getattr(old[name], kept)
            assert new[name].maxshape == old[name].maxshape
        assert new["alias"] == new["contiguous"]
        for name in ("/", "nothing in it", "contiguous"):
            assert set(new[name].attrs) == set(old[name].attrs)
            for key, value in old[name].attrs.items():
                assert np.array_equal(new[name].attrs[key], value)
                assert new[name].attrs.get_id(key).dtype == old[name].attrs.get_id(key).dtype


def test_an_elmo_written_anew_is_no_larger_and_in_the_same_order(
    fixtures: Path, tmp_path: Path
) -> None:
    for path in elmo_files(fixtures):
        again = tmp_path / path.name
        with closing(open_hdf5(path)) as reader:
            write_new(reader.checkpoint.container, reader.checkpoint.tensors, reader.chunks, again)
            source = reader.checkpoint.tensors
        with closing(open_hdf5(again)) as reader:
            check_read(again, reader)
            assert list(reader.checkpoint.tensors) == list(source)
        assert again.stat().st_size <= path.stat().st_size


def test_new_files_are_the_same_bytes_at_another_time(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    every_kind(path)
    with closing(open_hdf5(path)) as reader:
        for name in ("one", "two"):
            write_new(
                reader.checkpoint.container,
                reader.checkpoint.tensors,
                reader.chunks,
                tmp_path / name,
            )
            time.sleep(1.1)  # times in HDF5 are in seconds
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


DTYPES = st.tuples(st.sampled_from("<>"), st.sampled_from(list(CODES))).map(
    lambda pair: np.dtype("".join(pair).replace("<?", "?").replace(">?", "?"))
)
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1).filter(
        lambda part: part != "."
    ),
    min_size=1,
    max_size=3,
).map("/".join)


@st.composite
def datasets(draw: st.DrawFn) -> dict[str, Any]:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    how: dict[str, Any] = {"shape": shape, "dtype": draw(DTYPES)}
    if shape and all(shape) and draw(st.booleans()):
        how["chunks"] = tuple(draw(st.integers(1, n)) for n in shape)
        how["compression"] = draw(st.sampled_from([None, "lzf", 0, 9]))
        how["shuffle"] = draw(st.booleans())
        how["fletcher32"] = draw(st.booleans())
    return how


@given(st.dictionaries(NAMES, datasets(), max_size=5), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_tree_is_read_and_written_again(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, dict[str, Any]], seed: int
) -> None:
    # a dataset can't also be a group
    parents = {"/".join(n.split("/")[:i]) for n in tree for i in range(1, n.count("/") + 1)}
    tree = {name: how for name, how in tree.items() if name not in parents}
    folder = tmp_path_factory.mktemp("tree")
    path, again = folder / "x.h5", folder / "again.h5"
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for name, how in tree.items():
            data = random.integers(0, 2, how["shape"])
            file.create_dataset(name, data=data.astype(how["dtype"]), **how)
    with closing(open_hdf5(path)) as reader:
        check_read(path, reader)
        checkpoint = reader.checkpoint
        write_new(checkpoint.container, checkpoint.tensors, reader.chunks, again)
    with closing(open_hdf5(again)) as reader:
        check_read(again, reader)
        assert reader.checkpoint.container == checkpoint.container
    for name in tree:
        assert np.array_equal(by_h5py(path, name), by_h5py(again, name))


def ones(nbytes: int) -> Callable[[], NDArray[np.uint8]]:
    return lambda: np.full(nbytes, 1, np.uint8)


@pytest.mark.parametrize("how", KINDS, ids=str)
def test_a_copy_differs_in_the_replaced_payloads_alone(tmp_path: Path, how: dict[str, Any]) -> None:
    path, copy = tmp_path / "x.h5", tmp_path / "copy.h5"
    every_kind(path, **how)
    names = {"contiguous", "gzip", "lzf", "sum", "a/b/c/big-endian", "compact", "scalar"}
    with closing(open_hdf5(path)) as reader:
        refs = reader.checkpoint.tensors
        write_like(reader, {name: ones(refs[name].nbytes) for name in names}, copy)
        with closing(open_hdf5(copy)) as copied:
            check_read(copy, copied)
            assert copied.checkpoint.tensors.keys() == refs.keys()
            for name in refs:
                if name in names | {"alias"}:
                    assert not np.any(copied.read(name) != 1)
                else:
                    assert copied.read(name).tobytes() == reader.read(name).tobytes()


def test_a_copy_of_plain_datasets_is_patched_in_place(fixtures: Path, tmp_path: Path) -> None:
    path, copy = fixtures / "elmo" / "elmo.hdf5", tmp_path / "copy.hdf5"
    name = W_0.format(1)
    with closing(open_hdf5(path)) as reader:
        offset = reader.datasets[name].storage.offset
        nbytes = reader.checkpoint.tensors[name].nbytes
        assert offset is not None
        write_like(reader, {name: ones(nbytes)}, copy)
    expected = bytearray(path.read_bytes())
    expected[offset : offset + nbytes] = bytes([1]) * nbytes
    assert copy.read_bytes() == expected


def test_a_payload_of_the_wrong_size_or_name_is_refused(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "elmo" / "elmo.hdf5"
    with closing(open_hdf5(path)) as reader:
        source = reader.checkpoint
        with pytest.raises(OutputError, match="not in the source"):
            write_like(reader, {"nothing": ones(4)}, tmp_path / "a")
        assert not (tmp_path / "a").exists()
        with pytest.raises(OutputError, match="got 4 bytes for 131072"):
            write_like(reader, {W_0.format(0): ones(4)}, tmp_path / "b")
        for size in (0, 4, 1 << 20):
            with pytest.raises(OutputError, match=f"got {size} bytes for 16704"):
                write_new(
                    source.container,
                    source.tensors,
                    lambda _, size=size: [memoryview(bytes(size))],  # type: ignore[misc]
                    tmp_path / f"c{size}",
                )


def test_an_existing_file_is_not_written_over(fixtures: Path, tmp_path: Path) -> None:
    path = fixtures / "elmo" / "elmo.hdf5"
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    with closing(open_hdf5(path)) as reader:
        source = reader.checkpoint
        with pytest.raises(OutputError, match=r"can't be written: .*exists"):
            write_new(source.container, source.tensors, reader.chunks, there)
        with pytest.raises(OutputError, match=r"can't be written: .*exists"):
            write_like(reader, {}, there)
    assert there.read_bytes() == b"precious"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from ckptshrink.errors import OutputError
from ckptshrink.io.hdf5_file import open_hdf5, write_like, write_new

reader = open_hdf5(Path(sys.argv[1]))
c, out = reader.checkpoint, Path(sys.argv[2])
packed = {n: lambda n=n: reader.read(n)[::-1].copy() for n in c.tensors if "packed" in sys.argv[1]}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for name, write in {
    "like": lambda path: write_like(reader, packed, path),
    "new": lambda path: write_new(c.container, c.tensors, reader.chunks, path),
}.items():
    try:
        write(out / name)
    except OutputError as error:
        print(error)
"""


@pytest.mark.parametrize("limit", [0, 100, 3_000, 100_000, 300_000])
@pytest.mark.parametrize("source", ["elmo.hdf5", "packed/elmo_packed.hdf5"])
def test_a_full_disk_is_one_line(fixtures: Path, tmp_path: Path, source: str, limit: int) -> None:
    # A limit on the size of files stands for the full disk, in a process of its own: HDF5 crashes
    # on it when left to itself.
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, fixtures / "elmo" / source, tmp_path, str(limit)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(fixtures.parent)},
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{tmp_path / name}: can't be written: File too large" for name in ("like", "new")
    ]


BAD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "groups is text": {"groups": "x", "datasets": []},
    "a dataset without a tensor": {"groups": [], "datasets": [{"name": "gone"}]},
    "an attribute of another kind": {"groups": [{"name": "", "attributes": [1]}], "datasets": []},
    "an attribute that is an object": {
        "groups": [
            {
                "name": "",
                "attributes": [{"name": "a", "dtype": "O", "length": None, "value": {}}],
            }
        ],
        "datasets": [],
    },
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_that_was_tampered_with_is_one_line(tmp_path: Path, name: str) -> None:
    tensors = {"w": TensorRef("w", (2,), "F32", 8, "x")}
    with pytest.raises(ManifestMismatchError, match="does not fit its tensors") as caught:
        write_new(BAD[name], tensors, lambda _: [memoryview(bytes(8))], tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "nonsense"},
        {"dtype": None},
        {"chunks": [0]},
        {"chunks": ["a"]},
        {"chunks": [4, 4]},
        {"maxshape": [1]},
        {"filters": 3},
        {"filters": [["gzip", 99]]},
        {"shares_with": "w"},
        {"shares_with": "later"},
        {"attributes": [{"name": "a"}]},
        {"name": ["w"]},
    ],
    ids=str,
)
def test_a_dataset_record_that_was_tampered_with_is_one_line(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    record = {
        "name": "w",
        "dtype": "<f4",
        "chunks": [1],
        "maxshape": None,
        "filters": [],
        "shares_with": None,
        "attributes": [],
    }
    container = {"groups": [], "datasets": [{**record, **change}]}
    tensors = {"w": TensorRef("w", (2,), "F32", 8, "x")}
    with pytest.raises(ManifestMismatchError, match="does not fit its tensors") as caught:
        write_new(container, tensors, lambda _: [memoryview(bytes(8))], tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_the_options_of_an_elmo_go_with_it(fixtures: Path, tmp_path: Path) -> None:
    weights = (fixtures / "elmo" / "elmo.hdf5").read_bytes()
    options = (fixtures / "elmo" / "options.json").read_text()
    prefix = "elmo_2x4096_512_2048cnn_2xhighway"
    path = tmp_path / f"{prefix}_weights.hdf5"
    path.write_bytes(weights)

    def sidecars() -> list[str]:
        with closing(open_hdf5(path)) as reader:
            return [beside.name for beside in reader.checkpoint.sidecars]

    assert sidecars() == []
    (tmp_path / "options.json").write_text(options)
    assert sidecars() == ["options.json"]
    (tmp_path / f"{prefix}_options.json").write_text(options)
    assert sidecars() == [f"{prefix}_options.json"]
    (tmp_path / f"{prefix}_weights_options.json").write_text(options)
    assert sidecars() == [f"{prefix}_weights_options.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"rnn": {}}', '{"lstm":', '{"lstm": NaN}', "\ud800"])
def test_what_is_no_options_file_is_left_out_and_noted(
    fixtures: Path, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "elmo.hdf5"
    path.write_bytes((fixtures / "elmo" / "elmo.hdf5").read_bytes())
    (tmp_path / "options.json").write_text(text, errors="surrogatepass")
    with closing(open_hdf5(path)) as reader:
        assert reader.checkpoint.sidecars == ()
        assert reader.checkpoint.notes == (
            "options.json beside it is not the options of an ELMo, left out",
        )


def test_a_file_that_is_no_elmo_takes_no_options(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["w"] = np.zeros((2, 2), "f4")
    (tmp_path / "options.json").write_text('{"lstm": {}}')
    with closing(open_hdf5(tmp_path / "x.h5")) as reader:
        assert reader.checkpoint.sidecars == ()


def test_what_is_passed_over_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3, "f4")
        file["text"] = "hello"
        file["texts"] = np.array([b"a", b"b"])
        file["null"] = h5py.Empty("f4")
        file["type"] = np.dtype("f4")
        file["w"].attrs["matrix"] = np.eye(2)
        file["w"].attrs["nan"] = float("nan")
        file["w"].attrs["bytes"] = np.bytes_(b"\xff\xfe")
        file["w"].attrs["null"] = h5py.Empty("f4")
        file["w"].attrs["\x1b[31m"] = np.eye(2)
        file.attrs["complex"] = 1j
    with closing(open_hdf5(path)) as reader:
        assert list(reader.checkpoint.tensors) == ["w"]
        notes = reader.checkpoint.notes
        again = json.dumps(reader.checkpoint.container, allow_nan=False)
    assert all(note.endswith(" is not carried into a restored file") for note in notes)
    subjects = {note.removesuffix(" is not carried into a restored file") for note in notes}
    assert subjects == {
        "text: text", "texts: text", "null: an empty dataset", "type: a named type",
        "/: the attribute 'complex'", "w: the attribute 'matrix'", "w: the attribute 'nan'",
        "w: the attribute 'bytes'", "w: the attribute 'null'", "w: the attribute '\\x1b[31m'",
    }  # fmt: skip
    assert "hello" not in again


def test_large_packed_datasets_come_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    data = np.random.default_rng(2).integers(0, 3, CHUNK + 1000).astype("u1")
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=data, chunks=(1 << 20,), compression=1)
    with closing(open_hdf5(path)) as reader:
        assert [len(chunk) for chunk in reader.chunks("w")] == [CHUNK, 1000]
        assert reader.read("w").tobytes() == data.tobytes()


def test_a_file_that_is_open_elsewhere_in_the_process_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3, "f4")
    with h5py.File(path, "r") as other, closing(open_hdf5(path)) as reader:
        assert reader.read("w").tobytes() == other["w"][()].tobytes()


def test_plug_ins_are_switched_off_before_the_library_starts(fixtures: Path) -> None:
    script = (
        "import os, ckptshrink.io.hdf5_library\n"
        "assert os.environ['HDF5_PLUGIN_PRELOAD'] == '::'\n"
        "from h5py import h5z\n"
        "print(h5z.filter_avail(32001))\n"  # Blosc, which HDF5 looks for in shared objects
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(fixtures.parent)},
    )
    assert done.stdout == "False\n"
