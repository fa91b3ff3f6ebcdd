"""The tar container of torch 0.1: read as torch's own loader reads it, and refused when broken."""

import io
import pickle
import struct
import tarfile
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_gold
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnknownFormatError,
    UnsafeCheckpointError,
)
from ckptshrink.io.detect import detect_format
from ckptshrink.io.torch_file import open_torch
from ckptshrink.io.torch_write import write_like

FIXTURES = torch_gold.REPO / "fixtures" / "torch"
SYSTEM = {"protocol_version": 1000, "little_endian": True}


def dumped(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def saved(value: object, tmp_path: Path) -> Path:
    torch_gold.torch_models().save_tar(value, tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def tarred(members: dict[str, bytes], path: Path, format_: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w:", format=format_) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> dict[str, Tensor]:
    dtypes = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8}
    with closing(open_torch(path)) as reader:
        return {
            name: torch.from_numpy(reader.read(name)).view(dtypes[ref.dtype]).reshape(ref.shape)
            if ref.nbytes
            else torch.empty(ref.shape, dtype=dtypes[ref.dtype])
            for name, ref in reader.checkpoint.tensors.items()
        }


def assert_as_torch(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.load(path, weights_only=False)
    found = read(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8]),
    transposed=st.booleans(),
)
def test_what_torch_reads_is_what_we_read(
    shapes: list[list[int]], dtype: torch.dtype, transposed: bool, tmp_path_factory: object
) -> None:
    folder = Path(str(tmp_path_factory.mktemp("tar")))  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(len(shapes))
    state = {
        f"w{i}": torch.randint(0, 200, shape, generator=generator).to(dtype)
        for i, shape in enumerate(shapes)
    }
    if transposed:
        state["t"] = state["w0"].flatten()[1:]
        state["u"] = state["w0"].transpose(0, -1)
    assert_as_torch(saved(state, folder))


def test_parts_of_one_storage_are_found(tmp_path: Path) -> None:
    # cuDNN's flatten_parameters makes every weight a part of one storage
    values = np.arange(12, dtype="<f4")
    numbers = struct.pack("<8q", 2, 2, 3, 3, 1, 0, 0, 0)[:48]
    members = {
        "sys_info": dumped(SYSTEM),
        "pickle": _references({"w": "7"}),
        "tensors": dumped(1) + dumped((7, 5, torch.FloatTensor)) + numbers,
        "storages": dumped(1)
        + dumped((3, "cpu", torch.FloatStorage))
        + struct.pack("<q", 12)
        + values.tobytes()
        + dumped([(5, 3, 4, 6)]),
    }
    path = tarred(members, tmp_path / "parts.pt")
    assert torch.equal(read(path)["w"], torch.arange(4.0, 10.0).reshape(2, 3))
    members["storages"] = members["storages"].removesuffix(dumped([(5, 3, 4, 6)]))
    for views, why in ((5, 3, 7, 6), "out of its parent"), ((5, 4, 4, 6), "of a storage"):
        path = tarred({**members, "storages": members["storages"] + dumped([views])}, path)
        with pytest.raises(CorruptCheckpointError, match=why):
            open_torch(path)


def _references(names: dict[str, str]) -> bytes:
    """Return the pickle of a dict whose values are persistent ids."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> str | None:
            return obj.decode() if isinstance(obj, bytes) else None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({name: pid.encode() for name, pid in names.items()})
    return out.getvalue()


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_python_2_and_3(tmp_path: Path, format_: int) -> None:
    path = saved({"w": torch.ones(2, 3)}, tmp_path)
    assert_as_torch(tarred(members_of(path), path, format_))
    assert detect_format(path) == "torch"


def test_a_dense_copy_changes_only_the_values(tmp_path: Path) -> None:
    path = FIXTURES / "gru_state.tar.pt"
    out = io.BytesIO()
    with closing(open_torch(path)) as reader:
        write_like(reader, {}, out)
        assert out.getvalue() == path.read_bytes()
        name = "weight_hh_l1"
        new = np.full(reader.checkpoint.tensors[name].nbytes, 1, np.uint8)
        out = io.BytesIO()
        write_like(reader, {name: lambda: new}, out)
    changed = tmp_path / "changed.pt"
    changed.write_bytes(out.getvalue())
    before, after = read(path), read(changed)
    assert [n for n in before if not torch.equal(before[n], after[n])] == [name]
    assert_as_torch(changed)


def test_old_variables_are_their_tensors(tmp_path: Path) -> None:
    # of the first betas: all in the state; under protocol 0: through copyreg
    members = members_of(saved({"w": torch.ones(2)}, tmp_path))
    (pid,) = (p.pid for p in open_torch(tmp_path / "saved.pt").container.pickled.persistent)
    number = str(pid).encode()
    parameter = b"ctorch.nn.parameter\nParameter\n"
    forms = {
        "beta": parameter + b")\x81(U" + bytes([len(number)]) + number + b"Q" + b"N}\x88\x89tb",
        "copyreg": b"ccopy_reg\n__newobj__\n(" + parameter + b"P" + number + b"\nt" + b"R",
    }
    for made in forms.values():
        pickled = b"\x80\x02}U\x01w" + made + b"s."
        path = tarred({**members, "pickle": pickled}, tmp_path / "old.pt")
        assert torch.equal(read(path)["w"], torch.ones(2))


def _longer(members: dict[str, bytes]) -> dict[str, bytes]:
    storages = members["storages"].replace(struct.pack("<q", 6), struct.pack("<q", 1 << 40), 1)
    return members | {"storages": storages}


Members = dict[str, bytes]
BROKEN: dict[str, tuple[Callable[[Members], Members], type[CheckpointError], str]] = {
    "no member": (
        lambda m: {k: v for k, v in m.items() if k != "storages"},
        CorruptCheckpointError,
        "no member 'storages'",
    ),
    "cut storages": (
        lambda m: m | {"storages": m["storages"][:-30]},
        CorruptCheckpointError,
        "cut short|ends inside",
    ),
    "huge storage": (_longer, CorruptCheckpointError, "cut short"),
    "cut tensors": (
        lambda m: m | {"tensors": m["tensors"][:-9]},
        CorruptCheckpointError,
        "ends inside its tensors",
    ),
    "many tensors": (
        lambda m: m | {"tensors": dumped(10**9)},
        UnsafeCheckpointError,
        "1,000,000,000 tensors",
    ),
    "many dimensions": (
        lambda m: m | {"tensors": m["tensors"][:-48] + struct.pack("<5q", 900, 1, 1, 1, 1)},
        CorruptCheckpointError,
        "900 dimensions",
    ),
    "out of its storage": (
        lambda m: m | {"tensors": m["tensors"][:-8] + struct.pack("<q", 1)},
        CorruptCheckpointError,
        "reaches out of its storage",
    ),
    "negative size": (
        lambda m: m | {"tensors": m["tensors"][:-8] + struct.pack("<q", -1)},
        CorruptCheckpointError,
        "no proper size",
    ),
    "unknown id": (
        lambda m: m | {"pickle": _references({"w": "99"})},
        CorruptCheckpointError,
        "reference to no storage or tensor",
    ),
    "big endian": (
        lambda m: m | {"sys_info": dumped(SYSTEM | {"little_endian": False})},
        UnknownFormatError,
        "big-endian",
    ),
    "another version": (
        lambda m: m | {"sys_info": dumped({"protocol_version": 1001})},
        UnknownFormatError,
        "unknown version",
    ),
    "unknown storage": (
        lambda m: m | {"storages": m["storages"].replace(b"FloatStorage", b"QuietStorage")},
        CheckpointError,
        "values of type QuietStorage",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name: str, tmp_path: Path) -> None:
    change, error, why = BROKEN[name]
    members = members_of(saved({"w": torch.ones(2, 3)}, tmp_path))
    path = tarred(change(members), tmp_path / "broken.pt")
    with pytest.raises(error, match=why):
        open_torch(path)


def test_links_doubles_and_false_headers_are_refused(tmp_path: Path) -> None:
    good = saved({"w": torch.ones(2, 3)}, tmp_path).read_bytes()
    path = tmp_path / "broken.pt"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UnsafeCheckpointError, match="no plain file"):
        open_torch(path)
    at = good.index(b"storages\0")
    path.write_bytes(good[: at + 2] + b"x" + good[at + 3 :])
    with pytest.raises(CorruptCheckpointError, match="another checksum"):
        open_torch(path)
    members = members_of(tmp_path / "saved.pt")
    tarred(members, path)
    whole = path.read_bytes()
    first = whole[: 1024 if len(members["sys_info"]) <= 512 else 1536]
    path.write_bytes(first + whole)
    with pytest.raises(CorruptCheckpointError, match="two members"):
        open_torch(path)


def test_every_cut_is_noticed_and_noise_breaks_nothing(tmp_path: Path) -> None:
    good = tarred(members_of(saved({"w": torch.ones(2, 3)}, tmp_path)), tmp_path / "t").read_bytes()
    end = len(good.rstrip(b"\0"))
    path = tmp_path / "cut.pt"
    for n in range(600, end, 97):
        path.write_bytes(good[:n])
        with pytest.raises(CheckpointError):
            open_torch(path)
    rng = np.random.default_rng(3)
    for _ in range(200):
        noisy = bytearray(good)
        for at in rng.integers(0, end, 3):
            noisy[at] = rng.integers(256)
        path.write_bytes(noisy)
        try:
            open_torch(path).close()
        except CheckpointError:
            continue
