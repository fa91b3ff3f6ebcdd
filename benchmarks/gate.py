"""How often a gate is wrong, and whether it catches what it says it will: by simulation.

Run: ``python benchmarks/gate.py [--seed 0] [--gates 10000] [--quick] [--only PARTS]``

Every gate compares two models on the same examples at the default margin. Results that are right
or wrong are drawn as arrays of zeros and ones, counted and decided by what `decide` itself counts
and decides with; of each cell some gates go through `decide` as documents, and must get the same
answer. F1-like and perplexity-like results all go through `decide`.

*Stated* is what `power` says before a run. Claims that are checked; the exit status is 1 if one
does not hold:

- of two equal models at most 1% of gates FAIL, in every cell;
- FAIL, PASS and INCONCLUSIVE are as frequent as stated, within 2 points;
- `decide` answers as the counts do.
"""

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final

import numpy as np
import scipy
from numpy.typing import NDArray

from ckptshrink.evaluation.document import ModelRecord, Outcome, ParameterCounts, Role
from ckptshrink.evaluation.examples import examples_of
from ckptshrink.evaluation.gate.counts import decisions
from ckptshrink.evaluation.gate.decide import decide
from ckptshrink.evaluation.gate.paired import worse_and_better
from ckptshrink.evaluation.gate.power import Outlook, detectable, power, power_normal
from ckptshrink.evaluation.gate.rules import default_rule
from ckptshrink.evaluation.gate.sides import Side
from ckptshrink.evaluation.gate.verdict import Check, Settings
from ckptshrink.evaluation.metrics import FRACTION, Aggregate, Metric, metric

SETTINGS: Final = Settings()
SIZES: Final = (500, 1_000, 2_000, 5_000, 10_000)
DISAGREEMENTS: Final = (0.02, 0.05, 0.1, 0.2)
DROPS: Final = (0.005, 0.01, 0.02, 0.03)
RIGHT: Final = 0.7
"""Accuracy of the baseline."""

SLOW_SIZES: Final = (500, 1_000)
ROLES: Final[tuple[Role, Role]] = ("baseline", "variant")

MOST_ALARMS: Final = 0.01
MOST_APART: Final = 0.02
_ELEMENTS: Final = 4_000_000
"""Results drawn at a time."""

ACCURACY: Final = metric(
    "accuracy", RIGHT, better="higher", unit=FRACTION, of=Aggregate(score="correct")
)
MARGIN: Final = default_rule(ACCURACY).amount / 100


@dataclass
class Bench:
    """What is asked for, and what did not hold.

    Attributes
    ----------
    gates : int
        Of each cell of right and wrong results.
    documents : int
        Of those, how many go through `decide`.
    slow_gates : int
        Of each cell of other results.
    """

    rng: np.random.Generator
    gates: int
    documents: int
    slow_gates: int
    sizes: Sequence[int]
    slow_sizes: Sequence[int]
    broken: list[str] = field(default_factory=list)

    def claim(self, holds: bool, what: str) -> None:
        """Note a claim that does not hold."""
        if not holds:
            self.broken.append(what)


@dataclass(frozen=True)
class Shares:
    """How often each answer came."""

    p_fail: float
    p_pass: float

    @property
    def p_inconclusive(self) -> float:
        """Return the rest."""
        return 1 - self.p_fail - self.p_pass


# -- right and wrong ------------------------------------------------------------------------------


def drawn(
    bench: Bench, n: int, loss: float, disagreement: float
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield what two models get right in `bench.gates` gates, (gates at a time, n) each."""
    worse, better = (disagreement + loss) / 2, (disagreement - loss) / 2
    at_a_time = max(1, _ELEMENTS // n)
    for start in range(0, bench.gates, at_a_time):
        u = bench.rng.random((min(at_a_time, bench.gates - start), n), dtype=np.float32)
        # [0, worse): only the baseline is right; [worse, RIGHT): both; then only the candidate
        baseline = u < RIGHT
        yield baseline, (u >= worse) & (u < RIGHT + better)


def simulated(bench: Bench, n: int, loss: float, disagreement: float) -> Shares:
    """Return how often a cell's gates FAIL and PASS."""
    n_fail = n_pass = through = 0
    for baseline, candidate in drawn(bench, n, loss, disagreement):
        fails, passes = decisions(*worse_and_better(baseline, candidate), n, MARGIN, SETTINGS)
        n_fail += int(fails.sum())
        n_pass += int(passes.sum())
        for row in range(min(bench.documents - through, len(baseline))):
            answer = decided(baseline[row], candidate[row]).status
            expected = "FAIL" if fails[row] else "PASS" if passes[row] else "INCONCLUSIVE"
            bench.claim(answer == expected, f"decide says {answer} where the counts say {expected}")
            through += 1
    return Shares(n_fail / bench.gates, n_pass / bench.gates)


def decided(baseline: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> Check:
    """Return what `decide` says of two models that get these examples right, at the defaults."""
    sides = []
    for role, right in zip(ROLES, (baseline, candidate), strict=True):
        found = ACCURACY.model_copy(update={"value": float(right.mean())})
        sides.append(side(role, found, {"correct": right.astype(np.float64)}))
    return decide(*sides, settings=SETTINGS).checks[0]


def side(role: Role, found: Metric, columns: dict[str, NDArray[np.float64]]) -> Side:
    """Return one side of a gate, as its document would be read."""
    n = len(next(iter(columns.values())))
    model = ModelRecord(name=role, kind="file", sha256=role, nbytes=1, n_params=ParameterCounts())
    outcome = Outcome(role=role, model=model, metrics=(found,))
    return Side(outcome, examples_of(ids(n), columns))


@lru_cache
def ids(n: int) -> tuple[str, ...]:
    """Return what tells n examples apart."""
    return tuple(map(str, range(n)))


def equal_models(bench: Bench) -> None:
    """Print how often a model FAILs against an equal one."""
    print(f"\n### Equal models, {bench.gates:,} gates a cell: FAIL, and PASS, in %\n")
    rates = (0.0, *DISAGREEMENTS)
    print("| n | " + " | ".join(f"{100 * D:g}% disagree" for D in rates) + " |")
    print("|---:|" + "---:|" * len(rates))
    worst = 0.0
    for n in bench.sizes:
        cells = []
        for D in rates:
            found = simulated(bench, n, 0.0, D)
            worst = max(worst, found.p_fail)
            bench.claim(
                found.p_fail <= MOST_ALARMS, f"{found.p_fail:.2%} false alarms at n {n}, {D:.0%}"
            )
            cells.append(f"{100 * found.p_fail:.2f}, {100 * found.p_pass:.1f}")
        print(f"| {n:,} | " + " | ".join(cells) + " |")
        sys.stdout.flush()
    print(f"\nMost false alarms: {worst:.2%}")


def drops(bench: Bench) -> None:
    """Print how often true drops FAIL and PASS, and what was stated."""
    print(f"\n### True drops, {bench.gates:,} gates a cell: simulated (stated), in %\n")
    print("| n | drop | disagree | FAIL | PASS | INCONCLUSIVE | most apart |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    worst = 0.0
    for n in bench.sizes:
        for loss in DROPS:
            for D in (D for D in DISAGREEMENTS if loss <= D):
                found = simulated(bench, n, loss, D)
                apart, cells = compared(found, power(n, loss, D, MARGIN, SETTINGS))
                worst = max(worst, apart)
                where = f"n {n}, drop {loss:.1%}, {D:.0%}"
                bench.claim(apart <= MOST_APART, f"{100 * apart:.1f} points apart at {where}")
                print(
                    f"| {n:,} | {100 * loss:g} pp | {100 * D:g}% | {' | '.join(cells)} | "
                    f"{100 * apart:.2f} |"
                )
        sys.stdout.flush()
    print(f"\nMost apart: {100 * worst:.2f} points")


def compared(found: Shares, stated: Outlook) -> tuple[float, list[str]]:
    """Return how far what was found is from what was stated, at most, and both as text."""
    apart, cells = 0.0, []
    for name in ("p_fail", "p_pass", "p_inconclusive"):
        one, other = getattr(found, name), getattr(stated, name)
        apart = max(apart, abs(one - other))
        cells.append(f"{100 * one:.1f} ({100 * other:.1f})")
    return apart, cells


def smallest(bench: Bench) -> None:
    """Print the smallest drops that n shows."""
    print("\n### Smallest drop that 4 of 5 gates FAIL, in percentage points\n")
    print("| n | " + " | ".join(f"{100 * D:g}% disagree" for D in DISAGREEMENTS) + " |")
    print("|---:|" + "---:|" * len(DISAGREEMENTS))
    for n in bench.sizes:
        found = [detectable(n, D, MARGIN, SETTINGS) for D in DISAGREEMENTS]
        cells = ["none" if loss is None else f"{100 * loss:.2f}" for loss in found]
        print(f"| {n:,} | " + " | ".join(cells) + " |")


# -- anything else --------------------------------------------------------------------------------

Pair = tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]

F1: Final = metric("f1", 0.0, better="higher", unit=FRACTION, of=Aggregate(score="f1"))
PPL: Final = metric(
    "ppl", 0.0, better="lower", of=Aggregate(score="nats", weight="words", transform="exp")
)
WORDS: Final = 20.0
"""In a line, on average."""

NOISE: Final = 0.4
"""Standard deviation of the change of a line's nats, over the root of its words."""


def f1_like(rng: np.random.Generator, n: int, disagreement: float) -> Pair:
    """Return F1 of answers: most are all right or all wrong; where models disagree they swap."""
    both = np.where(rng.random((2, n)) < 0.6, 1.0, np.maximum(rng.uniform(-0.5, 1, (2, n)), 0))
    candidate = np.where(rng.random(n) < disagreement, both[1], both[0])
    return {"f1": both[0]}, {"f1": candidate}


def perplexity_like(rng: np.random.Generator, n: int, rise: float) -> Pair:
    """Return nats and words of lines; the candidate's perplexity is higher by a share."""
    words = 1.0 + rng.poisson(WORDS - 1, n)
    nats = 4.6 * words + 3 * np.sqrt(words) * rng.normal(size=n)
    noise = NOISE * np.sqrt(words) * (rng.standard_t(5, n) / math.sqrt(5 / 3))
    after = nats + math.log1p(rise) * words + noise
    return {"nats": nats, "words": words}, {"nats": after, "words": words}


def by_documents(
    bench: Bench, kind: Metric, draw: Callable[[], Pair], settings: Settings
) -> Shares:
    """Return how often gates of drawn results FAIL and PASS."""
    statuses = []
    for _ in range(bench.slow_gates):
        sides = []
        for role, columns in zip(ROLES, draw(), strict=True):
            value = kind.of.value(*columns.values()) if kind.of is not None else math.nan
            sides.append(side(role, kind.model_copy(update={"value": value}), columns))
        statuses.append(decide(*sides, settings=settings).status)
    return Shares(*(statuses.count(status) / len(statuses) for status in ("FAIL", "PASS")))


def resampled(bench: Bench) -> None:
    """Print how often models FAIL on results that the bootstrap decides."""
    settings = SETTINGS.model_copy(update={"resamples": 999})
    print(
        f"\n### F1-like and perplexity-like, {bench.slow_gates:,} gates a cell of "
        f"{settings.resamples:,} resamples: simulated (stated by the normal approximation), in %\n"
    )
    print("| results | n | true loss | FAIL | PASS | INCONCLUSIVE |")
    print("|---|---:|---:|---:|---:|---:|")
    for n in bench.slow_sizes:
        for D in (0.05, 0.2):
            found = by_documents(bench, F1, partial(f1_like, bench.rng, n, D), settings)
            name = f"F1-like, {100 * D:g}% drawn anew"
            show(bench, name, n, 0.0, found, None)
        for rise in (0.0, 0.01, 0.02, 0.03):
            found = by_documents(bench, PPL, partial(perplexity_like, bench.rng, n, rise), settings)
            # what one line adds to the loss, in percent: its noise over the mean number of words
            sd = 100 * (1 + rise) * NOISE / math.sqrt(WORDS)
            stated = power_normal(n, 100 * rise, sd, default_rule(PPL).amount, settings)
            show(bench, "perplexity-like", n, rise, found, stated)


def show(
    bench: Bench, name: str, n: int, loss: float, found: Shares, stated: Outlook | None
) -> None:
    """Print a row of results that the bootstrap decides, and check false alarms of equal models."""
    if not loss:
        bench.claim(found.p_fail <= MOST_ALARMS, f"{found.p_fail:.2%} false alarms on {name}, {n}")
    cells = [f"{100 * p:.1f}" for p in (found.p_fail, found.p_pass, found.p_inconclusive)]
    if stated is not None:
        _, cells = compared(found, stated)
    print(f"| {name} | {n:,} | {100 * loss:g}% | {' | '.join(cells)} |")
    sys.stdout.flush()


def main() -> None:
    """Run every part and print its table as Markdown; exit with 1 if a claim does not hold."""
    parts: dict[str, Callable[[Bench], None]] = {
        "equal": equal_models, "drops": drops, "smallest": smallest, "other": resampled,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gates", type=int, default=10_000, help="of each cell (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small n, and fewer of the slow gates")
    parser.add_argument("--only", default=",".join(parts), help="parts, of: %(default)s")
    args = parser.parse_args()
    unknown = [part for part in args.only.split(",") if part not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    if args.gates < 1:
        parser.error("--gates is at least 1")
    started = time.monotonic()
    bench = Bench(
        rng=np.random.default_rng(args.seed),
        gates=args.gates,
        documents=min(args.gates, 2 if args.quick else 20),
        slow_gates=min(args.gates, 100 if args.quick else 1_000),
        sizes=SIZES[:1] if args.quick else SIZES,
        slow_sizes=SLOW_SIZES[:1] if args.quick else SLOW_SIZES,
    )
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
        f"seed {args.seed}, margin {100 * MARGIN:g} pp, alpha {SETTINGS.alpha:g}, "
        f"alarm {SETTINGS.alarm:g}"
    )
    for part in args.only.split(","):
        parts[part](bench)
    print(f"\n{time.monotonic() - started:.0f} s")
    for what in bench.broken:
        print(f"does not hold: {what}", file=sys.stderr)
    raise SystemExit(1 if bench.broken else 0)


if __name__ == "__main__":
    main()
