"""Training a task's model over an ELMo, and writing its archive."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from ckptshrink.errors import EvaluationInputError
from ckptshrink.evaluation.downstream.archive import write_archive
from ckptshrink.evaluation.downstream.data import Read
from ckptshrink.evaluation.downstream.elmo import dense_elmo
from ckptshrink.evaluation.downstream.process import RefusedError, Worker, interpreter
from ckptshrink.evaluation.downstream.session import Way
from ckptshrink.evaluation.downstream.settings import Training

_SHOWN: Final = ("best_epoch", "best_validation_accuracy", "best_validation_em")
"""Of AllenNLP's metrics of a training, what a note tells."""


def train(training: Training, archive: Path, read: Read, way: Way, folder: Path) -> str:
    """Train a model in a worker of its own, write its archive, and return a note on it.

    The archive's configuration names the ELMo's own files where it lies in HDF5, so that
    ``allennlp evaluate`` finds them, and of the data the names alone.

    Raises
    ------
    EvaluationInputError
        Configuration, data or interpreter can't be used.
    EvaluationError
        The training failed.
    OutputError
        The archive can't be written.
    """
    data, validation = read(training.data, None), read(training.validation, None)
    with TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        paths = {"train": training.data, "validation": training.validation}
        for stem, found in (("train", data), ("validation", validation)):
            (work / stem).write_text(found.text, "utf-8")
        elmo = dense_elmo(training.elmo, work)
        worker = Worker(way.python, folder, threads=way.threads)
        try:
            result = worker.ask(
                "train",
                config=str(training.config.absolute()),
                overrides=way.overrides,
                train_data=str(work / "train"),
                validation_data=str(work / "validation"),
                options_file=str(elmo.options),
                weight_file=str(elmo.weights),
                folder=str(work / "model"),
                seed=way.seed,
                device=way.device,
                phrases=not (data.sentences_only or validation.sentences_only),
            )
        except RefusedError as error:
            at_fault = interpreter(way.python) if error.kind == "environment" else training.config
            raise EvaluationInputError(str(error), path=at_fault) from error
        finally:
            worker.close()
        names = {str(work / stem): path.name for stem, path in paths.items()}
        if work in elmo.weights.parents:
            names[str(elmo.weights)] = elmo.weights.name  # a restored one, which is not kept
        write_archive(work / "model" / "model.tar.gz", archive, names)
    metrics = result["metrics"]
    shown = ", ".join(f"{key} {metrics[key]:.4g}" for key in _SHOWN if key in metrics)
    return (
        f"its model was trained by this run on {len(data.ids):,} examples of {training.data.name} "
        f"over {training.elmo.name}: {shown}"
    )
