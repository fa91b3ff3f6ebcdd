"""Which way metrics with well-known names are better, and which of them are proportions."""

from typing import Final

from ckptshrink.evaluation.metrics import FRACTION, PERCENT, Better

_PROPORTIONS: Final = frozenset({
    "accuracy", "acc", "balanced_accuracy", "categorical_accuracy", "f1", "f1_score", "micro_f1",
    "macro_f1", "weighted_f1", "f1_micro", "f1_macro", "f1_weighted", "precision", "recall", "em",
    "exact_match", "auc", "auroc", "roc_auc", "average_precision", "map",
    "mean_average_precision", "uas", "las", "iou", "miou", "dice", "top1", "top5",
    "top_1_accuracy", "top_5_accuracy",
})  # fmt: skip
_HIGHER: Final = _PROPORTIONS | frozenset({
    "bleu", "sacrebleu", "rouge", "rouge1", "rouge2", "rougel", "rougelsum", "meteor", "chrf",
    "mcc", "matthews_correlation", "matthews_corrcoef", "pearson", "pearsonr", "spearman",
    "spearmanr", "kendall", "kendalltau", "cohen_kappa", "kappa", "r2", "ndcg", "mrr",
    "log_likelihood",
})  # fmt: skip
_LOWER: Final = frozenset({
    "ppl", "perplexity", "loss", "nll", "negative_log_likelihood", "cross_entropy", "nats", "bpc",
    "bpb", "bpw", "bits_per_character", "bits_per_byte", "bits_per_word", "wer", "cer", "ter",
    "error", "error_rate", "err", "eer", "mse", "rmse", "mae", "mape", "brier", "brier_score",
    "ece",
})  # fmt: skip
SLACK: Final = 1e-9
"""How far rounding may carry a proportion out of its range."""

_PREFIXES: Final = ("eval_", "test_", "valid_", "validation_", "val_", "dev_")


def better_of(name: str) -> Better | None:
    """Return which way a metric is better, None where its name does not say.

    Examples
    --------
    >>> better_of("eval_accuracy"), better_of("Perplexity"), better_of("speed")
    ('higher', 'lower', None)
    """
    plain = _plain(name)
    return "higher" if plain in _HIGHER else "lower" if plain in _LOWER else None


def unit_of(name: str, value: float) -> str:
    """Return the unit of a metric that states none: of a proportion, by its value.

    Examples
    --------
    >>> unit_of("accuracy", 0.85), unit_of("accuracy", 85.0), unit_of("perplexity", 85.0)
    ('fraction', 'percent', '1')
    """
    if _plain(name) not in _PROPORTIONS:
        return "1"
    return PERCENT if 1 + SLACK < value <= 100 + SLACK else FRACTION


def _plain(name: str) -> str:
    plain = "".join(c if c.isalnum() else "_" for c in name.casefold())
    prefix = next((p for p in _PREFIXES if plain.startswith(p)), "")
    return plain.removeprefix(prefix)
