"""ELMos of any shape in bilm-tf's layout, and what such a model computes, written out in NumPy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.float32]]


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Draw options.json; ``directions`` in it is ours, 1 for a model that reads forwards only."""
    filters = draw(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3)
    )
    n_filters = sum(n for _, n in filters)
    # bilm-tf leaves the projections out where they would change no size
    projection_dim = draw(st.one_of(st.just(n_filters), st.integers(1, 6)))
    dim = draw(st.one_of(st.just(projection_dim), st.integers(1, 9)))
    clip = st.sampled_from([None, 0, 0.2, 3])
    lstm = {
        "dim": dim,
        "projection_dim": projection_dim,
        "n_layers": draw(st.integers(1, 3)),
        "cell_clip": draw(clip),
        "proj_clip": draw(clip),
        "use_skip_connections": draw(st.booleans()),
    }
    char_cnn = {
        "activation": draw(st.sampled_from(["relu", "tanh"])),
        "filters": filters,
        "n_highway": draw(st.integers(0, 2)),
        "embedding": {"dim": draw(st.integers(1, 4))},
        "n_characters": 262,
        "max_characters_per_token": draw(st.integers(5, 12)),
    }
    return {"lstm": lstm, "char_cnn": char_cnn, "directions": draw(st.sampled_from([1, 2, 2]))}


def weights(options: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random weights of a model, large enough for its bounds to matter."""
    rng = np.random.default_rng(seed)
    shapes = dict(_shapes(options))
    return {
        name: rng.normal(0, 1.5 / np.sqrt(max(shape[:-1], default=1)), shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(folder: Path, options: Mapping[str, Any], values: Weights) -> Path:
    """Write ``lm_weights.hdf5`` and ``options.json``; return the former."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "options.json").write_text(json.dumps(options))
    with h5py.File(folder / "lm_weights.hdf5", "w") as file:
        for name, value in values.items():
            file.create_dataset(name, data=value)
    return folder / "lm_weights.hdf5"


def character_ids(word: str, size: int) -> list[int]:
    """Return a word's ids as the original defines them, 0 being free for padding."""
    marks = {"<S>": [256], "</S>": [257]}
    inner = marks.get(word) or list(word.encode("utf-8", "ignore")[: size - 2])
    ids = [258, *inner, 259]
    return [1 + i for i in ids + [260] * (size - len(ids))]


def embedded(options: Mapping[str, Any], values: Weights, word: str) -> Array:
    """Return a word's embedding (P,)."""
    said = options["char_cnn"]
    table = np.vstack([0 * values["char_embed"][:1], values["char_embed"]]).astype(np.float64)
    x = table[character_ids(word, said["max_characters_per_token"])]  # (C, d)
    maxima = []
    for k, (width, _) in enumerate(said["filters"]):
        W, b = values[f"CNN/W_cnn_{k}"][0], values[f"CNN/b_cnn_{k}"]
        windows = [x[t : t + width] for t in range(len(x) - width + 1)]
        maxima.append(np.max([np.einsum("wd,wdn->n", window, W) + b for window in windows], axis=0))
    y = np.concatenate(maxima)
    y = np.maximum(y, 0) if said["activation"] == "relu" else np.tanh(y)
    for k in range(said["n_highway"]):
        high = {name.rpartition("/")[2]: v for name, v in values.items() if f"_high_{k}/" in name}
        carry = sigmoid(y @ high["W_carry"] + high["b_carry"])
        transform = np.maximum(y @ high["W_transform"] + high["b_transform"], 0)
        y = carry * transform + (1 - carry) * y
    if "CNN_proj/W_proj" in values:
        y = y @ values["CNN_proj/W_proj"] + values["CNN_proj/b_proj"]
    return y


def layers(options: Mapping[str, Any], values: Weights, words: Sequence[str]) -> Array:
    """Return what the model makes of one sentence, (L + 1, words, directions * P)."""
    said = options["lstm"]
    x = np.array([embedded(options, values, word) for word in ("<S>", *words, "</S>")])
    outputs = [[x] * options["directions"]]
    for layer in range(said["n_layers"]):
        made = []
        for direction, given in enumerate(outputs[-1]):
            cell = cell_names(options, direction, layer)
            y = _run(said, [values.get(name) for name in cell], given[:: -1 if direction else 1])
            y = y[:: -1 if direction else 1]
            made.append(y + given if said["use_skip_connections"] and layer else y)
        outputs.append(made)
    return np.array([np.concatenate(made, axis=1)[1:-1] for made in outputs])


def cell_names(options: Mapping[str, Any], direction: int, layer: int) -> tuple[str, str, str]:
    """Return the names of a cell's kernel, bias and projection, as bilm-tf's dump makes them."""
    several = f"MultiRNNCell/Cell{layer}/" if options["lstm"]["n_layers"] > 1 else ""
    if options["directions"] == 1:
        base = f"rnn/{several}LSTMCell"
        return f"{base}/kernel", f"{base}/bias", f"{base}/projection/kernel"
    base = f"RNN_{direction}/RNN/{several}LSTMCell"
    return f"{base}/W_0", f"{base}/B", f"{base}/W_P_0"


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _shapes(options: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    said = options["char_cnn"]
    d, n_filters = said["embedding"]["dim"], sum(n for _, n in said["filters"])
    p, h = options["lstm"]["projection_dim"], options["lstm"]["dim"]
    yield "char_embed", (261, d)
    for k, (width, n) in enumerate(said["filters"]):
        yield f"CNN/W_cnn_{k}", (1, width, d, n)
        yield f"CNN/b_cnn_{k}", (n,)
    for k in range(said["n_highway"]):
        for name in ("carry", "transform"):
            yield f"CNN_high_{k}/W_{name}", (n_filters, n_filters)
            yield f"CNN_high_{k}/b_{name}", (n_filters,)
    if n_filters != p:
        yield "CNN_proj/W_proj", (n_filters, p)
        yield "CNN_proj/b_proj", (p,)
    for direction in range(options["directions"]):
        for layer in range(options["lstm"]["n_layers"]):
            kernel, bias, projection = cell_names(options, direction, layer)
            yield kernel, (2 * p, 4 * h)
            yield bias, (4 * h,)
            if h != p:
                yield projection, (h, p)


def _run(said: Mapping[str, Any], cell: Sequence[Any], x: Array) -> Array:
    W, b, projection = cell
    h, c = np.zeros(said["projection_dim"]), np.zeros(said["dim"])
    outputs = []
    for x_t in x:
        i, j, f, o = np.split(np.concatenate([x_t, h]) @ W.astype(np.float64) + b, 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
        if said["cell_clip"]:
            c = np.clip(c, -said["cell_clip"], said["cell_clip"])
        h = sigmoid(o) * np.tanh(c)
        if projection is not None:
            h = h @ projection
            if said["proj_clip"]:
                h = np.clip(h, -said["proj_clip"], said["proj_clip"])
        outputs.append(h)
    return np.array(outputs)
