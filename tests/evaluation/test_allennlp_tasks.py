"""SST-5, SNLI and SQuAD by the real AllenNLP, on small parts of the real data."""

import collections
import io
import json
import os
import re
import signal
import string
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from allennlp_environment import TASKS, WORKER, require_allennlp, rows_of, small_data, training

from ckptshrink.digest import file_sha256
from ckptshrink.errors import EvaluationError, EvaluationInputError, OutputError
from ckptshrink.evaluation.downstream.tasks import AllennlpEvaluator
from ckptshrink.evaluation.evaluator import EVALUATORS, Scores, TaskOptions
from ckptshrink.evaluation.subjects import Subject, subject_of
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress, restore

pytestmark = pytest.mark.slow  # trains an archive of each task

CELLS = [f"RNN_{d}/RNN/MultiRNNCell/Cell{k}/LSTMCell" for d in (0, 1) for k in (0, 1)]


@dataclass(frozen=True)
class Elmos:
    """The ELMo that the models are trained over, and others in its place."""

    source: Subject
    damaged: Subject
    artefact: Subject
    restored: Subject


@dataclass(frozen=True)
class Setup:
    """Models trained once, each in an evaluator that stays open."""

    files: Mapping[str, Mapping[str, Path]]
    archives: Mapping[str, Path]
    evaluators: Mapping[str, AllennlpEvaluator]
    elmos: Elmos
    scores: Mapping[tuple[str, str], Scores]


def opened(task: str, data: Path, settings: Mapping[str, Any], **more: Any) -> AllennlpEvaluator:
    options = TaskOptions(data=data, threads=1, device="cpu", settings=settings, **more)
    made: AllennlpEvaluator = EVALUATORS.get(task)(options)
    return made


def beside_options(folder: Path, fixtures: Path) -> Path:
    folder.mkdir()
    (folder / "options.json").write_bytes((fixtures / "elmo" / "options.json").read_bytes())
    return folder / "elmo.hdf5"


def changed(source: Path, target: Path, names: Callable[[str], bool], scale: float) -> Path:
    """Write an ELMo whose tensors of these names have noise added, by their spread."""
    target.write_bytes(source.read_bytes())
    rng = np.random.default_rng(0)

    def spoil(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and names(name):
            value = item[...]
            noise = rng.standard_normal(value.shape) * scale * (value.std() + 0.01)
            item[...] = (value + noise).astype(value.dtype)

    with h5py.File(target, "r+") as file:
        file.visititems(spoil)
    return target


@pytest.fixture(scope="module")
def elmos(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Elmos:
    folder = tmp_path_factory.mktemp("elmos")
    source = fixtures / "elmo" / "elmo.hdf5"
    damaged = beside_options(folder / "damaged", fixtures)
    changed(source, damaged, lambda name: name.endswith("W_0"), 3.0)
    request = Request((parse_target("Wi,Wh,P"),), size=Size(rank=2))
    compress(source, folder / "artefact", request, compute=Compute("cpu", 1))
    restored = beside_options(folder / "restored", fixtures)
    restore(folder / "artefact", restored)
    return Elmos(
        source=subject_of(source),
        damaged=subject_of(damaged, name="damaged"),
        artefact=subject_of(folder / "artefact"),
        restored=subject_of(restored, name="restored"),
    )


@pytest.fixture(scope="module")
def setup(
    elmos: Elmos, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    require_allennlp()
    folder = tmp_path_factory.mktemp("tasks")
    files = small_data(shared_data, folder / "data")
    archives = {task: folder / f"{task}.tar.gz" for task in TASKS}
    with ExitStack() as stack:
        evaluators = {}
        scores = {}
        for task in TASKS:
            settings = training(task, files[task], elmos.source.path, archives[task])
            evaluator = stack.enter_context(opened(task, files[task]["test"], settings))
            evaluators[task] = evaluator
            for subject in (elmos.source, elmos.damaged):
                scores[task, subject.name] = evaluator.score(subject)
        yield Setup(files, archives, evaluators, elmos, scores)


def values(scores: Scores) -> dict[str, float]:
    return {one.name: one.number for one in scores.metrics}


def lines(scores: Scores) -> list[bytes]:
    assert scores.examples is not None
    return list(scores.examples.lines())


# -- against AllenNLP's own evaluation ----------------------------------------------------------

INDEPENDENT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import allennlp_compat
allennlp_compat.import_allennlp()
import spacy, torch
torch.set_num_threads(1)
import allennlp.common.util as util
util.LOADED_SPACY_MODELS["en_core_web_sm", True, False, False] = spacy.blank("en")
from allennlp.commands.evaluate import evaluate_from_archive
found = [evaluate_from_archive(a, d, weights_file=w) for a, d, w in json.loads(sys.argv[2])]
print(json.dumps(found))
"""


def patched(archive: Path, elmo: Path, out: Path) -> Path:
    """Put the W_0 of an ELMo into an archive's weights, by hand."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("weights.th")
        assert member is not None
        state = torch.load(io.BytesIO(member.read()), weights_only=True)
    with h5py.File(elmo) as file:
        for name in CELLS:
            direction, layer = name[4], name[len("RNN_0/RNN/MultiRNNCell/Cell")]
            i, j, f, o = np.split(file[name]["W_0"][...].T, 4)  # rows of gates, columns [x, h]
            both = np.concatenate([i, f, j, o])
            place = f"_elmo_lstm.{('forward', 'backward')[int(direction)]}_layer_{layer}."
            for key, part in zip(
                ("input_linearity", "state_linearity"), np.split(both, 2, axis=1), strict=True
            ):
                (full,) = [k for k in state if k.endswith(f"{place}{key}.weight")]
                assert state[full].shape == part.shape
                state[full] = torch.from_numpy(part.copy())
    torch.save(state, out)
    return out


def as_read(task: str, path: Path, out: Path) -> Path:
    """Write data in the form of AllenNLP's reader, by hand."""
    text = path.read_text("utf-8")
    if task == "sst5":
        rows = [line.split() for line in text.splitlines()]
        trees = [f"({label} {' '.join(f'(2 {w})' for w in words)})" for label, *words in rows]
        text = "\n".join(trees) + "\n"
    out.write_text(text, "utf-8")
    return out


def test_metrics_are_those_of_allennlp_evaluate(setup: Setup, tmp_path: Path) -> None:
    """In a fresh process, by AllenNLP's own command; the damaged ELMo as patched weights."""
    jobs = []
    for task in TASKS:
        archive = setup.archives[task]
        data = as_read(task, setup.files[task]["test"], tmp_path / task)
        weights = patched(archive, setup.elmos.damaged.path, tmp_path / f"{task}.th")
        jobs += [(str(archive), str(data), None), (str(archive), str(data), str(weights))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INDEPENDENT, str(WORKER), json.dumps(jobs)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "TQDM_DISABLE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = iter(json.loads(done.stdout.splitlines()[-1]))
    for task in TASKS:
        for subject in (setup.elmos.source, setup.elmos.damaged):
            want = next(found)
            for name, value in values(setup.scores[task, subject.name]).items():
                assert value == pytest.approx(want[name], abs=1e-12), (task, subject.name, name)


def test_a_compressed_archive_scores_as_what_it_restores_to(setup: Setup, tmp_path: Path) -> None:
    archive = setup.archives["sst5"]
    data = as_read("sst5", setup.files["sst5"]["test"], tmp_path / "sst5")
    request = Request((parse_target("Wi,Wh"),), size=Size(rank=1))
    compress(archive, tmp_path / "small", request, compute=Compute("cpu", 1))
    restored, _ = restore(tmp_path / "small", tmp_path / "restored.tar.gz")
    evaluator = setup.evaluators["sst5"]
    scored = evaluator.score(subject_of(tmp_path / "small"))
    own = evaluator.score(subject_of(archive, any_file=True))
    assert values(own) == values(setup.scores["sst5", "elmo.hdf5"])
    assert lines(own) != lines(scored)
    jobs = json.dumps([[str(restored), str(data), None]])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INDEPENDENT, str(WORKER), jobs],
        capture_output=True, text=True, timeout=300, env={**os.environ, "TQDM_DISABLE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.splitlines()[-1])
    assert values(scored) == {"accuracy": pytest.approx(found["accuracy"], abs=1e-12)}


@pytest.mark.parametrize("task", TASKS)
def test_a_damaged_elmo_scores_otherwise(setup: Setup, task: str) -> None:
    before, after = (setup.scores[task, name] for name in ("elmo.hdf5", "damaged"))
    assert values(before) != values(after)
    assert lines(before) != lines(after)


# -- results by example --------------------------------------------------------------------------


def test_labels_are_those_of_the_lines_of_the_data(setup: Setup) -> None:
    examples = setup.scores["sst5", "elmo.hdf5"].examples
    assert examples is not None
    said = setup.files["sst5"]["test"].read_text("utf-8").splitlines()
    assert examples.ids == tuple(str(k) for k in range(1, len(said) + 1))
    assert examples.labels["gold"] == tuple(line[0] for line in said)

    examples = setup.scores["snli", "elmo.hdf5"].examples
    assert examples is not None
    pairs = rows_of(setup.files["snli"]["test"])
    pairs = [pair for pair in pairs if pair["gold_label"] != "-"]
    assert examples.ids == tuple(pair["pairID"] for pair in pairs)
    assert examples.labels["gold"] == tuple(pair["gold_label"] for pair in pairs)


@pytest.mark.parametrize("task", ["sst5", "snli"])
@pytest.mark.parametrize("name", ["elmo.hdf5", "damaged"])
def test_an_accuracy_is_the_share_of_predictions_that_are_right(
    setup: Setup, task: str, name: str
) -> None:
    scores = setup.scores[task, name]
    examples = scores.examples
    assert examples is not None
    right = [
        g == p for g, p in zip(*(examples.labels[k] for k in ("gold", "predicted")), strict=True)
    ]
    assert list(examples.columns["correct"]) == right
    (metric,) = scores.metrics
    assert (metric.name, metric.unit, metric.better) == ("accuracy", "fraction", "higher")
    assert metric.n == len(right) == 45
    assert metric.number == pytest.approx(np.mean(right), abs=1e-12)
    assert metric.stderr == pytest.approx(np.std(right, ddof=1) / len(right) ** 0.5)
    assert metric.of is not None
    assert metric.of.value(examples.columns[metric.of.score]) == pytest.approx(metric.number)


def plain(text: str) -> list[str]:
    """Return the words of an answer, as SQuAD's official script compares them."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def overlap(one: str, other: str) -> float:
    a, b = plain(one), plain(other)
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else float(a == b)


def test_em_and_f1_are_those_of_the_answers_given(setup: Setup) -> None:
    (whole,) = json.loads(setup.files["squad"]["test"].read_text("utf-8"))["data"]
    questions = [q for paragraph in whole["paragraphs"] for q in paragraph["qas"]]
    for name in ("elmo.hdf5", "damaged"):
        scores = setup.scores["squad", name]
        examples = scores.examples
        assert examples is not None
        assert examples.ids == tuple(q["id"] for q in questions)
        answers = [[a["text"] for a in q["answers"]] for q in questions]
        pairs = list(zip(examples.labels["predicted"], answers, strict=True))
        em = [float(any(plain(given) == plain(a) for a in right)) for given, right in pairs]
        f1 = [max(overlap(given, a) for a in right) for given, right in pairs]
        assert list(examples.columns["em"]) == em
        assert examples.columns["f1"] == pytest.approx(f1)
        assert values(scores) == pytest.approx({"em": np.mean(em), "f1": np.mean(f1)}, abs=1e-9)
    assert 0 < values(setup.scores["squad", "elmo.hdf5"])["f1"] < 1


# -- what does not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_what_was_scored_before_does_not_matter(setup: Setup, task: str) -> None:
    evaluator = setup.evaluators[task]
    for subject in (setup.elmos.damaged, setup.elmos.source, setup.elmos.source):
        again = evaluator.score(subject)
        assert lines(again) == lines(setup.scores[task, subject.name])
        assert again.metrics == setup.scores[task, subject.name].metrics


@pytest.mark.parametrize("task", TASKS)
def test_the_archive_itself_is_its_own_elmo(setup: Setup, task: str) -> None:
    own = setup.evaluators[task].score(subject_of(setup.archives[task], any_file=True))
    assert lines(own) == lines(setup.scores[task, "elmo.hdf5"])
    assert own.n_params == setup.scores[task, "elmo.hdf5"].n_params


@pytest.mark.parametrize("task", TASKS)
def test_an_artefact_scores_as_its_restored_checkpoint(setup: Setup, task: str) -> None:
    made, back = (
        setup.evaluators[task].score(one) for one in (setup.elmos.artefact, setup.elmos.restored)
    )
    assert lines(made) == lines(back)
    source = setup.elmos.source.n_params
    smaller = setup.elmos.artefact.n_params
    assert source is not None
    assert smaller is not None
    assert back.n_params is not None
    assert made.n_params == back.n_params - source + smaller


def test_a_models_parameters_are_counted_with_the_elmo_in_it(setup: Setup) -> None:
    for task in TASKS:
        with tarfile.open(setup.archives[task]) as tar:
            member = tar.extractfile("weights.th")
            assert member is not None
            state = torch.load(io.BytesIO(member.read()), weights_only=True)
        padding = next(v for k, v in state.items() if k.endswith("_char_embedding_weights"))
        assert setup.scores[task, "elmo.hdf5"].n_params == (
            sum(v.numel() for v in state.values()) - padding.shape[1]
        )


def test_addresses_in_an_archive_are_never_asked_for(setup: Setup, tmp_path: Path) -> None:
    """Published archives name ELMo's files so; no such name can be resolved."""

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: moved(v) for k, v in node.items()}
        return f"https://nowhere.invalid{node}" if str(node).startswith("/") else node

    archive = rewritten(setup.archives["snli"], tmp_path / "published.tar.gz", config=moved)
    with tarfile.open(archive) as tar:
        member = tar.extractfile("config.json")
        assert member is not None
        assert member.read().count(b"https://nowhere.invalid") == 2
    with opened("snli", setup.files["snli"]["test"], {"archive": archive}) as evaluator:
        with pytest.raises(EvaluationInputError, match="names an ELMo that is not on this machine"):
            evaluator.score(subject_of(archive, any_file=True))
        assert lines(evaluator.score(setup.elmos.source)) == lines(
            setup.scores["snli", "elmo.hdf5"]
        )
        own = evaluator.score(subject_of(archive, any_file=True))
        assert lines(own) == lines(setup.scores["snli", "elmo.hdf5"])


def rewritten(
    archive: Path,
    out: Path,
    *,
    config: Callable[[Any], Any] = lambda node: node,
    weights: Callable[[dict[str, Any]], None] = lambda state: None,
) -> Path:
    """Write an archive with another configuration, or other weights."""
    with tarfile.open(archive) as tar, tarfile.open(out, "w:gz") as target:
        for member in tar.getmembers():
            source = tar.extractfile(member)
            assert source is not None
            data = source.read()
            if member.name == "config.json":
                data = json.dumps(config(json.loads(data))).encode()
            if member.name == "weights.th":
                state = torch.load(io.BytesIO(data), weights_only=True)
                weights(state)
                saved = io.BytesIO()
                torch.save(state, saved)
                data = saved.getvalue()
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return out


# -- the protocol --------------------------------------------------------------------------------


def test_the_protocol_says_what_must_be_alike(setup: Setup) -> None:
    for task, model, tokenizer, size in (
        ("sst5", "bcn", "none", 8), ("snli", "esim", "spacy.blank('en')", 8),
        ("squad", "bidaf", "spacy.blank('en')", 10),
    ):  # fmt: skip
        evaluator = setup.evaluators[task]
        said = dict(evaluator.protocol)
        assert said.pop("archive_sha256") == file_sha256(setup.archives[task])
        assert said.pop("model") == model
        assert said.pop("batch_size") == size
        assert said.pop("tokenizer").startswith(tokenizer[:5])
        assert said.pop("reader") in {"sst_tokens", "snli", "squad1"}
        assert said == {"seed": 0, "max_examples": None, "overrides": {}}
        assert json.loads(json.dumps(evaluator.protocol)) == evaluator.protocol
        data = evaluator.data
        assert data.sha256 == file_sha256(setup.files[task]["test"])
        about = evaluator.environment
        assert {about["allennlp"], about["allennlp-models"]} == {"2.10.1"}
        assert about["torch"] == torch.__version__
        assert "transformers" in about["stubbed"]


def test_the_first_examples_alone_are_scored_and_it_is_said(setup: Setup) -> None:
    files = setup.files["squad"]
    settings = {"archive": setup.archives["squad"]}
    with opened(
        "squad", files["test"], settings, max_examples=19, batch_size=4, seed=5
    ) as evaluator:
        scores = evaluator.score(setup.elmos.source)
        assert evaluator.data.sha256 == file_sha256(files["test"])
        said = evaluator.protocol
    assert (said["max_examples"], said["batch_size"], said["seed"]) == (19, 4, 5)
    whole = setup.scores["squad", "elmo.hdf5"].examples
    assert scores.examples is not None
    assert whole is not None
    assert scores.examples.ids == whole.ids[:19]
    assert any("the first 19 of" in note for note in scores.notes)


# -- which ELMo an archive was trained over ------------------------------------------------------


def test_an_archive_that_trained_its_elmo_is_refused(setup: Setup, tmp_path: Path) -> None:
    def tuned(state: dict[str, Any]) -> None:
        for name, value in state.items():
            if "_elmo_lstm." in name:
                value += 1e-4 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        (largest,) = [k for k in state if k.endswith("backward_layer_1.state_linearity.weight")]
        state[largest][0, 0] += 0.25

    archive = rewritten(setup.archives["sst5"], tmp_path / "tuned.tar.gz", weights=tuned)
    whole = r"its ELMo was fine-tuned, .* most by 0\.25 at RNN_1/.*/Cell1/LSTMCell/W_0\.Wh"
    kept = "fine-tuned, or is not that of the tensors kept in artefact"
    with opened("sst5", setup.files["sst5"]["test"], {"archive": archive}) as evaluator:
        for subject, message in ((setup.elmos.source, whole), (setup.elmos.artefact, kept)):
            with pytest.raises(EvaluationInputError, match=message) as caught:
                evaluator.score(subject)
            assert caught.value.path == str(archive)
            assert caught.value.hint is not None
        own = evaluator.score(subject_of(archive, any_file=True))  # it is what it is
        assert own.metrics[0].n == 45


def test_an_archive_that_trained_a_part_of_its_elmo_is_refused_by_what_it_came_from(
    setup: Setup, tmp_path: Path
) -> None:
    def tuned(state: dict[str, Any]) -> None:
        (one,) = [k for k in state if k.endswith("forward_layer_0.state_linearity.bias")]
        state[one] += 0.5

    archive = rewritten(setup.archives["sst5"], tmp_path / "part.tar.gz", weights=tuned)
    data = setup.files["sst5"]["test"]
    said = "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/B"
    with (
        opened("sst5", data, {"archive": archive, "elmo": setup.elmos.source}) as evaluator,
        pytest.raises(EvaluationInputError, match=said),
    ):
        evaluator.score(setup.elmos.damaged)


def test_an_elmo_of_other_sizes_is_refused(setup: Setup, shared_data: Path) -> None:
    other = subject_of(shared_data / "elmo_allennlp" / "lm_weights.hdf5")
    with pytest.raises(EvaluationInputError, match=r"in its options\.json, and \d+ in the ELMo of"):
        setup.evaluators["sst5"].score(other)
    setup.evaluators["sst5"].score(setup.elmos.source)


def test_an_elmo_of_other_bounds_is_refused(setup: Setup, fixtures: Path, tmp_path: Path) -> None:
    weights = beside_options(tmp_path / "other", fixtures)
    weights.write_bytes(setup.elmos.source.path.read_bytes())
    options = weights.parent / "options.json"
    options.write_text(options.read_text().replace('"cell_clip": 3', '"cell_clip": 1'))
    with pytest.raises(EvaluationInputError, match=r"says cell_clip 1\.0, and that of elmo.hdf5 3"):
        setup.evaluators["sst5"].score(subject_of(weights, name="other"))


def test_the_archive_of_another_task_is_refused(setup: Setup) -> None:
    for task, archive, message in (
        ("sst5", "snli", "SnliReader, the archive's reader, can't read it"),
        ("squad", "snli", "its model is scored by accuracy, and the task by em, f1"),
    ):
        settings = {"archive": setup.archives[archive]}
        with (
            opened(task, setup.files[task]["test"], settings) as evaluator,
            pytest.raises(EvaluationInputError, match=message),
        ):
            evaluator.score(setup.elmos.source)


# -- training ------------------------------------------------------------------------------------


def test_the_same_training_gives_the_same_archive(setup: Setup, tmp_path: Path) -> None:
    settings = training(
        "sst5", setup.files["sst5"], setup.elmos.source.path, tmp_path / "again.tar.gz"
    )
    opened("sst5", setup.files["sst5"]["test"], settings).__exit__(None, None, None)
    assert file_sha256(tmp_path / "again.tar.gz") == file_sha256(setup.archives["sst5"])
    with tarfile.open(setup.archives["sst5"]) as tar:
        member = tar.extractfile("config.json")
        assert member is not None
        config = json.load(member)
    assert config["train_data_path"] == setup.files["sst5"]["train"].name
    assert config["model"]["elmo"]["weight_file"] == str(setup.elmos.source.path.resolve())


def test_a_training_says_so_once(setup: Setup) -> None:
    (note,) = [n for n in setup.scores["sst5", "elmo.hdf5"].notes if "trained" in n]
    assert "on 45 examples of sst5.train over elmo.hdf5" in note
    assert setup.scores["sst5", "damaged"].notes == ()


def test_an_archive_that_is_there_is_not_trained_over(setup: Setup) -> None:
    settings = training(
        "sst5", setup.files["sst5"], setup.elmos.source.path, setup.archives["sst5"]
    )
    with pytest.raises(OutputError, match="exists already"):
        opened("sst5", setup.files["sst5"]["test"], settings)


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        (
            "sst5",
            {"model.text_field_embedder.token_embedders.tokens.pretrained_file": "https://a.invalid/g"},
            "https://a.invalid/g: there is no such file here, and none is downloaded",
        ),
        ("snli", {"dataset_reader.tokenizer": {"type": "spacy", "language": "de_core_news_sm"}},
         "spaCy's model de_core_news_sm is not installed"),
    ],
)  # fmt: skip
def test_a_training_that_can_not_be_is_refused_in_one_line(
    setup: Setup, tmp_path: Path, task: str, overrides: dict[str, Any], message: str
) -> None:
    settings = training(task, setup.files[task], setup.elmos.source.path, tmp_path / "model.tar.gz")
    with pytest.raises(EvaluationInputError, match=message) as caught:
        opened(task, setup.files[task]["test"], {**settings, "overrides": overrides})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# -- a worker that is lost -----------------------------------------------------------------------


def test_a_killed_worker_is_a_failed_evaluation_and_the_next_one_goes_on(setup: Setup) -> None:
    settings = {"archive": setup.archives["squad"]}
    with opened("squad", setup.files["squad"]["test"], settings, seed=7) as evaluator:
        first = evaluator._session._worker._process.pid
        before = [evaluator.score(one) for one in (setup.elmos.source, setup.elmos.damaged)]
        killer = threading.Timer(0.1, os.kill, (first, signal.SIGKILL))
        killer.start()
        try:
            with pytest.raises(EvaluationError, match="ended by SIGKILL"):
                for _ in range(1000):
                    evaluator.score(setup.elmos.source)
        finally:
            killer.join()
        after = [evaluator.score(one) for one in (setup.elmos.source, setup.elmos.damaged)]
        second = evaluator._session._worker._process.pid
        # seeds are shifted from those of the archive each time it is loaded, not from shifted ones
        unpacked = (evaluator._folder / "archive" / "config.json").read_bytes()
    with tarfile.open(setup.archives["squad"]) as tar:
        member = tar.extractfile("config.json")
        assert member is not None
        assert member.read() == unpacked
    assert list(map(lines, after)) == list(map(lines, before))
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
