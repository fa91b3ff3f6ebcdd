"""The options of the commands, each declared once, and the request that they make up.

Defaults are the library's: an option that isn't given is not passed on. Nothing of the library
that is slow to import is needed to declare an option, since every ``--help`` does that.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ckptshrink.errors import PlanError
from ckptshrink_cli.declare import (
    HOW,
    HOW_FAR,
    OUTPUT,
    RUN,
    WHAT,
    F,
    option,
    parsed,
    refuse,
    together,
    usage_errors,
)
from ckptshrink_cli.streams import Run

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ckptshrink.planning.request import Request, Target

_MOST: Final = 2**63 - 1
"""Largest number that torch takes for a seed."""

_MOST_THREADS: Final = 1024

_SIZES: Final = ("rank", "ratio", "energy", "max_error")
_SETTINGS: Final = (
    "exact", "nonnegative", "solver", "iterations", "nonfinite", "use_averaged", "allow_inflate",
    "seed",
)  # fmt: skip
_REQUEST: Final = ("target", *_SIZES, "budget", "method", "grouping", "dtype", "keep", *_SETTINGS)


def _complete_role(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    from ckptshrink.gates import ROLES

    return [CompletionItem(name) for name in (*ROLES, "all") if name.startswith(incomplete)]


def _complete_method(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    from ckptshrink.linalg.methods import METHODS

    return [CompletionItem(name) for name in METHODS.names() if name.startswith(incomplete)]


def method_name(name: str) -> str:
    """Return the name of a factorizer, built in or installed, without importing it."""
    from ckptshrink.linalg.methods import METHODS

    return one_of("method", name, METHODS.names())


def one_of(kind: str, name: str, names: Sequence[str]) -> str:
    """Return a name that is one of these; of another one say what is close."""
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise PlanError(
            f"no {kind} {name!r}; there are {', '.join(names)}",
            hint=f"did you mean {close[0]}?" if close else None,
        )
    return name


def _target(text: str) -> "Target":
    from ckptshrink.planning.request import parse_target

    target = parse_target(text)
    if target.method is not None:
        method_name(target.method)
    return target


def _budget(text: str) -> float:
    from ckptshrink.planning.request import parse_budget

    return parse_budget(text)


def nbytes(text: str) -> int:
    """Return a size in bytes."""
    number = int(_budget(text))
    if number < 1:
        raise PlanError(f"{text!r} is no size in bytes", hint="for instance 5GB")
    return number


def _out_path(text: str) -> Path:
    if text == "-":
        raise PlanError("needs the name of a file", hint="--json writes to standard output")
    return Path(text)


def whole_number(text: str, least: int = 1, most: int = _MOST) -> int:
    """Return a whole number within bounds; click's own would write its range into the help."""
    try:
        number = int(text)
    except ValueError:
        raise PlanError(f"{text!r} is no whole number") from None
    if number < least:
        raise PlanError(f"is at least {least}; got {number}")
    if number > most:
        raise PlanError(f"is at most {most}; got {number}")
    return number


def _whole(least: int, most: int) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return the callback of a whole number."""
    return parsed(partial(whole_number, least=least, most=most))


def _note(attribute: str, value: bool) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Return a callback that sets an attribute of the run when its flag is given."""

    def callback(ctx: click.Context, param: click.Parameter, given: bool) -> None:
        run = ctx.ensure_object(Run)
        if given:
            setattr(run, attribute, value)

    return callback


def _flag(names: tuple[str, ...], attribute: str, value: bool, text: str) -> Callable[[F], F]:
    return option(
        RUN, *names, is_flag=True, is_eager=True, expose_value=False,
        callback=_note(attribute, value), help=text,
    )  # fmt: skip


talk_options: Final = together(
    _flag(("-q", "--quiet"), "quiet", True, "Say nothing on standard error but errors."),
    _flag(("--debug",), "debug", True, "Show the traceback of an error."),
)
"""On every command."""

progress_option: Final = _flag(
    ("--no-progress",), "progress", False, "No progress bar and no progress lines."
)

files_argument: Final = click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)

file_argument: Final = click.argument("file", metavar="FILE", type=click.Path(path_type=Path))

artefact_argument: Final = click.argument(
    "artefact", metavar="OUT", type=click.Path(path_type=Path)
)

json_option: Final = option(
    OUTPUT, "--json", "as_json", is_flag=True, help="Print one JSON document on standard output."
)

overwrite_option: Final = option(
    OUTPUT, "--overwrite", is_flag=True, help="Replace what is there already, in one rename."
)

dry_run_option: Final = option(
    OUTPUT, "--dry-run", is_flag=True, help="Say what would be written and where; write nothing."
)


def out_option(text: str, *, metavar: str, required: bool = False) -> Callable[[F], F]:
    """Declare ``-o``."""
    return option(
        OUTPUT, "-o", "--output", "out", metavar=metavar, type=click.Path(),
        callback=parsed(_out_path), required=required, help=text,
    )  # fmt: skip


max_shard_option: Final = option(
    OUTPUT, "--max-shard-size", metavar="SIZE", callback=parsed(nbytes),
    help="Begin another file where one would exceed this (default 5GB).",
)  # fmt: skip

compute_options: Final = together(
    option(RUN, "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           metavar="DEVICE", help="auto (default; CUDA where there is any), cpu or cuda."),
    option(RUN, "--threads", callback=_whole(1, _MOST_THREADS), metavar="N",
           help="CPU threads of the arithmetic (default: as many as torch takes)."),
)  # fmt: skip

request_options: Final = together(
    option(WHAT, "--target", multiple=True, metavar="TARGET", callback=parsed(_target),
           shell_complete=_complete_role,
           help="Wi, Wh, P, embedding, softmax, linear, all, or a glob on tensor names. May be "
           "given again, each with settings of its own: 'Wh:rank=10,method=prune' (rank, ratio, "
           "energy, max-error, method, grouping, dtype). Of several that name a matrix the last "
           "one holds."),
    option(WHAT, "--keep", multiple=True, metavar="GLOB",
           help="Leave tensors of such names as they are, whatever the targets say."),
    option(WHAT, "--use-averaged", is_flag=True, default=None,
           help="Take the optimizer's ASGD averages in place of the weights."),
    option(WHAT, "--nonfinite", type=click.Choice(["refuse", "copy"]), metavar="POLICY",
           help="A matrix that holds NaN or infinity: refuse (default), or copy it as it is."),
    option(WHAT, "--strict", is_flag=True,
           help="A rank or ratio that can't be met for a matrix is an error."),
    option(HOW_FAR, "--rank", callback=_whole(1, _MOST), metavar="N",
           help="Rank of the factors of each matrix; prune keeps as many values as they have."),
    option(HOW_FAR, "--ratio", type=float, metavar="R",
           help="Parameters after / before of each matrix, in (0, 1]."),
    option(HOW_FAR, "--energy", type=float, metavar="E",
           help="The least rank that keeps this share of the squared singular values."),
    option(HOW_FAR, "--max-error", type=float, metavar="E",
           help="The least rank whose relative Frobenius error is at most this."),
    option(HOW_FAR, "--budget", metavar="SIZE", callback=parsed(_budget),
           help="Bytes of the whole model (25MB, 25MiB), or a share of the source (0.3). The ranks "
           "are chosen so that the summed squared error is least."),
    option(HOW, "--method", callback=parsed(method_name), shell_complete=_complete_method,
           metavar="METHOD", help="svd (default), semi-nmf, prune, or one that is installed."),
    option(HOW, "--grouping", type=click.Choice(["stacked", "per-gate"]), metavar="GROUPING",
           help="Factorize the gates of a matrix stacked (default), or each alone: per-gate."),
    option(HOW, "--dtype", type=click.Choice(["keep", "float16", "bfloat16"]), metavar="DTYPE",
           help="Store factors as the source does: keep (default), or in float16 or bfloat16."),
    option(HOW, "--exact", is_flag=True, default=None,
           help="SVD optimal to rounding, in float64: slower."),
    option(HOW, "--nonnegative", type=click.Choice(["output", "input"]), metavar="SIDE",
           help="Which factor of semi-nmf has no negative value: that of the output side of W "
           "(default) or of its input side."),
    option(HOW, "--solver", type=click.Choice(["closed", "ding"]), metavar="SOLVER",
           help="Semi-nmf in closed form (default), or by the updates of Ding et al.: ding."),
    option(HOW, "--iterations", callback=_whole(1, _MOST), metavar="N",
           help="Updates of the ding solver (default 100)."),
    option(HOW, "--allow-inflate", is_flag=True, default=None,
           help="Factorize also where the factors take more bytes than the matrix."),
    option(HOW, "--seed", callback=_whole(0, _MOST), metavar="N",
           help="Seed of every random choice (default 0)."),
)  # fmt: skip
"""Everything that a plan is made from."""


def given_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the request's options that were given."""
    return {name: params[name] for name in _REQUEST if params[name] not in (None, ())}


def flag_of(name: str) -> str:
    """Return how a parameter is written on the command line."""
    return f"--{name.replace('_', '-')}"


def request_of(params: Mapping[str, Any]) -> "Request":
    """Return the request that the options make up.

    Raises
    ------
    click.UsageError
        Options that can't go together, a value out of range, or nothing to compress.
    """
    given = given_of(params)
    sizes = [name for name in (*_SIZES, "budget") if name in given]
    if len(sizes) > 1:
        refuse(f"give one of {', '.join(map(flag_of, sizes))}")
    with usage_errors():
        from ckptshrink.plan import Settings
        from ckptshrink.planning.request import Request, Size

        chosen = {name: given[name] for name in sizes if name != "budget"}
        plain = ("budget", "method", "grouping", "dtype", "keep")
        return Request(
            targets=given.get("target", ()),
            size=Size(**chosen) if chosen else None,
            settings=Settings(**{name: given[name] for name in _SETTINGS if name in given}),
            **{name: given[name] for name in plain if name in given},
        )
