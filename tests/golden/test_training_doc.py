"""The Python of docs/training.md runs as it stands there, on a small text."""

import re
import subprocess
import sys
from pathlib import Path

from ckptshrink.runtime import load_language_model

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_python_examples_run(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_text("the cat sat on the mat\na dog saw the cat\n" * 60)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    for run in (1, 2):  # the second finds the run of the first, and has nothing left to do
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "\n".join(blocks)]
            if run == 1
            else [sys.executable, "-W", "error", "-c", blocks[0]],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch") == (2 if run == 1 else 0)
    assert load_language_model(tmp_path / "awd.pt").hidden_sizes == (40, 20)
    assert (tmp_path / "elmo.hdf5").stat().st_size > 1000
