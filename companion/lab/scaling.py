r"""What N workers exchange in a step of training, and how long a step should take them: a model to compare runs with.

One step of one process takes $v+c$: v for the views, which every worker makes of the whole batch, c for the network,
whose rows the workers share. With b bytes in m all-reduces a step, a bandwidth of B bytes and a latency of
$\ell$ seconds a hop, N workers take

$$T(N) = v + \frac cN + 2\,\frac{N-1}N\,\frac bB + 2(N-1)\,\ell\,m ,$$

the cost of a ring, in which each worker passes on $2(N-1)$ pieces of $1/N$ of the data. It is the least that any
all-reduce moves; gloo and nccl may take other ways for small messages and on several machines (trees, halving:
$2\log_2N$ hops), with which latency grows more slowly. Overlap of the exchange with the backward pass, which this
package does not do, is not in the model.

b does not depend on the batch: the moments of the loss, $d\times d$ of each view (`losses.spectral_contrastive`), and
their gradient; mean and variance a channel of each batch norm, those of all N workers side by side, and two sums a
channel on the way back; and the gradient of each parameter. (InfoNCE gathers its rows: its message grows with the
batch.) Measured beside the model: `benchmarks/RECORDS.md`, workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Exchange:
    """What goes through the all-reduce in one step.

    Attributes:
        bytes: b, summed over all calls, on one worker.
        calls: m, the number of all-reduces.
    """

    bytes: int
    calls: int


def exchange(model: nn.Module, moments: int, workers: int = 2, *, size: int = 4) -> Exchange:
    """What one step of training `model` exchanges.

    Args:
        model: whose batch norms and parameters count; each batch norm is passed once a step.
        moments: numbers in the message of the loss, $2d^2+3$ for the spectral loss; 0 for a loss without.
        workers: N, whose moments a batch norm lays side by side.
        size: bytes of a number.

    Returns:
        Bytes and calls.

    >>> exchange(nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2)), moments=2 * 2**2 + 3)
    Exchange(bytes=176, calls=5)
    """
    channels = [layer.num_features for layer in model.modules() if isinstance(layer, _BatchNorm)]
    gradients = sum(p.numel() for p in model.parameters() if p.requires_grad)
    numbers = 2 * moments + 2 * (workers + 1) * sum(channels) + gradients
    return Exchange(size * numbers, 2 * (moments > 0) + 2 * len(channels) + 1)


def step_seconds(
    workers: int, views: float, network: float, exchanged: Exchange, *, latency: float, bandwidth: float
) -> float:
    r"""$T(N)$, seconds of a step of N workers that share a batch.

    Args:
        workers: N.
        views: v, seconds one process takes to make the views of the whole batch.
        network: c, seconds one process takes for the rest of the step.
        exchanged: what goes through the all-reduce.
        latency: $\ell$, seconds a hop; half of what an all-reduce of a few bytes takes between two workers.
        bandwidth: B, bytes a second.

    Returns:
        Seconds.

    >>> step_seconds(1, 0.1, 0.8, Exchange(1000, 3), latency=1.0, bandwidth=1.0)
    0.9
    >>> step_seconds(2, 0.0, 0.8, Exchange(1000, 3), latency=0.01, bandwidth=1e4)
    0.56
    """
    wires = 2 * (workers - 1)
    return views + network / workers + wires / workers * exchanged.bytes / bandwidth + wires * latency * exchanged.calls
