"""Every tensor of a torch checkpoint is read as torch reads it, under its state-dict name."""

import io
import math
import pickle
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch_gold
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ckptshrink.digest import CHUNK, canonical_json
from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnknownFormatError,
    UnsafeCheckpointError,
)
from ckptshrink.io import torch_walk
from ckptshrink.io.torch_container import LEGACY_MAGIC, ZipContainer
from ckptshrink.io.torch_file import TorchReader, open_torch

NAMES = torch_gold.torch_models().NAMES


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    torch_gold.torch_models().make(folder)
    return folder


def saved(value: Any, folder: Path, *, legacy: bool = False) -> TorchReader:
    path = folder / "saved.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return open_torch(path)


def assert_reads(reader: TorchReader, expected: dict[str, torch.Tensor]) -> None:
    tensors = reader.checkpoint.tensors
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        gold = torch_gold.bytes_of(tensor)
        assert tensors[name].shape == tuple(tensor.shape)
        assert tensors[name].nbytes == len(gold)
        assert reader.read(name).tobytes() == gold, name
        assert b"".join(map(bytes, reader.chunks(name))) == gold, name


@pytest.mark.parametrize("name", NAMES)
def test_fixtures_are_read_as_torch_reads_them(checkpoints: Path, name: str) -> None:
    path = checkpoints / name
    reader = open_torch(path)
    assert path.stat().st_size <= 200_000
    kinds = {"legacy": "torch-legacy", "tar": "torch-tar", "script": "torchscript"}
    assert reader.checkpoint.format == kinds.get(name.split(".")[-2], "torch-zip")
    expected = torch_gold.tensors_of(torch_gold.load(path))
    if (
        name == "awd_lstm.legacy.pt"
    ):  # its counts are numbers, as in old torch: loading makes tensors
        expected = {n: t for n, t in expected.items() if not n.endswith((".step", ".eta", ".mu"))}
    assert_reads(reader, expected)
    canonical_json(reader.checkpoint.container)
    reader.close()


def test_fixtures_are_the_same_bytes_again(checkpoints: Path, tmp_path: Path) -> None:
    for path in torch_gold.torch_models().make(tmp_path):
        assert path.read_bytes() == (checkpoints / path.name).read_bytes(), path.name


def test_an_authentic_file_of_torch_1_2(shared_data: Path) -> None:
    path = shared_data / "awd_lstm" / "whole_module_torch1.2.pt"
    model, criterion, optimizer = torch_gold.load_with_stubs(path)
    expected = torch_gold.stub_state(model) | torch_gold.stub_state(criterion, "criterion.")
    names = {id(tensor): name for name, tensor in reversed(list(expected.items()))}
    for parameter, slots in optimizer.state.items():
        expected[f"optimizer.state.{names[id(parameter)]}.ax"] = slots["ax"]
    reader = open_torch(path)
    assert len(expected) == 32
    assert_reads(reader, expected)
    checkpoint = reader.checkpoint
    assert checkpoint.format == "torch-legacy"
    assert checkpoint.tensors["decoder.weight"].shares_with == "encoder.weight"
    assert checkpoint.copies == {
        f"rnns.{i}.module.weight_hh_l0": f"rnns.{i}.module.weight_hh_l0_raw" for i in range(3)
    }
    assert checkpoint.notes == (
        "whole-module pickle (model.RNNModel): read without its classes",
        "optimizer torch.optim.asgd.ASGD with averages (ax) for 14 parameters",
    )
    assert checkpoint.container["optimizer_class"] == "torch.optim.asgd.ASGD"
    assert checkpoint.container["module_classes"][0] == "model.RNNModel"
    state = [key for key, _ in checkpoint.container["structure"]["dict"]]
    gold = torch_gold.stub_state(model)
    assert state == [name for name in gold if not name.endswith("weight_hh_l0")]


def test_names_come_in_state_dict_order(checkpoints: Path) -> None:
    path = checkpoints / "awd_lstm.zip.pt"
    model, criterion, _ = torch_gold.load(path)
    reader = open_torch(path)
    own = [*model.state_dict(), *(f"criterion.{n}" for n in criterion.state_dict())]
    assert list(reader.checkpoint.tensors)[: len(own)] == own
    structure = reader.checkpoint.container["structure"]
    assert [key for key, _ in structure["list"][0]["dict"]] == list(model.state_dict())
    assert structure["list"][1]["dict"][0] == [
        "tail_vectors",
        {"tensor": "criterion.tail_vectors"},
    ]


def test_masked_and_aliased_weights_are_told_apart(checkpoints: Path) -> None:
    for container in ("zip", "legacy"):
        masked = open_torch(checkpoints / f"awd_lstm_masked.{container}.pt").checkpoint
        raw = {f"rnns.{i}.module.weight_hh_l0_raw" for i in range(3)}
        assert set(masked.copies.values()) == raw
        assert set(masked.copies) == {
            f"rnns.{i}.module.{leaf}"
            for i in range(3)
            for leaf in ("weight_hh_l0", "_flat_weights.1")
        }
    aliased = open_torch(checkpoints / "awd_lstm_evaluated.zip.pt").checkpoint
    assert aliased.copies == {}
    for i in range(3):
        ref = aliased.tensors[f"rnns.{i}.module.weight_hh_l0"]
        assert ref.shares_with == f"rnns.{i}.module.weight_hh_l0_raw"


def test_fastai_keeps_the_raw_weight_one_level_up(checkpoints: Path) -> None:
    checkpoint = open_torch(checkpoints / "fastai_v1.legacy.pt").checkpoint
    assert checkpoint.copies == {
        f"0.rnns.{i}.module.weight_hh_l0": f"0.rnns.{i}.weight_hh_l0_raw" for i in range(3)
    }
    assert checkpoint.tensors["1.decoder.weight"].shares_with == "0.encoder.weight"
    outer = dict(checkpoint.container["structure"]["dict"])
    groups = dict(outer["opt"]["dict"])["param_groups"]
    assert dict(groups["list"][0]["dict"])["betas"] == {"tuple": [{"value": 0.7}, {"value": 0.99}]}
    assert dict(outer["opt"]["dict"])["state"]["dict"][0][0] == {"value": 0}


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.uint32,
    torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_every_dtype(tmp_path: Path, legacy: bool) -> None:
    values = torch.arange(12).reshape(3, 4)
    state = {str(dtype): values.to(dtype) for dtype in DTYPES}
    assert_reads(saved(state, tmp_path, legacy=legacy), state)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), legacy=st.booleans())
def test_any_view_is_read_row_by_row(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, legacy: bool
) -> None:
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    strides = data.draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    offset = data.draw(st.integers(0, 7))
    base = torch.arange(200, dtype=data.draw(st.sampled_from([torch.int16, torch.float64])))
    state = {"view": base.as_strided(shape, strides, offset), "base": base}
    assert_reads(saved(state, tmp_path_factory.mktemp("view"), legacy=legacy), state)


def test_what_shares_elements_and_what_shares_only_a_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"a": base, "same": base, "row": base[1], "alike": base.clone(), "t": base.t()}
    tensors = saved(state, tmp_path).checkpoint.tensors
    shared = {name: ref.shares_with for name, ref in tensors.items()}
    assert shared == {"a": None, "same": "a", "row": None, "alike": None, "t": None}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (OrderedDict(w=1, b=2), ["w", "b"]),
        ({"state_dict": {"w": 1}, "epoch": 3}, ["w"]),
        ({"epoch": 3, "net": {"w": 1}, "optimizer": {"m": 2}}, ["w", "optimizer.m"]),
        ({"generator": {"w": 1}, "critic": {"w": 2}}, ["generator.w", "critic.w"]),
        ({"state_dict": {"w": 1}, "mean": 2}, ["state_dict.w", "mean"]),
        ({"state_dict": {"w": 1}, "cuda_rng_state": 2}, ["w", "cuda_rng_state"]),
        ({"model": {"enc": {"w": 1}, "dec": {"w": 2}}}, ["enc.w", "dec.w"]),
        ({"state_dict": {"opt.x": 1}, "opt": {"x": 2}}, ["state_dict.opt.x", "opt.x"]),
        ([1, 2], ["0", "1"]),
        (({"w": 1}, "arguments"), ["w"]),
        ([{"w": 1}, {"state": {0: {"m": 2}}, "param_groups": []}], ["w", "optimizer.state.0.m"]),
        ({1: 1, 2.5: 2, (0, 1): 3, None: 4}, ["1", "2.5", "(0, 1)", "None"]),
        (
            {"state_dict": {"w": 1}, "optimizer_states": [{"m": 2}], "lr_schedulers": []},
            ["w", "optimizer_states.0.m"],
        ),
        (1, ["tensor"]),
    ],
)  # fmt: skip
def test_names_of_wrapped_state_dicts(tmp_path: Path, value: Any, names: list[str]) -> None:
    count = iter(range(100))

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return type(node)((k, v if k == "epoch" else filled(v)) for k, v in node.items())
        if isinstance(node, list | tuple):
            return type(node)(map(filled, node))
        return torch.full((2,), next(count)) if isinstance(node, int) else node

    reader = saved(filled(value), tmp_path)
    assert list(reader.checkpoint.tensors) == names
    found = [int(reader.read(name)[0]) for name in names]
    assert found == list(range(len(names)))  # the values say that each name got its own tensor


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="two tensors have this name"):
        saved({1: torch.zeros(1), "1": torch.zeros(1)}, tmp_path)
    with pytest.raises(CorruptCheckpointError, match="no Unicode"):
        saved({"\udcff": torch.zeros(1)}, tmp_path)


class Holder:
    """An object that holds tensors, and is no module."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def test_tensors_in_other_objects_are_listed_and_noted(tmp_path: Path) -> None:
    holder: Any = Holder(cache=[torch.ones(2)], names={"a", "b"})
    holder.me = holder
    reader = saved({"state_dict": {"w": torch.zeros(3)}, "args": holder}, tmp_path)
    assert list(reader.checkpoint.tensors) == ["state_dict.w", "args.cache.0"]
    assert reader.checkpoint.notes == (f"args: ignored object of class {__name__}.Holder",)
    structure = reader.checkpoint.container["structure"]
    assert structure["dict"][1] == ["args", {"opaque": f"{__name__}.Holder"}]
    reader = saved(Holder(model=nn.Linear(2, 2, bias=False), step=3), tmp_path)
    assert list(reader.checkpoint.tensors) == ["weight"]
    reader = saved(Holder(w=torch.ones(1)), tmp_path)
    assert reader.checkpoint.container["kind"] == "object"
    assert reader.checkpoint.container["structure"] == {"dict": [["w", {"tensor": "w"}]]}


class Weights(dict[str, Any]):
    """A dict with a class of its own, which pickles its attributes too."""


def test_a_dict_of_its_own_class_is_a_dict_with_attributes(tmp_path: Path) -> None:
    value = Weights(w=torch.zeros(2))
    value.mean = torch.ones(1)  # type: ignore[attr-defined]
    reader = saved(value, tmp_path)
    assert set(reader.checkpoint.tensors) == {"w", "mean"}
    assert reader.checkpoint.container["structure"] == {"dict": [["w", {"tensor": "w"}]]}


def test_plain_values_keep_their_types(tmp_path: Path) -> None:
    value = {
        "w": torch.zeros(1), "best": math.inf, "worst": -math.inf, "none": math.nan, "n": 2**70,
        "flag": True, "names": ["a", None], 7: "seven", "size": torch.Size([2, 3]),
        "bytes": b"\xff", "set": {1}, "dtype": torch.float32,
    }  # fmt: skip
    nodes = saved(value, tmp_path).checkpoint.container["structure"]["dict"]
    assert nodes == [
        ["w", {"tensor": "w"}],
        ["best", {"float": "inf"}],
        ["worst", {"float": "-inf"}],
        ["none", {"float": "nan"}],
        ["n", {"value": 2**70}],
        ["flag", {"value": True}],
        ["names", {"list": [{"value": "a"}, {"value": None}]}],
        [{"value": 7}, {"value": "seven"}],
        ["size", {"tuple": [{"value": 2}, {"value": 3}]}],
        ["bytes", {"opaque": "_codecs.encode"}],
        ["set", {"opaque": "builtins.set"}],
        ["dtype", {"opaque": "torch.float32"}],
    ]


def test_a_large_vocabulary_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_walk, "MAX_VALUES", 50)
    value = {"w": torch.zeros(1), "small": [0] * 40, "vocabulary": {str(i): i for i in range(60)}}
    checkpoint = saved(value, tmp_path).checkpoint
    assert checkpoint.notes == ("vocabulary: ignored object of class dict of 60 values",)


class Parts(nn.Module):
    """A module with buffers, a shared part, an unregistered part, and a cached tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.ones(2))
        self.register_buffer("scratch", torch.full((2,), 2.0), persistent=False)
        self.one = nn.Linear(2, 2)
        self.other = self.one
        self.hidden = [nn.Linear(1, 1)]
        self.cache = {"h": (torch.full((1,), 3.0), None)}
        self.register_parameter("nothing", None)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_everything_a_module_holds_is_listed(tmp_path: Path, legacy: bool) -> None:
    module = Parts()
    reader = saved({"epoch": 1, "net": module, "ema": module.one}, tmp_path, legacy=legacy)
    expected = dict(module.state_dict())
    expected |= {f"ema.{n}": t for n, t in module.one.state_dict().items()}
    assert list(reader.checkpoint.tensors)[: len(expected)] == list(expected)
    hidden = {f"hidden.0.{n}": t for n, t in module.hidden[0].state_dict().items()}
    extra = {"scratch": module.scratch, "cache.h.0": module.cache["h"][0]}
    assert_reads(reader, expected | hidden | extra)
    structure = reader.checkpoint.container["structure"]["list"]
    assert [key for key, _ in structure[0]["dict"]] == list(module.state_dict())


def test_the_criterion_may_come_before_the_model(tmp_path: Path) -> None:
    reader = saved([nn.MSELoss(), nn.Linear(2, 1), nn.Linear(1, 1, bias=False)], tmp_path)
    assert list(reader.checkpoint.tensors) == ["weight", "bias", "module2.weight"]


def test_optimizer_state_is_named_by_the_parameter_it_belongs_to(tmp_path: Path) -> None:
    model, head = nn.Linear(2, 2), nn.Linear(2, 1)
    stray = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([head.weight, stray, model.bias])
    for parameter in (head.weight, stray, model.bias):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    names = list(saved([model, head, optimizer], tmp_path).checkpoint.tensors)
    assert "optimizer.state.criterion.weight.exp_avg" in names
    assert "optimizer.state.bias.exp_avg_sq" in names
    assert "optimizer.state.1.exp_avg" in names
    assert "optimizer.param_groups.0.params.1" in names
    assert "optimizer.param_groups.0.params.2" not in names


def old_pickle(body: bytes, storages: dict[str, torch.Tensor]) -> bytes:
    """Return a legacy container around a hand-made pickle, as torch 0.1 to 0.3 wrote it."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    heads = [pickle.dumps(v, 2) for v in (LEGACY_MAGIC, 1001, system)]
    tails = [t.numel().to_bytes(8, "little") + torch_gold.bytes_of(t) for t in storages.values()]
    return b"".join([*heads, body, pickle.dumps(list(storages), 2), *tails])


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch.cuda\nFloatStorage\n"
    b"X\x01\x00\x00\x007X\x06\x00\x00\x00cuda:0K\x06%btQ"
)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor\n(%bK\x02ctorch\nSize\nK\x02K\x01\x86\x85RK\x02K\x01\x86tR"
)


@pytest.mark.parametrize(
    "wrapped",
    [
        b"%b",
        b"ctorch.nn.parameter\nParameter\n%b\x85R(\x88\x89ccollections\nOrderedDict\n)Rtb",
        b"ctorch.nn.parameter\nParameter\n%b\x85\x81(\x88\x89ccollections\nOrderedDict\n)Rtb",
        b"ctorch.autograd.variable\nVariable\n%b\x85\x81(\x88\x89ccollections\nOrderedDict\n)Rtb",
    ],
)
def test_parameters_of_torch_0_1_to_0_3(tmp_path: Path, wrapped: bytes) -> None:
    values = torch.arange(6.0)
    pickled = b"\x80\x02}U\x01w" + wrapped % (TENSOR % (STORAGE % b"N")) + b"s."
    path = tmp_path / "old.pt"
    path.write_bytes(old_pickle(pickled, {"7": values}))
    assert_reads(open_torch(path), {"w": values[2:5:2].reshape(2, 1)})


def test_storages_that_are_parts_of_another(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    part = STORAGE % b"(X\x01\x00\x00\x008K\x01K\x05t"
    path = tmp_path / "old.pt"
    path.write_bytes(old_pickle(b"\x80\x02}U\x01w" + TENSOR % part + b"s.", {"7": values}))
    assert_reads(open_torch(path), {"w": values[3:6:2].reshape(2, 1)})
    outside = STORAGE % b"(X\x01\x00\x00\x008K\x03K\x05t"
    path.write_bytes(old_pickle(b"\x80\x02}U\x01w" + TENSOR % outside + b"s.", {"7": values}))
    with pytest.raises(CorruptCheckpointError, match="out of its parent"):
        open_torch(path)


def test_a_tensor_built_by_its_class(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    built = b"ctorch\nFloatTensor\n)\x81(%bK\x01K\x03\x85K\x01\x85tb" % (STORAGE % b"N")
    path = tmp_path / "old.pt"
    path.write_bytes(old_pickle(b"\x80\x02}U\x01w" + built + b"s.", {"7": values}))
    assert_reads(open_torch(path), {"w": values[1:4]})


class Tagged(torch.Tensor):
    """A subclass, which torch pickles by another function."""


def test_subclasses_and_parameters_with_attributes(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.tag = 1  # type: ignore[attr-defined]
    tagged = torch.full((2,), 5.0).as_subclass(Tagged)
    expected = {"p": torch.ones(2), "t": torch.full((2,), 5.0)}
    assert_reads(saved({"p": parameter, "t": tagged}, tmp_path), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.zeros(2, device="meta"), "meta device"),
        (lambda: torch.zeros(2, dtype=torch.complex128), "ComplexDoubleStorage"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "conjugated"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz")
def test_tensors_without_plain_values_are_refused_by_name(
    tmp_path: Path, make: Callable[[], torch.Tensor], message: str
) -> None:
    for legacy in (False, True):
        with pytest.raises(CheckpointError, match=message) as raised:
            saved({"net": {"w": torch.zeros(1), "odd": make()}}, tmp_path, legacy=legacy)
        assert raised.value.tensor == "net.odd"
        assert raised.value.hint


def test_a_pickle_of_a_tensor_without_torch_save(tmp_path: Path) -> None:
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps({"w": torch.zeros(2)}))
    with pytest.raises(UnknownFormatError, match="not one of torch"):
        open_torch(path)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", path.read_bytes())
        archive.writestr("archive/version", b"3\n")
    path.write_bytes(inner.getvalue())
    with pytest.raises(UnsafeCheckpointError, match="pickle inside the pickle"):
        open_torch(path)


def test_other_containers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(b"pickle" + bytes(251) + b"ustar" + bytes(300))
    with pytest.raises(UnknownFormatError, match="a tar archive, but not one of torch"):
        open_torch(path)
    for content in (b"", b"\x89HDF\r\n\x1a\n" + bytes(99), b"hello"):
        path.write_bytes(content)
        with pytest.raises(UnknownFormatError):
            open_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"no checkpoint")
    with pytest.raises(UnknownFormatError, match="not one of torch"):
        open_torch(path)
    with pytest.raises(CheckpointError, match="no tensors"):
        saved({"epoch": 3}, tmp_path)


def repack(path: Path, root: str, method: int, byteorder: bytes = b"little") -> None:
    """Pack a checkpoint again with Python's zipfile, as people do who looked inside."""
    with zipfile.ZipFile(path) as source:
        entries = [(i.filename.partition("/")[2], source.read(i)) for i in source.infolist()]
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in entries:
            target.writestr(f"{root}/{name}", byteorder if name == "byteorder" else data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_repacked_files(tmp_path: Path, method: int) -> None:
    base = torch.randn(300, 40, generator=torch.Generator().manual_seed(1))
    state = {"w": base, "part": base[5:9], "t": base.t(), "empty": torch.zeros(0, 3)}
    torch.save(state, tmp_path / "saved.pt")
    repack(tmp_path / "saved.pt", "été", method)
    assert_reads(open_torch(tmp_path / "saved.pt"), state)


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "saved.pt")
    repack(tmp_path / "saved.pt", "archive", zipfile.ZIP_STORED, b"big")
    with pytest.raises(UnknownFormatError, match="byte order 'big'"):
        open_torch(tmp_path / "saved.pt")


def test_chunks_are_bounded_and_reads_are_writable(tmp_path: Path) -> None:
    state = {"w": torch.arange(CHUNK // 4 + 5, dtype=torch.float32), "t": torch.zeros(2, 3).t()}
    reader = saved(state, tmp_path)
    assert [len(chunk) for chunk in reader.chunks("w")] == [CHUNK, 20]
    for name in state:
        data = reader.read(name)
        data[:] = 7
        assert reader.read(name).tobytes() == torch_gold.bytes_of(state[name])


def test_a_small_file_can_not_make_a_large_view(tmp_path: Path) -> None:
    for shape, strides in (((1 << 20, 1 << 18), (0, 0)), ((30_000, 30_000), (1, 0))):
        view = torch.zeros(30_000).as_strided(shape, strides)
        with pytest.raises(UnsafeCheckpointError, match="and its storage") as raised:
            saved({"w": view}, tmp_path)
        assert raised.value.tensor == "w"
    views = {str(i): torch.zeros(1).expand(1 << 20, 1 + i) for i in range(8)}
    with pytest.raises(UnsafeCheckpointError, match="its tensors have"):
        saved(views, tmp_path)


def test_protocol_4_pickles(tmp_path: Path) -> None:
    state = {"w": torch.arange(4.0), "é": torch.ones(1)}
    torch.save(state, tmp_path / "saved.pt", pickle_protocol=4)
    assert_reads(open_torch(tmp_path / "saved.pt"), state)


def test_a_cut_or_changed_payload_is_noticed_when_read(tmp_path: Path) -> None:
    state = {"a": torch.zeros(1000), "b": torch.ones(1000), "part": torch.zeros(50)[3:9]}
    torch.save(state, tmp_path / "saved.pt")
    data = bytearray((tmp_path / "saved.pt").read_bytes())
    reader = open_torch(tmp_path / "saved.pt")
    assert isinstance(reader.container, ZipContainer)
    for name in ("a", "part"):
        entry = reader.container.entry_name(reader.views[name].key)
        data[reader.container.index.entries[entry].start + 1] ^= 4
    (tmp_path / "saved.pt").write_bytes(data)
    reader = open_torch(tmp_path / "saved.pt")
    assert reader.read("b").tobytes() == torch_gold.bytes_of(state["b"])
    for name in ("a", "part"):
        with pytest.raises(CorruptCheckpointError, match="checksum"):
            reader.read(name)
        with pytest.raises(CorruptCheckpointError, match="checksum"):
            list(reader.chunks(name))


def test_bytes_after_a_legacy_file_are_noted(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    path = tmp_path / "a.pt"
    path.write_bytes(path.read_bytes() + b"12345")
    assert open_torch(path).checkpoint.notes == ("5 bytes after the last storage are not read",)


def test_a_long_legacy_pickle_is_read_window_by_window(tmp_path: Path) -> None:
    state = {"w": torch.arange(5.0), "text": "x" * 3_000_000}
    reader = saved(state, tmp_path, legacy=True)
    assert_reads(reader, {"w": state["w"]})  # type: ignore[dict-item]


def test_lstm_attributes_do_not_confuse(tmp_path: Path) -> None:
    reader = saved(nn.LSTM(2, 3, 2, proj_size=2, bidirectional=True), tmp_path)
    flat = [n for n in reader.checkpoint.tensors if n.startswith("_flat_weights.")]
    assert len(flat) == 20
    assert all(reader.checkpoint.tensors[n].shares_with for n in flat)
    assert reader.checkpoint.copies == {}


def test_flat_weights_that_are_stale_copies(tmp_path: Path) -> None:
    lstm = nn.LSTM(2, 3)
    lstm._flat_weights = [w.detach().clone() for w in lstm._flat_weights]  # type: ignore[union-attr]
    checkpoint = saved({"net": lstm}, tmp_path).checkpoint
    assert checkpoint.copies == {
        f"_flat_weights.{i}": name
        for i, name in enumerate(["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
    }


@pytest.mark.parametrize("leaf", ["w", "_flat_weights.{}", "weight_{}_raw", "rng_state"])
def test_many_tensors_take_linear_time(tmp_path: Path, leaf: str) -> None:
    one = torch.zeros(1)
    many = {f"net.{i}.{leaf.format(i)}": one for i in range(20_000)}
    start = time.process_time()
    assert len(saved(many, tmp_path).checkpoint.tensors) == 20_000
    assert time.process_time() - start < 15  # with torch's own share; a quadratic loop takes hours


def test_flat_weights_without_a_list_of_names(tmp_path: Path) -> None:
    raw, masked = torch.ones(4, 1), torch.zeros(4, 1)
    names = ("rnn._flat_weights.1", f"rnn._flat_weights.{'9' * 5000}")
    state = {"rnn.weight_hh_l0_raw": raw, "rnn.bias": torch.zeros(4)} | dict.fromkeys(names, masked)
    copies = saved(state, tmp_path).checkpoint.copies
    assert copies == {"rnn._flat_weights.1": "rnn.weight_hh_l0_raw"}


def test_namespace_arguments_are_no_obstacle(tmp_path: Path) -> None:
    value = {"model": {"w": torch.zeros(2)}, "args": SimpleNamespace(lr=0.1), "np": np.zeros(3)}
    reader = saved(value, tmp_path)
    assert list(reader.checkpoint.tensors) == ["w"]
    assert len(reader.checkpoint.notes) == 2
