"""The tasks of AllenNLP with a stand-in for its worker: what is checked on this side of it."""

import io
import json
import os
import shlex
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckptshrink.digest import file_sha256
from ckptshrink.errors import EvaluationError, EvaluationInputError, OutputError, PlanError
from ckptshrink.evaluation.downstream.process import PROTOCOL
from ckptshrink.evaluation.downstream.tasks import AllennlpEvaluator
from ckptshrink.evaluation.evaluator import EVALUATORS, TaskOptions
from ckptshrink.evaluation.run import evaluate
from ckptshrink.evaluation.subjects import subject_of
from ckptshrink.manifest import read_manifest
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.rewrite import compress, restore

WORKER = f"""
import hashlib, json, os, sys, time
HERE = os.path.dirname(os.path.abspath(__file__))
def said(name):
    with open(os.path.join(HERE, name)) as file:
        return json.load(file)
def note(**what):
    with open(os.path.join(HERE, "asked.jsonl"), "a") as file:
        file.write(json.dumps(what) + "\\n")
def n_asked():
    with open(os.path.join(HERE, "asked.jsonl")) as file:
        return len(file.readlines())
def answer(number, **result):
    print(json.dumps(dict(result, id=number)), flush=True)
note(do="start", pid=os.getpid())
about = {{"versions": {{"python": "3"}}, "stubbed": [], "cuda": False}}
answer(0, ok=dict(about, protocol={PROTOCOL}))
for line in sys.stdin:
    request = json.loads(line)
    number, do = request.pop("id"), request.pop("do")
    answers = said("answers.json")
    if do == "swap" and request["weight_file"]:
        with open(request["weight_file"], "rb") as file:
            request["sha256"] = hashlib.sha256(file.read()).hexdigest()
    if do == "open":
        request["files"] = sorted(os.listdir(request["folder"]))
    note(do=do, **request)
    if do == "score":
        with open(request["examples"], "w") as file:
            file.writelines(json.dumps(row) + "\\n" for row in answers["rows"])
        for action in answers.get("actions", []):
            exec(action)
    result = answers.get("error_" + do)
    if result is not None:
        answer(number, error=result)
    else:
        answer(number, ok=answers[do])
"""

DATA = "".join(f"{label} a film\n" for label in (0, 1, 2, 3))
N_PARAMS_OF_TASK = 1000
N_PARAMS_OF_ELMO = 175_664  # of fixtures/elmo/elmo.hdf5


def rows(*correct: float) -> list[dict[str, Any]]:
    return [
        {"index": k, "correct": c, "gold": "1", "predicted": str(c)} for k, c in enumerate(correct)
    ]


@dataclass(frozen=True)
class Stage:
    """A stand-in for the worker, and what is given to it."""

    folder: Path
    archive: Path
    data: Path

    def answers(self, **changes: Any) -> None:
        """Say what the worker is to answer from now on."""
        found = {
            "describe": {
                "model": "bcn", "reader": "sst_tokens", "tokenizer": "none", "batch_size": 8,
                "reader_key": "dataset_reader",
                "n_elmos": 1, "elmo_files": [[None, "https://a/w.hdf5"]],
            },
            "open": {
                "n_params": N_PARAMS_OF_TASK + N_PARAMS_OF_ELMO,
                "n_params_elmo": N_PARAMS_OF_ELMO, "n_elmos": 1, "device": "cpu",
            },
            "swap": {"differences": {"char_embed": 0.0, "CNN_proj/b_proj": 0.0}, "constant": []},
            "score": {"metrics": {"accuracy": 0.75, "loss": 1.0}, "n_read": 4},
            "rows": rows(1, 0, 1, 1),
            **changes,
        }  # fmt: skip
        (self.folder / "answers.json").write_text(json.dumps(found))

    def asked(self, *names: str) -> list[dict[str, Any]]:
        """Return the requests of these names so far."""
        path = self.folder / "asked.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [one for one in map(json.loads, lines) if one["do"] in names]

    def open(self, *, data: Path | None = None, **more: Any) -> AllennlpEvaluator:
        settings = {"archive": self.archive, "python": self.folder / "python"}
        settings |= more.pop("settings", {})
        options = TaskOptions(data=data or self.data, settings=settings, **more)
        made: AllennlpEvaluator = EVALUATORS.get("sst5")(options)
        return made


def state(fixture: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return tensors of the names and sizes that an archive's ELMo has; values don't matter."""
    lstm, characters = fixture["lstm"], fixture["char_cnn"]
    p, h = lstm["projection_dim"], lstm["dim"]
    f = sum(n for _, n in characters["filters"])
    found = {"_elmo._elmo_lstm._token_embedder._projection.weight": torch.zeros(p, f)}
    for k in range(characters["n_highway"]):
        name = f"_elmo._elmo_lstm._token_embedder._highways._layers.{k}.weight"
        found[name] = torch.zeros(2 * f, f)
    for k in range(lstm["n_layers"]):
        name = f"_elmo._elmo_lstm._elmo_lstm.forward_layer_{k}.state_projection.weight"
        found[name] = torch.zeros(p, h)
        for inner in ("input_linearity", "state_linearity"):
            found[name.replace("state_projection", inner)] = torch.zeros(4 * h, p)
    return found


def packed(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def saved(tensors: Mapping[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(tensors), file)
    return file.getvalue()


@pytest.fixture
def options(fixtures: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((fixtures / "elmo" / "options.json").read_text())
    return found


@pytest.fixture
def stage(tmp_path: Path, options: dict[str, Any]) -> Stage:
    folder = tmp_path / "worker"
    folder.mkdir()
    (folder / "worker.py").write_text(WORKER)
    command = shlex.join([sys.executable, "-S", "-E", str(folder / "worker.py")])
    (folder / "python").write_text(f"#!/bin/sh\nexec {command}\n")
    (folder / "python").chmod(0o755)
    data = tmp_path / "data.txt"
    data.write_text(DATA)
    members = {"config.json": b"{}", "weights.th": saved(state(options)), "vocabulary/x.txt": b"a"}
    made = Stage(folder, packed(tmp_path / "model.tar.gz", members), data)
    made.answers()
    return made


@pytest.fixture
def elmo(fixtures: Path) -> Path:
    return fixtures / "elmo" / "elmo.hdf5"


@pytest.fixture
def artefact(elmo: Path, tmp_path: Path) -> Path:
    request = Request((parse_target("Wh"),), size=Size(rank=4))
    return compress(elmo, tmp_path / "small", request, compute=Compute("cpu", 1)).out


# -- one run -------------------------------------------------------------------------------------


def test_a_source_and_an_artefact_are_put_into_one_model(
    stage: Stage, elmo: Path, artefact: Path, tmp_path: Path
) -> None:
    back, _ = restore(artefact, tmp_path / "back.hdf5")
    source, small = subject_of(elmo), subject_of(artefact)
    with stage.open() as evaluator:
        first, second = evaluator.score(source), evaluator.score(small)
        third = evaluator.score(subject_of(stage.archive, any_file=True))
    assert len(stage.asked("start")) == len(stage.asked("open")) == 1
    assert [one.get("sha256") for one in stage.asked("swap")] == [
        file_sha256(elmo), file_sha256(back), None,
    ]  # fmt: skip
    (opening,) = stage.asked("open")
    assert opening["options_file"] == str((elmo.parent / "options.json").resolve())
    assert small.n_params is not None
    assert first.n_params == third.n_params == N_PARAMS_OF_TASK + N_PARAMS_OF_ELMO
    assert second.n_params == N_PARAMS_OF_TASK + small.n_params
    (metric,) = first.metrics
    assert (metric.name, metric.number, metric.n, metric.unit) == ("accuracy", 0.75, 4, "fraction")
    assert metric.stderr == pytest.approx(0.25)
    assert first.examples is not None
    assert first.examples.ids == ("1", "2", "3", "4")


def test_an_artefact_of_the_archive_is_scored_as_the_model_it_restores_to(
    stage: Stage, elmo: Path, tmp_path: Path
) -> None:
    request = Request((parse_target("Wh"),), size=Size(rank=2))
    small = compress(stage.archive, tmp_path / "small", request, compute=Compute("cpu", 1)).out
    source, made = subject_of(elmo), subject_of(small)
    own = subject_of(stage.archive, any_file=True)
    # the command line says of every baseline that it may be what the archive was trained over
    with stage.open(settings={"elmo": stage.archive}) as evaluator:
        scored = [evaluator.score(one) for one in (source, made, own, made)]
    folders = [Path(one["folder"]) for one in stage.asked("open")]
    assert folders[0] == folders[2]
    files = [one["files"] for one in stage.asked("open")]
    assert files == [["config.json", "vocabulary", "weights.th"]] * 4
    assert len({*folders}) == 3  # the artefact's, each time anew, and the archive's own
    totals = read_manifest(small).totals
    removed = totals.n_params_before - totals.n_params_after
    whole = N_PARAMS_OF_TASK + N_PARAMS_OF_ELMO
    assert removed > 0
    assert [one.n_params for one in scored] == [whole, whole - removed, whole, whole - removed]


def test_an_artefact_of_another_archive_is_refused(
    stage: Stage, elmo: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    members = {"config.json": b"{ }", "weights.th": saved(state(options))}
    other = packed(tmp_path / "other.tar.gz", members)
    request = Request((parse_target("Wh"),), size=Size(rank=2))
    small = compress(other, tmp_path / "small", request, compute=Compute("cpu", 1)).out
    with stage.open() as evaluator:
        evaluator.score(subject_of(elmo))
        for path in (other, small):
            with pytest.raises(EvaluationInputError, match="of another archive") as caught:
                evaluator.score(subject_of(path))
            assert caught.value.path == str(path)


def test_the_dense_copy_of_an_artefact_is_gone_when_it_is_scored(
    stage: Stage, artefact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a full-size ELMo it is 375 MB, and a sweep has dozens."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    look = f"""
left = [name for _, _, names in os.walk({str(temporary)!r}) for name in names]
open(os.path.join(HERE, "left"), "w").write(json.dumps(left))
"""
    stage.answers(actions=[look])
    with stage.open() as evaluator:
        evaluator.score(subject_of(artefact))
        assert list(temporary.iterdir())
    assert not [f for f in json.loads((stage.folder / "left").read_text()) if f.endswith(".hdf5")]
    assert not list(temporary.iterdir())


def test_what_is_said_of_the_run_is_said_once(stage: Stage, elmo: Path) -> None:
    with stage.open(max_examples=3) as evaluator:
        stage.answers(score={"metrics": {"accuracy": 1.0}, "n_read": 3}, rows=rows(1, 1))
        first, second = (evaluator.score(subject_of(elmo)) for _ in range(2))
    (about_data, about_model) = first.notes
    assert about_data == "the first 3 of 4 sentences"
    assert about_model.startswith("1 of 3 examples are not scored")
    assert second.notes == (about_model,)
    assert json.loads(json.dumps(evaluator.protocol))["max_examples"] == 3
    assert evaluator.environment["device"] == "cpu"


# -- results that make no sense ------------------------------------------------------------------

NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "another mean": (
        {"rows": rows(1, 0, 0, 1)},
        "the model's own accuracy is 0.75, and the mean over examples 0.5",
    ),
    "hardly another mean": (
        {"score": {"metrics": {"accuracy": 0.75 + 1e-8}, "n_read": 4}}, "the mean over examples",
    ),
    "no number": ({"score": {"metrics": {"accuracy": float("nan")}, "n_read": 4}}, "is nan"),
    "no metric": ({"score": {"metrics": {"loss": 1.0}, "n_read": 4}}, "lack 'accuracy'"),
    "text": ({"score": {"metrics": {"accuracy": "high"}, "n_read": 4}}, "could not convert"),
    "no metrics": ({"score": {"n_read": 4}}, "make no sense"),
    "no count": ({"score": {"metrics": {"accuracy": 0.75}}}, "make no sense"),
    "nothing scored": ({"rows": []}, "not one example was scored"),
    "twice": ({"rows": [*rows(1, 0, 1), rows(1)[0]]}, "the id '1' is there twice"),
    "beyond the data": ({"rows": [{**rows(1)[0], "index": 4}]}, "an example is none of the data"),
    "before the data": ({"rows": [{**rows(1)[0], "index": -1}]}, "an example is none of the data"),
    "half a place": ({"rows": [{**rows(1)[0], "index": 0.5}]}, "an example is none of the data"),
    "no score": ({"rows": [{"index": 0, "gold": "", "predicted": ""}]}, "lack 'correct'"),
    "an infinite score": ({"rows": rows(1, float("inf"))}, "else than finite numbers"),
    "no rows": ({"rows": [1]}, "make no sense"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_results_that_make_no_sense_are_a_failed_evaluation(
    name: str, stage: Stage, elmo: Path
) -> None:
    changes, message = NONSENSE[name]
    with stage.open() as evaluator:
        stage.answers(**changes)
        with pytest.raises(EvaluationError, match=message):
            evaluator.score(subject_of(elmo))
        stage.answers()
        assert evaluator.score(subject_of(elmo)).metrics[0].number == 0.75


LOST = {
    "crash": ("sys.stderr.write('the cause\\n'); sys.exit(1)", "ended with status 1: the cause"),
    "killed": ("os.kill(os.getpid(), 9)", "ended by SIGKILL"),
    "too long": ("time.sleep(60)", r"took more than 0\.3 s \(score\)"),
    "nonsense": ("print('hm')", "answered nonsense: hm"),
}


@pytest.mark.parametrize("name", LOST)
def test_after_a_lost_worker_the_next_model_gets_a_fresh_one(
    name: str, stage: Stage, elmo: Path, artefact: Path
) -> None:
    action, message = LOST[name]
    with stage.open(timeout=0.3) as evaluator:
        stage.answers(actions=[f"if n_asked() < 6: {action}"])
        found = evaluate("sst5", evaluator, [subject_of(artefact)], baseline=subject_of(elmo))
    failed, scored = found.document.outcomes
    assert failed.failure is not None
    assert scored.metric("accuracy") is not None
    assert len(stage.asked("start")) == 2
    assert len(stage.asked("open")) == 2
    for start in stage.asked("start"):
        with pytest.raises(ProcessLookupError):
            os.kill(start["pid"], 0)
    with pytest.raises(EvaluationError, match=message):
        raise EvaluationError(failed.failure.reason)


def test_more_examples_than_the_data_have_are_refused(stage: Stage, elmo: Path) -> None:
    with stage.open() as evaluator:
        stage.answers(score={"metrics": {"accuracy": 0.75}, "n_read": 9})
        with pytest.raises(EvaluationInputError, match=r"makes 9 examples of 4") as caught:
            evaluator.score(subject_of(elmo))
    assert "use_subtrees" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("do", "kind", "path"),
    [
        ("open", "archive", "archive"), ("score", "data", "data"), ("swap", "elmo", "elmo"),
        ("open", "environment", "python"),
    ],
)  # fmt: skip
def test_what_the_worker_refuses_names_the_file(
    stage: Stage, elmo: Path, do: str, kind: str, path: str
) -> None:
    paths = {
        "archive": stage.archive, "data": stage.data, "elmo": elmo,
        "python": stage.folder / "python",
    }  # fmt: skip
    with stage.open() as evaluator:
        stage.answers(**{f"error_{do}": {"kind": kind, "message": "is not right"}})
        with pytest.raises(EvaluationInputError, match="is not right") as caught:
            evaluator.score(subject_of(elmo))
        assert caught.value.path == str(paths[path])


# -- which ELMo ----------------------------------------------------------------------------------


def test_a_variant_needs_what_it_is_a_variant_of(stage: Stage, elmo: Path, tmp_path: Path) -> None:
    """All tensors of another ELMo differ; of a variant too, once its source was seen to be it."""
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "other.hdf5"
    other.write_bytes(elmo.read_bytes() + b"\0")
    (tmp_path / "other" / "options.json").write_bytes((elmo.parent / "options.json").read_bytes())
    apart = {"swap": {"differences": {"char_embed": 0.5, "CNN_proj/b_proj": 0.25}, "constant": []}}
    with stage.open() as evaluator:
        stage.answers(**apart)
        said = r"not that of other.hdf5: it differs in 2 of 2 tensors, most by 0\.5 at char_embed"
        with pytest.raises(EvaluationInputError, match=said):
            evaluator.score(subject_of(other))
        stage.answers()
        evaluator.score(subject_of(elmo))
        stage.answers(**apart)
        assert evaluator.score(subject_of(other)).notes == ()


def test_tensors_of_one_value_prove_nothing(stage: Stage, elmo: Path) -> None:
    with stage.open() as evaluator:
        differences = {"char_embed": 0.5, "CNN_proj/b_proj": 0.0}
        stage.answers(swap={"differences": differences, "constant": ["CNN_proj/b_proj"]})
        with pytest.raises(EvaluationInputError, match="fine-tuned"):
            evaluator.score(subject_of(elmo))
        stage.answers(swap={"differences": differences, "constant": []})
        (note,) = evaluator.score(subject_of(elmo)).notes
        assert note.startswith("differs in 1 of 2 tensors")


def test_nan_differs_from_everything(stage: Stage, elmo: Path) -> None:
    with stage.open() as evaluator:
        stage.answers(swap={"differences": {"char_embed": float("inf")}, "constant": []})
        with pytest.raises(EvaluationInputError, match="most by NaN at char_embed"):
            evaluator.score(subject_of(elmo))


def test_an_artefact_is_held_to_what_it_kept(stage: Stage, artefact: Path) -> None:
    cell = "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell"
    with stage.open() as evaluator:
        stage.answers(
            swap={"differences": {f"{cell}/W_0.Wh": 9.0, f"{cell}/W_0.Wi": 0.0}, "constant": []}
        )
        assert evaluator.score(subject_of(artefact)).notes == ()
        stage.answers(
            swap={"differences": {f"{cell}/W_0.Wh": 9.0, f"{cell}/W_0.Wi": 0.1}, "constant": []}
        )
        with pytest.raises(
            EvaluationInputError, match=r"tensors kept in small: .* 0\.1 at .*W_0\.Wi"
        ):
            evaluator.score(subject_of(artefact))
        stage.answers(swap={"differences": {f"{cell}/W_0.Wh": 9.0}, "constant": []})
        (note,) = evaluator.score(subject_of(artefact)).notes
        assert "nothing of it is as in its source" in note


def test_the_origin_is_checked_before_anything_is_scored(
    stage: Stage, elmo: Path, artefact: Path
) -> None:
    partly = {"differences": {"char_embed": 0.5, "CNN_proj/b_proj": 0.0}, "constant": []}
    with stage.open(settings={"elmo": elmo}) as evaluator:
        stage.answers(swap=partly)
        for one in (elmo, artefact):
            with pytest.raises(EvaluationInputError, match=r"not that of elmo\.hdf5"):
                evaluator.score(subject_of(one))
        assert not stage.asked("score")
        stage.answers()
        evaluator.score(subject_of(artefact))
    assert stage.asked("swap")[-2]["sha256"] == file_sha256(elmo)


OTHERS = {
    "torch/lstm_state.zip.pt": "is no ELMo in HDF5, but torch",
    "elmo/tokens/elmo_tokens_weights.hdf5": "is an ELMo on tokens",
    "elmo/one_layer/lm_weights.hdf5": "has one LSTM layer",
    "DIGESTS": "is neither an ELMo nor the archive itself",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_elmo_is_refused(name: str, stage: Stage, fixtures: Path) -> None:
    path = fixtures / name
    with (
        stage.open() as evaluator,
        pytest.raises(EvaluationInputError, match=OTHERS[name]) as caught,
    ):
        evaluator.score(subject_of(path, any_file=True))
    assert caught.value.path == str(path)
    assert not stage.asked("open")


def test_an_elmo_without_its_options_is_refused(stage: Stage, elmo: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "elmo.hdf5"
    alone.write_bytes(elmo.read_bytes())
    with stage.open() as evaluator, pytest.raises(EvaluationInputError, match=r"no options\.json"):
        evaluator.score(subject_of(alone))


def test_an_archive_alone_needs_an_elmo_to_be_built_with(stage: Stage, elmo: Path) -> None:
    own = subject_of(stage.archive, any_file=True)
    with stage.open() as evaluator:
        with pytest.raises(EvaluationInputError, match="names an ELMo that is not"):
            evaluator.score(own)
        evaluator.score(subject_of(elmo))
        evaluator.score(own)
    files = [[str(elmo.parent / "options.json"), str(elmo)]]
    describe = {
        "model": "bcn", "reader": "sst_tokens", "tokenizer": "none", "batch_size": 8,
                "reader_key": "dataset_reader",
        "n_elmos": 1, "elmo_files": files,
    }  # fmt: skip
    stage.answers(describe=describe)
    with stage.open() as evaluator:
        evaluator.score(own)
    assert stage.asked("open")[-1]["weight_file"] == str(elmo)


# -- archives ------------------------------------------------------------------------------------


def refused(stage: Stage, archive: Path, message: str) -> None:
    with pytest.raises(EvaluationInputError, match=message) as caught:
        stage.open(settings={"archive": archive})
    assert caught.value.path == str(archive)
    assert str(caught.value).isprintable()
    assert not stage.asked("start")


def test_what_is_no_archive_is_refused_before_anything_is_started(
    stage: Stage, options: dict[str, Any], tmp_path: Path
) -> None:
    weights, config = saved(state(options)), b"{}"
    bad = tmp_path / "bad.tar.gz"
    refused(stage, tmp_path / "nothing.tar.gz", "can't be unpacked: No such file")
    refused(stage, tmp_path, "can't be unpacked: Is a directory")
    bad.write_bytes(b"not an archive")
    refused(stage, bad, "is no model.tar.gz of AllenNLP: it is a tar archive without its end")
    bad.write_bytes(b"")
    refused(stage, bad, "is no model.tar.gz of AllenNLP")
    bad.write_bytes(stage.archive.read_bytes()[:1000])
    refused(stage, bad, "is no model.tar.gz of AllenNLP")
    with zipfile.ZipFile(bad, "w") as file:
        file.writestr("config.json", "{}")
    refused(stage, bad, "is no model.tar.gz of AllenNLP")
    refused(stage, packed(bad, {"weights.th": weights}), "has no config.json")
    refused(stage, packed(bad, {"config.json": config}), "has no weights.th")
    refused(
        stage,
        packed(bad, {"config.json": config, "weights.th": b"\x80\x02}q\x00."}),
        "its weights.th is a pickle, but not one of torch.save",
    )
    refused(
        stage, packed(bad, {"config.json": config, "weights.th": b"weights"}), "its weights.th "
    )
    other = saved({"linear.weight": torch.zeros(2, 2)})
    refused(stage, packed(bad, {"config.json": config, "weights.th": other}), "has no ELMo")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "."])
def test_a_file_that_would_lie_outside_is_refused(stage: Stage, tmp_path: Path, name: str) -> None:
    bad = packed(tmp_path / "bad.tar.gz", {"config.json": b"{}", name: b"x"})
    refused(stage, bad, "would lie outside")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_what_is_no_plain_file_is_refused(stage: Stage, tmp_path: Path, kind: bytes) -> None:
    bad = tmp_path / "bad.tar.gz"
    with tarfile.open(bad, "w:gz") as tar:
        member = tarfile.TarInfo("weights.th")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    refused(stage, bad, "holds a .*, which is not read: weights.th")


def test_an_archive_larger_than_the_disk_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    refused(stage, stage.archive, "holds more than there is room for")


# -- settings ------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"archives": "x"}, "no setting 'archives'"),
    "no archive": ({"archive": None}, "needs --archive"),
    "training data alone": ({"train_data": "x"}, "--train-data goes with --train"),
    "an ELMo alone": ({"train_elmo": "x"}, "--train-elmo goes with --train"),
    "no training data": ({"train": "x"}, "needs --train-data"),
    "no validation data": ({"train": "x", "train_data": "x"}, "needs --validation-data"),
    "no JSON": ({"overrides": "{"}, "overrides is no JSON"),
    "no object": ({"overrides": "[1]"}, "overrides is no JSON object"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_can_not_be_are_refused(name: str, stage: Stage) -> None:
    settings, message = SETTINGS[name]
    with pytest.raises(PlanError, match=message):
        stage.open(settings=settings)
    assert not stage.asked("start")


@pytest.mark.parametrize(
    "more", [{"max_examples": 0}, {"batch_size": 0}, {"timeout": 0.0}, {"timeout": float("nan")}]
)
def test_numbers_that_can_not_be_are_refused(stage: Stage, more: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        stage.open(**more)


def test_data_are_needed(stage: Stage) -> None:
    with pytest.raises(PlanError, match="needs --data"):
        EVALUATORS.get("squad")(TaskOptions(settings={"archive": stage.archive}))


def test_overrides_reach_the_worker_as_they_are(stage: Stage, elmo: Path) -> None:
    for given in ('{"a.b": [1, null]}', {"a.b": [1, None]}):
        with stage.open(settings={"overrides": given}, seed=3, batch_size=5) as evaluator:
            evaluator.score(subject_of(elmo))
        assert evaluator.protocol["overrides"] == {"a.b": [1, None]}
    for one in stage.asked("describe", "open"):
        assert one["overrides"] == {"a.b": [1, None]}
        assert one["batch_size"] == 5
    assert stage.asked("open")[0]["seed"] == 3


def test_a_training_does_not_begin_where_its_archive_can_not_go(
    stage: Stage, elmo: Path, tmp_path: Path
) -> None:
    more = {"train": "x", "train_data": "x", "validation_data": "x", "train_elmo": elmo}
    for archive, message in (
        (stage.archive, "exists already"),
        (tmp_path / "no" / "model.tar.gz", "its folder does not exist"),
    ):
        with pytest.raises(OutputError, match=message):
            stage.open(settings={**more, "archive": archive})
    assert not stage.asked("start")


def test_a_training_of_other_data_does_not_begin(stage: Stage, elmo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("good\n")
    settings = {
        "archive": tmp_path / "new.tar.gz", "train": "x", "train_data": stage.data,
        "validation_data": tmp_path / "bad.txt", "train_elmo": elmo,
    }  # fmt: skip
    with pytest.raises(EvaluationInputError, match="line 1 is no label"):
        stage.open(settings=settings)
    assert not stage.asked("start")
