"""Open a checkpoint and plan it. Imports torch only where ranks follow from values."""

from contextlib import closing
from pathlib import Path

from ckptshrink.averages import AveragedReader
from ckptshrink.events import Listener, silent
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.layouts import Recognition, recognise
from ckptshrink.plan import Plan
from ckptshrink.planning.planner import make_plan
from ckptshrink.planning.request import Request


def open_source(path: Path, *, use_averaged: bool = False) -> tuple[Reader, Recognition]:
    """Open a checkpoint and recognise its gate matrices."""
    reader = open_checkpoint(path)
    if use_averaged:
        reader = AveragedReader(reader)
    # an impossible shape is refused by the planner, unless the user speaks for that tensor
    return reader, recognise(reader.checkpoint, strict=False)


def plan_checkpoint(
    path: Path,
    request: Request,
    *,
    strict: bool = False,
    device: str = "auto",
    threads: int | None = None,
    listen: Listener = silent,
) -> Plan:
    """Return the plan for a checkpoint; reads payloads only where the ranks follow from them.

    Raises
    ------
    CheckpointError, PlanError
        The checkpoint can't be read, or the request not be planned.
    """
    reader, recognition = open_source(path, use_averaged=request.settings.use_averaged)
    with closing(reader):
        return plan_opened(
            reader, recognition, request,
            strict=strict, device=device, threads=threads, listen=listen,
        )  # fmt: skip


def plan_opened(
    reader: Reader,
    recognition: Recognition,
    request: Request,
    *,
    strict: bool = False,
    device: str = "auto",
    threads: int | None = None,
    listen: Listener = silent,
) -> Plan:
    """Return the plan for an opened checkpoint; see `plan_checkpoint`."""
    if not request.needs_payload:
        return make_plan(reader.checkpoint, recognition, request, strict=strict)
    from ckptshrink.matrices import error_curves  # computes, so it needs torch
    from ckptshrink.payload import Compute

    compute = Compute(device, threads)
    with compute.limits():
        curves = error_curves(reader, request.settings, compute.resolve(), listen)
        return make_plan(reader.checkpoint, recognition, request, curves=curves, strict=strict)
