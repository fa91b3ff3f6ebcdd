"""Fit a plan that was read from a file to a checkpoint, and predict again what it comes to."""

from ckptshrink.errors import PlanError, printable
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.layouts import Recognition
from ckptshrink.plan import Plan, PlanItem, index_sha256
from ckptshrink.planning.choice import Choice, factorized_row
from ckptshrink.planning.planner import check_names
from ckptshrink.planning.targets import matrices_of
from ckptshrink.planning.untouched import in_order, untouched_rows


def replan(plan: Plan, checkpoint: Checkpoint, recognition: Recognition) -> Plan:
    """Return an edited plan with its predictions made again, after checking that it fits.

    Raises
    ------
    PlanError
        The plan is for other tensors, names a matrix that isn't there, or asks for what can't be:
        every issue at once.
    """
    if plan.index_sha256 != index_sha256(checkpoint.tensors):
        raise PlanError(
            f"the plan is for other tensors (it was made from {plan.source!r})",
            path=checkpoint.root,
            hint="make a plan from this checkpoint",
        )
    named = matrices_of(plan, checkpoint, recognition)
    others = untouched_rows(checkpoint, recognition, named, set())
    issues: list[str] = []
    rows: dict[str, PlanItem] = {}
    for item in plan.items:
        if item.name not in others or item.name in rows:
            issues.append(f"{item.name}: no such tensor, or named twice")
        elif item.action != "factorize":
            rows[item.name] = item.model_copy(
                update=others[item.name].model_dump(exclude={"reason", "action"})
            )
            if item.action != others[item.name].action and item.action != "keep":
                issues.append(f"{item.name}: can't be {item.action}")
        elif item.name not in named or item.method is None or item.rank is None:
            issues.append(f"{item.name}: to factorize takes a matrix, a method and a rank")
        else:
            ref = checkpoint.tensors[named[item.name].source]
            choice = Choice(
                named[item.name], ref.dtype, None, item.method, item.grouping, item.dtype
            )
            if item.rank > choice.full_rank:
                issues.append(f"{item.name}: rank {item.rank} is above {choice.full_rank}")
            else:
                rows[item.name] = factorized_row(
                    choice, item.rank, item.reason, item.predicted_rel_error
                )
    issues += [f"{name}: has no row" for name in others if name not in rows and not issues]
    if issues:
        raise PlanError(f"the plan has {len(issues)} issues", path=checkpoint.root, issues=issues)
    items = tuple(in_order(checkpoint, named, rows))
    source = printable(checkpoint.root.name)
    edited = plan.model_copy(update={"items": items, "source": source})
    check_names(edited, named, checkpoint)
    return edited.sealed()
