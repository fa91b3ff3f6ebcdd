"""What an AllenNLP configuration says, and what is put into it; plain dictionaries, no imports."""

from __future__ import annotations

from typing import Any, Final, Iterator  # noqa: UP035 - Python 3.8 has no others

Json = Any

SEEDS: Final = (("random_seed", 13370), ("numpy_seed", 1337), ("pytorch_seed", 133))
"""Seeds and what AllenNLP takes where a configuration names none."""

_MOST: Final = 2**32
"""NumPy's seeds are below."""

EN_CORE_WEB: Final = "en_core_web_"
"""spaCy's English models, whose tokenizer is that of ``spacy.blank("en")``: rules, not weights."""


def elmos(config: Json) -> list[dict[str, Any]]:
    """Return the parts of a configuration that an ELMo is built from, to be changed in place."""
    return list(_elmos(config.get("model"), ""))


def _elmos(node: Json, key: str) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for item in node:
            yield from _elmos(item, "")
    if not isinstance(node, dict):
        return
    if (
        {"options_file", "weight_file"} & set(node)
        or node.get("type") == "elmo_token_embedder"
        or (key == "elmo" and "num_output_representations" in node)
    ):
        yield node
        return
    for name, value in node.items():
        yield from _elmos(value, name)


def set_elmo(config: Json, options_file: str, weight_file: str) -> None:
    """Name local files wherever an ELMo is built: published configurations have addresses."""
    for node in elmos(config):
        node["options_file"], node["weight_file"] = options_file, weight_file


def shift_seeds(config: Json, seed: int) -> None:
    """Add `seed` to the configuration's own seeds; 0 leaves what ``allennlp`` itself does."""
    for name, default in SEEDS:
        given = config.get(name)
        config[name] = ((default if given is None else int(given)) + seed) % _MOST


def untrainable(config: Json, phrases: bool) -> str | None:
    """Return why a model is not trained by a configuration; None where it can be.

    Parameters
    ----------
    phrases : bool
        Whether the data have labels of phrases too, not of whole sentences only.
    """
    if any(node.get("requires_grad") for node in elmos(config)):
        return "trains its ELMo (requires_grad), and no other could stand in for it after"
    readers = [config.get("dataset_reader"), config.get("validation_dataset_reader")]
    if not phrases and any(isinstance(r, dict) and r.get("use_subtrees") for r in readers):
        return "reads phrases (use_subtrees), and the data have labels of sentences only"
    return None


def reader_key(config: Json) -> str:
    """Return where the reader that evaluation uses stands in a configuration."""
    key = "validation_dataset_reader"
    return key if config.get(key) else "dataset_reader"


def reader_of(config: Json) -> dict[str, Any]:
    """Return the configuration of the reader that evaluation uses."""
    found = config.get(reader_key(config))
    return found if isinstance(found, dict) else {}


def loader_of(config: Json, batch_size: int | None) -> dict[str, Any] | None:
    """Return the configuration of the loader that evaluation uses; None where there is none.

    It goes through all the data once, in this process: an epoch of a given number of batches, or
    one that drops the last batch, is a matter of training.
    """
    found = config.get("validation_data_loader") or config.get("data_loader")
    if not isinstance(found, dict):
        return None
    loader = dict(found)
    for name in ("batches_per_epoch", "drop_last", "num_workers"):
        loader.pop(name, None)
    sampler = loader.get("batch_sampler")
    if isinstance(sampler, str):
        sampler = {"type": sampler}
    if isinstance(sampler, dict):
        loader["batch_sampler"] = sampler = dict(sampler)
        sampler.pop("drop_last", None)
    if batch_size is not None:
        (sampler if isinstance(sampler, dict) else loader)["batch_size"] = batch_size
    return loader


def batch_size_of(loader: dict[str, Any]) -> int | None:
    """Return the examples of a batch; None for a sampler that counts something else."""
    sampler = loader.get("batch_sampler")
    found = (sampler if isinstance(sampler, dict) else loader).get("batch_size")
    return found if isinstance(found, int) else None


def spacy_language(reader: dict[str, Any]) -> str | None:
    """Return the spaCy model by which a reader tokenizes; None where spaCy is not what it uses."""
    tokenizer = reader.get("tokenizer")
    if tokenizer is None:
        # the one reader of the three tasks whose data are tokens already
        return None if reader.get("type") == "sst_tokens" else EN_CORE_WEB + "sm"
    if isinstance(tokenizer, str):
        return EN_CORE_WEB + "sm" if tokenizer == "spacy" else None
    if tokenizer.get("type", "spacy") != "spacy":
        return None
    language = tokenizer.get("language", EN_CORE_WEB + "sm")
    return str(language)


def tokenizer_name(reader: dict[str, Any]) -> str:
    """Return the name of a tokenizer that is not spaCy's."""
    tokenizer = reader.get("tokenizer")
    if tokenizer is None:
        return "none"
    return str(tokenizer if isinstance(tokenizer, str) else tokenizer.get("type"))
