"""How fast and how small: `compress` on full-size checkpoints, against its peers.

Run: ``python benchmarks/compress.py [--rounds 5] [--only svd,semi-nmf,files,memory,commands]``

Every comparison is paired: the contestants take turns in one process (A B C A B C ...), medians
are printed, and the ratios are medians of the ratios of each round. One thread, start-up set aside
unless it says otherwise. Peers:

(a) a plain script: h5py or torch.load, `torch.linalg.svd`, `safetensors.torch.save_file`;
(b) greenformer 0.2.2's SVD route, which is ``torch.svd_lowrank(weight.T, q=rank, niter=10)``;
(c) copying the file, and copying it durably (with the fsync that a compression does too).
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from full_size import decaying, make_awd, make_elmo
from plain_script import Solver, by_greenformer, by_lapack, script
from safetensors.torch import load_file

from ckptshrink.linalg.factors import Options
from ckptshrink.linalg.semi_nmf import semi_nmf
from ckptshrink.linalg.svd import svd
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, Target
from ckptshrink.rewrite import compress

CHUNK = 8 << 20


def interleaved(
    contestants: Mapping[str, Callable[[], object]], rounds: int, slow: frozenset[str]
) -> dict[str, list[float]]:
    """Return the seconds of each contestant in each round; a slow one runs in two rounds only."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            if name in slow and turn not in {1, 2}:
                continue
            start = time.perf_counter()
            run()
            if turn:  # the first round warms caches and allocators
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: Mapping[str, list[float]]) -> None:
    """Print medians, and each contestant's time over ours, round by round."""
    print(f"\n### {title}\n")
    print("| contestant | median s | time / ckptshrink | spread |")
    print("|---|---:|---:|---|")
    ours = seconds["ckptshrink"]
    for name, values in seconds.items():
        ratios = sorted(value / own for value, own in zip(values, ours, strict=False))
        median, ratio = statistics.median(values), statistics.median(ratios)
        print(f"| {name} | {median:.3f} | {ratio:.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |")


def copy(source: Path, target: Path, *, durable: bool) -> None:
    """Copy a file by reading and writing, as `cp` does without reflinks."""
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(CHUNK):
            write.write(chunk)
        if durable:
            write.flush()
            os.fsync(write.fileno())
    target.unlink()


def ours(source: Path, target: Path, r: int) -> None:
    """Compress Wh with ckptshrink, on one thread."""
    request = Request(targets=(Target("Wh"),), size=Size(rank=r))
    compress(source, target, request, compute=Compute("cpu", 1))
    shutil.rmtree(target)


def plain(source: Path, target: Path, r: int, solve: Solver) -> None:
    """Compress Wh with the plain script."""
    script(source, target, r, solve)
    target.unlink()


def files(folder: Path, rounds: int) -> None:
    """Print the times of whole compressions against the peers'."""
    lapack, greenformer = "(a) script, torch.linalg.svd", "(b) script, greenformer's SVD"
    out = folder / "out"
    for source in (make_elmo(folder / "elmo.hdf5"), make_awd(folder / "awd.pt")):
        for r in (10, 400):
            contestants: dict[str, Callable[[], object]] = {
                "ckptshrink": partial(ours, source, out, r),
                lapack: partial(plain, source, out, r, by_lapack),
                greenformer: partial(plain, source, out, r, by_greenformer),
                "(c) copy": partial(copy, source, out, durable=False),
                "(c) durable copy": partial(copy, source, out, durable=True),
            }
            seconds = interleaved(contestants, rounds, frozenset({lapack, greenformer}))
            report(f"{source.name}, Wh, r={r}", seconds)
            print(f"\nexcess error over the optimum: {worst_excess(source, out, r):.1e}")


def worst_excess(source: Path, out: Path, r: int) -> float:
    """Return the largest ‖W − UV‖ / optimum − 1 over the file's Wh, from the written file."""
    request = Request(targets=(Target("Wh"),), size=Size(rank=r))
    compress(source, out, request, compute=Compute("cpu", 1))
    stored = load_file(out / "model.safetensors")
    dense: dict[str, torch.Tensor] = {}
    if source.suffix == ".hdf5":
        with h5py.File(source, "r") as file:
            for name in (n for n in stored if n.endswith(".Wh.U")):
                W = torch.from_numpy(file[name.removesuffix(".Wh.U")][...])
                dense[name] = W[W.shape[0] // 2 :]
    else:
        state = torch.load(source)
        dense = {n: state[n.removesuffix(".U")] for n in stored if n.endswith("_raw.U")}
    worst = 0.0
    for name, W in dense.items():
        product = stored[name].double() @ stored[name.removesuffix("U") + "V"].double()
        error = torch.linalg.norm(W.double() - product)
        best = torch.linalg.svdvals(W.double())[r:].square().sum().sqrt()
        worst = max(worst, float(error / best) - 1 if best > 1e-6 * error else 0.0)
    shutil.rmtree(out)
    return worst


def matrices(rounds: int, method: str) -> None:
    """Print the times of single matrices: SVD against LAPACK, Semi-NMF against matrix_fact."""
    rng = np.random.default_rng(0)
    sides = ("V",) if method == "svd" else ("V", "U")
    for (m, n), side in itertools.product(((16384, 512), (4600, 1150)), sides):
        W = torch.from_numpy(decaying(rng, m, n))
        factorize = svd if method == "svd" else semi_nmf
        options = Options(nonnegative=side)
        contestants: dict[str, Callable[[], object]] = {
            "ckptshrink": partial(factorize, W, 400, options)
        }
        if method == "svd":
            contestants["torch.linalg.svd"] = partial(by_lapack, W, 400)
            contestants["greenformer's SVD"] = partial(by_greenformer, W, 400)
        else:
            data = W if side == "V" else W.T
            contestants["matrix_fact, 10 iterations"] = partial(by_matrix_fact, data, 400)
        slow = frozenset({"greenformer's SVD"})
        of = "" if method == "svd" else f", {side} ≥ 0"
        report(f"{method}, {m}×{n}, r=400{of}", interleaved(contestants, rounds, slow))
        factors = factorize(W, 400, options)
        error = torch.linalg.norm(W.double() - factors.U.double() @ factors.V.double())
        optimum = torch.linalg.svdvals(W.double())[400:].square().sum().sqrt()
        print(f"\nerror over the SVD optimum: {float(error / optimum) - 1:.1e}")


def by_matrix_fact(W: torch.Tensor, r: int) -> object:
    """Run matrix_fact's Semi-NMF for ten iterations, as greenformer does; H >= 0."""
    try:
        from matrix_fact import TorchSNMF
    except ImportError:
        raise SystemExit(
            "pip install matrix_fact cvxopt scikit-learn, or --only svd,files"
        ) from None
    model = TorchSNMF(W, r)
    model.factorize(10)
    return model


MEMORY = """
import sys, torch
from pathlib import Path
from ckptshrink import Compute, Request, Size, Target, compress
def peak():  # of this process alone: ru_maxrss begins with that of the process that started it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
idle = peak()
request = Request((Target("Wh"),), size=Size(rank=int(sys.argv[3])))
compress(Path(sys.argv[1]), Path(sys.argv[2]), request, compute=Compute("cpu", 1))
print(peak() - idle)
"""


def memory(folder: Path) -> None:
    """Print the peak memory of a compression above an interpreter with torch loaded."""
    print("\n### Peak memory above an idle interpreter with torch loaded\n")
    print("| file | r | largest tensor MiB | peak MiB | allowed MiB |")
    print("|---|---:|---:|---:|---:|")
    elmo, awd = make_elmo(folder / "elmo.hdf5"), make_awd(folder / "awd.pt")
    for source, largest in ((elmo, 64.0), (awd, 20.2)):
        for r in (10, 400):
            command = [sys.executable, "-c", MEMORY, str(source), str(folder / "out"), str(r)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            shutil.rmtree(folder / "out")
            peak, allowed = float(done.stdout), 256 + 2 * largest
            print(f"| {source.name} | {r} | {largest:.0f} | {peak:.0f} | {allowed:.0f} |")


def commands(folder: Path, rounds: int) -> None:
    """Print the times of whole commands, start-up included."""
    elmo = str(make_elmo(folder / "elmo.hdf5"))
    tool = [sys.executable, "-m", "ckptshrink_cli"]
    out = str(folder / "out")
    wh = ["--target", "Wh", "--rank", "400"]
    cases = {
        "ckptshrink --help": [*tool, "--help"],
        "ckptshrink inspect elmo.hdf5": [*tool, "inspect", elmo],
        "ckptshrink plan elmo.hdf5 --target Wh --rank 400": [*tool, "plan", elmo, *wh],
        "ckptshrink compress elmo.hdf5 --target Wh --rank 400 --threads 1": [
            *tool, "compress", elmo, *wh, "--threads", "1", "-o", out, "--overwrite",
        ],
        "(a) script, torch.linalg.svd, one thread": [
            sys.executable, str(Path(__file__).with_name("plain_script.py")), elmo,
            str(folder / "plain.safetensors"), "400",
        ],
    }  # fmt: skip
    print("\n### Whole commands, start-up included\n")
    print("| command | median s |")
    print("|---|---:|")
    runs: dict[str, Callable[[], object]] = {
        name: partial(subprocess.run, command, capture_output=True, check=True)
        for name, command in cases.items()
    }
    for name, values in interleaved(runs, rounds, frozenset({list(cases)[-1]})).items():
        print(f"| {name} | {statistics.median(values):.2f} |")


def main() -> None:
    """Run the parts asked for and print their tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="svd,semi-nmf,files,memory,commands")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], None]] = {
            "svd": lambda: matrices(args.rounds, "svd"),
            "semi-nmf": lambda: matrices(args.rounds, "semi-nmf"),
            "files": lambda: files(folder, args.rounds),
            "memory": lambda: memory(folder),
            "commands": lambda: commands(folder, args.rounds),
        }
        for part in args.only.split(","):
            parts[part]()


if __name__ == "__main__":
    main()
