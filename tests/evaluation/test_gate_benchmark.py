"""``benchmarks/gate.py`` runs, and what it claims holds on small numbers of examples."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gate.py"


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=100
    )


def test_equal_models_and_true_drops_are_as_stated() -> None:
    done = run("--quick", "--seed", "1", "--only", "equal,drops,smallest")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if re.match(r"\| [\d,]+ \|", line)]
    assert len(rows) == 1 + 15 + 1
    apart = re.search(r"Most apart: ([\d.]+) points", done.stdout)
    assert apart is not None
    assert 0 < float(apart[1]) <= 2


def test_a_claim_that_does_not_hold_is_the_exit_status() -> None:
    done = run("--quick", "--gates", "20", "--only", "drops")  # 20 gates are far from any power
    assert done.returncode == 1
    assert "does not hold" in done.stderr


def test_an_unknown_part_is_refused() -> None:
    done = run("--only", "everything")
    assert done.returncode == 2
    assert "no part 'everything'" in done.stderr
