"""Plans: the paper's totals, a row for every tensor and its reason, and what is refused."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ckptshrink.errors import LayoutError, NothingMatchedError, PlanError
from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.layouts import recognise
from ckptshrink.plan import Plan, PlanItem, Settings, read_plan
from ckptshrink.planning.planner import make_plan
from ckptshrink.planning.replan import replan
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.tensors import TensorRef, nbytes_of

Shapes = dict[str, tuple[int, ...]]


def checkpoint_of(
    shapes: Shapes, dtype: str = "F32", tied: dict[str, str] | None = None
) -> Checkpoint:
    tensors = {
        name: TensorRef(name, shape, dtype, nbytes_of(shape, dtype), "f", (tied or {}).get(name))
        for name, shape in shapes.items()
    }
    return Checkpoint(Path("f"), "torch-zip", tensors, ())


def awd(vocabulary: int = 10_000) -> Checkpoint:
    shapes: Shapes = {"encoder.weight": (vocabulary, 400)}
    for layer, (hidden, inputs) in enumerate([(1150, 400), (1150, 1150), (400, 1150)]):
        stem = f"rnns.{layer}.module."
        shapes |= {
            stem + "weight_ih_l0": (4 * hidden, inputs),
            stem + "bias_ih_l0": (4 * hidden,),
            stem + "bias_hh_l0": (4 * hidden,),
            stem + "weight_hh_l0_raw": (4 * hidden, hidden),
        }
    shapes |= {"decoder.weight": (vocabulary, 400), "decoder.bias": (vocabulary,)}
    return checkpoint_of(shapes, tied={"decoder.weight": "encoder.weight"})


def plan_of(checkpoint: Checkpoint, *targets: str, **how: object) -> Plan:
    strict = bool(how.pop("strict", False))
    curves = how.pop("curves", None)
    size = Size(rank=how.pop("rank")) if "rank" in how else how.pop("size", None)  # type: ignore[arg-type]
    settings = Settings(allow_inflate=bool(how.pop("inflate", False)))
    request = Request(tuple(map(parse_target, targets)), size=size, settings=settings, **how)  # type: ignore[arg-type]
    return make_plan(checkpoint, recognise(checkpoint), request, strict=strict, curves=curves)  # type: ignore[arg-type]


def rows(plan: Plan) -> dict[str, PlanItem]:
    return {item.name: item for item in plan.items}


@pytest.mark.parametrize(
    ("target", "rank", "inflate", "total"),
    [
        ("Wh", 10, False, 13_136_600),
        ("Wh", 400, True, 18_401_600),
        ("Wi", 10, False, 15_386_600),
        ("Wi", 400, True, 20_651_600),
    ],
)
def test_totals_of_the_paper(target: str, rank: int, inflate: bool, total: int) -> None:
    totals = plan_of(awd(), target, rank=rank, inflate=inflate).totals
    assert (totals["n_params_before"], totals["n_params_after"]) == (24_221_600, total)


def test_what_would_inflate_stays_dense_and_says_why() -> None:
    plan = plan_of(awd(), "Wi", rank=400)
    row = rows(plan)["rnns.0.module.weight_ih_l0"]
    assert row.action == "keep"
    assert row.nbytes_after == row.nbytes_before
    assert "largest useful rank 367" in row.reason
    assert "would not be under the dense 7,360,000" in row.reason
    assert [r.action for r in rows(plan).values() if r.role == "Wi"] == [
        "keep",
        "factorize",
        "factorize",
    ]


def test_strict_refuses_what_cannot_be_met_all_at_once() -> None:
    with pytest.raises(PlanError, match="1 of 3 matrices") as caught:
        plan_of(awd(), "Wi", rank=400, strict=True)
    assert len(caught.value.issues) == 1
    assert plan_of(awd(), "Wi", rank=300, strict=True).items


def test_every_tensor_has_exactly_one_row_in_stored_order() -> None:
    checkpoint = awd()
    assert [item.name for item in plan_of(checkpoint, "all", rank=5).items] == list(
        checkpoint.tensors
    )


def test_tied_weights_count_once_and_either_name_selects_them() -> None:
    for selector in ("embedding", "softmax", "decoder.weight", "encoder.*"):
        plan = plan_of(awd(), selector, rank=5)
        assert rows(plan)["encoder.weight"].rank == 5
        assert rows(plan)["decoder.weight"].action == "tied"
        assert plan.totals["n_params_after"] == 24_221_600 - 4_000_000 + 5 * 10_400


def test_the_last_target_that_names_a_matrix_wins() -> None:
    plan = plan_of(awd(), "Wh:rank=10", "rnns.1.*:rank=20,method=prune", "rnns.1.*ih*:rank=30")
    found = {name: (r.rank, r.method) for name, r in rows(plan).items() if r.rank}
    assert found == {
        "rnns.0.module.weight_hh_l0_raw": (10, "svd"),
        "rnns.1.module.weight_hh_l0_raw": (20, "prune"),
        "rnns.1.module.weight_ih_l0": (30, "svd"),
        "rnns.2.module.weight_hh_l0_raw": (10, "svd"),
    }


def test_keep_wins_over_every_target() -> None:
    plan = plan_of(awd(), "all", rank=5, keep=("rnns.2.*", "encoder.weight"))
    assert {n for n, r in rows(plan).items() if r.rank} == {
        f"rnns.{layer}.module.weight_{kind}" for layer in (0, 1) for kind in ("ih_l0", "hh_l0_raw")
    }


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("Wx", "did you mean"),
        ("wh", "did you mean 'Wh'"),
        ("rnn.*", "roles here: Wi, Wh"),
        ("P", "roles here"),
    ],
)
def test_a_target_that_matches_nothing(selector: str, hint: str) -> None:
    with pytest.raises(NothingMatchedError, match="matches nothing") as caught:
        plan_of(awd(), selector, rank=5)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("selector", ["Wi", "all"])
def test_no_role_is_proposed_that_is_not_there(selector: str) -> None:
    nothing = checkpoint_of({"norm.weight": (30,)})
    with pytest.raises(NothingMatchedError, match="matches nothing") as caught:
        plan_of(nothing, selector, rank=5)
    assert caught.value.hint == "roles here: none"


def test_a_target_of_biases_alone() -> None:
    with pytest.raises(NothingMatchedError, match="no matrices"):
        plan_of(awd(), "*bias*", rank=5)


def test_an_unrecognised_recurrent_tensor_is_an_error_until_it_is_spoken_for() -> None:
    checkpoint = checkpoint_of({"lstm/kernel:0": (64, 128), "dense.weight": (64, 64)})
    with pytest.raises(LayoutError, match="fits no known layout") as caught:
        plan_of(checkpoint, "linear", rank=2)
    assert caught.value.tensor == "lstm/kernel:0"
    assert (
        rows(plan_of(checkpoint, "linear", rank=2, keep=("lstm/*",)))["lstm/kernel:0"].action
        == "keep"
    )
    assert rows(plan_of(checkpoint, "lstm/kernel:0", rank=2))["lstm/kernel:0"].rank == 2


def test_a_recurrent_tensor_of_eight_bits_can_only_be_kept() -> None:
    checkpoint = checkpoint_of({"weight_hh_l0": (24, 6)}, "F8_E4M3")
    with pytest.raises(LayoutError, match="F8_E4M3 is no type whose matrices") as caught:
        plan_of(checkpoint, "linear", rank=2)
    assert caught.value.hint == "--keep 'weight_hh_l0' leaves it dense"


def test_per_gate_blocks_and_storage_dtype_are_counted() -> None:
    checkpoint = checkpoint_of({"lstm.weight_ih_l0": (80, 30), "lstm.weight_hh_l0": (80, 20)})
    row = rows(plan_of(checkpoint, "Wh", rank=3, grouping="per-gate", dtype="float16"))[
        "lstm.weight_hh_l0"
    ]
    assert row.n_params_after == 4 * 3 * (20 + 20)
    assert row.nbytes_after == 2 * row.n_params_after
    pruned = rows(plan_of(checkpoint, "Wh", rank=3, method="prune"))["lstm.weight_hh_l0"]
    assert pruned.n_params_after == 3 * (80 + 20)
    assert pruned.nbytes_after == 4 * 3 * 100 + 80 * 20 // 8


def spectrum_curves(matrix: GateMatrix, method: str, grouping: str) -> Sequence[float]:
    """Squared errors of matrices whose singular values fall at a speed of their own."""
    k = min(matrix.shape)
    speed = 0.3 + (sum(map(ord, matrix.key)) % 7) / 5
    squares = np.arange(1, k + 1, dtype=float) ** (-2 * speed)
    return [*np.cumsum(squares[::-1])[::-1].tolist(), 0.0]


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_energy_takes_the_smallest_rank_that_reaches_it(energy: float) -> None:
    plan = plan_of(awd(), "Wh", size=Size(energy=energy), curves=spectrum_curves)
    checked = 0
    for row in plan.items:
        if row.action != "factorize" or row.rank is None:
            continue
        errors = spectrum_curves(
            GateMatrix("Wh", row.name, (row.shape[0], row.shape[1])), "svd", "stacked"
        )
        assert 1 - errors[row.rank] / errors[0] >= energy
        assert row.rank == 1 or 1 - errors[row.rank - 1] / errors[0] < energy
        assert row.predicted_rel_error == pytest.approx(math.sqrt(errors[row.rank] / errors[0]))
        checked += 1
    assert checked


def test_an_error_leaves_room_for_the_rounding_of_the_stored_dtype() -> None:
    exact = plan_of(awd(), "Wh", size=Size(max_error=0.3), curves=spectrum_curves)
    half = plan_of(awd(), "Wh", size=Size(max_error=0.3), dtype="bfloat16", curves=spectrum_curves)
    for one, other in zip(exact.items, half.items, strict=True):
        assert (one.rank or 0) <= (other.rank or 10**9)
    tiny = plan_of(
        awd(), "Wh", size=Size(max_error=0.001), dtype="bfloat16", curves=spectrum_curves
    )
    assert all(row.action != "factorize" for row in tiny.items)
    assert any("BF16 factors alone round" in row.reason for row in tiny.items)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8, 0.95])
def test_a_budget_is_kept_and_no_rank_step_would_do_better(share: float) -> None:
    checkpoint = awd()
    total = sum(ref.nbytes for ref in checkpoint.tensors.values() if ref.shares_with is None)
    budget = share * total
    plan = plan_of(checkpoint, "all", budget=budget, curves=spectrum_curves)
    used = plan.totals["nbytes_after"]
    assert used <= budget
    chosen = [r for r in plan.items if r.action == "factorize" and r.rank]
    steps = [4 * (r.shape[0] + r.shape[1]) for r in chosen]
    if chosen:
        assert budget - used < max(steps) + 10_000, "less than a step and the header is left over"
    # moving one rank from any matrix to any other may not lower the summed error
    for giver in chosen:
        for taker in chosen:
            if giver is taker or (giver.rank or 0) <= 1 or sum(taker.shape) > sum(giver.shape):
                continue
            give, take = (
                spectrum_curves(
                    GateMatrix("Wh", r.name, (r.shape[0], r.shape[1])), "svd", "stacked"
                )
                for r in (giver, taker)
            )
            g, t = giver.rank or 0, taker.rank or 0
            assert give[g - 1] - give[g] >= take[t] - take[min(t + 1, len(take) - 1)] - 1e-12


def test_a_budget_too_small_says_what_can_be_reached() -> None:
    with pytest.raises(PlanError, match="can't be met: rank 1 everywhere takes"):
        plan_of(awd(), "Wh", budget=1e6, curves=spectrum_curves)


def test_factors_may_not_take_the_name_of_a_tensor() -> None:
    checkpoint = checkpoint_of({"a.weight": (40, 40), "a.weight.U": (3, 3)})
    with pytest.raises(PlanError, match=r"a\.weight\.U, which exists"):
        plan_of(checkpoint, "a.weight", rank=2)


def test_a_plan_survives_its_file_and_says_when_it_was_edited(tmp_path: Path) -> None:
    plan = plan_of(awd(), "Wh", rank=10)
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert read_plan(path) == plan
    path.write_text(plan.to_json().replace('"rank": 10', '"rank": 12'))
    edited = read_plan(path)
    checkpoint = awd()
    again = replan(edited, checkpoint, recognise(checkpoint))
    assert again.digest != plan.digest == edited.digest
    assert again.totals["n_params_after"] == 13_136_600 + 2 * 13_500
    assert replan(plan, checkpoint, recognise(checkpoint)).digest == plan.digest


def test_an_edited_plan_that_cannot_run_lists_every_issue() -> None:
    checkpoint = awd()
    plan = plan_of(checkpoint, "Wh", rank=10)
    items = [item.model_copy(update={"rank": 5000}) if item.rank else item for item in plan.items]
    items[0] = items[0].model_copy(update={"name": "nowhere"})
    with pytest.raises(PlanError) as caught:
        replan(plan.model_copy(update={"items": tuple(items)}), checkpoint, recognise(checkpoint))
    assert len(caught.value.issues) == 4
    with pytest.raises(PlanError, match="other tensors"):
        replan(plan, awd(20_000), recognise(awd(20_000)))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema_version": 2}', "\x00\xff", '{"items": 3}']
)
def test_a_file_that_is_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match="not a plan"):
        read_plan(path)
