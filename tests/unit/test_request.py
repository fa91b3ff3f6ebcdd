"""What a user types becomes a request, or one line that says what is wrong with it."""

import pytest

from ckptshrink.errors import PlanError
from ckptshrink.planning.request import Request, Size, Target, parse_budget, parse_target


def test_targets_with_and_without_settings() -> None:
    assert parse_target("Wh") == Target("Wh")
    assert parse_target("Wi,Wh") == Target("Wi,Wh")
    assert parse_target("Wh:rank=10,method=prune,grouping=per-gate,dtype=bfloat16") == Target(
        "Wh", Size(rank=10), "prune", "per-gate", "bfloat16"
    )
    assert parse_target("Wi:max-error=0.1").size == Size(max_error=0.1)


def test_a_colon_in_a_tensor_name_is_no_setting() -> None:
    assert parse_target("lstm/kernel:0") == Target("lstm/kernel:0")
    assert parse_target("lstm/kernel:0:ratio=0.5") == Target("lstm/kernel:0", Size(ratio=0.5))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Wh:rank=ten", "no number"),
        ("Wh:rank=0", "at least 1"),
        ("Wh:ratio=1.5", r"\(0, 1\]"),
        ("Wh:rank=3,colour=red", "unknown setting 'colour=red'"),
        ("Wh:dtype=float8", "float16"),
        (":rank=3", "names nothing"),
        ("Wh:energy=nan", r"\(0, 1\]"),
    ],
)
def test_wrong_targets(text: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("25MB", 25e6),
        ("30%", 0.3),
        ("25 MiB", 25 * 2**20),
        ("1.5kb", 1500.0),
        (".3", 0.3),
        ("1048577", 1048577.0),
    ],
)
def test_budgets(text: str, value: float) -> None:
    assert parse_budget(text) == value


@pytest.mark.parametrize(
    "text", ["", "25 miles", "-3MB", "0", "0MB", "nan", "1e400", "0.5B", "130%"]
)
def test_wrong_budgets(text: str) -> None:
    with pytest.raises(PlanError, match="budget"):
        parse_budget(text)


def test_a_request_says_how_far_and_only_once() -> None:
    with pytest.raises(PlanError, match="nothing says how far 'Wi'"):
        Request(targets=(Target("Wh", Size(rank=3)), Target("Wi")))
    with pytest.raises(PlanError, match="--budget chooses"):
        Request(targets=(Target("Wh"),), size=Size(rank=3), budget=0.5)
    with pytest.raises(PlanError, match="exactly one"):
        Size(rank=3, ratio=0.5)
    with pytest.raises(PlanError, match="no --target"):
        Request(targets=(), size=Size(rank=3))


def test_only_values_need_a_payload() -> None:
    wh = Target("Wh")
    assert not Request(targets=(wh,), size=Size(rank=3)).needs_payload
    assert not Request(targets=(wh,), size=Size(ratio=0.3)).needs_payload
    assert Request(targets=(wh,), size=Size(energy=0.9)).needs_payload
    assert Request(targets=(Target("Wh", Size(max_error=0.1)), wh), size=Size(rank=3)).needs_payload
    assert Request(targets=(wh,), budget=0.3).needs_payload
