"""Norms of matrices: laws they obey, and what compression does to them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptshrink import Request, Size, Target, compress
from ckptshrink.analysis import analyse, norms_of


@given(m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 99))
def test_norms_obey_the_laws_between_them(m: int, n: int, seed: int) -> None:
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = norms_of(W)
    most = min(m, n)
    assert found.frobenius == pytest.approx(float(torch.linalg.matrix_norm(W)))
    assert found.l1 == pytest.approx(float(torch.linalg.matrix_norm(W, 1)))
    assert found.spectral <= found.frobenius * (1 + 1e-12)
    assert found.frobenius <= found.nuclear * (1 + 1e-12)
    assert found.nuclear <= most**0.5 * found.frobenius * (1 + 1e-12)
    assert found.l1_mean <= found.l1 * (1 + 1e-12)
    assert 1 <= found.rank_of_energy <= most
    twice, turned = norms_of(-2 * W), norms_of(W.flip(0))
    assert twice.nuclear == pytest.approx(2 * found.nuclear)
    assert turned.l1_std == pytest.approx(found.l1_std, abs=1e-12)


def test_a_matrix_of_zeros_has_no_rank() -> None:
    found = norms_of(torch.zeros(3, 4))
    assert (found.nuclear, found.l1_std, found.rank_of_energy) == (0.0, 0.0, 0)


def test_an_artefact_shows_what_compression_did(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "torch" / "awd_lstm_state.zip.pt"
    compress(source, tmp_path / "small", Request((Target("Wh"),), size=Size(rank=2)))
    before, after = list(analyse(source)), list(analyse(tmp_path / "small"))
    assert [(a.name, a.role, a.layer, a.shape) for a in before] == [
        (a.name, a.role, a.layer, a.shape) for a in after
    ]
    for one, other in zip(before, after, strict=True):
        if one.role == "Wh":
            assert other.norms.rank_of_energy <= 2
            assert other.norms.nuclear < one.norms.nuclear
            assert other.norms.spectral == pytest.approx(one.norms.spectral, rel=1e-4)
        else:
            assert other.norms == one.norms


def test_the_two_halves_of_elmos_weights_are_apart(fixtures: Path) -> None:
    found = [a for a in analyse(fixtures / "elmo" / "elmo.hdf5") if a.role in {"Wi", "Wh"}]
    assert len(found) == 8
    assert {a.shape for a in found} == {(512, 32)}
