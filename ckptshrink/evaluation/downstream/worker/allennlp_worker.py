"""Scores AllenNLP models, one request after the other: JSON lines in, JSON lines out.

Usage: PYTHON allennlp_worker.py

The first line out says what runs here, or why nothing does. Each request has an ``id`` and names in
``do`` one of the functions of `Worker`; its answer has the same ``id``, and the result in ``ok`` or
an ``error`` with a ``kind`` and one line of text. What libraries print goes to stderr. The process
ends with its input, and with its parent.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Final

PROTOCOL: Final = 1
"""Changes whenever a request or an answer does."""

_WATCH_SECONDS: Final = 1.0


class Worker:
    """What can be asked for; each result is a JSON object."""

    def __init__(self) -> None:
        compat = importlib.import_module("allennlp_compat")
        try:
            self.stubbed = compat.import_allennlp()
        except Exception as error:
            traceback.print_exc()
            raise _refused("environment", _said(error)) from error
        self.config = importlib.import_module("allennlp_config")
        self.torch = importlib.import_module("torch")
        self.substituted = _without_downloads(self.stubbed)
        self._model = None  # type: Any
        self._seeds = {}  # type: dict[str, Any]
        self._loader = {}  # type: dict[str, Any]

    def hello(self) -> dict[str, Any]:
        """Return what runs here."""
        versions = {"python": ".".join(map(str, sys.version_info[:3]))}
        for name, module in (
            ("torch", "torch"),
            ("allennlp", "allennlp.version"),
            ("allennlp-models", "allennlp_models.version"),
            ("numpy", "numpy"),
            ("spacy", "spacy"),
        ):
            if name not in self.stubbed:
                found = importlib.import_module(module)
                versions[name] = str(getattr(found, "VERSION", getattr(found, "__version__", "?")))
        return {
            "protocol": PROTOCOL,
            "versions": versions,
            "stubbed": list(self.stubbed),
            "cuda": bool(self.torch.cuda.is_available()),
        }

    def describe(self, config: str, overrides: Any, batch_size: int | None) -> dict[str, Any]:
        """Return what a configuration comes to: model, reader, tokenizer, size of a batch."""
        found = self._read(config, overrides)
        reader = self.config.reader_of(found)
        loader = self.config.loader_of(found, batch_size)
        if loader is None:
            raise _refused(
                "config",
                "has no data_loader (AllenNLP before 1.0 had an iterator); overrides can name one: "
                '{"data_loader": {"batch_size": 32}}',
            )
        model = found.get("model")
        return {
            "model": model.get("type") if isinstance(model, dict) else None,
            "reader": reader.get("type"),
            "reader_key": self.config.reader_key(found),
            "tokenizer": self._tokenizer(reader),
            "batch_size": self.config.batch_size_of(loader),
            "n_elmos": len(self.config.elmos(found)),
            "elmo_files": [
                [node.get("options_file"), node.get("weight_file")]
                for node in self.config.elmos(found)
            ],
        }

    def train(
        self,
        config: str,
        overrides: Any,
        train_data: str,
        validation_data: str,
        options_file: str,
        weight_file: str,
        folder: str,
        seed: int,
        device: str,
        phrases: bool,
    ) -> dict[str, Any]:
        """Train a model and archive it in a new folder; return what the training came to."""
        found = self._read(config, overrides)
        reason = self.config.untrainable(found, phrases)
        if reason is not None:
            raise _refused("config", reason)
        self.config.set_elmo(found, options_file, weight_file)
        self.config.shift_seeds(found, seed)
        found["train_data_path"], found["validation_data_path"] = train_data, validation_data
        found.pop("test_data_path", None)
        found.pop("evaluate_on_test", None)
        if isinstance(found.get("trainer"), dict):
            found["trainer"]["cuda_device"] = self._device(device)
        self._tokenizer(self.config.reader_of(found))
        common = importlib.import_module("allennlp.common")
        checks = importlib.import_module("allennlp.common.checks")
        training = importlib.import_module("allennlp.commands.train")
        try:
            training.train_model(common.Params(found), folder)
        except (checks.ConfigurationError, FileNotFoundError) as error:
            raise _refused("config", _said(error)) from error
        metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
        return {"metrics": {k: v for k, v in metrics.items() if isinstance(v, (int, float))}}

    def open(
        self,
        folder: str,
        overrides: Any,
        options_file: str,
        weight_file: str,
        kind: str,
        batch_size: int | None,
        seed: int,
        device: str,
    ) -> dict[str, Any]:
        """Load an unpacked archive; return its parameters and where it runs."""
        model = importlib.import_module("allennlp_model")
        found = self._read(str(Path(folder) / "config.json"), overrides)
        self.config.set_elmo(found, options_file, weight_file)
        self.config.shift_seeds(found, seed)
        self._seeds = {name: found[name] for name, _ in self.config.SEEDS}
        self._loader = self.config.loader_of(found, batch_size)
        self._model = model.TaskModel(folder, found, kind, self._device(device))
        return dict(self._model.counts(), device="cpu" if self._model.device < 0 else "cuda")

    def swap(self, weight_file: str | None) -> dict[str, Any]:
        """Give the model another ELMo; None is the archive's own."""
        return self._model.swap(weight_file)  # type: ignore[no-any-return]

    def score(self, data: str, examples: str) -> dict[str, Any]:
        """Score the data; results by example go to a new file, as JSON lines."""
        started = time.time()
        result = self._model.score(data, self._loader, self._seeds)
        lines = [json.dumps(row) + "\n" for row in result.pop("examples")]
        Path(examples).write_text("".join(lines), encoding="utf-8")
        result["seconds"] = time.time() - started
        return result  # type: ignore[no-any-return]

    def _read(self, config: str, overrides: Any) -> dict[str, Any]:
        common = importlib.import_module("allennlp.common")
        try:
            found = common.Params.from_file(config, json.dumps(overrides) if overrides else "")
            as_dict = found.as_dict(quiet=True)
        except Exception as error:
            alone = importlib.util.find_spec("_jsonnet") is None
            why = " (jsonnet is not installed, so it must be plain JSON)" if alone else ""
            raise _refused("config", f"can't be read: {_said(error)}{why}") from error
        if not self.config.elmos(as_dict):
            raise _refused("config", "builds no ELMo: nothing in it names a weight_file")
        return as_dict  # type: ignore[no-any-return]

    def _tokenizer(self, reader: dict[str, Any]) -> str:
        language = self.config.spacy_language(reader)
        if language is None:
            return self.config.tokenizer_name(reader)  # type: ignore[no-any-return]
        if "spacy" in self.stubbed:
            raise _refused("environment", "the reader tokenizes by spaCy, which is not installed")
        if language in self.substituted:
            return "spacy.blank('en')"
        util: Any = importlib.import_module("spacy.util")
        if not util.is_package(language) and not Path(language).is_dir():
            raise _refused("environment", f"spaCy's model {language} is not installed")
        return f"spacy {Path(language).name}"

    def _device(self, device: str) -> int:
        if device == "cuda" and not self.torch.cuda.is_available():
            raise _refused("environment", "its torch sees no CUDA device")
        cuda = device == "cuda" or (device == "auto" and self.torch.cuda.is_available())
        return 0 if cuda else -1


def _without_downloads(stubbed: tuple[str, ...]) -> set[str]:
    """Have spaCy download nothing; return its models whose rules stand in for them here."""
    if "spacy" in stubbed:
        return set()
    util: Any = importlib.import_module("allennlp.common.util")
    spacy = importlib.import_module("spacy")
    substituted = set()
    for size in ("sm", "md", "lg"):
        name = "en_core_web_" + size
        if spacy.util.is_package(name):
            continue
        substituted.add(name)
        for flags in range(8):
            options = (name, bool(flags & 4), bool(flags & 2), bool(flags & 1))
            util.LOADED_SPACY_MODELS[options] = spacy.blank("en")

    def refuse(name: str, *args: Any, **kwargs: Any) -> None:
        raise OSError(f"spaCy's model {name} is not installed, and none is downloaded")

    util.spacy_download = refuse
    return substituted


def _without_network() -> None:
    """Refuse every connection but those inside this machine's kernel.

    What an archive names by address is to fail at once and by name, not after a minute of retries,
    and a score is not to depend on what a server sends.
    """
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            raise OSError(f"no network is used here; asked for {address}")
        connect(self, address)

    def refuse(host: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError(f"no network is used here; asked for {host}")

    socket.socket.connect = local_only  # type: ignore[assignment, method-assign]
    socket.getaddrinfo = refuse


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _refused(kind: str, message: str) -> Exception:
    return importlib.import_module("allennlp_model").RefusedError(kind, message)  # type: ignore[no-any-return]


def _said(error: BaseException) -> str:
    return importlib.import_module("allennlp_model").said(error)  # type: ignore[no-any-return]


def _error(error: BaseException) -> dict[str, str]:
    kind = getattr(error, "kind", "failure")
    return {"kind": kind, "message": str(error) if kind != "failure" else _said(error)}


def main() -> None:
    """Answer requests until there are no more."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # what a library prints is no answer, and what it reads is no request
    os.dup2(2, 1)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)

    def answer(number: int, **result: Any) -> None:
        answers.write(json.dumps(dict(result, id=number)) + "\n")
        answers.flush()

    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:  # PYTHONSAFEPATH leaves it out
        sys.path.insert(0, folder)
    _end_with_parent()
    _without_network()
    try:
        worker = Worker()
        answer(0, ok=worker.hello())
    except Exception as error:
        traceback.print_exc()
        answer(0, error=_error(error))
        return
    # it warns of every file that it reads without jsonnet
    logging.getLogger("allennlp.common.params").setLevel(logging.ERROR)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():
        worker.torch.set_num_threads(int(threads))
    worker.torch.backends.cudnn.deterministic = True
    for line in requests:
        request = json.loads(line)
        number, name = request.pop("id"), request.pop("do")
        try:
            answer(number, ok=getattr(worker, name)(**request))
        except Exception as error:
            traceback.print_exc()
            answer(number, error=_error(error))


if __name__ == "__main__":
    main()
