"""The help of every command, as text at 100 columns. Write it again with ``--regen``."""

from pathlib import Path

import pytest

from ckptshrink_cli.main import COMMANDS, run
from ckptshrink_cli.reporting import NAME

GOLDEN = Path(__file__).parent / "help"


@pytest.mark.parametrize("name", [NAME, *COMMANDS])
def test_help_is_as_reviewed(
    name: str, regen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # not click's CliRunner, which sets the width to 80 whatever COLUMNS says
    monkeypatch.setenv("COLUMNS", "100")
    assert run(["--help"] if name == NAME else [name, "--help"]) == 0
    shown = capsys.readouterr().out
    path = GOLDEN / f"{name}.txt"
    if regen:
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


def test_no_help_is_left_of_a_command_that_is_gone() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {NAME, *COMMANDS}


def test_no_line_is_wider_than_the_terminal() -> None:
    for path in GOLDEN.iterdir():
        assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 100, path.name
