"""The zoo of docs/batch.md is run, and comes to what stands there."""

import re
from pathlib import Path

import pytest

from ckptshrink_cli.main import run

REPO = Path(__file__).resolve().parents[2]
DOC = (REPO / "docs" / "batch.md").read_text()


def test_the_zoo_of_the_doc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = re.search(r"```toml\n(out = .*?)```", DOC, re.DOTALL)
    shown = re.search(r"\$ ckptshrink batch zoo\.toml \| cut -f ([\d,]+)\n(.*?)```", DOC, re.DOTALL)
    assert zoo is not None
    assert shown is not None
    (tmp_path / "zoo.toml").write_text(zoo[1])
    (tmp_path / "fixtures").symlink_to(REPO / "fixtures")
    monkeypatch.chdir(tmp_path)
    assert run(["batch", "zoo.toml", "-j", "2", "-q"]) == 6
    fields = [int(number) - 1 for number in shown[1].split(",")]
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert ["\t".join(row[f] for f in fields) for row in rows] == shown[2].splitlines()
    named = re.findall(r"`(small/[^`]*)`", DOC)
    places = [name for name in named if "TASK" not in name]
    assert len(places) >= 5
    for place in places:
        assert (tmp_path / place).exists(), place


def test_every_key_of_the_doc_is_one() -> None:
    from ckptshrink.zoo.settings import Model, Task

    table = DOC.split("## The zoo file")[1].split("## What is finished")[0]
    keys = set(re.findall(r"`([a-z_]+)`", table))
    known = {*Model.model_fields, *Task.model_fields, "out", "compress", "eval"}
    assert keys <= known, keys - known
