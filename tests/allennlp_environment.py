"""What tests of the downstream tasks need: AllenNLP, and small parts of the real data."""

import importlib.metadata
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent
WORKER = REPO / "ckptshrink" / "evaluation" / "downstream" / "worker"
TASKS = ("sst5", "snli", "squad")

_RELEASES = {"allennlp": "2.10.1", "allennlp-models": "2.10.1"}
_BESIDE = ("nltk", "tqdm", "spacy")


def require_allennlp() -> None:
    """Skip where AllenNLP is not installed, as the README has it; CI must have it."""
    missing = [f"{name}=={v}" for name, v in _RELEASES.items() if _version(name) != v]
    missing += [name for name in _BESIDE if importlib.util.find_spec(name) is None]
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"not installed: {', '.join(missing)}, and CI must have them")
        pytest.skip(f"not installed: {', '.join(missing)}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def allennlp_elmo() -> Any:
    """Return the module ``allennlp.modules.elmo``, imported here as the worker imports it."""
    require_allennlp()
    from ckptshrink.evaluation.downstream.worker import allennlp_compat

    kind = logging.getLoggerClass()  # allennlp sets its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            allennlp_compat.import_allennlp()
    finally:
        logging.setLoggerClass(kind)
    return importlib.import_module("allennlp.modules.elmo")


def small_data(shared: Path, folder: Path) -> dict[str, dict[str, Path]]:
    """Write parts of the real data; return the files by task, under ``train`` and ``test``.

    Short sentences, of which each label has as many: a model of this size learns them in seconds.
    SQuAD is scored on paragraphs that were not trained on, and on one that was.
    """
    folder.mkdir()
    sentences = sorted((shared / "sst5" / "train.txt").read_text("utf-8").splitlines(), key=_words)
    sentences = [line for line in sentences if _words(line) >= 5]
    sst5 = [line for label in "01234" for line in _of(sentences, lambda s, k=label: s[0] == k, 9)]
    pairs = rows_of(shared / "snli" / "dev.jsonl")
    pairs.sort(key=lambda pair: len(pair["sentence1"]) + len(pair["sentence2"]))
    labels = {"entailment": 15, "-": 2, "neutral": 15, "contradiction": 15}
    snli = [
        p
        for label, n in labels.items()
        for p in _of(pairs, lambda p, k=label: p["gold_label"] == k, n)
    ]
    whole = json.loads((shared / "squad" / "dev-part.json").read_text("utf-8"))
    paragraphs = sorted(whole["data"][0]["paragraphs"], key=lambda one: len(one["context"]))
    texts = {
        "sst5": ("\n".join(sst5) + "\n",) * 2,
        "snli": ("".join(json.dumps(pair) + "\n" for pair in snli),) * 2,
        "squad": tuple(
            json.dumps({"version": "1.1", "data": [{"title": "part", "paragraphs": part}]})
            for part in (paragraphs[:2], paragraphs[1:4])
        ),
    }
    files: dict[str, dict[str, Path]] = {}
    for task, parts in texts.items():
        files[task] = {name: folder / f"{task}.{name}" for name in ("train", "test")}
        for name, text in zip(("train", "test"), parts, strict=True):
            files[task][name].write_text(text, "utf-8")
    return files


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _words(line: str) -> int:
    return len(line.split())


def _of(items: Sequence[Any], wanted: Any, n: int) -> list[Any]:
    return [item for item in items if wanted(item)][:n]


def training(task: str, files: Mapping[str, Path], elmo: Path, archive: Path) -> dict[str, Any]:
    """Return the settings that train a task's model over an ELMo, in a few seconds."""
    return {
        "archive": archive,
        "train": REPO / "fixtures" / "tasks" / f"{task}.json",
        "train_data": files["train"],
        "validation_data": files["train"],
        "train_elmo": elmo,
    }
