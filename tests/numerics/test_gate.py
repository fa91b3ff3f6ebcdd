"""The precision gate: what a Gram matrix can't tell goes to a route that can."""

import math

import pytest
import torch
from strategies import decaying, lstm_like, normal, tail, with_spectrum
from torch import Tensor

from ckptshrink.linalg import eigen, krylov, separate
from ckptshrink.linalg.eigen import eigenpairs
from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.products import gram, mirrored, weigh
from ckptshrink.linalg.svd import svd


def error(W: Tensor, U: Tensor, V: Tensor) -> float:
    return float((W.double() - U.double() @ V.double()).norm())


STEEP = {
    "k^-1.5": decaying(400, 300, 1.5),
    "k^-3": decaying(300, 400, 3.0),
    "0.9^k": with_spectrum([0.9**k for k in range(300)], 400, 300, dtype=torch.float32),
    "rank 40": with_spectrum([1.0] * 40, 400, 300, dtype=torch.float32),
    "cliff": with_spectrum([1.0] * 40 + [1e-5] * 260, 400, 300, dtype=torch.float32),
    "one large": with_spectrum([1e4] + [1.0] * 299, 300, 400, dtype=torch.float32),
}


@pytest.mark.parametrize("name", STEEP)
@pytest.mark.parametrize("r", [1, 8, 40, 41, 150, 299, 300])
def test_steep_and_deficient_matrices_are_never_worse_than_by_lapack(name: str, r: int) -> None:
    W = STEEP[name]
    f = svd(W, r, Options())
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    by_lapack = error(W, U[:, :r] * S[:r], Vh[:r])
    assert error(W, f.U, f.V) <= max(by_lapack, tail(W, r) * (1 + 1e-6))


@pytest.mark.parametrize(
    ("W", "r", "dtype"),
    [
        (lstm_like(400, 300), 4, torch.float32),
        (lstm_like(400, 300), 100, torch.float32),
        (decaying(400, 300, 1.5), 100, torch.float64),
        (decaying(400, 300, 1.5), 300, torch.float64),  # nothing is left out
        (lstm_like(400, 300, dtype=torch.float64), 100, torch.float64),
        (with_spectrum([1.0] * 40, 400, 300).float(), 41, None),
        (decaying(400, 300, 6.0), 150, None),
    ],
)
def test_the_route_follows_from_the_spectrum(W: Tensor, r: int, dtype: torch.dtype | None) -> None:
    found = eigenpairs(weigh(W), r)
    assert (None if found is None else found.vectors.dtype) == dtype


def cluster(at: float, seed: int) -> Tensor:
    """Return (400, 300) with 60 singular values near 1 and 240 near `at`, each spread by 1e-5."""
    spread = 1 + 1e-5 * normal(300, 1, seed=seed, dtype=torch.float64)[:, 0]
    S = torch.tensor([1.0] * 60 + [at] * 240, dtype=torch.float64) * spread
    return with_spectrum(S.sort(descending=True).values, 400, 300, seed, torch.float32)


FLOAT32_MIXES = {
    "k^-0.6": decaying(600, 512, 0.6),
    "k^-0.7": decaying(512, 600, 0.7),
    "k^-0.8": decaying(400, 300, 0.8),
    "near 1 and 0.05": cluster(0.05, 1),
    "near 1 and 0.15": cluster(0.15, 2),
    "near 1 and 0.5": cluster(0.5, 3),
    "all near 1": cluster(1.0, 4),
}


@pytest.mark.parametrize("name", FLOAT32_MIXES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.78, 0.97])
def test_neighbours_on_both_sides_of_the_cut_are_kept_apart(name: str, share: float) -> None:
    W = FLOAT32_MIXES[name]
    r = round(share * min(W.shape))
    f = svd(W, r, Options())
    assert error(W, f.U, f.V) <= tail(W, r) * (1 + 1e-6)


def test_mixed_vectors_are_told_and_mended() -> None:
    W = decaying(600, 512, 0.7)
    r = 400
    G = mirrored(gram(weigh(W), torch.float32))
    exact = torch.linalg.eigvalsh(G.double()).flip(0)
    rest = float(exact[r:].sum())

    def missed(vectors: Tensor) -> float:
        leading = torch.linalg.qr(vectors[:, :r].double()).Q
        captured = float((leading * (G.double() @ leading)).sum())
        return (float(exact[:r].sum()) - captured) / rest

    vectors = torch.linalg.eigh(G.double()).eigenvectors.flip(1).float()
    angle = 0.05  # mix each of four pairs across the cut
    for i, j in [(399, 400), (396, 405), (380, 430), (200, 500)]:
        a, b = vectors[:, i].clone(), vectors[:, j].clone()
        vectors[:, i] = math.cos(angle) * a + math.sin(angle) * b
        vectors[:, j] = math.cos(angle) * b - math.sin(angle) * a
    assert missed(vectors) > 1e-5
    assert separate.separated(G, exact, vectors, r) is None  # a pair far apart was mixed: too much
    vectors = torch.linalg.eigh(G).eigenvectors.flip(1)
    mended = separate.separated(G, exact, vectors, r)
    assert mended is not None
    assert missed(mended) <= 2e-7


def test_vectors_in_the_wrong_order_are_put_right() -> None:
    G = mirrored(gram(weigh(lstm_like(400, 300)), torch.float32))
    values, vectors = torch.linalg.eigh(G)
    vectors = vectors.flip(1)
    swapped = vectors.clone()
    swapped[:, [99, 100]] = vectors[:, [100, 99]]
    found = separate.separated(G, values.flip(0).double(), swapped, 100)
    assert found is not None
    span = found[:, :100].T @ vectors[:, :100]
    torch.testing.assert_close(torch.linalg.svdvals(span), torch.ones(100), rtol=0, atol=1e-5)


def test_the_gate_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    W = decaying(400, 300, 1.5)
    monkeypatch.setattr(eigen, "_GATES", ((torch.float32, 0.0),))
    monkeypatch.setattr(eigen, "separated", lambda G, values, vectors, r: vectors)
    monkeypatch.setattr(eigen, "separated", lambda G, values, vectors, r: vectors)
    f = svd(W, 200, Options())
    assert error(W, f.U, f.V) > tail(W, 200) * 1.001


def test_a_decomposition_that_gives_up_falls_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    W = lstm_like(120, 80)

    def gives_up(*_: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    f = svd(W, 30, Options())
    assert error(W, f.U, f.V) <= tail(W, 30) * (1 + 1e-6)


@pytest.mark.parametrize("r", [1, 5, 8])
@pytest.mark.parametrize(
    "W",
    [
        lstm_like(600, 512),
        with_spectrum([2.0] * 8 + [1.0] * 292, 400, 300, dtype=torch.float32),
        with_spectrum([0.9**k for k in range(300)], 300, 300, dtype=torch.float32),
        torch.eye(300),
    ],
    ids=["lstm-like", "repeated", "geometric", "identity"],
)
def test_a_krylov_space_finds_what_a_decomposition_does(W: Tensor, r: int) -> None:
    G = mirrored(gram(weigh(W), torch.float32))
    exact = torch.linalg.eigvalsh(G.double()).flip(0)
    found = krylov.leading_eigenpairs(G, r)
    assert found is not None
    values, vectors = found
    captured = float(torch.trace(vectors.double().T @ G.double() @ vectors.double()))
    rest = float(exact[r:].sum())
    eps = torch.finfo(torch.float32).eps
    assert captured >= float(exact[:r].sum()) - 2e-6 * rest - 20 * eps * float(exact[:r].sum())
    torch.testing.assert_close(values, exact[:r], rtol=1e-4, atol=0)


def test_a_krylov_space_that_would_be_too_deep_is_given_up() -> None:
    W = normal(300, 300)  # a flat edge converges slowly
    G = mirrored(gram(weigh(W), torch.float32))
    assert krylov.leading_eigenpairs(G, 30) is None


def test_krylov_spaces_are_used_at_small_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    W = lstm_like(600, 512)
    truth = tail(W, 10)
    monkeypatch.setattr(torch.linalg, "eigh", _small_only(torch.linalg.eigh))
    f = svd(W, 10, Options())
    assert error(W, f.U, f.V) <= truth * (1 + 1e-6)


def _small_only(eigh: object) -> object:
    def checked(G: Tensor) -> object:
        assert len(G) < 512, "the whole Gram matrix was decomposed"
        return eigh(G)  # type: ignore[operator]

    return checked
