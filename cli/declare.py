"""How options are declared: under a heading of the help, and read by parsers of the library."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn, TypeVar

import click

from ckptshrink.errors import PlanError

F = TypeVar("F", bound=Callable[..., Any])

INPUT: Final = "Input"
WHAT: Final = "What to compress"
HOW_FAR: Final = "How far (one of them)"
HOW: Final = "How"
TASK: Final = "Task"
LM: Final = "Language model (--task lm)"
DOWNSTREAM: Final = "Downstream (--task sst5, snli, squad)"
PROGRAM: Final = "A program, or a task of another package"
SWEEP: Final = "Sweep"
WHICH: Final = "Which models"
WORKERS: Final = "Workers"
RULES: Final = "Rules"
WHAT_COUNTS: Final = "What counts"
OUTPUT: Final = "Output"
RUN: Final = "Run"

_HEADINGS: Final = (
    INPUT, WHICH, WHAT, HOW_FAR, HOW, RULES, TASK, LM, DOWNSTREAM, PROGRAM, SWEEP, WHAT_COUNTS,
    WORKERS, OUTPUT, RUN,
)  # fmt: skip


class Option(click.Option):
    """An option that stands under a heading in the help."""

    def __init__(self, *args: Any, heading: str = RUN, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class Command(click.Command):
    """A command whose help has its options under headings, and one worked example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading, and the example."""
        found: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                found[getattr(param, "heading", RUN)].append(record)
        for heading, records in found.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"  {line}\n")


def option(heading: str, *names: str, **attributes: Any) -> Callable[[F], F]:
    """Declare an option under a heading."""
    return click.option(*names, cls=Option, heading=heading, **attributes)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Declare several options, in the order in which the help shows them."""

    def declare(function: F) -> F:
        for one in reversed(options):
            function = one(function)
        return function

    return declare


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return the callback of an option whose value a parser reads; what that refuses is usage."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is None:
            return None
        try:
            return tuple(map(parse, value)) if isinstance(value, tuple) else parse(value)
        except PlanError as error:
            raise click.BadParameter(with_hint(error), ctx, param) from error

    return callback


def with_hint(error: PlanError) -> str:
    """Return an error's message and hint in one line."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what the library says about a value from the command line into a mistake of usage."""
    try:
        yield
    except PlanError as error:
        refuse(with_hint(error))


def refuse(message: str) -> NoReturn:
    """Fail on a mistake of usage that no option has alone."""
    raise click.UsageError(message, click.get_current_context(silent=True))
