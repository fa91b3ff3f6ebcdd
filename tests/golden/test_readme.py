"""The README's examples print what the README says: run, and compared line by line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckptshrink import Request, Size, Target, compress

REPO = Path(__file__).resolve().parents[2]
README = REPO / "README.md"
_BLOCK = re.compile(r"<!-- example -->\n```console\n(.*?)```", re.DOTALL)


def _steps(block: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _run(command: str, folder: Path) -> str:
    tool = folder / "bin" / "ckptshrink"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m ckptshrink_cli "$@"\n')
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _same(seen: str, written: str) -> bool:
    """Compare words, and numbers to half a percent: sizes hold the versions of libraries."""
    one, other = seen.split(), written.split()
    return len(one) == len(other) and all(
        a == b or _close(a, b) for a, b in zip(one, other, strict=True)
    )


def _close(a: str, b: str) -> bool:
    try:
        x, y = (float(word.strip("()").replace(",", "")) for word in (a, b))
    except ValueError:
        return bool(re.fullmatch(r"[0-9a-f]{64}", a) and re.fullmatch(r"[0-9a-f]{64}", b))
    return abs(x - y) <= 0.005 * abs(y)


def test_examples_print_what_the_readme_says(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(REPO / "fixtures", tmp_path / "fixtures")
    text = README.read_text()
    blocks = _BLOCK.findall(text)
    assert len(blocks) == 2
    for block in blocks:
        fresh = ""
        for command, written in _steps(block):
            seen = _run(command, tmp_path)
            fresh += f"$ {command}\n{seen}"
            if not request.config.getoption("--regen"):
                assert _same(seen, written), f"$ {command}\n{seen}"
        if request.config.getoption("--regen"):
            text = text.replace(block, fresh)
    if request.config.getoption("--regen"):
        README.write_text(text)


def test_the_python_examples_run(tmp_path: Path) -> None:
    shutil.copy(REPO / "fixtures" / "elmo" / "elmo.hdf5", tmp_path / "elmo.hdf5")
    shutil.copy(REPO / "fixtures" / "elmo" / "options.json", tmp_path)
    awd = REPO / "fixtures" / "torch" / "awd_lstm_state.zip.pt"
    request = Request((Target("Wh"),), size=Size(rank=3))
    compress(awd, tmp_path / "awd.shrunk", request)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    code = code.replace("rank=400", "rank=8")  # of a small model
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "n_params_after=127536" in done.stdout
    assert (tmp_path / "dense.hdf5").is_file()


def test_the_changelog_begins_with_this_version() -> None:
    from ckptshrink import __version__

    newest = re.search(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


@pytest.mark.parametrize(
    "path", [README, *sorted((REPO / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
