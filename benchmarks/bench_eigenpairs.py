"""Top-32 eigenpairs of sparse positive-pair graphs of three kinds: ours against scikit-learn's and scipy's solvers.

Each solver runs in a fresh process on the same weights, is warmed up on a small graph, is timed from the weights to the
vectors, and is stopped at `LIMIT` times our time. `BENCH_FULL=ours` adds our time at a million vertices and the growth
with the edges, in some minutes; `BENCH_FULL=1` adds the peers there, which may take an hour.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import eigsh
from scipy.spatial import cKDTree

from benchmarks.measure import Measurement, floor, summary
from companion.theory import solvers
from companion.theory.graph import PositivePairGraph

ROOT = Path(__file__).resolve().parents[1]
K, TOLERANCE = 32, 1e-8
SIZES = (9_984, 60_000)
MILLION = 1_000_000
LIMIT = 5.5  # times our time, then a peer is stopped: enough to decide the goal
ANGLE = 1e-3  # sine of the largest angle up to which two subspaces count as equal
ADDRESSES = 16 * 2**30  # bytes of address space that a peer may ask for
PEERS = ("arpack", "lobpcg", "amg", "eigsh")
KINDS = {
    "blocks": "32 blocks, degree 32, one edge in five across",
    "neighbours": "16 nearest neighbours of uniform points in a box, either way",
    "views": "2 images a view, 8 views an image by Zipf's law, 32 topics, one in seven across; through the factor",
}


def weights(kind: str, n: int) -> Any:
    """Symmetric weights of the graph; for "views" the augmentation law, images × views."""
    rng = np.random.default_rng(0)
    if kind == "blocks":
        i = rng.integers(0, n, 16 * n)
        j = np.where(rng.random(len(i)) < 0.8, i % K + K * rng.integers(0, n // K, len(i)), rng.integers(0, n, len(i)))
        ends = np.concatenate([i, j]).astype(np.int32), np.concatenate([j, i]).astype(np.int32)
        return without_loops(csr_array(coo_array((np.ones(len(ends[0])), ends), shape=(n, n))))
    if kind == "neighbours":
        near = cKDTree(points := rng.random((n, 3)) * [1.0, 0.8, 0.6]).query(points, 17)[1][:, 1:]
        A = csr_array((np.ones(near.size), near.ravel(), np.arange(0, near.size + 1, 16)), shape=(n, n))
        return csr_array(A.maximum(A.T))
    images = np.arange(2 * n)[:, None]
    rank = ((n // K) ** rng.random((2 * n, 8))).astype(np.int64) - 1
    topic = np.where(rng.random(rank.shape) < 0.85, images % K, rng.integers(0, K, rank.shape))
    view = K * rank + topic
    view[:, :1] = images % n  # every view at least twice
    law = coo_array((np.full(view.size, 1 / 8), (np.repeat(images, 8), view.ravel())), shape=(2 * n, n))
    return csr_array(law)


def ours(given: Any) -> tuple[np.ndarray, float]:
    """Vectors, and the bytes that the products with the graph read and write."""
    moved, product, cycle = [0.0], solvers._product, solvers.Multigrid.__call__

    def counted(factors: tuple[csr_array, ...], dtype: torch.dtype) -> Callable:
        apply = product(factors, dtype)

        def counting(X: torch.Tensor) -> torch.Tensor:
            width = X.element_size()
            moved[0] += sum(A.nnz * (4 + width) + sum(A.shape) * X.shape[1] * width for A in factors)
            return apply(X)

        return counting

    def cycled(self: Any, R: torch.Tensor) -> torch.Tensor:
        A = self.levels[0].matrix  # four products on the finest level
        moved[0] += 4 * (8 * A._nnz() + 8 * R.numel())
        return cycle(self, R)

    solvers._product, solvers.Multigrid.__call__ = counted, cycled  # type: ignore[method-assign]
    square = given.shape[0] == given.shape[1]
    graph = PositivePairGraph.from_adjacency(given) if square else PositivePairGraph.from_augmentation(given)
    vectors = graph.eigenpairs(K, TOLERANCE).vectors.numpy()
    solvers._product, solvers.Multigrid.__call__ = product, cycle  # type: ignore[method-assign]
    return vectors, moved[0]


def theirs(who: str, A: csr_array) -> np.ndarray:
    """Orthonormal vectors of a peer; scikit-learn's are those of the graph without self-loops."""
    if who == "eigsh":
        return eigsh(normalized(A), K, which="LA", tol=TOLERANCE, v0=np.sqrt(A.sum(1)))[1]
    from sklearn.manifold import spectral_embedding

    seed = np.random.RandomState(0)
    found = spectral_embedding(
        A, n_components=K, eigen_solver=who, eigen_tol=TOLERANCE, drop_first=False, random_state=seed
    )
    return np.linalg.qr(found * np.sqrt(A.sum(1) - A.diagonal())[:, None])[0]


def normalized(A: csr_array) -> csr_array:
    """Compute D^(-1/2) A D^(-1/2)."""
    scale = diags_array(1 / np.sqrt(A.sum(1)))
    return csr_array(scale @ A @ scale)


def without_loops(A: csr_array) -> csr_array:
    """Leave the diagonal out."""
    A = csr_array(A - diags_array(A.diagonal()))
    A.eliminate_zeros()
    A.indices, A.indptr = (index.astype(np.int32) for index in (A.indices, A.indptr))  # scikit-learn takes no others
    return A


def worker(kind: str, n: int, who: str, folder: str) -> None:
    """Solve once in this process; say when it begins and ends, then print what was found."""
    compare = n < MILLION or os.environ.get("BENCH_FULL") != "ours"
    if who in PEERS:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    warnings.simplefilter("ignore")
    rest: Any = {}
    before = memory("VmRSS")
    for size in (20 * K, n):  # the first is to warm up
        given = weights(kind, size)
        matrix = csr_array(given.T @ given) if kind == "views" else given
        matrix.indices, matrix.indptr = (index.astype(np.int32) for index in (matrix.indices, matrix.indptr))
        if size == n:
            print("begin", flush=True)
        began = time.perf_counter()
        if who == "ours":
            vectors, rest["moved"] = ours(given)
        else:
            vectors = theirs(who, matrix)
        rest["seconds"] = time.perf_counter() - began
    print("end", flush=True)
    rest["gigabytes"] = memory("VmHWM") - before
    bare = without_loops(matrix) if who in PEERS[:3] else matrix
    image = normalized(bare) @ vectors
    rest["residual"] = float(np.linalg.norm(image - vectors @ (vectors.T @ image), 2))
    np.save(f"{folder}/{who}.npy", vectors)
    if who == "ours":
        other = matrix.diagonal().any() and compare  # scikit-learn's graph is another one: solve it too
        np.save(f"{folder}/bare.npy", ours(without_loops(matrix))[0] if other else vectors)
        rest["stored"] = given.nnz
    print(json.dumps(rest), flush=True)


def memory(what: str) -> float:
    """GB of this process, now (VmRSS) or at most until now (VmHWM), as Linux counts them; NaN elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith(f"{what}:")), float("nan"))


def run(kind: str, n: int, who: str, folder: str, limit: float | None = None) -> dict[str, float] | None:
    """Let a fresh process solve; None where it is stopped at `limit` seconds, empty where it fails by itself."""
    command = [sys.executable, "-m", "benchmarks.bench_eigenpairs", kind, str(n), who, folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # "begin"
        watch = Timer(limit, process.kill) if limit else None
        if watch:
            watch.start()
        process.stdout.readline()  # "end": the rest is not timed
        if watch:
            watch.cancel()
        answer = process.stdout.read()
    if process.returncode == 0:
        return json.loads(answer)
    return None if process.returncode == -signal.SIGKILL else {}


def angle(folder: str, who: str) -> float:
    """Sine of the largest angle between a peer's subspace and ours, of the graph that the peer solves."""
    mine, other = (np.load(f"{folder}/{name}.npy") for name in ("bare" if who in PEERS[:3] else "ours", who))
    return float(np.linalg.norm(other - mine @ (mine.T @ other), 2))


def compared(kind: str, n: int) -> tuple[Measurement, dict[str, float]]:
    """Ours and all peers on one graph."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(kind, n, "ours", folder) for _ in range(3 if n < MILLION else 1)]
        mine = [found for found in runs if found]
        if len(mine) < len(runs):
            raise RuntimeError(f"eigenpairs: ours failed on {kind}, {n:,} vertices")
        values = [found["seconds"] for found in mine]
        limit, said, done, stopped = LIMIT * sorted(values)[len(values) // 2], [], {}, []
        alone = n == MILLION and os.environ.get("BENCH_FULL") == "ours"
        for who in () if alone else PEERS:
            found = run(kind, n, who, folder, limit)
            if found is None:
                said.append(f"{who} not done in {limit:.3g} s")
                stopped.append(who)
                continue
            if not found:
                said.append(f"{who} failed within {ADDRESSES >> 30} GB of addresses")
                continue
            sine = angle(folder, who)
            said.append(f"{who} {found['seconds']:.3g} s, residual {found['residual']:.0e}, sine {sine:.0e}")
            if sine <= ANGLE:
                done[who] = found["seconds"]
    name = min((who for who in PEERS[:3] if who in done), key=lambda who: done[who], default="")
    bound = limit if any(who in PEERS[:3] for who in stopped) else None  # all failed: nothing to compare with
    best = done[name] if name else bound
    own = mine[-1]
    note = f"{KINDS[kind]}; {own['stored']:,.0f} weights; ours residual {own['residual']:.0e}; {'; '.join(said)}"
    row = summary(
        f"{kind}, {n:,} vertices",
        values,
        "s",
        note,
        ratio=best / statistics.median(values) if best else None,
        peer=f"scikit-learn's best ({name})" if name else "the limit (at least: none of scikit-learn's gave the same)",
        goal=(5.0, None) if best else (None, None),
        missed=MISSED[kind],
        floor=floor(bytes=own["moved"]),
        floor_says="bytes of the products, a block read once",
    )
    return row, {**own, "seconds": row.median}


MISSED = {
    "blocks": "products wait for rows far apart in memory; next: vertices in the order of their largest Ritz entries",
    "neighbours": "a random start is far from the answer; next: start from a coarse level's eigenvectors",
    "views": "products wait for rows far apart in memory; next: images in the order of their views' Ritz entries",
}
GROWTH = {
    "blocks": "a product takes more than twice as long a weight once a block no longer fits the caches",
    "neighbours": "gaps shrink with n: past 60,000 vertices multigrid has to take over from the filter",
    "views": "a product takes longer a weight once a block no longer fits the caches",
}


def slope(found: list[dict[str, float]], key: str) -> float:
    """Least-squares exponent against the number of stored weights."""
    x = np.log([entry["stored"] for entry in found])
    return float(np.polyfit(x, np.log([entry[key] for entry in found]), 1)[0])


def measure() -> list[Measurement]:
    """Every kind at every size; growth by least squares over the three sizes."""
    rows = []
    full = bool(os.environ.get("BENCH_FULL"))
    for kind in KINDS:
        pairs = [compared(kind, n) for n in SIZES + (MILLION,) * full]
        rows += [row for row, _ in pairs]
        for key, what in (("seconds", "time"), ("gigabytes", "memory")) if full else ():
            found = [entry for _, entry in pairs]
            note = ", ".join(f"{entry[key]:.3g}" for entry in found) + {"seconds": " s", "gigabytes": " GB"}[key]
            exponent = slope(found, key)
            why = f"{GROWTH[kind]}; {MISSED[kind].rpartition('; ')[2]}"
            rows.append(
                summary(
                    f"{kind}, exponent of {what} in the weights", [exponent], "1", note, goal=(None, 1.15), missed=why
                )
            )
    return rows


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
