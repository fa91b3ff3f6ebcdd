"""``benchmarks/runtime.py`` runs, on models so small that its numbers say nothing."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "runtime.py"
SMALL = (
    "--hidden=16 --inputs=12 --vocabulary=50 --elmo=8,32 --steps=3 --batches=1 --ranks=2,10 "
    "--rounds=1 --no-fast"
)


def test_every_part_has_its_table_and_equal_outputs() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *SMALL.split()], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    titles = re.findall(r"^### (.*)$", done.stdout, re.MULTILINE)
    assert [title.partition(" ")[0] for title in titles] == [
        "One", "One", "Language", "Language", "ELMo", "Aims:",
    ]  # fmt: skip
    tables, _, aims = done.stdout.partition("### Aims")
    rows = [line.split("|")[1:-1] for line in tables.splitlines() if line.startswith("| W")]
    errors = [float(row[4]) for row in rows]
    assert len(errors) >= 20
    assert max(errors) < 1e-5
    assert "never slower than dense" in aims
