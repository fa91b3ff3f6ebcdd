"""Shards of torch.save: what torch reads is what is read, and written again."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptshrink.io import torch_shards
from ckptshrink.io.detect import detect_format, open_checkpoint
from ckptshrink.io.torch_shards import open_torch_shards

Shards = dict[str, dict[str, torch.Tensor]]


def save(folder: Path, shards: Shards) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, tensors in shards.items():
        torch.save(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    path = folder / "pytorch_model.bin.index.json"
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return path


@pytest.mark.parametrize("given_path", ["folder", "index"])
def test_both_ways_of_naming_them(fixtures: Path, given_path: str) -> None:
    folder = fixtures / "transformers" / "t5"
    path = folder if given_path == "folder" else folder / "pytorch_model.bin.index.json"
    expected = {
        name: tensor
        for shard in sorted(folder.glob("*-of-*.bin"))
        for name, tensor in torch.load(shard, weights_only=True).items()
    }
    with closing(open_checkpoint(path)) as reader:
        checkpoint = reader.checkpoint
        assert (checkpoint.format, checkpoint.root) == ("torch-shards", folder)
        assert {n: r.shape for n, r in checkpoint.tensors.items()} == {
            n: tuple(x.shape) for n, x in expected.items()
        }
        for name, tensor in expected.items():
            assert reader.read(name).tobytes() == tensor.numpy().tobytes()
            assert b"".join(reader.chunks(name)) == tensor.numpy().tobytes()
        shared = {n: r.shares_with for n, r in checkpoint.tensors.items() if r.shares_with}
        assert shared == dict.fromkeys(
            ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],
            "shared.weight",
        )


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=8),
    places=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)
@settings(max_examples=25, deadline=None)
def test_written_again_they_load_as_before(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[int, ...]],
    places: list[int],
    tied: bool,
    dtype: torch.dtype,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards: Shards = {}
    for i, (shape, place) in enumerate(zip(shapes, places, strict=False)):
        name = f"pytorch_model-{place:05d}-of-00003.bin"
        shards.setdefault(name, {})[f"t{i}"] = (
            torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
        )
    if tied:
        first = next(iter(shards.values()))
        first["tied"] = next(iter(first.values()))
    index = save(folder / "a", shards)
    for how in ("new", "like"):
        out = folder / how
        out.mkdir()
        with closing(open_torch_shards(index)) as reader:
            created = []

            def create(name: str, out: Path = out, created: list[object] = created) -> object:
                created.append((out / name).open("wb"))
                return created[-1]

            if how == "new":
                checkpoint = reader.checkpoint
                left = torch_shards.write_new(
                    checkpoint.container, checkpoint.tensors, reader.chunks, create
                )
                assert left == ()
            else:
                torch_shards.write_like(reader, {}, create)
            for file in created:
                file.close()
        assert (out / index.name).read_bytes() == index.read_bytes()
        for name, tensors in shards.items():
            found = torch.load(out / name, weights_only=True)
            assert list(found) == list(tensors)
            for key, tensor in tensors.items():
                assert found[key].dtype == tensor.dtype
                assert torch.equal(found[key], tensor)


def test_legacy_shards_are_shards_too(tmp_path: Path) -> None:
    index = save(tmp_path, {"a.bin": {"w": torch.eye(3)}})
    torch.save({"w": torch.eye(3)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert detect_format(index) == "torch-shards"
    with closing(open_torch_shards(index)) as reader:
        assert reader.read("w").view("<f4").tolist() == torch.eye(3).flatten().tolist()
