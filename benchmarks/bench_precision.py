"""What bfloat16 costs in accuracy, and whether several seeds of a small network are cheaper in one batched pass."""

from __future__ import annotations

import contextlib
import copy
import io

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.bench_step import BATCH, LAW, SIZE, fashion, info_nce, small
from benchmarks.measure import Measurement, paired, summary, versus
from companion.lab import data, encoders, intervals, precision, probe, train

SEEDS = (0, 1, 2, 3)
STEPS = 200


def measure() -> list[Measurement]:
    """Accuracies are those of a ridge probe on Fashion-MNIST, which is left out where it cannot be had."""
    _, source = fashion()
    return [*([accuracy()] if source == "Fashion-MNIST" else []), seeds()]


def accuracy() -> Measurement:
    """Paired seeds: the same weights, images and views in both precisions."""
    images, test = data.load("fashion-mnist"), data.load("fashion-mnist", "test")
    known = images.subset(torch.arange(10_000))
    found: dict[bool, list[float]] = {True: [], False: []}
    for seed in SEEDS:
        for bf16 in found:
            model = encoders.small_cnn(generator=torch.Generator().manual_seed(seed))
            options = train.Options(STEPS, BATCH, bf16=bf16, channels_last=True, log_every=STEPS, seed=seed)
            with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
                train.fit(model, train.image_pairs(images.images, LAW), info_nce, options)
            h, h_test = (probe.extract(model.features, LAW.clean(part.images)) for part in (known, test))
            found[bf16].append(100 * probe.ridge(h, known.labels, h_test, test.labels))
    gap = intervals.paired_interval(found[True], found[False])
    mean = sum(found[False]) / len(SEEDS)
    used = "" if precision.bfloat16_is_fast("cpu") else "; this processor has no bfloat16, both ran in float32"
    return Measurement(
        "linear probe, bfloat16 minus float32",
        "points",
        gap.mean,
        gap.low,
        gap.high,
        gap.n,
        f"mean and 95 % interval over seeds; {STEPS} steps of the small CNN, float32 {mean:.2f} %{used}",
    )


def seeds() -> Measurement:
    """Forward and backward pass of four networks, their weights stacked, against one after the other."""
    networks = [plain(seed) for seed in SEEDS]
    stacked, _ = stack_module_state(networks)
    base = copy.deepcopy(networks[0]).to("meta")
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(len(SEEDS), 2 * BATCH, 1, SIZE, SIZE, generator=generator)
    apart = [x.contiguous(memory_format=torch.channels_last) for x in views]

    def embedded(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(base, weights, (x,))

    def together() -> None:
        z = vmap(embedded)(stacked, views)
        torch.stack([info_nce(*one.chunk(2)) for one in z]).sum().backward()
        for weight in stacked.values():
            weight.grad = None

    def in_turn() -> None:
        for network, x in zip(networks, apart, strict=True):
            info_nce(*network(x).chunk(2)).backward()
            network.zero_grad()

    found = paired({"together": together, "in turn": in_turn}, n=7)
    return summary(
        f"{len(SEEDS)} seeds of the small CNN in one pass",
        [1e3 * value for value in found["together"]],
        "ms",
        "vmap over stacked weights: grouped convolutions; without gain on a CPU, hence no such code in the package",
        ratio=versus(found["together"], found["in turn"]),
        peer="one after the other",
    )


def plain(seed: int) -> nn.Module:
    """The small network with batch norm that keeps no running moments, which vmap could not update."""
    network = small(seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network
