"""What AllenNLP's model scored, made into metrics whose means over examples are checked."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ckptshrink.evaluation.examples import Examples, examples_of
from ckptshrink.evaluation.metrics import FRACTION, Aggregate, Metric, metric

_AGREE: Final = 1e-9
"""How far the mean over examples may be from the model's own metric: both are sums of float64."""

_LABELS: Final = ("gold", "predicted")


def results_of(
    columns: Mapping[str, str],
    ids: Sequence[str],
    found: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> tuple[tuple[Metric, ...], Examples]:
    """Return the metrics, and the results by example that they are the means of.

    Parameters
    ----------
    columns : mapping of str to str
        Metrics by the model's name for them, and the column that each is the mean of.
    ids : sequence of str
        Of every example of the data.
    found : mapping
        The model's own metrics.
    rows : sequence of mapping
        Results by example; ``index`` is the example's place in `ids`.

    Raises
    ------
    ValueError
        Something is missing or is no finite number, an example is there twice, there is none at
        all, or a mean is not what the model says. The message is one line.
    """
    try:
        if not rows:
            raise ValueError("not one example was scored")
        places = [row["index"] for row in rows]
        if not all(isinstance(place, int) and 0 <= place < len(ids) for place in places):
            raise ValueError("an example is none of the data")
        examples = examples_of(
            [ids[place] for place in places],
            {column: [row[column] for row in rows] for column in columns.values()},
            {label: [row[label] for row in rows] for label in _LABELS},
        )
        values = {name: float(found[name]) for name in columns}
    except (KeyError, TypeError) as error:
        raise ValueError(f"the results lack {error}") from error
    return tuple(_metric(n, values[n], c, examples) for n, c in columns.items()), examples


def _metric(name: str, value: float, column: str, examples: Examples) -> Metric:
    of = Aggregate(score=column)
    scores = examples.columns[column]
    mean = of.value(scores)
    if not abs(mean - value) <= _AGREE:
        raise ValueError(f"the model's own {name} is {value}, and the mean over examples {mean}")
    return metric(
        name, value, better="higher", unit=FRACTION, n=len(examples), stderr=of.stderr(scores),
        of=of,
    )  # fmt: skip
