"""Training on two workers of one thread each against one: time of a step, what it exchanges, and a model of both."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.measure import Measurement, floor, flops, seconds, summary, versus
from companion import progress
from companion.lab import data, distributed, pretrain, scaling, train
from companion.lab.scaling import step_seconds

BATCH, STEPS, TURNS = 256, 8, 7
IMAGES = data.ImageSet(
    torch.randint(256, (2000, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.zeros(2000, dtype=torch.int64),
    ("none",),
    "fashion-mnist",
)
WHOLE = "every worker makes the views of the whole batch and keeps its own; next: draw for all, make one's own"


def fitted(batch: int, loss: str = "spectral", steps: int = STEPS, drawn: int | None = None) -> float:
    """Seconds of a step of chapter 1's recipe; with `drawn`, more pairs are drawn and augmented than are used."""
    recipe = pretrain.small(IMAGES, loss)
    options = replace(recipe.options, steps=steps, batch_size=batch, log_every=steps)
    model = recipe.encoder(torch.Generator().manual_seed(0))
    source = train.image_pairs(IMAGES.images, recipe.augmentation)

    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x1, x2 = source(drawn or n, generator)
        return x1[:n], x2[:n]

    return train.fit(model, sample, recipe.objective, options).seconds / steps


def as_one(call: Callable[[], float]) -> float:
    """What a process measures that has not joined the others."""
    with mock.patch.object(distributed, "workers", return_value=1):
        return call()


def with_norms_of_all(call: Callable[[], float]) -> float:
    """What a process measures that has not joined the others, but computes batch norms as if it had."""

    def replaced(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.__class__ = distributed.GlobalBatchNorm  # type: ignore[assignment]
        return model

    with mock.patch.object(distributed, "with_global_batch_norm", replaced):
        return as_one(call)


def in_all_reduces() -> float:
    """Seconds of a shared step that pass inside all-reduces, waiting for the other worker included."""
    spent, plain = [0.0], dist.all_reduce

    def timed(*given: object) -> object:
        began = time.perf_counter()
        done = plain(*given)
        spent[0] += time.perf_counter() - began
        return done

    with mock.patch.object(dist, "all_reduce", timed):
        fitted(BATCH)
    return spent[0] / STEPS


def counted(batch: int, loss: str) -> tuple[int, int]:
    """How many bytes go through the all-reduce in one step, and in how many calls."""
    sizes: list[int] = []
    plain = dist.all_reduce

    def noted(x: torch.Tensor, *rest: object) -> object:
        sizes.append(x.numel() * x.element_size())
        return plain(x, *rest)

    with mock.patch.object(dist, "all_reduce", noted):
        fitted(batch, loss, steps=1)
    return sum(sizes), len(sizes)


def sums(size: int, repeat: int) -> float:
    """Seconds of one all-reduce of so many bytes."""
    x = torch.zeros(size // 4)

    def several() -> None:
        for _ in range(repeat):
            dist.all_reduce(x)

    dist.barrier()
    return median(seconds(several, n=7, warm=2)) / repeat


def work() -> dict:
    """What one of two workers measures; worker 0's answer counts."""
    first = distributed.rank() == 0
    kinds: dict[str, Callable[[], float | None]] = {
        "alone": lambda: as_one(lambda: fitted(BATCH)) if first else None,  # the other one waits
        "apart": lambda: as_one(lambda: fitted(BATCH)),
        "share": lambda: as_one(lambda: fitted(BATCH // 2, drawn=BATCH)),
        "share, norms": lambda: with_norms_of_all(lambda: fitted(BATCH // 2, drawn=BATCH)),
        "strong": lambda: fitted(BATCH),
        "exchange": in_all_reduces,
        "weak": lambda: fitted(2 * BATCH),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(TURNS + 1):
        for name, call in kinds.items():
            dist.barrier()
            value = call()
            if turn and value is not None:
                times[name].append(value)
    found: dict = {"times": times, "latency": sums(4, 200), "large": sums(2**24, 3)}
    found["bytes"] = {f"{loss} {n}": counted(n, loss) for loss in ("spectral", "info_nce") for n in (BATCH, 2 * BATCH)}
    if first:
        recipe = pretrain.small(IMAGES)
        source = train.image_pairs(IMAGES.images, recipe.augmentation)
        generator = torch.Generator().manual_seed(0)
        found["views"] = median(seconds(lambda: source(BATCH, generator), n=20, warm=3))
        found["floor"] = floor(flops=flops(lambda: as_one(lambda: fitted(BATCH, steps=1))))
    dist.barrier()
    return found


def expected_exchange(workers: int = 2, k: int = 64) -> scaling.Exchange:
    """The model: moments and their gradient, batch norms there and back, and the parameters' gradients."""
    encoder = pretrain.small(IMAGES, k=k).encoder(torch.Generator().manual_seed(0))
    return scaling.exchange(encoder, 2 * k**2 + 3, workers)


def measure() -> list[Measurement]:
    """Small CNN on random images of Fashion-MNIST's shape, batch 256, one thread a worker, gloo."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", progress.VARIABLE: os.devnull}
        subprocess.run(
            [*torchrun, "-m", "benchmarks.bench_workers", str(out)], env=environment, check=True, timeout=170
        )
        found = json.loads(out.read_text())
    return [*_steps(found), *_exchanged(found), *_predicted(found)]


def _steps(found: dict) -> list[Measurement]:
    times = found["times"]
    alone, one = times["alone"], "one process of one thread"

    def row(what: str, name: str, pairs: int, **rest: object) -> Measurement:
        note = f"{2 * pairs / median(times[name]):.0f} views/s"
        share = versus(times[name], alone) * pairs / BATCH
        more = {} if name == "alone" else {"ratio": share, "peer": f"{one}, by views/s"}
        return summary(what, [1e3 * t for t in times[name]], "ms", note, **more, **rest)

    whole = {"floor": 1e3 * found["floor"], "floor_says": "products, one thread a worker"}
    half = whole | {"floor": 0.5e3 * found["floor"]}
    parts = {
        "a worker's share, norms of one process": ("share", "views of the batch, network on half of it; both at work"),
        "a worker's share, norms of all workers": ("share, norms", "the same, nothing exchanged"),
        "of a shared step, in all-reduces": ("exchange", "one after the other they take the latency below"),
    }
    return [
        row(f"step, {one}, batch 256", "alone", BATCH, **whole),
        row("step, two processes that exchange nothing, batch 256 each", "apart", 2 * BATCH, **whole),
        row("step, strong scaling: two workers, batch 256 together", "strong", BATCH, **half),
        row("step, weak scaling: two workers, batch 512 together", "weak", 2 * BATCH, **whole),
        *[summary(what, [1e3 * t for t in times[name]], "ms", note) for what, (name, note) in parts.items()],
    ]


def _exchanged(found: dict) -> list[Measurement]:
    rows, model = [], expected_exchange()
    for name, (size, calls) in found["bytes"].items():
        loss, batch = name.split()
        says = f"{calls} all-reduces; "
        says += (
            f"model: {model.bytes / 1e3:.1f} kB, {model.calls} all-reduces" if loss == "spectral" else "it gathers rows"
        )
        rows.append(summary(f"exchanged in a step, {loss}, batch {batch}", [size / 1e3], "kB", says))
    rate = 2**24 / (found["large"] - found["latency"]) / 1e9
    rows.append(summary("all-reduce of 4 bytes, two workers", [1e6 * found["latency"]], "µs", "latency, gloo"))
    rows.append(summary("all-reduce of 16 MB, two workers", [rate], "GB/s", "bandwidth, gloo over loopback"))
    return rows


def _predicted(found: dict) -> list[Measurement]:
    exchange, times = expected_exchange(), found["times"]
    alone, views = median(times["alone"]), found["views"]
    network = alone - views
    here = {"latency": found["latency"] / 2, "bandwidth": 2**24 / (found["large"] - found["latency"])}
    cluster = {"latency": 25e-6, "bandwidth": 1.25e9}
    two = step_seconds(2, views, network, exchange, **here)
    met = step_seconds(2, median(times["share"]), 0.0, exchange, **here)
    measured = 1e3 * median(times["strong"])
    rows = [
        Measurement("model: strong scaling, two workers", "ms", 1e3 * two, 1e3 * two, 1e3 * two, 0,
                    f"measured {measured:.1f}; views {1e3 * views:.1f} + network {1e3 * network:.1f} / 2 + exchange"),
        Measurement("model with both workers' cores busy", "ms", 1e3 * met, 1e3 * met, 1e3 * met, 0,
                    f"measured {measured:.1f}; a worker's share measured while the other works, + exchange"),
    ]  # fmt: skip
    for name, rates in {"rates of this machine": here, "10 Gbit/s, 25 µs a hop": cluster}.items():
        for kind, scale in (("strong", 1), ("weak", 8)):
            value = 1e3 * step_seconds(8, scale * views, scale * network, expected_exchange(8), **rates)
            speed = alone * 1e3 / value * scale
            says = f"a prediction, measured by nothing here: {speed:.2f} times one process's views/s; {WHOLE}"
            rows.append(Measurement(f"model: {kind} scaling, N = 8, {name}", "ms", value, value, value, 0, says))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.start("cpu")
    result = work()
    if distributed.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(result))
    distributed.leave()
