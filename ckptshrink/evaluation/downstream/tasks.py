"""Downstream tasks of ELMo by AllenNLP's own models: SST-5 by BCN, SNLI by ESIM, SQuAD by BiDAF.

A task's model comes from its archive, ``model.tar.gz``, or is trained here. Its ELMo is swapped for
the one to be scored, and the task's own code does the scoring, in a process of its own: see
`process`. AllenNLP need not be installed where this runs.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final

from ckptshrink.errors import EvaluationError, EvaluationInputError, printable
from ckptshrink.evaluation.downstream.archive import elmo_sizes, local_elmo, unpack
from ckptshrink.evaluation.downstream.data import Read, read_snli, read_squad, read_sst5
from ckptshrink.evaluation.downstream.elmo import (
    DenseElmo,
    check_origin,
    check_same_model,
    check_sizes,
    dense_elmo,
)
from ckptshrink.evaluation.downstream.results import results_of
from ckptshrink.evaluation.downstream.session import Session, Way
from ckptshrink.evaluation.downstream.settings import Settings
from ckptshrink.evaluation.downstream.training import train
from ckptshrink.evaluation.evaluator import Data, Evaluator, Scores, TaskOptions
from ckptshrink.evaluation.subjects import Subject
from ckptshrink.evaluation.task_options import data_of
from ckptshrink.io.staging import check_target
from ckptshrink.manifest import read_manifest
from ckptshrink.runtime.elmo_options import ElmoOptions, read_options


@dataclass(frozen=True, slots=True)
class Task:
    """What sets the three tasks apart.

    Attributes
    ----------
    name : str
    kind : "label" or "span"
        What a model answers.
    read : callable
        Reader of its data.
    metrics : mapping of str to str
        Keys of the model's metrics, and the columns of results by example that they are means of.
    """

    name: str
    kind: str
    read: Read
    metrics: Mapping[str, str]


_SST5: Final = Task("sst5", "label", read_sst5, {"accuracy": "correct"})
_SNLI: Final = Task("snli", "label", read_snli, {"accuracy": "correct"})
_SQUAD: Final = Task("squad", "span", read_squad, {"em": "em", "f1": "f1"})


def sst5(options: TaskOptions) -> Evaluator:
    """Return the evaluator of SST-5: one of five labels for a sentence; see `AllennlpEvaluator`."""
    return AllennlpEvaluator(_SST5, options)


def snli(options: TaskOptions) -> Evaluator:
    """Return the evaluator of SNLI: what follows from a sentence; see `AllennlpEvaluator`."""
    return AllennlpEvaluator(_SNLI, options)


def squad(options: TaskOptions) -> Evaluator:
    """Return the evaluator of SQuAD 1.1: answers within a text; see `AllennlpEvaluator`."""
    return AllennlpEvaluator(_SQUAD, options)


class AllennlpEvaluator:
    """Scores ELMos inside of one AllenNLP model, on one file of data.

    Every ELMo is scored as ``allennlp evaluate`` scores: the archive's reader and batches, its
    seeds set anew and ELMo's states cleared before each, so that neither the order nor the number
    of those before matters.

    Parameters
    ----------
    task : Task
    options : TaskOptions
        `seed` is added to the seeds of the archive's configuration: 0 is what AllenNLP itself
        takes. `timeout` is for scoring, not for starting. Settings are those of
        `settings.Settings`.

    Raises
    ------
    PlanError
        A setting is missing, unknown or contradicts another.
    EvaluationInputError
        Data, archive, configuration or interpreter can't be used.
    OutputError
        The archive of a training exists already, or can't be written.
    EvaluationError
        The training failed.
    """

    def __init__(self, task: Task, options: TaskOptions) -> None:
        self._task = task
        self._timeout = options.timeout
        settings = Settings.of(task.name, options)
        if settings.training is not None:
            check_target(settings.archive, single=True, overwrite=False)
        self._archive = settings.archive
        self._origin = settings.origin
        self._known = False
        self._first: Subject | None = None
        self._built: tuple[ElmoOptions, str] | None = None
        way = Way(
            kind=task.kind,
            python=settings.python,
            threads=options.threads,
            device=options.device,
            seed=options.seed,
            batch_size=options.batch_size,
            overrides=settings.overrides,
        )
        with ExitStack() as opened:
            self._folder = Path(opened.enter_context(TemporaryDirectory(prefix="ckptshrink-")))
            self._examples = task.read(settings.data, options.max_examples)
            self._data = data_of(settings.data)
            self._text = self._folder / "data"
            self._text.write_text(self._examples.text, "utf-8")
            notes = list(self._examples.notes)
            if settings.training is not None:
                notes.append(
                    train(settings.training, settings.archive, task.read, way, self._folder)
                )
            unpacked = self._folder / "archive"
            unpacked.mkdir()
            self._sha256 = unpack(settings.archive, unpacked)
            if self._origin is not None and self._is_own(self._origin):
                self._origin = None  # a baseline, and not what the archive was trained over
            self._sizes = elmo_sizes(unpacked, settings.archive)
            self._session = Session(settings.archive, unpacked, settings.data, way, self._folder)
            opened.callback(self._session.close)
            said = self._session.said
            if said["tokenizer"].startswith("spacy.blank"):
                notes.append(
                    "spaCy's English model is not installed: its tokenizer's rules, "
                    "spacy.blank('en'), stand in"
                )
            self._notes = notes
            self._protocol = {
                "archive_sha256": self._sha256,
                "model": said["model"],
                "reader": said["reader"],
                "tokenizer": said["tokenizer"],
                "batch_size": said["batch_size"],
                "seed": options.seed,
                "max_examples": options.max_examples,
                "overrides": dict(settings.overrides),
            }
            on_cuda = options.device != "cpu" and self._session.about["cuda"]
            self._environment = {
                **{name: str(value) for name, value in self._session.about["versions"].items()},
                "device": "cuda" if on_cuda else "cpu",
                "stubbed": ", ".join(self._session.about["stubbed"]),
            }
            self._opened = opened.pop_all()

    @property
    def data(self) -> Data:
        """Return what models are scored on."""
        return self._data

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Return, as JSON, all that must be alike for two scores to be comparable."""
        return self._protocol

    @property
    def environment(self) -> Mapping[str, str]:
        """Return versions of what does the scoring, and which packages are stubs there."""
        return self._environment

    def score(self, subject: Subject) -> Scores:
        """Score an ELMo within the model; the archive itself stands for its own ELMo.

        An artefact made of the archive is scored as the model that it restores to.

        Raises
        ------
        EvaluationError
            It crashed, took too long, or what came out makes no sense. The rest can go on.
        CheckpointError, ManifestMismatchError, EvaluationInputError
            It is no ELMo, one of other sizes, or not the one that the archive was trained over; or
            the archive or the data can't be used.
        """
        notes = self._put(subject)
        scored = self._session.score(self._text, self._timeout)
        n_known = len(self._examples.ids)
        if scored.n_read > n_known:
            key = self._session.said["reader_key"]
            raise EvaluationInputError(
                f"its reader makes {scored.n_read:,} examples of {n_known:,} (use_subtrees?)",
                path=self._archive,
                hint=f'overrides can change it: {{"{key}.use_subtrees": false}}',
            )
        try:
            metrics, examples = results_of(
                self._task.metrics, self._examples.ids, scored.metrics, scored.rows
            )
        except ValueError as error:
            raise EvaluationError(printable(str(error)), log=self._session.log()) from error
        if len(examples) < n_known:
            left_out = n_known - len(examples)
            said = f"{left_out:,} of {n_known:,} examples are not scored: the archive's reader "
            notes = (*notes, f"{said}leaves them out, or they have no answer")
        once, self._notes = self._notes, []  # of the run, told with its first model
        return Scores(
            metrics=metrics,
            examples=examples,
            n_params=self._n_params(subject),
            notes=(*once, *notes),
        )

    def __enter__(self) -> "AllennlpEvaluator":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the worker and remove temporary files."""
        if kind is not None:
            self._session.kill()  # it may be in the middle of something
        self._opened.close()

    # -- ELMo ------------------------------------------------------------------------------------

    def _put(self, subject: Subject) -> tuple[str, ...]:
        """Put an ELMo into the model, checked; return notes on it."""
        with TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            if self._is_made_of_own(subject):
                self._open_artefact(subject, folder)
                return ()
            elmo = None if self._is_own(subject) else self._dense(subject, folder)
            if not self._session.is_open:
                self._session.open(*self._files(elmo, folder))
            origin = self._origin
            is_origin = origin is not None and subject.sha256 == origin.sha256
            if origin is not None and not is_origin and not self._known:
                self._put_dense(self._dense(origin, folder), is_origin=True)
            if elmo is None:
                self._session.put(None)
                return ()
            return self._put_dense(elmo, is_origin=is_origin)

    def _is_own(self, subject: Subject) -> bool:
        """Tell whether a model is the archive itself."""
        return subject.kind != "artefact" and subject.sha256 == self._sha256

    def _is_made_of_own(self, subject: Subject) -> bool:
        """Tell whether a model is an artefact of the archive: its configuration and vocabulary."""
        return subject.kind == "artefact" and subject.source_sha256 == self._sha256

    def _open_artefact(self, subject: Subject, folder: Path) -> None:
        """Load an artefact of the archive in its place."""
        from ckptshrink.rewrite import restore

        restored, _ = restore(subject.path, folder / "model.tar.gz")
        unpacked = folder / "restored"
        unpacked.mkdir()
        unpack(restored, unpacked)
        restored.unlink()
        self._session.open(*self._files(None, folder), unpacked)
        self._session.put(None)

    def _n_params(self, subject: Subject) -> int:
        """Return the parameters of the model that was scored."""
        counts = self._session.counts
        if self._is_made_of_own(subject):
            totals = read_manifest(subject.path).totals
            return counts.n_params - totals.n_params_before + totals.n_params_after
        return counts.with_elmo(None if self._is_own(subject) else subject.n_params)

    def _put_dense(self, elmo: DenseElmo, *, is_origin: bool) -> tuple[str, ...]:
        found = self._session.put(elmo)
        notes = check_origin(elmo, found, self._archive, is_origin=is_origin, known=self._known)
        self._known |= is_origin or (elmo.kept is None and not any(found.largest.values()))
        return notes

    def _files(self, elmo: DenseElmo | None, folder: Path) -> tuple[Path, Path]:
        """Return options and weights to build the model with, which its own then replace."""
        before = self._origin or self._first
        if elmo is None and before is not None:
            elmo = self._dense(before, folder)
        if elmo is not None:
            return elmo.options, elmo.weights
        local = local_elmo(self._session.said["elmo_files"])
        if local is None:
            raise EvaluationInputError(
                "names an ELMo that is not on this machine, and does not hold its options",
                path=self._archive,
                hint="score an ELMo before it: --baseline elmo.hdf5",
            )
        self._built = (read_options(local[0]), self._archive.name)
        return local

    def _dense(self, subject: Subject, folder: Path) -> DenseElmo:
        """Return an ELMo that fits into the model, but for its weights."""
        elmo = dense_elmo(subject, folder)
        for sizes in self._sizes:
            check_sizes(elmo, sizes, self._archive)
        if self._built is None:
            self._built = (elmo.said, subject.name)
            self._first = subject
        check_same_model(elmo, *self._built)
        return elmo
