"""``ckptshrink gate``: decide whether a smaller model is good enough beside its baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from ckptshrink.errors import EvaluationInputError, PlanError
from ckptshrink_cli import evaluating, exit_codes, params
from ckptshrink_cli.declare import (
    INPUT,
    OUTPUT,
    RULES,
    Command,
    option,
    parsed,
    refuse,
    usage_errors,
)
from ckptshrink_cli.streams import Run

if TYPE_CHECKING:
    from ckptshrink.evaluation.document import Evaluation, Role
    from ckptshrink.evaluation.gate.rules import DefaultRule
    from ckptshrink.evaluation.gate.sides import Side
    from ckptshrink.evaluation.gate.verdict import Rule, Settings

_STATUS: Final = {
    "PASS": exit_codes.DONE,
    "FAIL": exit_codes.NO,
    "INCONCLUSIVE": exit_codes.INCONCLUSIVE,
}

_SETTINGS: Final = ("alpha", "alarm", "resamples", "seed")
_FEWEST_RESAMPLES: Final = 999
_MOST_RESAMPLES: Final = 1_000_000
_MOST_EXAMPLES: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class _Compared:
    """The two models, and why they can't be compared, where they can't."""

    baseline: "Side"
    candidate: "Side"
    task: str
    obstacles: Sequence[str] = ()


def _drop(text: str) -> "Rule | DefaultRule":
    from ckptshrink.evaluation.gate.rules import parse_rule

    return parse_rule("max_drop", _utf8(text))


def _rise(text: str) -> "Rule | DefaultRule":
    from ckptshrink.evaluation.gate.rules import parse_rule

    return parse_rule("max_rise", _utf8(text))


def _size(text: str) -> "Rule":
    from ckptshrink.evaluation.gate.rules import parse_size

    return parse_size(text)


def _utf8(text: str) -> str:
    """Return text, unless the shell gave bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PlanError(f"{text!r} is no UTF-8") from None
    return text


def _risk(text: str) -> float:
    number = _number(text)
    if not 0 < number < 0.5:
        raise PlanError(f"a risk lies between 0 and 0.5; got {text}")
    return number


def _shares(text: str) -> tuple[float, ...]:
    """Return shares from their list, in percent or as fractions."""
    found = []
    for part in text.split(","):
        share = _number(part.rstrip("%")) / (100 if part.endswith("%") else 1)
        if not 0 <= share <= 1:
            raise PlanError(f"{part!r} is no share of the examples: 5%, or 0.05")
        found.append(share)
    return tuple(dict.fromkeys(found))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PlanError(f"{text!r} is no number") from None


def _counts(text: str) -> tuple[int, ...]:
    counts = (params.whole_number(part, most=_MOST_EXAMPLES) for part in text.split(","))
    return tuple(dict.fromkeys(counts))


@click.command(
    "gate",
    cls=Command,
    help="""Decide whether a smaller model is good enough beside its baseline.

    A and B are what eval -o wrote; they may be one file. With --task they are the models themselves
    (or NAME=PATH), and are scored first. Each rule is decided by a paired test on the results of
    each example, where both runs kept them: PASS if the loss is shown to be within what the rule
    allows, FAIL if it is shown not to be, else INCONCLUSIVE. A metric that is missing, or is no
    finite number, fails. Without any rule every metric of the baseline may lose its default margin:
    1pp of a proportion, 2% of anything else.

    On GitHub Actions the verdict also goes to the summary of the step, to its output `status`, and
    to annotations.

    Exit status: 0 PASS, 1 FAIL, 5 INCONCLUSIVE; 2 usage, 3 a file that can't be read, 4 a report
    that can't be written.
    """,
    example="ckptshrink gate --baseline a.json --candidate b.json --max-drop accuracy=0.5pp "
    "--max-size 0.4\n"
    "ckptshrink gate --baseline awd.pt --candidate awd.shrunk --task lm --data test.txt \\\n"
    "    --train-text train.txt --max-rise ppl=2%\n"
    "ckptshrink gate --power --examples 500,2210 --disagreement 5% --max-drop accuracy=0.5pp",
)
@option(INPUT, "--baseline", metavar="A", help="Results of the baseline; with --task itself.")
@option(INPUT, "--candidate", metavar="B", help="Results of the smaller model; or itself.")
@option(
    INPUT, "--baseline-model", metavar="NAME",
    help="The model that is meant, where A has several (default: its baseline).",
)  # fmt: skip
@option(
    INPUT, "--candidate-model", metavar="NAME",
    help="The model that is meant, where B has several beside a baseline.",
)  # fmt: skip
@option(
    RULES, "--max-drop", metavar="METRIC=AMOUNT", multiple=True, callback=parsed(_drop),
    help="How far a metric may fall: accuracy=0.5pp (percentage points), f1=2% (of the baseline's "
    "value), score=0.01 (its own unit), or accuracy alone for the default. May be given again.",
)  # fmt: skip
@option(
    RULES, "--max-rise", metavar="METRIC=AMOUNT", multiple=True, callback=parsed(_rise),
    help="How far a metric that is better lower may rise: ppl=2%. May be given again.",
)  # fmt: skip
@option(
    RULES, "--max-size", metavar="SHARE", callback=parsed(_size),
    help="Bytes of the candidate over bytes of the baseline: 0.4, or 40%.",
)  # fmt: skip
@option(
    RULES, "--config", metavar="FILE", type=click.Path(path_type=Path),
    help="A TOML file with a [gate] table, each threshold with its reason. A rule of the command "
    "line takes the place of the file's for the same metric.",
)  # fmt: skip
@option(
    RULES, "--alpha", metavar="P", callback=parsed(_risk),
    help="Largest risk of PASS for a candidate that is worse than allowed (default 0.05).",
)  # fmt: skip
@option(
    RULES, "--alarm", metavar="P", callback=parsed(_risk),
    help="Largest risk of FAIL for one that is not (default 0.01).",
)  # fmt: skip
@option(
    RULES, "--resamples", metavar="N",
    callback=parsed(
        partial(params.whole_number, least=_FEWEST_RESAMPLES, most=_MOST_RESAMPLES)
    ),
    help="Of the bootstrap (default 9999).",
)  # fmt: skip
@option(
    RULES, "--power", is_flag=True,
    help="Before the run: print how likely each answer is, for drops of 0 to 3 points, and the "
    "smallest drop that shows. Takes --examples, or A for their number.",
)  # fmt: skip
@option(
    RULES, "--examples", metavar="N,N,...", callback=parsed(_counts),
    help="How many examples, with --power.",
)  # fmt: skip
@option(
    RULES, "--disagreement", metavar="P,P,...", callback=parsed(_shares),
    help="Share of examples that only one of the two models gets right, with --power (default "
    "2%,5%,10%,20%); taken to be no smaller than the drop.",
)  # fmt: skip
@evaluating.task_options
@option(
    OUTPUT, "--junit", metavar="FILE", type=click.Path(path_type=Path),
    help="Write a JUnit report, in place of the one of an earlier gate.",
)  # fmt: skip
@option(
    OUTPUT, "--markdown", metavar="FILE", type=click.Path(path_type=Path),
    help="Write a Markdown report, in place of the one of an earlier gate.",
)  # fmt: skip
@option(OUTPUT, "--no-github", is_flag=True, help="Tell GitHub Actions nothing.")
@option(
    OUTPUT, "--exit-zero", is_flag=True,
    help="Report only: exit status 0 whatever the verdict is.",
)  # fmt: skip
@params.json_option
@params.compute_options
@params.progress_option
@params.talk_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    baseline: str | None,
    candidate: str | None,
    config: Path | None,
    power: bool,
    junit: Path | None,
    markdown: Path | None,
    no_github: bool,
    exit_zero: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Decide, and say what came out."""
    run = ctx.ensure_object(Run)
    _refuse_misfits(ctx, power=power, given=given)
    rules, settings = _wanted(ctx, config, given)
    if power:
        from ckptshrink_cli import gate_power

        return gate_power.show(
            run,
            rules,
            settings,
            baseline=None if baseline is None else Path(baseline),
            model=given["baseline_model"],
            counts=given["examples"],
            shares=given["disagreement"],
            as_json=as_json,
        )
    if baseline is None or candidate is None:
        refuse("give --baseline A and --candidate B")

    from ckptshrink.evaluation.gate.decide import decide
    from ckptshrink_cli import gate_text
    from ckptshrink_cli.gate_reports import Reports

    inputs = (Path(baseline), Path(candidate), *([config] if config else []))
    reports = Reports(junit, markdown, inputs, github=not no_github)
    reports.check()  # before the work, which can take hours
    if given["task"] is None:
        compared = _read(Path(baseline), Path(candidate), given)
    else:
        compared = _evaluated(run, baseline, candidate, given)
    with usage_errors():
        verdict = decide(
            compared.baseline, compared.candidate, rules, settings,
            task=compared.task, obstacles=compared.obstacles,
        )  # fmt: skip
    if as_json:
        gate_text.emit_document(verdict.model_dump(mode="json"))
    else:
        gate_text.show_verdict(verdict)
    gate_text.say_verdict(run, verdict)
    reports.write(run, verdict)
    return exit_codes.DONE if exit_zero else _STATUS[verdict.status]


def _refuse_misfits(ctx: click.Context, *, power: bool, given: dict[str, Any]) -> None:
    """Refuse options that do not go together."""

    def typed(*names: str) -> list[str]:
        found = [n for n in names if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE]
        return [params.flag_of(name) for name in found]

    wrong = typed("candidate", "candidate_model", "task", "junit", "markdown", "exit_zero")
    if power and wrong:
        refuse(f"--power states what a gate could show and runs none; leave out {wrong[0]}")
    for flag in typed("examples", "disagreement"):
        if not power:
            refuse(f"{flag} goes with --power")
    names = typed("baseline_model", "candidate_model")
    if given["task"] is not None and names:
        refuse(f"{names[0]} is of a file of results; with --task a model is named NAME=PATH")
    lone = typed(*(name for name in evaluating.TASK_PARAMS if name not in {"task", "seed"}))
    if given["task"] is None and lone:
        refuse(f"{lone[0]} goes with --task; without one, A and B are what eval -o wrote")


def _wanted(
    ctx: click.Context, config: Path | None, given: dict[str, Any]
) -> "tuple[list[Rule | DefaultRule], Settings]":
    """Return the rules and settings of the file and of the command line, which goes before."""
    from ckptshrink.evaluation.gate.verdict import Settings

    filed: Sequence[Rule] = ()
    settings = Settings()
    if config is not None:
        from ckptshrink.evaluation.gate.table import read_gate_table

        filed, settings = read_gate_table(config)
    typed = [*given["max_drop"], *given["max_rise"]]
    typed += [given["max_size"]] if given["max_size"] is not None else []
    subjects = [_subject(rule) for rule in typed]
    for rule, subject in zip(typed, subjects, strict=True):
        if subjects.count(subject) > 1:
            refuse(f"there are two rules for {rule.metric}")
    rules = [rule for rule in filed if _subject(rule) not in subjects]
    values = {
        name: given[name]
        for name in _SETTINGS
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    return [*rules, *typed], Settings(**settings.model_dump() | values)


def _subject(rule: "Rule | DefaultRule") -> tuple[bool, str]:
    """Return what a rule is about; a metric may be called as the size is, or have two names."""
    from ckptshrink.evaluation.gate.rules import spellings

    return rule.kind == "max_size", min(spellings(rule.metric))


def _read(baseline: Path, candidate: Path, given: dict[str, Any]) -> _Compared:
    """Return the models that two files of results are about."""
    from ckptshrink.evaluation.document import read_evaluation
    from ckptshrink.evaluation.gate.sides import comparable

    one, other = read_evaluation(baseline), read_evaluation(candidate)
    return _Compared(
        baseline=side_of(one, baseline, "baseline", given["baseline_model"]),
        candidate=side_of(other, candidate, "variant", given["candidate_model"]),
        task=other.task,
        obstacles=comparable(one, other),
    )


def side_of(evaluation: "Evaluation", path: Path, role: "Role", name: str | None) -> "Side":
    """Return one side of a gate, from a file of results.

    Raises
    ------
    EvaluationInputError
        Which model is meant is not clear, or its per-example results are not what they were.
    """
    from ckptshrink.evaluation.document import examples_beside
    from ckptshrink.evaluation.gate.sides import Side, pick

    try:
        outcome = pick(evaluation, role, name)
    except EvaluationInputError as error:
        flag = "--baseline-model" if role == "baseline" else "--candidate-model"
        hint = error.hint if name is not None else f"{flag} NAME"
        raise EvaluationInputError(error.message, path=path, hint=hint) from error
    return Side(outcome, examples_beside(path, outcome))


def _evaluated(run: Run, baseline: str, candidate: str, given: dict[str, Any]) -> _Compared:
    """Return the models themselves, scored on a task in one run with the same seeds."""
    from ckptshrink.evaluation.gate.sides import Side
    from ckptshrink_cli import gate_text

    found = evaluating.run_evaluation(
        run,
        given,
        [candidate],
        baseline=baseline,
        device=given["device"],
        threads=given["threads"],
    )
    outcomes = found.document.outcomes
    for outcome in outcomes:
        gate_text.say_log(outcome)
    first, second = (Side(outcome, found.examples.get(outcome.model.name)) for outcome in outcomes)
    return _Compared(baseline=first, candidate=second, task=found.document.task)
