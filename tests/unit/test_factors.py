"""How results are stored, and rebuilt from what is stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal

from ckptshrink.errors import CorruptCheckpointError
from ckptshrink.linalg.factors import (
    Factors,
    Options,
    Pruned,
    dense_from,
    from_tensors,
    pack_bits,
    unpack_bits,
)
from ckptshrink.linalg.prune import prune
from ckptshrink.linalg.svd import svd


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_masks_survive_packing(m: int, n: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=m * n, max_size=m * n))
    mask = torch.tensor(bits).reshape(m, n)
    packed = pack_bits(mask)
    assert packed.numel() == -(-m * n // 8)
    assert torch.equal(unpack_bits(packed, (m, n)), mask)
    for i, bit in enumerate(bits):
        assert bool(packed[i // 8] >> (i % 8) & 1) == bit


def test_a_mask_of_the_wrong_size_is_refused() -> None:
    packed = pack_bits(torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(CorruptCheckpointError, match="has 3 bytes; got 2"):
        unpack_bits(packed, (4, 5))
    with pytest.raises(CorruptCheckpointError, match="after its last entry"):
        unpack_bits(packed, (3, 3))
    with pytest.raises(CorruptCheckpointError):
        unpack_bits(packed.to(torch.int32), (3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_results_come_back_from_their_tensors(dtype: torch.dtype) -> None:
    W = normal(30, 20, dtype=dtype)
    pair = svd(W, 5, Options())
    again = from_tensors(pair.tensors(), (30, 20), pair.sq_error, pair.sq_norm)
    assert isinstance(again, Factors)
    assert torch.equal(again.U, pair.U)
    assert torch.equal(again.V, pair.V)
    assert again.rel_error == pair.rel_error
    assert torch.equal(dense_from(pair.tensors(), (30, 20)), pair.product())

    pruned = prune(W, 5, Options())
    back = from_tensors(pruned.tensors(), (30, 20))
    assert isinstance(back, Pruned)
    assert torch.equal(back.mask, pruned.mask)
    assert torch.equal(dense_from(pruned.tensors(), (30, 20), dtype), pruned.dense())
    assert torch.equal(pruned.dense(), torch.where(pruned.mask, W, torch.zeros_like(W)))


def test_a_pair_is_multiplied_in_float32_and_cast_once() -> None:
    W = normal(64, 48)
    stored = svd(W, 48, Options(dtype=torch.bfloat16)).tensors()
    exact = stored[".U"].double() @ stored[".V"].double()
    dense = dense_from(stored, (64, 48), torch.float32)
    assert dense.dtype == torch.float32
    # in bfloat16 sums of 48 products would be off by 4e-3 and more
    assert float((dense - exact).norm() / exact.norm()) < 1e-6
    half = dense_from(stored, (64, 48), torch.float16)
    assert torch.equal(half, dense.half())
    double = dense_from({k: t.double() for k, t in stored.items()}, (64, 48))
    assert float((double - exact).norm() / exact.norm()) < 1e-15


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {".U": torch.ones(3, 2)},
        {".U": torch.ones(3, 2), ".V": torch.ones(2, 4), ".mask": torch.ones(2)},
        {".U": torch.ones(3, 2), ".V": torch.ones(3, 4)},
        {".U": torch.ones(3, 2), ".V": torch.ones(2, 5)},
        {".U": torch.ones(3, 2), ".V": torch.ones(2, 4, dtype=torch.float64)},
        {".U": torch.ones(6), ".V": torch.ones(2, 4)},
        {".mask": torch.tensor([7, 0], dtype=torch.uint8), ".values": torch.ones(2)},
        {".mask": torch.tensor([7, 0], dtype=torch.uint8), ".values": torch.ones(3, 1)},
    ],
)
def test_tensors_that_make_no_matrix_are_refused(stored: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CorruptCheckpointError):
        dense_from(stored, (3, 4))
