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
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import torch
from full_size import decaying, make_awd, make_elmo
from safetensors.torch import load_file, save_file

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
    print(
        f"\n### {title}\n\n| contestant | median s | time / ckptshrink | spread |\n|---|---:|---:|---|"
    )
    ours = seconds["ckptshrink"]
    for name, values in seconds.items():
        ratios = [value / own for value, own in zip(values, ours, strict=False)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"| {name} | {statistics.median(values):.3f} | {statistics.median(ratios):.2f} | {spread} |"
        )


def copy(source: Path, target: Path, *, durable: bool) -> None:
    """Copy a file by reading and writing, as `cp` does without reflinks."""
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(CHUNK):
            write.write(chunk)
        if durable:
            write.flush()
            os.fsync(write.fileno())
    target.unlink()


Solver = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def by_lapack(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rank-r pair from a full SVD."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r].sqrt(), S[:r].sqrt()[:, None] * Vh[:r]


def by_greenformer(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rank-r pair as greenformer's ``linear_svd`` does."""
    u, s, v = torch.svd_lowrank(W.T, q=r, niter=10)
    return v.contiguous(), (u * s).T.contiguous()


def script(source: Path, target: Path, r: int, solve: Solver) -> None:
    """Compress Wh of an ELMo or an AWD-LSTM the plain way."""
    out: dict[str, torch.Tensor] = {}
    if source.suffix == ".hdf5":
        with h5py.File(source, "r") as file:
            names: list[str] = []
            file.visititems(lambda n, o: names.append(n) if isinstance(o, h5py.Dataset) else None)
            for name in names:
                tensor = torch.from_numpy(file[name][...])
                if name.endswith("LSTMCell/W_0"):
                    half = tensor.shape[0] // 2
                    out[name + ".Wi"] = tensor[:half].clone()
                    out[name + ".Wh.U"], out[name + ".Wh.V"] = solve(tensor[half:], r)
                else:
                    out[name] = tensor
    else:
        for name, tensor in torch.load(source).items():
            if name.endswith("weight_hh_l0_raw"):
                out[name + ".U"], out[name + ".V"] = solve(tensor, r)
            elif name != "decoder.weight":
                out[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, target)
    target.unlink()


def ours(source: Path, target: Path, r: int) -> None:
    """Compress Wh with ckptshrink, on one thread."""
    request = Request(targets=(Target("Wh"),), size=Size(rank=r))
    compress(source, target, request, compute=Compute("cpu", 1))
    shutil.rmtree(target)


def files(folder: Path, rounds: int) -> None:
    """Print the times of whole compressions against the peers'."""
    for source in (make_elmo(folder / "elmo.hdf5"), make_awd(folder / "awd.pt")):
        for r in (10, 400):
            contestants: dict[str, Callable[[], object]] = {
                "ckptshrink": lambda s=source, r=r: ours(s, folder / "out", r),
                "(a) script, torch.linalg.svd": lambda s=source, r=r: script(s, folder / "o", r, by_lapack),
                "(b) script, greenformer's SVD": lambda s=source, r=r: script(s, folder / "o", r, by_greenformer),
                "(c) copy": lambda s=source: copy(s, folder / "o", durable=False),
                "(c) durable copy": lambda s=source: copy(s, folder / "o", durable=True),
            }  # fmt: skip
            slow = frozenset({"(a) script, torch.linalg.svd", "(b) script, greenformer's SVD"})
            report(f"{source.name}, Wh, r={r}", interleaved(contestants, rounds, slow))
            print(f"\nexcess error over the optimum: {worst_excess(source, folder / 'out', r):.1e}")


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
    import numpy as np

    rng = np.random.default_rng(0)
    for m, n in ((16384, 512), (4600, 1150)):
        W = torch.from_numpy(decaying(rng, m, n))
        optimum = torch.linalg.svdvals(W.double())[400:].square().sum().sqrt()
        contestants: dict[str, Callable[[], object]]
        if method == "svd":
            factors = svd(W, 400, Options())
            contestants = {
                "ckptshrink": lambda W=W: svd(W, 400, Options()),
                "torch.linalg.svd": lambda W=W: by_lapack(W, 400),
                "greenformer's SVD": lambda W=W: by_greenformer(W, 400),
            }
        else:
            factors = semi_nmf(W, 400, Options())
            contestants = {"ckptshrink": lambda W=W: semi_nmf(W, 400, Options())}
            try:
                from matrix_fact import TorchSNMF
            except ImportError:
                print("\nmatrix_fact is not installed: pip install matrix_fact cvxopt scikit-learn")
                return

            def peer(W: torch.Tensor = W) -> object:
                model = TorchSNMF(W.T.contiguous(), 400)
                model.factorize(10)
                return model

            contestants["matrix_fact, 10 iterations"] = peer
        error = torch.linalg.norm(W.double() - factors.U.double() @ factors.V.double())
        slow = frozenset(set(contestants) - {"ckptshrink", "torch.linalg.svd"})
        report(f"{method}, {m}×{n}, r=400", interleaved(contestants, rounds, slow))
        print(f"\nerror over the SVD optimum: {float(error / optimum) - 1:.1e}")


MEMORY = """
import resource, sys, torch
from pathlib import Path
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, Target
from ckptshrink.rewrite import compress
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
compress(Path(sys.argv[1]), Path(sys.argv[2]), Request(targets=(Target("Wh"),), size=Size(rank=int(sys.argv[3]))),
         compute=Compute("cpu", 1))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) / 1024)
"""


def memory(folder: Path) -> None:
    """Print the peak memory of a compression above an interpreter with torch loaded."""
    print(
        "\n### Peak memory above an idle interpreter\n\n| file | r | largest tensor MiB | peak MiB | allowed MiB |\n|---|---:|---:|---:|---:|"
    )
    for source, largest in (
        (make_elmo(folder / "elmo.hdf5"), 64.0),
        (make_awd(folder / "awd.pt"), 20.2),
    ):
        for r in (10, 400):
            command = [sys.executable, "-c", MEMORY, str(source), str(folder / "out"), str(r)]
            peak = float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            shutil.rmtree(folder / "out")
            print(f"| {source.name} | {r} | {largest:.0f} | {peak:.0f} | {256 + 2 * largest:.0f} |")


def commands(folder: Path, rounds: int) -> None:
    """Print the times of whole commands, start-up included."""
    elmo = str(make_elmo(folder / "elmo.hdf5"))
    tool = [sys.executable, "-m", "ckptshrink_cli"]
    cases = {
        "ckptshrink --help": [*tool, "--help"],
        "ckptshrink inspect elmo.hdf5": [*tool, "inspect", elmo],
        "ckptshrink plan elmo.hdf5 --target Wh --rank 400": [*tool, "plan", elmo, "--target", "Wh", "--rank", "400"],
        "ckptshrink compress elmo.hdf5 --target Wh --rank 400 --threads 1": [
            *tool, "compress", elmo, "--target", "Wh", "--rank", "400", "--threads", "1",
            "-o", str(folder / "out"), "--overwrite",
        ],
        "(a) script, torch.linalg.svd, one thread": [
            sys.executable, "-c",
            "import sys, torch; torch.set_num_threads(1); from pathlib import Path; "
            "sys.path.insert(0, sys.argv[3]); import compress; "
            "compress.script(Path(sys.argv[1]), Path(sys.argv[2]), 400, compress.by_lapack)",
            elmo, str(folder / "o"), str(Path(__file__).parent),
        ],
    }  # fmt: skip
    print("\n### Whole commands, start-up included\n\n| command | median s |\n|---|---:|")
    runs: dict[str, Callable[[], object]] = {
        name: (lambda c=command: subprocess.run(c, capture_output=True, check=True))
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
