"""Command lines that can't be understood: exit status 2, one line, and nothing touched."""

from pathlib import Path

import pytest
from cli_helpers import Shrink

WRONG = {
    "no command": ([], "inspect"),
    "unknown command": (["compres"], "did you mean compress?"),
    "unlike any command": (["zzz"], "there are inspect, check, plan"),
    "no file": (["inspect"], "FILE"),
    "unknown option": (["inspect", "x", "--jsno"], "--jsno"),
    "rank 0": (["plan", "x", "--target", "Wh", "--rank", "0"], "is at least 1; got 0"),
    "negative rank": (["plan", "x", "--target", "Wh", "--rank", "-3"], "is at least 1; got -3"),
    "rank that is no number": (["plan", "x", "--target", "Wh", "--rank", "4.5"], "4.5"),
    "rank 0 of a target": (["plan", "x", "--target", "Wh:rank=0"], "at least 1"),
    "ratio above 1": (["plan", "x", "--target", "Wh", "--ratio", "1.5"], "(0, 1]"),
    "ratio that is no number": (["plan", "x", "--target", "Wh", "--ratio", "nan"], "(0, 1]"),
    "energy 0": (["plan", "x", "--target", "Wh", "--energy", "0"], "(0, 1]"),
    "error 1": (["plan", "x", "--target", "Wh", "--max-error", "1"], "[0, 1)"),
    "budget of no unit": (["plan", "x", "--target", "Wh", "--budget", "3XB"], "3XB"),
    "budget 0": (["plan", "x", "--target", "Wh", "--budget", "0"], "no room"),
    "two sizes": (["plan", "x", "--target", "Wh", "--rank", "3", "--ratio", "0.5"], "--ratio"),
    "rank and budget": (["plan", "x", "--target", "Wh", "--rank", "3", "--budget", "1MB"], "give"),
    "no target": (["plan", "x", "--rank", "3"], "no --target"),
    "no size": (["plan", "x", "--target", "Wh"], "add --rank N"),
    "empty target": (["plan", "x", "--target", "", "--rank", "3"], "names nothing"),
    "target with a wrong setting": (["plan", "x", "--target", "Wh:rank=3,rnk=4"], "rnk=4"),
    "target with a wrong value": (["plan", "x", "--target", "Wh:rank=x"], "no number"),
    "unknown method": (["plan", "x", "--target", "Wh", "--rank", "3", "--method", "svdd"], "svd?"),
    "unknown method of a target": (["plan", "x", "--target", "Wh:rank=3,method=sdv"], "did you"),
    "unknown grouping": (["plan", "x", "--target", "Wh:rank=3", "--grouping", "both"], "per-gate"),
    "unknown device": (["plan", "x", "--target", "Wh:rank=3", "--device", "tpu"], "cuda"),
    "no threads": (["plan", "x", "--target", "Wh:rank=3", "--threads", "0"], "at least 1"),
    "a seed too large": (["plan", "x", "--target", "Wh:rank=3", "--seed", "9" * 20], "at most"),
    "output that is -": (["plan", "x", "--target", "Wh:rank=3", "-o", "-"], "--json"),
    "plan and target": (["compress", "x", "--plan", "p", "--target", "Wh"], "--target"),
    "plan and rank": (["compress", "x", "--plan", "p", "--rank", "3"], "--rank"),
    "plan and strict": (["compress", "x", "--plan", "p", "--strict"], "--strict"),
    "plan and exact": (["compress", "x", "--plan", "p", "--exact"], "--exact"),
    "shards of a dense file": (
        ["compress", "x", "--target", "Wh:rank=3", "--format", "dense", "--max-shard-size", "1GB"],
        "--format factored",
    ),
    "shard size that is a share": (
        ["compress", "x", "--target", "Wh:rank=3", "--max-shard-size", "0.5"], "no size in bytes",
    ),
    "restore to nowhere": (["restore", "x"], "-o"),
    "unknown shell": (["completion", "tcsh"], "bash"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(
    case: str, shrink: Shrink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args, expected = WRONG[case]
    done = shrink(*args)
    assert (done.status, done.out) == (2, "")
    assert expected in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", [case for case in WRONG if case != "no command"])
def test_wrong_usage_is_one_line_and_a_hint(case: str, shrink: Shrink) -> None:
    message, hint = shrink(*WRONG[case][0]).err.splitlines()
    assert message.startswith("ckptshrink: ")
    assert hint.startswith("hint: ckptshrink")
    assert hint.endswith(" -h")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    "name",
    [
        "",
        "inspect",
        "plan",
        "compress",
        "verify",
        "restore",
        "gate",
        "batch",
        "bench",
        "completion",
    ],
)
def test_help_of_every_command(name: str, flag: str, shrink: Shrink) -> None:
    done = shrink(*([name] if name else []), flag)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"Usage: ckptshrink {name}".rstrip())


def test_version(shrink: Shrink) -> None:
    from ckptshrink import __version__

    assert shrink("--version").out == f"ckptshrink {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str, shrink: Shrink) -> None:
    done = shrink("completion", shell)
    assert done.status == 0
    assert "_CKPTSHRINK_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ckptshrink comp", {"compress", "completion"}),
        ("ckptshrink compress x --gro", {"--grouping"}),
        ("ckptshrink compress x --target W", {"Wi", "Wh"}),
        ("ckptshrink compress x --format de", {"dense"}),
        ("ckptshrink compress x --method semi", {"semi-nmf"}),
    ],
)
def test_completion_completes(words: str, expected: set[str], program: Shrink) -> None:
    env = {
        "_CKPTSHRINK_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = program(env=env)
    assert done.status == 0, done.err
    assert {line.partition(",")[2] for line in done.out.splitlines()} == expected


def test_the_defaults_in_the_help_are_those_of_the_library(shrink: Shrink) -> None:
    from ckptshrink.plan import Settings
    from ckptshrink.planning.request import Request, Size, Target, parse_budget
    from ckptshrink.rewrite import DEFAULT_SHARD_BYTES

    text = " ".join(shrink("compress", "-h").out.split())
    request, settings = Request((Target("Wh"),), size=Size(rank=1)), Settings()
    assert f"--method METHOD {request.method} (default)" in text
    assert f"{request.grouping} (default)" in text
    assert f"{request.dtype} (default)" in text
    assert f"Updates of the ding solver (default {settings.iterations})" in text
    assert f"Seed of every random choice (default {settings.seed})" in text
    assert f"{settings.nonfinite} (default)" in text
    assert f"{settings.nonnegative} side of W (default)" in text
    assert f"in {settings.solver} form (default)" in text
    assert parse_budget("5GB") == DEFAULT_SHARD_BYTES
    assert "exceed this (default 5GB)" in text
