"""A refusal as a user meets it: exit status, one line, a second, 256 MB; through every command."""

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hostile.test_torch_hostile import BOMBS, LEGACY_LIES, LIES, legacy_file, sound, zip_file

from ckptshrink_cli.main import run


def deflate_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a/data.pkl", bytes(100 << 20))
    return out.getvalue()


def many_tensors() -> bytes:
    header = json.dumps(
        {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}
    ).encode()
    return struct.pack("<Q", len(header)) + header


def hdf5(build: Callable[[h5py.File], object]) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w", libver="latest") as file:
        build(file)
    return out.getvalue()


def nested(file: h5py.File) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")


def wide(file: h5py.File) -> None:
    for i in range(70):
        file.create_dataset(f"w{i}", (2**18,), "f4")


HOSTILE: dict[str, Callable[[], bytes]] = {
    # the slow ones are measured in `test_torch_hostile`
    **{
        f"pickle in zip: {n}": lambda n=n: zip_file(BOMBS[n], _0=bytes(8))
        for n in BOMBS
        if not n.startswith(("deep", "laughing", "tuple"))
    },
    "legacy pickle: laughing modules": lambda: legacy_file(
        BOMBS["laughing modules"], ("0",), (2).to_bytes(8, "little") + bytes(8)
    ),
    # inspect reads no storage, and no checksum of one
    **{f"zip: {n}": lambda n=n: LIES[n](sound()) for n in LIES if "of a storage" not in n},
    # the two are sound pickles, and no checkpoints
    **{f"legacy: {n}": lambda n=n: LEGACY_LIES[n] for n in LEGACY_LIES if "magic" not in n},
    "a deflate bomb": deflate_bomb,
    "300,000 tensors": many_tensors,
    "HDF5: an external link": lambda: hdf5(
        lambda f: f.__setitem__("w", h5py.ExternalLink("/etc/passwd", "/"))
    ),
    "HDF5: 4 PiB": lambda: hdf5(lambda f: f.create_dataset("w", (2**50,), "f4")),
    "HDF5: 3,000 groups": lambda: hdf5(nested),
    "HDF5: many under the limit": lambda: hdf5(wide),
    "HDF5: cut short": lambda: hdf5(lambda f: f.create_dataset("w", data=np.zeros(99)))[:-50],
}
THROUGH_ALL = ("zip: prefix", "HDF5: 4 PiB", "pickle in zip: a 4 TiB view", "legacy: no bytes")
MEASURED = (
    "pickle in zip: many opcodes", "a deflate bomb", "300,000 tensors", "HDF5: 3,000 groups",
)  # fmt: skip
COMMANDS = {
    "inspect": [],
    "plan": ["--target", "all", "--rank", "2"],
    "compress": ["--target", "all", "--rank", "2"],
}


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in MEASURED])
def test_it_is_refused_by_every_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(HOSTILE[name]())
    for command, options in COMMANDS.items():
        if command != "inspect" and name not in THROUGH_ALL:
            continue
        capsys.readouterr()
        assert run([command, str(path), *options]) == 3, command
        said = capsys.readouterr().err.splitlines()
        assert len([line for line in said if not line.startswith("hint: ")]) == 1
    assert run(["check", str(path), "-q"]) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["x.pt"]


# not ru_maxrss, which begins with that of the process that started this one
PROBE = """
import sys
from pathlib import Path
from ckptshrink_cli.main import run
status = run(sys.argv[1:])
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
import resource
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(status, peak >> 10, sum(u.ru_utime + u.ru_stime for u in usage), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", MEASURED)
def test_a_refusal_takes_little(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(HOSTILE[name]())
    sound_ = tmp_path / "sound.pt"
    sound_.write_bytes(sound())
    for command, wanted in (("inspect", "3"), ("check", "1")):
        took = []
        for file in (sound_, path):
            done = subprocess.run(
                [sys.executable, "-c", PROBE, command, file],
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            *said, last = done.stderr.splitlines()
            status, peak, seconds = last.split()
            took.append((int(peak), float(seconds)))
        assert status == wanted
        assert len([line for line in said if not line.startswith("hint: ")]) == 1
        mebibytes, seconds_more = (b - a for a, b in zip(*took, strict=True))
        print(name, command, mebibytes, seconds_more)
        assert mebibytes < 256
        assert seconds_more < 4  # a second on an idle core; the suite shares its own
