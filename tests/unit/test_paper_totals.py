"""The parameter counts of the models in the papers, from names and shapes alone."""

import math

import pytest
from indexes import Shapes, awd_lstm, awd_qrnn, by_key, elmo, index_of

from ckptshrink.gates import GateLayout, Part
from ckptshrink.layouts import Recognition, recognise

TIED = {"decoder.weight": "encoder.weight"}
LSTM = (400, 1150, 1150, 400)
QRNN = (400, 1550, 1550, 1550, 400)


def total(shapes: Shapes, tied: dict[str, str]) -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name not in tied)


def summed(recognition: Recognition, role: str) -> int:
    return sum(math.prod(m.shape) for m in recognition.matrices if m.role == role)


def at_rank(recognition: Recognition, before: int, roles: set[str], rank: int) -> int:
    """Return all parameters with every matrix of the roles as a pair, in the papers' accounting."""
    for matrix in recognition.matrices:
        if matrix.role in roles:
            m, n = matrix.shape
            before += rank * (m + n) - m * n
    return before


@pytest.mark.parametrize(
    ("n_tokens", "params"), [(10_000, 24_221_600), (33_278, 33_556_078)], ids=["PTB", "WT2"]
)
def test_awd_lstm_counts(n_tokens: int, params: int) -> None:
    shapes = awd_lstm(n_tokens, LSTM)
    recognition = recognise(index_of(shapes, shares=TIED))
    assert total(shapes, TIED) == params
    assert summed(recognition, "Wi") == 8_970_000
    assert summed(recognition, "Wh") == 11_220_000
    assert summed(recognition, "embedding") == n_tokens * 400
    lstm = {name: shape for name, shape in shapes.items() if name.startswith("rnns")}
    assert total(lstm, {}) == 20_211_600


@pytest.mark.parametrize(
    ("role", "rank", "params"),
    [
        ("Wh", 10, 13_136_600),
        ("Wh", 400, 18_401_600),
        ("Wi", 10, 15_386_600),
        ("Wi", 400, 20_651_600),
    ],
)
def test_awd_lstm_at_rank(role: str, rank: int, params: int) -> None:
    recognition = recognise(index_of(awd_lstm(10_000, LSTM), shares=TIED))
    assert at_rank(recognition, 24_221_600, {role}, rank) == params


def test_awd_lstm_matrices() -> None:
    recognition = recognise(index_of(awd_lstm(10_000, LSTM), shares=TIED))
    found = [
        (m.key, m.role, m.layer, m.direction, m.shape, m.layout.gates, m.cell)
        for m in recognition.matrices
    ]
    inner = "rnns.{}.module."
    assert found == [
        ("encoder.weight", "embedding", None, None, (10_000, 400), "", ""),
        (inner.format(0) + "weight_ih_l0", "Wi", 0, "forward", (4600, 400), "ifgo", "lstm"),
        (inner.format(0) + "weight_hh_l0_raw", "Wh", 0, "forward", (4600, 1150), "ifgo", "lstm"),
        (inner.format(1) + "weight_ih_l0", "Wi", 1, "forward", (4600, 1150), "ifgo", "lstm"),
        (inner.format(1) + "weight_hh_l0_raw", "Wh", 1, "forward", (4600, 1150), "ifgo", "lstm"),
        (inner.format(2) + "weight_ih_l0", "Wi", 2, "forward", (1600, 1150), "ifgo", "lstm"),
        (inner.format(2) + "weight_hh_l0_raw", "Wh", 2, "forward", (1600, 400), "ifgo", "lstm"),
    ]
    assert recognition.family == "awd-lstm"
    assert recognition.aliases == TIED
    assert recognition.roles_of_aliases == {"decoder.weight": "softmax"}
    assert not recognition.unrecognised
    assert all((m.layout.axis, m.layout.transposed) == (0, False) for m in recognition.matrices)


@pytest.mark.parametrize(
    ("n_tokens", "params"), [(10_000, 24_020_150), (33_278, 33_354_628)], ids=["PTB", "WT2"]
)
def test_awd_qrnn_counts(n_tokens: int, params: int) -> None:
    shapes = awd_qrnn(n_tokens, QRNN)
    recognition = recognise(index_of(shapes, shares=TIED))
    assert total(shapes, TIED) == params
    assert recognition.family == "awd-qrnn"
    recurrent = [m for m in recognition.matrices if m.layer is not None]
    assert [(m.role, m.layer, m.layout.gates, m.cell) for m in recurrent] == [
        ("Wi", layer, "zfo", "qrnn") for layer in range(4)
    ]
    biases = 3 * sum(QRNN[1:])
    assert summed(recognition, "Wi") == params - n_tokens * 401 - biases


@pytest.mark.parametrize(
    ("dim", "projection", "n_highway", "params", "gates", "projections"),
    [
        (1024, 128, 1, 13_593_296, 2_097_152, 524_288),
        (2048, 256, 1, 28_027_728, 8_388_608, 2_097_152),
        (4096, 512, 2, 93_600_848, 33_554_432, 8_388_608),
    ],
    ids=["small", "medium", "original"],
)
def test_elmo_counts(
    dim: int, projection: int, n_highway: int, params: int, gates: int, projections: int
) -> None:
    shapes = elmo(dim, projection, n_highway=n_highway)
    recognition = recognise(index_of(shapes))
    assert total(shapes, {}) == params
    assert summed(recognition, "Wi") == summed(recognition, "Wh") == gates
    assert summed(recognition, "P") == projections
    assert summed(recognition, "linear") == 2048 * (2 * n_highway * 2048 + projection)
    assert summed(recognition, "embedding") == 261 * 16


@pytest.mark.parametrize(
    ("roles", "rank", "params"),
    [
        ({"Wh"}, 10, 60_722_256),
        ({"Wh"}, 400, 87_080_016),
        ({"Wi", "Wh"}, 10, 27_843_664),
        ({"Wi", "Wh"}, 400, 80_559_184),
    ],
)
def test_elmo_at_rank(roles: set[str], rank: int, params: int) -> None:
    recognition = recognise(index_of(elmo(4096, 512)))
    assert at_rank(recognition, 93_600_848, roles, rank) == params


def test_elmo_matrices() -> None:
    recognition = recognise(index_of(elmo(4096, 512)))
    assert recognition.family == "elmo"
    assert not recognition.unrecognised
    matrices = by_key(recognition)
    expected = {"char_embed", "CNN_proj/W_proj"}
    expected |= {f"CNN_high_{k}/W_{gate}" for k in (0, 1) for gate in ("carry", "transform")}
    for number, direction in enumerate(("forward", "backward")):
        for layer in (0, 1):
            name = f"RNN_{number}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            parts = (matrices[f"{name}/W_0.Wi"], matrices[f"{name}/W_0.Wh"])
            assert [m.part for m in parts] == [Part(0, 0, 512), Part(0, 512, 1024)]
            assert all(m.shape == (512, 16_384) for m in parts)
            assert all(m.layout == GateLayout("ijfo", 1, True, True, 1.0) for m in parts)
            projection = matrices[f"{name}/W_P_0"]
            assert (projection.role, projection.shape) == ("P", (4096, 512))
            assert projection.layout == GateLayout(axis=1, transposed=True)
            for matrix in (*parts, projection):
                assert (matrix.layer, matrix.direction) == (layer, direction)
                expected.add(matrix.key)
    assert set(matrices) == expected
