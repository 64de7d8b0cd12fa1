"""One step of contrastive training on Fashion-MNIST, from images to new weights: ours, lightly, torchvision, kornia."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import peers
from benchmarks.measure import Measurement, floor, flops, seconds, summary, versus
from companion.lab import augment, data, encoders, precision, train
from companion.theory import losses

BATCH = 256
TEMPERATURE = 0.5
LAW = augment.fashion()
SIZE = 28
Timed = Callable[[int], float]  # a number of steps in a row to the seconds of one of them
WITHOUT = "no workers"
MISSED = (
    "a step that made its views in no time would be {most:.2g} times as fast as this peer's, and most of ours is the "
    "network already (see the share); next, a cheaper network step: larger products and fewer, smaller norms"
)
SLOW = (
    "the views cost {views:.2g} ms of it, {noise:.2g} ms of that for normal numbers, which one core draws; "
    "next, draw the noise of the next batch while the network is busy"
)


@dataclass(frozen=True)
class Network:
    """A network, and how often its step is timed.

    Attributes:
        name: in the table.
        build: makes it, with the same weights each time.
        rounds: how often each step is timed, in turns.
        steps: in a row, in each round.
        warm: steps in a row before those, which empty what a loader has fetched in advance.
        least: goal, how many times a peer's images a second.
    """

    name: str
    build: Callable[[], nn.Module]
    rounds: int
    steps: int
    warm: int
    least: float


def small(seed: int = 0) -> nn.Module:
    """The network of `pretrain.small`."""
    return encoders.small_cnn(1, 128, 64, generator=torch.Generator().manual_seed(seed))


def deep() -> nn.Module:
    """ResNet-18 with a stem for small images, of one channel."""
    return encoders.resnet(18, 128, (512,), channels=1, generator=torch.Generator().manual_seed(0))


NETWORKS = (
    Network("small CNN", small, rounds=5, steps=10, warm=5, least=4.0),
    Network("ResNet-18, CIFAR stem", deep, rounds=2, steps=1, warm=0, least=1.8),
)


def measure() -> list[Measurement]:
    """Both networks; every peer has the same network, optimiser, batch, loss and distribution of views."""
    images, source = fashion()
    check(images[:2000])
    return [row for network in NETWORKS for row in of_network(network, images, source)]


def fashion() -> tuple[Tensor, str]:
    """The training images and where they come from."""
    try:
        return data.load("fashion-mnist").images, "Fashion-MNIST"
    except data.DataError:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (60000, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator), "random pixels"


def check(images: Tensor) -> None:
    """Refuse to go on unless all peers' views have the distribution of ours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = LAW(images, torch.Generator().manual_seed(0))
        one, other = peers.torchvision_view(LAW, SIZE), peers.lightly_view(LAW, SIZE)
        peers.check("torchvision", ours, torch.stack([one(image) for image in images]))
        peers.check("lightly", ours, torch.stack([other(peers.picture(image)) for image in images]))
        peers.check("kornia", ours, peers.kornia_views(LAW, SIZE, "resample")(images / 255))


def of_network(network: Network, images: Tensor, source: str) -> list[Measurement]:
    """Rows of one network."""
    fast = precision.bfloat16_is_fast("cpu")
    torchvision = peers.TwoViews(images, peers.torchvision_view(LAW, SIZE))
    pictures = peers.TwoViews(images, peers.lightly_view(LAW, SIZE), peers.picture)
    lightly = peers.quiet("lightly.data").LightlyDataset.from_torch_dataset(pictures)
    lightlys = peers.quiet("lightly.loss").NTXentLoss(TEMPERATURE)
    calls: dict[str, Timed] = {
        "ours": ours(network, images, bf16=fast),
        "resident": resident(network, bf16=fast),
        "ours, float32": ours(network, images, bf16=False),
        "resident, float32": resident(network, bf16=False),
        "kornia": kornia(network, images),
        "torchvision": loaded(network, torchvision, info_nce, workers=2, passes=1),
        "lightly": loaded(network, lightly, lightlys, workers=2, passes=2),
    }
    if network.steps > 1:  # else the views are little beside the network, and workers can only help
        calls[f"torchvision, {WITHOUT}"] = loaded(network, torchvision, info_nce, workers=0, passes=1)
        calls[f"lightly, {WITHOUT}"] = loaded(network, lightly, lightlys, workers=0, passes=2)
    found = {name: [] for name in calls}
    for turn in range(network.rounds + 1):
        for name, call in calls.items():
            value = call(network.steps)
            if turn > 0:
                found[name].append(value)
    return rows(network, found, source, fast)


def rows(network: Network, found: dict[str, list[float]], source: str, fast: bool) -> list[Measurement]:
    """What was found, with ratios, shares and floors."""
    views = torch.randn(2 * BATCH, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    model = network.build()
    work = flops(lambda: info_nce(*model(views).chunk(2)).backward())
    table = []
    for mine, dtype in {"ours": torch.bfloat16 if fast else torch.float32, "ours, float32": torch.float32}.items():
        own, alone = found[mine], found[mine.replace("ours", "resident")]
        said = str(dtype).removeprefix("torch.")
        what, limit = f"{network.name}, {said}", {"floor_says": f"{said} products"}
        least = 1e3 * floor(flops=work, dtype=dtype)
        for peer in ("lightly", "torchvision", "kornia"):
            name = min((key for key in found if key.startswith(peer)), key=lambda key: statistics.median(found[key]))
            speeds = f"{speed(own)} images/s; {name} {speed(found[name])}"
            goal = network.least if mine == "ours" else None
            missed = MISSED.format(most=versus(alone, found[name]))
            ratio = {"ratio": versus(own, found[name]), "peer": f"{peer}, float32", "goal": (goal, None)}
            times = [1e3 * value for value in own]
            step = f"{what}, a step of {BATCH} images"
            table.append(
                summary(step, times, "ms", f"{source}; {speeds}", **ratio, missed=missed, floor=least, **limit)
            )
        shares = [b / a for a, b in zip(own, alone, strict=True)]
        note = f"the network on resident tensors takes {1e3 * statistics.median(alone):.3g} ms"
        views_cost = 1e3 * (statistics.median(own) - statistics.median(alone))
        goal = (0.9, None) if mine == "ours" else (None, None)
        table.append(
            summary(
                f"{what}, forward and backward alone",
                shares,
                "of a step",
                note,
                goal=goal,
                missed=SLOW.format(views=views_cost, noise=noise()),
            )
        )
    return table


def speed(values: list[float]) -> str:
    """Images a second."""
    return f"{BATCH / statistics.median(values):,.0f}"


def noise() -> float:
    """Milliseconds that the normal numbers of a batch of views take."""
    generator, target = torch.Generator().manual_seed(0), torch.empty(2 * BATCH, 1, SIZE, SIZE)
    return 1e3 * statistics.median(seconds(lambda: target.normal_(generator=generator), n=9))


def info_nce(z1: Tensor, z2: Tensor) -> Tensor:
    """The loss of all but lightly, which brings its own: the same function."""
    return losses.info_nce(z1, z2, TEMPERATURE)


def ours(network: Network, images: Tensor, bf16: bool) -> Timed:
    """`train.fit` as the chapters call it."""
    model, pairs = network.build(), train.image_pairs(images, LAW)

    def timed(steps: int) -> float:
        options = train.Options(steps, BATCH, bf16=bf16, channels_last=True, log_every=steps)
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
            return train.fit(model, pairs, info_nce, options).seconds / steps

    return timed


def resident(network: Network, bf16: bool) -> Timed:
    """The same step on random tensors that are there already."""
    model = network.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = descent(model)
    views = torch.randn(2 * BATCH, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    views = views.contiguous(memory_format=torch.channels_last)

    def timed(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            with precision.autocast("cpu", bf16):
                z = model(views)
            update(optimizer, info_nce(*z.float().chunk(2)))
        return (time.perf_counter() - began) / steps

    return timed


def kornia(network: Network, images: Tensor) -> Timed:
    """Views of a batch at once, the data set in memory as ours; both views in one pass."""
    model, views = network.build(), peers.kornia_views(LAW, SIZE, "resample")
    optimizer, generator = descent(model), torch.Generator().manual_seed(0)

    def timed(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            index = torch.randint(len(images), (BATCH,), generator=generator)
            x = views(images[index].repeat(2, 1, 1, 1) / 255)
            update(optimizer, info_nce(*model(x).chunk(2)))
        return (time.perf_counter() - began) / steps

    return timed


def loaded(network: Network, dataset: Dataset, loss: train.Loss, *, workers: int, passes: int) -> Timed:
    """Views of one image at a time from torch's loader, the views in one pass or, as lightly's pages do, in two."""
    model = network.build()
    optimizer = descent(model)
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers)

    def timed(steps: int) -> float:
        batches = iter(loader)
        next(batches)  # the workers have started
        for step in range(network.warm + steps):
            if step == network.warm:
                began = time.perf_counter()
            x1, x2 = next(batches)[0]
            z = (model(x1), model(x2)) if passes == 2 else model(torch.cat([x1, x2])).chunk(2)
            update(optimizer, loss(*z))
        return (time.perf_counter() - began) / steps

    return timed


def descent(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all, with the settings of `train.Options`."""
    return torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward pass and new weights."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
