"""A task's model from its archive: its ELMo swapped for another, and scored by its own code."""

from __future__ import annotations

import collections
import importlib
import json
import re
from typing import Any, Final, Iterator, Mapping  # noqa: UP035 - Python 3.8 has no others

METRICS: Final = {"label": ("accuracy",), "span": ("em", "f1")}
"""Keys by which a model gives its metrics, by the kind of the task."""

_LOGITS: Final = ("logits", "label_logits", "class_probabilities", "label_probs", "probs")
"""What models call their scores of the labels; the first that is there is what they compare."""


class RefusedError(Exception):
    """Something given can't be used.

    Parameters
    ----------
    kind : str
        ``"archive"``, ``"data"``, ``"elmo"``, ``"config"`` or ``"environment"``.
    message : str
        One line.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def said(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text[:300]}" if text else name


class TaskModel:
    """A model from an archive, with one or more ELMos in it.

    Parameters
    ----------
    folder : str
        The archive, unpacked.
    config : dict
        Its configuration, overrides applied and ELMo's files named.
    kind : "label" or "span"
    device : int
        A CUDA device, or -1.
    """

    def __init__(self, folder: str, config: Any, kind: str, device: int) -> None:
        cells: Any = importlib.import_module("allennlp.modules.lstm_cell_with_projection")
        archival = importlib.import_module("allennlp.models.archival")
        # A QR of each weight, overwritten at once by the archive's: 7 s of a full-size ELMo's 10.
        cells.block_orthogonal = lambda *args, **kwargs: None
        try:
            # every part of the configuration is overridden, and the folder stays as it is
            archive = archival.load_archive(
                folder, cuda_device=device, overrides=json.dumps(config)
            )
        except Exception as error:
            raise RefusedError("archive", "can't be loaded: " + said(error)) from error
        self.config = config
        self.kind = kind
        self.device = device
        self.reader = archive.validation_dataset_reader
        self.model = archive.model.eval()
        keys = sorted(self.model.get_metrics(reset=True))
        missing = [name for name in METRICS[kind] if name not in keys]
        if missing:
            raise RefusedError(
                "archive",
                f"its model is scored by {', '.join(keys) or 'nothing'}, "
                f"and the task by {', '.join(METRICS[kind])}",
            )
        self.bilms = list(self._bilms())
        self.archived = [_cloned(bilm) for bilm in self.bilms]

    def _bilms(self) -> Iterator[Any]:
        elmo = importlib.import_module("allennlp.modules.elmo")
        seen = []  # type: list[Any]
        for module in self.model.modules():
            if not isinstance(module, elmo.Elmo):
                continue
            bilm = module._elmo_lstm
            if not isinstance(bilm, elmo._ElmoBiLm):
                raise RefusedError("archive", "its ELMo is a module of another kind")
            if bilm._word_embedding is not None:
                raise RefusedError(
                    "archive", "its ELMo keeps words embedded by its old weights (vocab_to_cache)"
                )
            if not any(bilm is other for other in seen):
                seen.append(bilm)
                yield bilm
        if not seen:
            raise RefusedError("archive", "its model has no ELMo")

    def counts(self) -> dict[str, int]:
        """Return how many parameters the model has, and its ELMos as their files count them."""
        inside = 0
        for bilm in self.bilms:
            padding = bilm._token_embedder._char_embedding_weights.shape[1]  # a row of zeros
            inside += sum(p.numel() for p in bilm.parameters()) - padding
        return {
            "n_params": sum(p.numel() for p in self.model.parameters())
            - sum(b._token_embedder._char_embedding_weights.shape[1] for b in self.bilms),
            "n_params_elmo": inside,
            "n_elmos": len(self.bilms),
        }

    # -- ELMo ------------------------------------------------------------------------------------

    def swap(self, weights: str | None) -> dict[str, Any]:
        """Give every ELMo the weights of a file; None gives back the archive's own.

        Returns
        -------
        dict
            ``differences`` from the archive's own: the largest absolute one of each tensor, by the
            file's names. ``constant``: tensors all of whose values are one.

        Raises
        ------
        RefusedError
            The file is no ELMo, or one of other shapes. The model is then no longer of use.
        """
        for bilm, archived in zip(self.bilms, self.archived):  # noqa: B905 - not in Python 3.8
            if weights is None:
                bilm.load_state_dict(archived)
                continue
            try:
                bilm._token_embedder._weight_file = weights
                bilm._token_embedder._load_weights()
                bilm._elmo_lstm.load_weights(weights)
            except Exception as error:
                raise RefusedError("elmo", "AllenNLP can't load it: " + said(error)) from error
            bilm.to(_device_of(archived))  # new parameters are made on the CPU
        self.model.eval()
        return self._compared()

    def _compared(self) -> dict[str, Any]:
        differences = {}  # type: dict[str, float]
        constant = set()
        for bilm, archived in zip(self.bilms, self.archived):  # noqa: B905 - not in Python 3.8
            now = dict(named_as_in_file(bilm.state_dict()))
            before = dict(named_as_in_file(archived))
            for name, old in before.items():
                new = now.get(name)
                if new is None or new.shape != old.shape:
                    shape = "missing" if new is None else tuple(new.shape)
                    raise RefusedError(
                        "elmo",
                        f"its {name} is {shape}, and that of the archive's ELMo {tuple(old.shape)}",
                    )
                differences[name] = max(differences.get(name, 0.0), _apart(new, old))
                if old.numel() and bool(old.min() == old.max()):
                    constant.add(name)
        return {"differences": differences, "constant": sorted(constant)}

    # -- scoring ---------------------------------------------------------------------------------

    def score(self, data: str, loader: dict[str, Any], seeds: dict[str, Any]) -> dict[str, Any]:
        """Score the data as ``allennlp evaluate`` does, and keep what became of each example.

        Returns
        -------
        dict
            ``metrics`` of the model, and ``examples`` in the order of the data: ``index`` of the
            example among those that the reader was given, and what is known of it.
        """
        common = importlib.import_module("allennlp.common")
        util = importlib.import_module("allennlp.common.util")
        evaluation = importlib.import_module("allennlp.evaluation")
        for bilm in self.bilms:
            bilm._elmo_lstm.reset_states()  # it carries its states from batch to batch
        self.model.get_metrics(reset=True)
        # right before the loader: the sampler of batches draws from these
        util.prepare_environment(common.Params(dict(seeds)))
        numbered = _Numbered(self.reader)
        batches = self._loader(data, loader, numbered)
        params = common.Params(dict(self.config.get("evaluation") or {}))
        params["cuda_device"] = self.device
        evaluator = evaluation.Evaluator.from_params(params)
        waiting = collections.deque()  # type: collections.deque[list[Any]]
        found = []  # type: list[dict[str, Any]]
        collate = batches.collate_fn

        def collated(instances: list[Any]) -> Any:
            waiting.append(list(instances))
            return collate(instances)

        def scored(module: Any, inputs: Any, output: Any) -> None:
            instances = waiting.popleft()
            for k, instance in enumerate(instances):
                row = self._example(instance, output, k)
                if row is not None:
                    row["index"] = numbered.index_of(instance)
                    found.append(row)

        batches.collate_fn = collated
        hook = self.model.register_forward_hook(scored)
        try:
            metrics = evaluator(self.model, batches)
        finally:
            hook.remove()
            numbered.remove()
        found.sort(key=lambda row: row["index"])
        plain = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        return {"metrics": plain, "examples": found, "n_read": numbered.n_read}

    def _loader(self, data: str, loader: dict[str, Any], numbered: _Numbered) -> Any:
        common = importlib.import_module("allennlp.common")
        loaders = importlib.import_module("allennlp.data")
        try:
            batches = loaders.DataLoader.from_params(
                common.Params(json.loads(json.dumps(loader))), reader=self.reader, data_path=data
            )
            batches.index_with(self.model.vocab)
        except Exception as error:
            numbered.remove()
            reader = type(self.reader).__name__
            raise RefusedError(
                "data", f"{reader}, the archive's reader, can't read it: {said(error)}"
            ) from error
        if not hasattr(batches, "collate_fn"):
            numbered.remove()
            raise RefusedError("archive", f"its data loader is a {type(batches).__name__}")
        return batches

    def _example(self, instance: Any, output: Any, k: int) -> dict[str, Any] | None:
        return (self._label if self.kind == "label" else self._span)(instance, output, k)

    def _label(self, instance: Any, output: Any, k: int) -> dict[str, Any]:
        key = next((name for name in _LOGITS if name in output), None)
        if key is None:
            raise RefusedError(
                "archive", "its model gives no scores of labels: " + ", ".join(output)
            )
        field = instance.fields["label"]
        # as CategoricalAccuracy takes it, so that ties fall as they do there
        predicted = int(output[key][k].max(-1)[1])
        gold = int(field._label_id)
        names = self.model.vocab.get_index_to_token_vocabulary(field._label_namespace)
        return {
            "correct": float(predicted == gold),
            "gold": str(names.get(gold, gold)),
            "predicted": str(names.get(predicted, predicted)),
        }

    def _span(self, instance: Any, output: Any, k: int) -> dict[str, Any] | None:
        answers = instance.fields["metadata"].metadata.get("answer_texts", [])
        if not answers:
            return None  # the model doesn't count it either
        predicted = output["best_span_str"][k]
        metric = importlib.import_module("allennlp_models.rc.metrics").SquadEmAndF1()
        metric(predicted, answers)
        em, f1 = metric.get_metric(reset=True)
        return {"em": float(em), "f1": float(f1), "predicted": predicted, "gold": answers[0]}


class _Numbered:
    """Knows which example of the data an instance was made of: it counts the reader's calls.

    A reader calls `text_to_instance` once for each example, and leaves some out after.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._make = reader.text_to_instance
        self._read = reader._read
        self._made = {}  # type: dict[int, tuple[int, Any]]
        self.n_read = 0
        reader.text_to_instance = self._counted
        reader._read = self._from_the_start

    def _from_the_start(self, *args: Any, **kwargs: Any) -> Any:
        self.n_read = 0  # a loader that keeps few instances reads the file more than once
        return self._read(*args, **kwargs)

    def _counted(self, *args: Any, **kwargs: Any) -> Any:
        instance = self._make(*args, **kwargs)
        if instance is not None:
            # the instance is kept, or another one could get its id
            self._made[id(instance)] = (self.n_read, instance)
        self.n_read += 1
        return instance

    def index_of(self, instance: Any) -> int:
        """Return the number of the example, from 0."""
        if id(instance) not in self._made:
            raise RefusedError(
                "archive", "its reader makes examples in a way that can't be followed"
            )
        return self._made[id(instance)][0]

    def remove(self) -> None:
        """Leave the reader as it was."""
        self._reader.text_to_instance, self._reader._read = self._make, self._read


def named_as_in_file(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of an ELMo under the names of its file; W_0 as its parts Wi and Wh."""
    for name, value in state.items():
        if name == "_token_embedder._char_embedding_weights":
            yield "char_embed", value[1:]  # the first row is padding
            continue
        found = _PLACE.match(name)
        if found is None:
            raise RefusedError("archive", "its ELMo has a tensor that no file has: " + name)
        part = found.groupdict()
        letter = "W" if part["what"] == "weight" else "b"
        if part["filter"] is not None:
            yield f"CNN/{letter}_cnn_{part['filter']}", value
        elif part["high"] is not None:
            half = len(value) // 2
            yield f"CNN_high_{part['high']}/{letter}_transform", value[:half]
            yield f"CNN_high_{part['high']}/{letter}_carry", value[half:]
        elif part["layer"] is not None:
            direction = ("forward", "backward").index(part["direction"])
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{part['layer']}/LSTMCell"
            yield f"{cell}/{_CELL[part['linear'] + '.' + part['what']]}", value
        else:
            yield f"CNN_proj/{letter}_proj", value


_PLACE: Final = re.compile(
    r"(?:_token_embedder\.(?:char_conv_(?P<filter>\d+)|_highways\._layers\.(?P<high>\d+)|_projection)"
    r"|_elmo_lstm\.(?P<direction>forward|backward)_layer_(?P<layer>\d+)"
    r"\.(?P<linear>input_linearity|state_linearity|state_projection))\.(?P<what>weight|bias)$"
)
_CELL: Final = {
    "input_linearity.weight": "W_0.Wi",
    "state_linearity.weight": "W_0.Wh",
    "state_linearity.bias": "B",
    "state_projection.weight": "W_P_0",
}


def _cloned(module: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _device_of(state: Mapping[str, Any]) -> Any:
    return next(iter(state.values())).device


def _apart(one: Any, other: Any) -> float:
    if bool((one == other).all()):
        return 0.0
    apart = float((one - other).abs().max())
    return apart if apart == apart else float("inf")  # NaN is not itself
