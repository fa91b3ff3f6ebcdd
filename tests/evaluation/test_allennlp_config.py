"""What is read from AllenNLP's configurations, and put into them."""

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from allennlp_environment import REPO, TASKS, WORKER

from ckptshrink.evaluation.downstream.worker import allennlp_config, allennlp_model

SOURCES = sorted(WORKER.glob("*.py"))


@pytest.mark.parametrize("task", TASKS)
def test_an_elmo_without_paths_is_found_where_it_is_built(task: str) -> None:
    config = json.loads((REPO / "fixtures" / "tasks" / f"{task}.json").read_text())
    assert len(allennlp_config.elmos(config)) == 1
    reader = copy.deepcopy(config["dataset_reader"])
    allennlp_config.set_elmo(config, "o.json", "w.hdf5")
    text = json.dumps(config["model"])
    assert text.count('"options_file": "o.json"') == text.count('"weight_file": "w.hdf5"') == 1
    assert config["dataset_reader"] == reader  # which has an indexer of the same name


def test_elmos_are_found_at_any_depth() -> None:
    one = {"options_file": "https://a/o", "weight_file": "https://a/w", "requires_grad": False}
    config = {
        "model": {
            "parts": [{"embedders": {"x": dict(one)}}, {"type": "elmo_token_embedder"}],
            "elmo": {"num_output_representations": 1},
        },
        "dataset_reader": {"token_indexers": {"elmo": {"type": "elmo_characters"}}},
    }
    assert len(allennlp_config.elmos(config)) == 3
    allennlp_config.set_elmo(config, "o", "w")
    assert "https" not in json.dumps(config)
    assert allennlp_config.elmos({"model": "x"}) == []


def test_seeds_are_shifted_from_those_of_the_configuration() -> None:
    config: dict[str, Any] = {"numpy_seed": 5, "pytorch_seed": None}
    allennlp_config.shift_seeds(config, 0)
    assert config == {"random_seed": 13370, "numpy_seed": 5, "pytorch_seed": 133}
    allennlp_config.shift_seeds(config, 2**32 - 1)
    assert config == {"random_seed": 13369, "numpy_seed": 4, "pytorch_seed": 132}


LOADERS: list[tuple[dict[str, Any], int | None, dict[str, Any] | None, int | None]] = [
    ({"data_loader": {"batch_size": 3, "shuffle": True}}, None,
     {"batch_size": 3, "shuffle": True}, 3),
    ({"data_loader": {"batch_size": 3}, "validation_data_loader": {"batch_size": 4}}, None,
     {"batch_size": 4}, 4),
    ({"data_loader": {"batch_sampler": {"type": "bucket", "batch_size": 3}}}, 9,
     {"batch_sampler": {"type": "bucket", "batch_size": 9}}, 9),
    ({"data_loader": {"batch_size": 3, "num_workers": 2, "drop_last": True}}, 9,
     {"batch_size": 9}, 9),
    ({"data_loader": {"batch_sampler": {"type": "bucket", "batch_size": 3, "drop_last": True},
                      "batches_per_epoch": 5}}, None,
     {"batch_sampler": {"type": "bucket", "batch_size": 3}}, 3),
    ({"data_loader": {"batch_sampler": {"type": "max_tokens_sampler", "max_tokens": 99}}}, None,
     {"batch_sampler": {"type": "max_tokens_sampler", "max_tokens": 99}}, None),
    ({"iterator": {"type": "bucket"}}, None, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("config", "batch_size", "want", "size"), LOADERS)
def test_a_loader_goes_through_all_the_data_once(
    config: dict[str, Any], batch_size: int | None, want: dict[str, Any] | None, size: int | None
) -> None:
    before = copy.deepcopy(config)
    found = allennlp_config.loader_of(config, batch_size)
    assert found == want
    assert config == before
    if found is not None:
        assert allennlp_config.batch_size_of(found) == size


@pytest.mark.parametrize(
    ("reader", "language", "name"),
    [
        ({"type": "sst_tokens"}, None, "none"),
        ({"type": "sst_tokens", "tokenizer": "spacy"}, "en_core_web_sm", None),
        ({"type": "snli"}, "en_core_web_sm", None),
        ({"type": "squad1", "tokenizer": {"end_tokens": ["@@NULL@@"]}}, "en_core_web_sm", None),
        ({"type": "snli", "tokenizer": {"type": "spacy", "language": "x"}}, "x", None),
        ({"type": "snli", "tokenizer": {"type": "letters_digits"}}, None, "letters_digits"),
        ({"type": "snli", "tokenizer": "whitespace"}, None, "whitespace"),
    ],
)
def test_a_reader_says_how_it_tokenizes(
    reader: dict[str, Any], language: str | None, name: str | None
) -> None:
    assert allennlp_config.spacy_language(reader) == language
    if name is not None:
        assert allennlp_config.tokenizer_name(reader) == name


def test_the_reader_of_evaluation_goes_before_that_of_training() -> None:
    assert allennlp_config.reader_of({"dataset_reader": {"type": "a"}}) == {"type": "a"}
    both = {"dataset_reader": {"type": "a"}, "validation_dataset_reader": {"type": "b"}}
    assert allennlp_config.reader_of(both) == {"type": "b"}
    assert allennlp_config.reader_key(both) == "validation_dataset_reader"
    assert allennlp_config.reader_of({}) == {}


def test_a_model_that_trains_its_elmo_is_not_trained() -> None:
    config: dict[str, Any] = {"model": {"e": {"type": "elmo_token_embedder"}}}
    assert allennlp_config.untrainable(config, phrases=False) is None
    config["model"]["e"]["requires_grad"] = True
    assert "requires_grad" in str(allennlp_config.untrainable(config, phrases=True))


@pytest.mark.parametrize("key", ["dataset_reader", "validation_dataset_reader"])
def test_phrases_without_labels_are_not_trained_on(key: str) -> None:
    config = {"model": {}, key: {"type": "sst_tokens", "use_subtrees": True}}
    assert allennlp_config.untrainable(config, phrases=True) is None
    assert "use_subtrees" in str(allennlp_config.untrainable(config, phrases=False))


def test_a_tensor_that_no_file_has_is_refused() -> None:
    state = {"_elmo_lstm.forward_layer_0.state_linearity.bias": [1]}
    assert dict(allennlp_model.named_as_in_file(state)) == {
        "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/B": [1]
    }
    with pytest.raises(allennlp_model.RefusedError, match="a tensor that no file has: other"):
        list(allennlp_model.named_as_in_file({"other": [1]}))


# -- the scripts run in any interpreter ----------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_worker_is_written_in_python_3_8(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = {n.func.attr for n in calls if isinstance(n.func, ast.Attribute)}
    assert not named & {"removeprefix", "removesuffix", "bit_count", "is_relative_to"}
    assert not any(k.arg == "strict" for call in calls for k in call.keywords)
    if len(tree.body) > 1:
        assert "from __future__ import annotations" in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_worker_imports_nothing_but_the_standard_library_at_first(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add((node.module or "").partition(".")[0])
    assert names <= set(sys.stdlib_module_names)


def test_the_worker_says_what_is_missing_in_a_bare_interpreter(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(WORKER / "allennlp_worker.py")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert answer["id"] == 0
    assert answer["error"]["kind"] == "environment"
    assert answer["error"]["message"] == "ModuleNotFoundError: No module named 'torch'"
