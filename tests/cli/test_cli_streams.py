"""What goes where: pipes that close, streams that are closed, hostile names, terminals."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import Shrink, Write

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def test_a_reader_that_has_seen_enough_is_no_error(
    command: list[str], write: Write, tmp_path: Path
) -> None:
    many = write(tmp_path / "many.safetensors", {f"t{i}": np.ones(2) for i in range(5000)})
    line = f"set -o pipefail; {' '.join(command)} inspect -q {many} | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("file\tname\t")


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_do_no_harm(
    redirect: str, command: list[str], lstm: Path, tmp_path: Path
) -> None:
    before = lstm.read_bytes()
    out = tmp_path / "out"
    job = f"compress {lstm} --target Wh:rank=4 -o {out}"
    line = f"{' '.join(command)} {job} {redirect}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert lstm.read_bytes() == before
    checked = subprocess.run([*command, "verify", out], capture_output=True, check=False)
    assert checked.returncode == 0


def test_a_full_disk_behind_standard_output_is_status_4(program: Shrink, lstm: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = program("inspect", lstm, stdout=full)
    assert done.status == 4
    assert "ckptshrink: standard output: can't be written: No space left on device" in done.err


def test_a_standard_error_that_nobody_reads_is_no_error(command: list[str], lstm: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, "inspect", lstm], stdout=subprocess.PIPE, stderr=writer, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stdout.startswith(b"file\t")


HOSTILE = "\x1b[2J\x1b]0;owned\x07evil\ttab\nnewline\u202eltr\x9b31m"


@pytest.fixture
def hostile(write: Write, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {HOSTILE: rng.standard_normal((30, 20)), "[red]markup[/]": np.ones((3, 3))}
    return write(tmp_path / "hostile.safetensors", tensors)


def harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\t\n" for c in text)


def test_hostile_names_are_never_printed_raw(hostile: Path, shrink: Shrink, tmp_path: Path) -> None:
    listed = shrink("inspect", hostile)
    assert listed.status == 0
    assert len(listed.rows) == 2
    runs = [
        listed,
        shrink("inspect", hostile, "--json"),
        shrink("plan", hostile, "--target", "*evil*", "--rank", "2"),
        shrink("plan", hostile, "--target", HOSTILE, "--rank", "400", "--strict"),
        shrink("plan", hostile, "--target", HOSTILE.upper(), "--rank", "4"),
        shrink("compress", hostile, "--target", "*evil*", "--rank", "2", "-o", tmp_path / "out"),
        shrink("verify", tmp_path / "out", "--source", hostile),
    ]
    assert [done.status for done in runs] == [0, 0, 0, 3, 3, 0, 0]
    for done in runs:
        assert harmless(done.out), done.out
        assert harmless(done.err), done.err
    names = [row["name"] for row in json.loads(runs[1].out)["checkpoints"][0]["tensors"]]
    assert HOSTILE in names


def test_a_file_name_that_is_no_text_is_escaped(
    lstm: Path, program: Shrink, command: list[str]
) -> None:
    name = os.fsencode(lstm.parent) + b"/\xff\x1b[31m.safetensors"
    lstm.rename(os.fsdecode(name))
    done = subprocess.run([*command, "inspect", name], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert rb"\udcff\x1b[31m" in done.stdout


def test_a_terminal_without_the_letters_gets_escapes(program: Shrink, lstm: Path) -> None:
    folder = lstm.parent / "日本"
    folder.mkdir()
    moved = lstm.rename(folder / lstm.name)
    done = program("inspect", moved, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.status == 0, done.err
    assert r"\u65e5\u672c" in done.out
    done = program("inspect", moved, "--json", env={"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.out)["checkpoints"][0]["file"] == str(moved)


def on_a_terminal(args: list[str], env: dict[str, str] | None = None, width: int = 90) -> str:
    """Return what a command writes when all its streams are one terminal."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        args, stdin=side, stdout=side, stderr=side,
        env={**os.environ, "COLUMNS": str(width), "TERM": "xterm", **(env or {})},
    )  # fmt: skip
    os.close(side)
    chunks = []
    while True:
        try:
            chunk = os.read(main, 1 << 16)
        except OSError:  # how Linux says that the other side was closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(main)
    assert process.wait() == 0, b"".join(chunks)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def test_on_a_terminal_there_is_a_table(command: list[str], lstm: Path) -> None:
    shown = on_a_terminal([*command, "inspect", str(lstm)])
    plain = ESCAPE.sub("", shown)
    assert "\t" not in plain
    assert "rnn.weight_hh_l0  Wh" in plain
    assert "4,032 parameters: Wi 1,536, Wh 2,304, other 192" in plain
    _, *table = plain.splitlines()
    assert max(map(len, table)) <= 90


@pytest.mark.parametrize("width", [20, 40, 80, 100, 200])
def test_nothing_is_cut_off_however_narrow_the_terminal(
    width: int, command: list[str], fixtures: Path
) -> None:
    elmo = str(fixtures / "elmo" / "elmo.hdf5")
    shown = on_a_terminal([*command, "plan", "-q", elmo, "--target", "Wh:rank=4"], width=width)
    header, _, *lines = ESCAPE.sub("", shown).splitlines()
    assert "…" not in shown
    assert header.split()[:5] == ["name", "role", "shape", "fate", "parameters"]
    assert ("bytes" in header) == (width >= 100)
    names = "".join(line[: header.index("role")].strip() for line in lines)
    assert "RNN_1/RNN/MultiRNNCell/Cell1/LSTMCell/W_0.Wh" in names


def test_json_on_a_terminal_is_json(command: list[str], lstm: Path) -> None:
    assert json.loads(on_a_terminal([*command, "inspect", str(lstm), "--json"]))


def test_no_color_is_heard(command: list[str], lstm: Path) -> None:
    shown = on_a_terminal([*command, "inspect", str(lstm)], {"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[3\d", shown)


def test_names_on_a_terminal_are_harmless(command: list[str], hostile: Path) -> None:
    shown = ESCAPE.sub("", on_a_terminal([*command, "inspect", str(hostile)]))
    assert harmless(shown)
    assert "[red]markup[/]" in shown


@pytest.mark.parametrize(
    ("env", "flags", "bar"),
    [
        ({}, [], True),
        ({"CI": "true"}, [], False),
        ({"TERM": "dumb"}, [], False),
        ({"NO_PROGRESS": "1"}, [], False),
        ({}, ["--no-progress"], False),
        ({}, ["-q"], False),
    ],
    ids=str,
)
def test_the_bar_is_drawn_only_where_someone_looks(
    env: dict[str, str], flags: list[str], bar: bool, artefact: Path
) -> None:
    # in a process with a terminal, as rich decides by its streams
    code = (
        "import sys\n"
        "from ckptshrink.events import Progress\n"
        "from ckptshrink_cli import progress\n"
        "from ckptshrink_cli.streams import Run\n"
        "run = Run(quiet='-q' in sys.argv, progress='--no-progress' not in sys.argv)\n"
        "with progress.shown(run) as listen:\n"
        "    listen(Progress('W\\x1b[31m[b]x', 1, 4))\n"
    )
    clean = {"CI": "", "NO_PROGRESS": "", **env}
    shown = on_a_terminal([sys.executable, "-c", code, *flags], clean)
    assert ("25%" in shown) == bar
    assert "\x1b[31m[b]x" not in shown


def test_no_bar_where_standard_error_is_no_terminal(program: Shrink, artefact: Path) -> None:
    done = program("verify", artefact, env={"FORCE_COLOR": "1", "TERM": "xterm", "CI": ""})
    assert "\x1b" not in done.out + done.err
