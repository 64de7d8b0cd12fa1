"""The leading eigenpairs of a sparse positive-pair graph: ours against scikit-learn's spectral embedding."""

import numpy as np
import torch
from sklearn.manifold import spectral_embedding

from benchmarks.measure import Measurement, seconds, summary
from companion.theory.graph import PositivePairGraph

BLOCKS, SIZE, PAIRS, K = 10, 200, 60, 10


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Positive pairs of a sparse 10-block graph: most inside a block, one in twenty anywhere."""
    generator = torch.Generator().manual_seed(0)
    n = BLOCKS * SIZE
    i = torch.arange(n).repeat_interleave(PAIRS)
    inside = i // SIZE * SIZE + torch.randint(SIZE, (len(i),), generator=generator)
    anywhere = torch.randint(n, (len(i),), generator=generator)
    return i, torch.where(torch.rand(len(i), generator=generator) < 0.05, anywhere, inside)


def measure() -> list[Measurement]:
    """Same graph, same number of eigenpairs; the graph is built anew each time, as eigenpairs are remembered."""
    i, j = pairs()
    n = BLOCKS * SIZE
    adjacency = PositivePairGraph.from_pairs(i, j, n).adjacency

    def ours() -> object:
        return PositivePairGraph.from_adjacency(adjacency).eigenpairs(K)

    narrow = adjacency.copy()  # scikit-learn takes 32-bit indices only
    narrow.indices, narrow.indptr = (index.astype(np.int32) for index in (adjacency.indices, adjacency.indptr))

    def theirs() -> object:
        return spectral_embedding(narrow, n_components=K, drop_first=False, random_state=np.random.RandomState(0))

    note = f"{n:,} vertices, {adjacency.nnz:,} weights, k = {K}"
    return [
        summary("PositivePairGraph.eigenpairs", seconds(ours, n=7), "s", note),
        summary("sklearn.manifold.spectral_embedding", seconds(theirs, n=3), "s", "its default solver"),
    ]
