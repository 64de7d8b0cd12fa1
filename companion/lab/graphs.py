r"""Positive-pair graphs whose vertices are real images, small enough to compute every quantity in a theorem."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from scipy.sparse import csr_array
from sklearn.cluster import MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from companion.lab.train import Pairs


def neighbour_law(points: Float[Tensor, "N d"], neighbours: int = 15) -> csr_array:
    r"""An augmentation law on a finite set of images: an image turns into itself or one of its nearest neighbours.

    $K_{\bar xx}\propto\exp(-\lVert\bar x-x\rVert^2/2\sigma^2)$ over the image itself and its nearest neighbours, with
    $\sigma$ the median distance to the fifth neighbour. Views are the images themselves, so $N=\bar N$.

    Args:
        points: one row an image.
        neighbours: how many besides the image itself, at least five.

    Returns:
        $K$, sparse, (N, N) float64, rows sum to one.

    Raises:
        ValueError: fewer than five neighbours, no more images than neighbours, or mostly copies of the same image.
    """
    n = len(points)
    if not 5 <= neighbours < n:
        raise ValueError(f"neighbour_law: expected 5 to {n - 1} neighbours for {n} images, got {neighbours}")
    search = NearestNeighbors(n_neighbors=neighbours + 1).fit(points.numpy())
    distance, index = search.kneighbors(points.numpy())
    distance = distance.astype(np.float64)
    if not (width := np.median(distance[:, 5])) > 0:
        raise ValueError("neighbour_law: half of the points have five copies of themselves; remove duplicates first")
    weight = np.exp(-(distance**2) / (2 * width**2))
    weight /= weight.sum(1, keepdims=True)
    row = np.repeat(np.arange(n), neighbours + 1)
    return csr_array((weight.ravel(), (row, index.ravel())), shape=(n, n))


def patch_words(
    images: UInt8[Tensor, "n 1 h w"], side: int, words: int, seed: int = 0
) -> tuple[Int64[Tensor, "n patches"], Float[Tensor, "words side side"]]:
    r"""Cut images into a grid of square patches and quantise them with k-means.

    Args:
        images: grey images whose sides are multiples of `side`.
        side: of a patch, in pixels.
        words: size of the codebook.
        seed: of k-means (scikit-learn's mini-batch version).

    Returns:
        The word of every patch, row by row of the grid; the words as pictures, float32 in [0, 1].

    Raises:
        ValueError: `side` does not divide the images' sides.
    """
    n, _, h, w = images.shape
    if h % side or w % side:
        raise ValueError(f"patch_words: expected a side that divides {h} and {w} pixels, got {side}")
    grid = images.float().div(255).unfold(2, side, side).unfold(3, side, side)
    patches = grid.reshape(n * (h // side) * (w // side), side * side).numpy()
    means: Any = MiniBatchKMeans(words, random_state=seed, batch_size=4096, n_init="auto", max_iter=5).fit(patches)
    word = torch.as_tensor(means.predict(patches), dtype=torch.int64).reshape(n, -1)
    return word, torch.from_numpy(means.cluster_centers_).reshape(words, side, side)


def bag_law(word: Int64[Tensor, "n patches"], words: int) -> Float[Tensor, "n words"]:
    """The augmentation law that shows one patch of an image, every patch with the same probability.

    Args:
        word: the word of every patch.
        words: size of the codebook.

    Returns:
        $K$, (n, words) float64: row $i$ is the histogram of image $i$.

    >>> bag_law(torch.tensor([[0, 0, 1, 2]]), 3).tolist()
    [[0.5, 0.25, 0.25]]
    """
    n, patches = word.shape
    K = torch.zeros(n, words, dtype=torch.float64)
    return K.scatter_add_(1, word, torch.full((n, patches), 1 / patches, dtype=torch.float64))


def law_pairs(
    K: csr_array | Float[Tensor, "Nbar N"], views: Float[Tensor, "N ..."], independent: bool = False
) -> Pairs:
    r"""Positive pairs of a finite augmentation law: a uniform image, and two independent draws from its row of $K$.

    Args:
        K: the law.
        views: what the encoder sees of each vertex.
        independent: draw the second view from another image, as a control: the pair then carries no information.

    Returns:
        The sampler that `companion.lab.train.fit` takes.
    """
    if isinstance(K, Tensor):
        index, weight = torch.arange(K.shape[1]).expand(len(K), -1), K
    else:  # rows of a sparse law, padded to the longest
        counts = np.diff(K.indptr)
        keep = np.arange(counts.max()) < counts[:, None]
        index, weight = (np.zeros(keep.shape, dtype) for dtype in (np.int64, np.float64))
        index[keep], weight[keep] = K.indices, K.data
        index, weight = torch.from_numpy(index), torch.from_numpy(weight)

    def sample(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        image = torch.randint(len(weight), (n,), generator=generator)
        chosen = torch.multinomial(weight[image], 2, replacement=True, generator=generator)
        x = index[image].gather(1, chosen)
        second = x[:, 1].roll(1) if independent else x[:, 1]
        return views[x[:, 0]], views[second]

    return sample
