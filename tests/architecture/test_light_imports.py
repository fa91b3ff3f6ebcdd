"""What a command must not import, since importing it takes longer than the command does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("torch", "h5py", "numpy", "pydantic", "rich", "safetensors", "scipy")

PROGRAM = """
import json, sys
from ckptshrink_cli.main import run
status = run(json.loads(sys.argv[1]))
print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)
"""


def modules_after(*args: object) -> set[str]:
    """Return the modules that a run of the command line has imported, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([str(arg) for arg in args])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["compress", "--help"],
        ["plan", "--help"],
        ["verify", "--help"],
        ["eval", "--help"],
        ["gate", "--help"],
        ["completion", "zsh"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_slow(args: list[str]) -> None:
    assert not modules_after(*args) & set(SLOW)


def test_the_list_of_commands_imports_none_of_them() -> None:
    assert not {m for m in modules_after("--help") if m.startswith("ckptshrink_cli.commands_")}


def test_inspect_imports_the_format_it_reads_and_no_more(fixtures: Path) -> None:
    # HDF5 runs in a process of its own
    elmo = modules_after("inspect", fixtures / "elmo" / "elmo.hdf5")
    assert not elmo & {"torch", "pydantic", "rich", "safetensors", "h5py"}


def test_inspect_of_keras_files_imports_no_library(fixtures: Path) -> None:
    files = sorted((fixtures / "keras").iterdir())
    assert {path.suffix for path in files} == {".h5", ".keras"}
    made = modules_after("inspect", *files)
    assert not made & {"torch", "pydantic", "rich", "safetensors", "h5py"}


def test_inspect_of_a_torch_file_imports_neither_torch_nor_h5py(fixtures: Path) -> None:
    files = sorted(fixtures.rglob("*.pt"))
    assert files
    assert not modules_after("inspect", *files) & {"torch", "pydantic", "rich", "h5py"}


@pytest.mark.parametrize(
    "size", [("--rank", "2"), ("--ratio", "0.5", "--method", "semi-nmf")], ids=" ".join
)
def test_a_plan_by_shapes_imports_no_torch(size: tuple[str, ...], fixtures: Path) -> None:
    made = modules_after("plan", fixtures / "elmo" / "elmo.hdf5", "--target", "Wh", *size)
    assert not made & {"torch", "rich"}


def test_a_dry_run_imports_no_torch(fixtures: Path, tmp_path: Path) -> None:
    args = ("--target", "Wh", "--rank", "2", "--dry-run", "-o", tmp_path / "out")
    assert "torch" not in modules_after("compress", fixtures / "elmo" / "elmo.hdf5", *args)


def test_verify_and_a_restore_that_is_dry_import_no_torch(fixtures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    elmo = fixtures / "elmo" / "elmo.hdf5"
    made = modules_after("compress", elmo, "--target", "Wh", "--rank", "2", "-o", out)
    assert "torch" in made
    assert not modules_after("verify", out) & {"torch", "h5py", "rich"}
    assert "torch" not in modules_after("restore", out, "-o", tmp_path / "back.hdf5", "--dry-run")


def test_the_library_imports_neither_click_nor_rich(fixtures: Path) -> None:
    code = (
        "import importlib, pkgutil, sys, ckptshrink\n"
        "for module in pkgutil.walk_packages(ckptshrink.__path__, 'ckptshrink.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({'click', 'rich', 'ckptshrink_cli'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
