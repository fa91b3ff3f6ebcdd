"""``plan``: the table, the file, and what it says where a target can't be met."""

import json
from pathlib import Path

import pytest
from cli_helpers import Shrink


def test_rows_and_totals(lstm: Path, shrink: Shrink) -> None:
    done = shrink("plan", lstm, "--target", "Wh", "--rank", "4")
    assert done.status == 0, done.err
    rows = {row["name"]: row for row in done.rows}
    wh = rows["rnn.weight_hh_l0"]
    assert (wh["role"], wh["action"], wh["method"], wh["rank"]) == ("Wh", "factorize", "svd", "4")
    assert (wh["n_params_before"], wh["n_params_after"]) == (str(96 * 24), str(4 * (96 + 24)))
    assert (wh["nbytes_before"], wh["nbytes_after"]) == (str(4 * 96 * 24), str(16 * (96 + 24)))
    bias = rows["rnn.bias_ih_l0"]
    assert (bias["action"], bias["method"], bias["dtype"]) == ("keep", "", "")
    before = 96 * 16 + 96 * 24 + 192
    after = before - 96 * 24 + 4 * 120
    assert f"parameters: {before:,} → {after:,} (ratio {after / before:.3f})" in done.err


def test_nothing_is_written(lstm: Path, shrink: Shrink) -> None:
    before = {path: path.read_bytes() for path in lstm.parent.iterdir()}
    shrink("plan", lstm, "--target", "all", "--rank", "2")
    assert {path: path.read_bytes() for path in lstm.parent.iterdir()} == before


def test_json_is_the_plan_and_can_be_run(lstm: Path, shrink: Shrink, tmp_path: Path) -> None:
    done = shrink("plan", lstm, "--target", "Wh", "--rank", "4", "--json")
    plan = json.loads(done.out)
    assert plan["schema_version"] == 1
    assert f"digest: {plan['digest']}" in done.err
    path = tmp_path / "plan.json"
    path.write_text(done.out)
    ran = shrink("compress", lstm, "--plan", path, "--json", "-o", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["manifest"]["plan_digest"] == plan["digest"]


def test_a_plan_file_is_written_once_and_says_how_to_run_it(
    lstm: Path, shrink: Shrink, tmp_path: Path
) -> None:
    path = tmp_path / "a plan.json"
    args = ("plan", lstm, "--target", "Wh", "--rank", "4", "-o", path)
    done = shrink(*args)
    assert done.status == 0, done.err
    assert done.err.splitlines()[-1] == f"next: ckptshrink compress {lstm} --plan '{path}'"
    written = path.read_bytes()
    again = shrink(*args)
    assert again.status == 4
    assert "exists already" in again.err
    assert path.read_bytes() == written
    assert shrink(*args, "--overwrite").status == 0
    assert path.read_bytes() == written
    assert shrink("plan", lstm, "--target", "Wh", "--rank", "4", "-o", lstm).status == 4


def test_an_edited_plan_is_run_as_edited(lstm: Path, shrink: Shrink, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    shrink("plan", lstm, "--target", "Wh", "--rank", "4", "-o", path)
    plan = json.loads(path.read_text())
    (item,) = [item for item in plan["items"] if item["action"] == "factorize"]
    item["rank"] = 7
    path.write_text(json.dumps(plan))
    done = shrink("compress", lstm, "--plan", path, "-o", tmp_path / "out")
    assert done.status == 0, done.err
    assert {row["rank"] for row in done.rows if row["action"] == "factorize"} == {"7"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 99}', "\x00\x01", "null", "[" * 10_000]
)
def test_a_plan_that_is_none_is_status_3(
    content: str, lstm: Path, shrink: Shrink, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    done = shrink("compress", lstm, "--plan", path)
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"ckptshrink: {path}: is not a plan this version can run\n")
    assert "hint: write one with: ckptshrink plan" in done.err


def test_a_plan_of_another_checkpoint_is_status_3(
    lstm: Path, fixtures: Path, shrink: Shrink, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    shrink("plan", lstm, "--target", "Wh", "--rank", "4", "-o", path)
    done = shrink("compress", fixtures / "elmo" / "elmo.hdf5", "--plan", path, "-o", tmp_path / "x")
    assert done.status == 3
    assert "for other tensors" in done.err


@pytest.mark.parametrize(
    ("target", "hint"), [("wh", "did you mean 'Wh'?"), ("rnn.weight_hh_10", "'rnn.weight_hh_l0'")]
)
def test_a_target_that_matches_nothing_says_what_is_close(
    target: str, hint: str, lstm: Path, shrink: Shrink
) -> None:
    done = shrink("plan", lstm, "--target", target, "--rank", "4")
    assert (done.status, done.out) == (3, "")
    message, hinted = done.err.splitlines()
    assert message == f"ckptshrink: {lstm}: --target '{target}' matches nothing"
    assert hint in hinted


def test_what_cannot_be_met_is_a_row_or_with_strict_an_error(lstm: Path, shrink: Shrink) -> None:
    args = ("plan", lstm, "--target", "all", "--rank", "20")
    done = shrink(*args)
    assert done.status == 0
    stayed = {row["name"]: row["reason"] for row in done.rows if row["action"] == "keep"}
    assert "stays dense" in stayed["rnn.weight_ih_l0"]
    strict = shrink(*args, "--strict")
    assert (strict.status, strict.out) == (3, "")
    assert "  rnn.weight_ih_l0: rank 20" in strict.err


@pytest.mark.parametrize(
    "size", [("--ratio", "0.5"), ("--energy", "0.9"), ("--max-error", "0.2"), ("--budget", "0.7")]
)
def test_every_way_to_say_how_far(size: tuple[str, str], lstm: Path, shrink: Shrink) -> None:
    done = shrink("plan", lstm, "--target", "Wh", *size)
    assert done.status == 0, done.err
    (row,) = [row for row in done.rows if row["name"] == "rnn.weight_hh_l0"]
    assert row["action"] == "factorize"
    assert 1 <= int(row["rank"]) < 20
    if size[0] != "--ratio":
        assert 0 < float(row["predicted_rel_error"]) < 0.9


def test_targets_have_settings_of_their_own(lstm: Path, shrink: Shrink) -> None:
    done = shrink(
        "plan", lstm, "--target", "Wi:ratio=0.4", "--target", "Wh:rank=3,method=prune",
        "--keep", "rnn.bias*",
    )  # fmt: skip
    assert done.status == 0, done.err
    methods = {row["role"]: row["method"] for row in done.rows if row["action"] == "factorize"}
    assert methods == {"Wi": "svd", "Wh": "prune"}


def test_quiet_says_nothing(lstm: Path, shrink: Shrink) -> None:
    done = shrink("plan", lstm, "--target", "Wh", "--rank", "4", "-q")
    assert (done.status, done.err) == (0, "")
    assert done.rows


def test_a_plan_is_not_written_into_a_folder_that_is_not_there(
    lstm: Path, shrink: Shrink, tmp_path: Path
) -> None:
    done = shrink("plan", lstm, "--target", "Wh:rank=4", "-o", tmp_path / "no" / "plan.json")
    assert done.status == 4
    assert f"hint: mkdir -p {tmp_path / 'no'}" in done.err


def test_a_folder_that_cannot_be_written_is_status_4(
    lstm: Path, shrink: Shrink, unwritable: Path
) -> None:
    done = shrink("plan", lstm, "--target", "Wh:rank=4", "-o", unwritable / "plan.json")
    assert done.status == 4
