"""TorchScript archives, and the wrappers of other trainers: names, notes, and what is written."""

import io
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import pytest
import torch
import torch_gold
from torch import Tensor, nn

from ckptshrink import Request, Size, Target, compress, restore, verify
from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnknownFormatError
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.structure import unwrapped
from ckptshrink.layouts import recognise

FIXTURES = torch_gold.REPO / "fixtures" / "torch"
ALL = Request((Target("all"),), size=Size(rank=3))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def index(path: Path) -> Checkpoint:
    with closing(open_checkpoint(path)) as reader:
        return reader.checkpoint


def script(module: nn.Module, path: Path, *, freeze: bool = False) -> Path:
    with catch_warnings():
        simplefilter("ignore")  # torch.jit is deprecated
        compiled: Any = torch.jit.script(module.eval())
        torch.jit.save(torch.jit.freeze(compiled) if freeze else compiled, path)  # type: ignore[no-untyped-call]
    return path


def load_script(path: Path) -> Any:
    with catch_warnings():
        simplefilter("ignore")
        return torch.jit.load(path)  # type: ignore[no-untyped-call]


class Nested(nn.Module):
    """Submodules after plain attributes, one of them shared, and tensors in a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [torch.ones(2, 3)]
        self.named = {"a": torch.zeros(2)}
        self.cell = nn.LSTMCell(4, 6)
        self.again = self.cell
        self.head = nn.Linear(6, 2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.again(x)
        first: Tensor = self.head(h) + self.listed[0].sum() + self.named["a"] + self.mean
        return first + c.sum() + self.cell(x)[0].sum()


def test_the_state_dict_is_that_of_torch(tmp_path: Path) -> None:
    path = script(Nested(), tmp_path / "nested.pt")
    state = load_script(path).state_dict()
    checkpoint = index(path)
    written = [name for name, _ in checkpoint.container["structure"]["dict"]]
    assert written == list(state)
    beside = set(checkpoint.tensors) - set(written)
    assert beside == {"listed.0", "named.a"}
    (note,) = checkpoint.notes
    assert note.startswith("TorchScript program (")
    assert note.endswith("Nested): its code is not read")
    found = {(m.source, m.role, m.cell) for m in recognise(checkpoint).matrices}
    assert {("cell.weight_ih", "Wi", "lstm"), ("cell.weight_hh", "Wh", "lstm")} <= found


def test_the_program_runs_on_the_compressed_weights(tmp_path: Path) -> None:
    source = FIXTURES / "tagger.script.pt"
    compress(source, tmp_path / "dense.pt", ALL, dense=True)
    compress(source, tmp_path / "made", ALL)
    assert verify(tmp_path / "made", source=source).passed
    _, left_out = restore(tmp_path / "made", tmp_path / "back.pt")
    assert any("program" in line for line in left_out)
    dense, before = load_script(tmp_path / "dense.pt"), load_script(source)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(before.state_dict())
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, back[name]), name
    words = torch.arange(6).reshape(3, 2)
    model = torch_gold.torch_models().Tagger().eval()
    model.load_state_dict(back, strict=True)
    assert torch.allclose(dense(words), model(words), atol=1e-6)
    assert not torch.allclose(dense(words), before(words), atol=1e-4)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "dense.pt") as new:
        changed = {n for n in old.namelist() if old.read(n) != new.read(n)}
        assert old.namelist() == new.namelist()
    assert changed
    assert all("/data/" in name for name in changed)


def test_a_frozen_program_says_that_its_weights_have_no_names(tmp_path: Path) -> None:
    path = script(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), tmp_path / "f.pt", freeze=True)
    checkpoint = index(path)
    assert all(name.startswith("constants.") for name in checkpoint.tensors)
    assert "2 matrices are constants" in checkpoint.notes[1]
    assert "frozen" in checkpoint.notes[1]
    compress(path, tmp_path / "dense.pt", ALL, dense=True)
    x = torch.ones(1, 8)
    assert not torch.equal(load_script(tmp_path / "dense.pt")(x), load_script(path)(x))


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_program_is_refused_in_one_line(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})  # type: ignore[attr-defined]
    path = script(quantized, tmp_path / "q.pt")
    with pytest.raises(CheckpointError, match="is a quantized tensor"):
        open_checkpoint(path)


def rewritten(path: Path, **entries: bytes | None) -> Path:
    """Pack an archive again with some entries exchanged (``data_pkl``) or left out (None)."""
    changes = {name.replace("_", ".").replace("..", "/"): data for name, data in entries.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            data = changes.get(info.filename.partition("/")[2], source.read(info))
            if data is not None:
                target.writestr(info.filename, data)
    made = path.with_name("rewritten.pt")
    made.write_bytes(out.getvalue())
    return made


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    path = script(nn.LSTM(4, 6), tmp_path / "lstm.pt")
    with pytest.raises(CorruptCheckpointError, match="is missing"):
        open_checkpoint(rewritten(path, data__1=None))
    with pytest.raises(CorruptCheckpointError, match="its pickle says"):
        open_checkpoint(rewritten(path, data__1=b"short"))
    with pytest.raises(CheckpointError):
        open_checkpoint(rewritten(path, constants_pkl=b"\x80\x02("))
    with pytest.raises(CheckpointError, match="without tensors"):
        open_checkpoint(rewritten(path, data_pkl=b"\x80\x02c__torch__\nM\n)\x81}b."))
    itself = b"\x80\x02c__torch__\nM\n)\x81q\0}(X\x01\0\0\0ah\0ub."
    with pytest.raises(CheckpointError):
        open_checkpoint(rewritten(path, data_pkl=itself))
    # what the program says is not looked at: it may be anything
    names = [n for n in zipfile.ZipFile(path).namelist() if "/code/" in n]
    assert names
    inner = names[0].partition("/")[2]
    with zipfile.ZipFile(path) as archive:
        data = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in data.items():
            archive.writestr(name, b"import os; os._exit(1)" if inner in name else content)
    assert "weight_hh_l0" in index(path).tensors


def test_archives_of_torch_1_0_are_named(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/version", "m/code/m.py", "m/model.json", "m/tensors/0"):
            archive.writestr(name, b"1")
    with pytest.raises(UnknownFormatError, match="a TorchScript archive of torch 1"):
        open_checkpoint(path)


def lstm_state(prefix: str = "", scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    lstm = nn.LSTM(6, 8, 2)
    return {
        f"{prefix}rnn.{name}": scale * torch.randn(tensor.shape, generator=generator)
        for name, tensor in lstm.state_dict().items()
    }


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.model."])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_wrappers_of_state_dicts(key: str, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "wrapped.pt"
    extra = {"epoch": 3, "best_acc": torch.tensor(0.5), "optimizer": {"state": {}, "lr": 1.0}}
    torch.save({**extra, key: lstm_state(prefix)}, path)
    checkpoint = index(path)
    found = {m.source: (m.role, m.layer) for m in recognise(checkpoint).matrices}
    assert found == {
        f"{prefix}rnn.weight_{kind}_l{layer}": (role, layer)
        for layer in (0, 1)
        for kind, role in (("ih", "Wi"), ("hh", "Wh"))
    }
    compress(path, tmp_path / "made", ALL)
    restore(tmp_path / "made", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == [*extra, key]
    assert list(back[key]) == list(lstm_state(prefix))


@pytest.mark.parametrize("ema_prefix", ["", "module."])
def test_averages_beside_the_weights_are_named(ema_prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "ema.pt"
    averages = lstm_state(ema_prefix, 0.5)
    torch.save({"epoch": 1, "state_dict": lstm_state(), "state_dict_ema": averages}, path)
    (note,) = index(path).notes
    assert note.startswith("state_dict_ema has the tensors of state_dict a second time")
    assert "--keep 'state_dict_ema.*'" in note
    other = {**averages, "more": torch.zeros(2, 2)}
    torch.save({"encoder": lstm_state(), "decoder": other}, path)
    assert index(path).notes == ()


def test_restored_fastai_files_have_what_its_loaders_ask_for(tmp_path: Path) -> None:
    # Both versions read a dict of exactly these two keys, else a state dict, and by position.
    source = FIXTURES / "fastai_v2.zip.pt"
    compress(source, tmp_path / "made", ALL)
    _, left_out = restore(tmp_path / "made", tmp_path / "back.pt")
    assert any("optimizer state" in line for line in left_out)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    before = torch_gold.load(source)["model"]
    assert list(back) == list(before)
    assert [t.shape for t in back.values()] == [t.shape for t in before.values()]
    checkpoint = index(source)
    recognition = recognise(checkpoint)
    assert recognition.family == "fastai"
    gates = [(m.source, m.role, m.layer) for m in recognition.matrices if m.cell == "lstm"]
    assert len(gates) == 6
    assert ("0.module.rnns.1.weight_hh_l0_raw", "Wh", 1) in gates


def test_other_wrappers_stay_when_they_lose_their_optimizer() -> None:
    model = {"dict": [["w", {"tensor": "w"}]]}
    optimizer = {"dict": [["m", {"tensor": "opt.m"}]]}
    pair = {"dict": [["model", model], ["opt", optimizer]]}
    assert unwrapped(pair, {"opt.m"}) == model
    assert unwrapped(pair, set()) == pair
    other = {"dict": [["state_dict", model], ["opt", optimizer]]}
    assert unwrapped(other, {"opt.m"}) == {"dict": [["state_dict", model]]}
