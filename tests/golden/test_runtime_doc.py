"""The Python of docs/runtime.md runs as it stands there, on the fixtures."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ckptshrink import Request, Size, Target, compress

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "runtime.md").read_text(encoding="utf-8")
ALLENNLP = "<!-- needs allennlp -->\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files that the examples name."""
    fixtures = REPO / "fixtures"
    shutil.copy(fixtures / "torch" / "awd_lstm_state.zip.pt", tmp_path / "awd.pt")
    shutil.copy(fixtures / "elmo" / "elmo.hdf5", tmp_path)
    shutil.copy(fixtures / "elmo" / "options.json", tmp_path)
    tagger = nn.ModuleDict({"lstm": nn.LSTM(16, 24), "out": nn.Linear(24, 5)})
    torch.save(tagger.state_dict(), tmp_path / "tagger.pt")
    request = Request((Target("Wh"),), size=Size(rank=4))
    for name in ("awd.pt", "elmo.hdf5", "tagger.pt"):
        compress(tmp_path / name, (tmp_path / name).with_suffix(".shrunk"), request)
    return tmp_path


def test_the_python_examples_run(folder: Path) -> None:
    blocks = re.findall(r"([^\n]*\n)```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == TEXT.count("```python") > 5
    code = "\n".join(code for before, code in blocks if before != ALLENNLP)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 swapped, 0 multiplied back, 5 loaded, 0 missing, 0 unexpected" in done.stdout
    assert "FactoredLSTM(" in done.stdout
    assert "['weight_hh_l0.U', 'weight_hh_l0.V']" in done.stdout
    assert "[(3, 4, 64), (3, 1, 64)]" in done.stdout


def test_its_command_is_one_that_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptshrink_cli.main import run

    (command,) = re.findall(r"^    ckptshrink (bench .*)$", TEXT, re.MULTILINE)
    monkeypatch.chdir(folder)
    args = command.replace("1,8,80", "1").split()
    assert run([*args, "--steps", "2", "--rounds", "1"]) == 0


def test_its_routes_are_those_that_there_are() -> None:
    from ckptshrink.runtime.recurrence import ROUTES

    table = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert {"auto", *table} == set(ROUTES)
