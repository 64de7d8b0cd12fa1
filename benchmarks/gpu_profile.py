"""What the ``gpu`` profile has to do and what that should take: operations and bytes counted, no GPU asked.

Written to ``gpu_profile.json`` by ``python -m benchmarks.gpu_profile``; the book's page *Past one machine* shows it.
Networks, batches and numbers of updates are those of the recipes that the notebooks call. One update of each runs on
tensors without data (torch's fake tensors): every product and convolution, forward and backward, is counted, and every
tensor that is kept for the backward pass, at the real batch and in the real precision. Time is operations over a rate,
and a rate is either measured, where the record `masked` has one, or assumed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import torch

from benchmarks.counting import Step, of_images, of_sentences
from companion.lab import alignment_tables, contrast_tables, growth, pretrain
from companion.lab.data import ImageSet
from companion.lab.masked import tables

STORE = Path(__file__).with_suffix(".json")
#: Operations a second, assumed for convolutional networks: 3 % of what the data sheet of an H100 promises for dense
#: matrices in bfloat16, since small images in small networks, their views drawn on the same GPU, fill little of it.
ASSUMED = 3e13
#: Seconds of an update of 4,096 sentences under AdamW and its peak in GiB, measured on an H100 (benchmarks/RECORDS.md,
#: masked). All but the largest networks are assumed to be as slow, by operations, as the smallest.
MEASURED = {"9m": (0.0125, 1.0), "235m": (0.307, 12.3)}
#: Sentences at a time, for the two measured ones as measured.
MICRO = {"pcfg-adamw-9m": 4096, "hmm-adamw-9m": 4096, "pcfg-adversarial-235m": 512}  # 1,024 of all others
#: Images, channels and side of each set; ImageNet-100 as the usual choice of a hundred classes has it.
SETS = {
    "cifar10": (50_000, 32, "CIFAR-10"),
    "cifar100": (50_000, 32, "CIFAR-100"),
    "stl10": (105_000, 96, "STL-10"),
    "stl10-unlabeled": (100_000, 96, "STL-10"),
    "folder": (126_689, 224, "ImageNet-100"),
}
HEAD_EPOCHS = 100  # passes of `pretrain.linear_evaluation`, which computes the frozen features anew in each


@dataclass(frozen=True)
class Job:
    """A row of the page: networks of one kind.

    Attributes:
        chapter: number of the chapter.
        network: what is trained, and by which loss.
        data: name of the set, or of the language.
        networks: how many.
        updates: of all of them together.
        batch: positive pairs, or sentences, in an update.
        each: updates of one network; the most, where they differ.
        operations: of all updates together.
        besides: operations of looks on the way and of the linear evaluation.
        gib: memory of one network in training, with its set of images; a lower bound.
        hours: of all networks, one after the other.
        assumed: whether the rate behind the hours is assumed; else it is measured.
        command: for networks that train outside the notebook.
    """

    chapter: int
    network: str
    data: str
    networks: int
    updates: int
    batch: int
    each: int
    operations: float
    besides: float
    gib: float
    hours: float
    assumed: bool
    command: str = ""


def empty(name: str) -> ImageSet:
    """A set of images of the right size without any data."""
    n, side, _ = SETS[name]
    images = torch.empty(n, 3, side, side, dtype=torch.uint8, device="meta")
    classes = tuple(str(i) for i in range(100 if name in ("cifar100", "folder") else 10))
    return ImageSet(images, torch.empty(n, dtype=torch.int64, device="meta"), classes, name.removesuffix("-unlabeled"))


def job(chapter: int, what: str, data: str, step: Step, options: Any, updates: int, networks: int, looks: float) -> Job:
    """The row of networks of one kind; `looks` are views without gradient, of all of them together."""
    n, side, name = SETS[data]
    operations, besides = step.operations * updates, step.look * looks
    gib = (step.kept + step.state + 3 * n * side**2) / 2**30
    hours = (operations + besides) / ASSUMED / 3600
    each = options.steps
    return Job(
        chapter, what, name, networks, updates, options.batch_size, each, operations, besides, gib, hours, assumed=True
    )


def spectral() -> list[Job]:
    """Chapter 1: two losses, three lengths, two sets."""
    images, rows = empty("cifar10"), []
    for loss, name in (("spectral", "spectral"), ("info_nce", "InfoNCE")):
        recipes = [pretrain.authors(images, loss, epochs=epochs) for epochs in (200, 400, 800)]
        model = recipes[-1].encoder(torch.Generator().manual_seed(0))
        step = of_images(model, model, recipes[-1].objective, recipes[-1].options, 32)
        for data in ("cifar10", "cifar100"):
            updates, looks = sum(r.options.steps for r in recipes), 3 * HEAD_EPOCHS * len(images)
            rows.append(job(1, f"ResNet-18, {name}", data, step, recipes[-1].options, updates, 3, looks))
    return rows


def stepwise() -> list[Job]:
    """Chapter 2: three losses from four starts for ResNet-18, from two for ResNet-50, a look every twenty updates."""
    images, rows = empty("stl10-unlabeled"), []
    for depth, scales in ((18, 4), (50, 2)):
        recipes = [growth.resnet(loss, depth=depth, n=len(images)) for loss in growth.LOSSES]
        options, steps = recipes[0].options, []
        for recipe in recipes:
            model = recipe.encoder(torch.Generator().manual_seed(0))
            steps.append(of_images(model, model, growth.LOSSES[recipe.loss], options, 96))
        mean = {key: sum(getattr(s, key) for s in steps) / 3 for key in asdict(steps[0])}
        networks = scales * len(recipes)
        looks = networks * (options.steps // 20 + 1) * 2000
        what = f"ResNet-{depth}, three losses"
        updates = networks * options.steps
        rows.append(job(2, what, "stl10-unlabeled", Step(**mean), options, updates, networks, looks))
    return rows


def alignment() -> list[Job]:
    """Chapter 3: the rows of seven tables, and three that collapse; what two lengths share is trained once."""
    tables_of = alignment_tables.table_rows(), alignment_tables.collapse_rows()
    plan, rows = [row for some in tables_of for row in alignment_tables.grouped(some)], []
    for name in ("stl10", "cifar10"):
        images, side, own = empty(name), SETS[name][1], [row for row in plan if row.images == name]
        epoch, longest = ceil(len(images) / 128), max(own, key=lambda row: row.epochs)
        epochs = {
            slow: sum(row.epochs - begun(row, own) for row in own if bool(row.momentum) == slow) for slow in (0, 1)
        }
        found = []
        for slow in epochs:  # with a slow target, a pass without gradient comes on top
            recipe = replace(longest, momentum=0.996 * slow).recipe(images)
            model = recipe.start(0)
            found.append(of_images(model, model.encoder, recipe.objective, recipe.options, side))
        share = sum(step.operations * epochs[slow] for slow, step in enumerate(found)) / sum(epochs.values())
        looks = sum(epochs.values()) * 1000 + len(own) * 13_000  # a thousand views an epoch; labelled images once
        step, options = replace(found[1], operations=share), longest.recipe(images).options
        rows.append(
            job(3, "ResNet-18 with a predictor", name, step, options, sum(epochs.values()) * epoch, len(own), looks)
        )
    return rows


def begun(row: alignment_tables.Row, rows: list[alignment_tables.Row]) -> int:
    """Epochs that a row takes over from a shorter one."""
    shorter = [n for n in alignment_tables.LENGTHS if n < row.epochs and replace(row, epochs=n) in rows]
    return max(shorter, default=0)


def message_passing() -> list[Job]:
    """Chapter 4: the cells of two tables, with or without attention, with one stage or several."""
    rows = []
    for (data, method), depth in product(product(("cifar10", "folder"), ("simclr", "simsiam")), (18, 50)):
        images, side = empty(data), SETS[data][1]
        both = [row for row in contrast_tables.table_rows().values() if row.images == data and row.depth == depth]
        own = [row for row in both if row.method.startswith(method)]
        largest = own[-1].recipe(images)  # with attention, with a memory
        model, options = largest.start(0, len(images)), largest.options
        plain = partial(own[0].recipe(images).objective, model)
        step = of_images(model, model.encoder, plain, options, side)
        sets = ("cifar10", "cifar100") if data == "cifar10" else ("folder",)
        looks = len(own) * (HEAD_EPOCHS * len(images) + 20 * 1000)
        label = {"simclr": "SimCLR, with and without attention", "simsiam": "SimSiam, one stage and two"}[method]
        for name in sets:
            what = f"ResNet-{depth}, {label}"
            rows.append(job(4, what, name, step, options, len(own) * options.steps, len(own), looks))
    return rows


def of_cell(name: str) -> tuple[Step, int]:
    """An update of a cell of chapter 6, and the sentences that are in memory at once."""
    micro = MICRO.get(name, 1024)
    return of_sentences(name, micro), micro


def flatness() -> list[Job]:
    """Chapter 6: each cell of the tables that is trained, a network of one seed."""
    rates = {size: of_cell(f"pcfg-adamw-{size}")[0].operations / seconds for size, (seconds, _) in MEASURED.items()}
    rows = []
    for name, cell in tables.cells().items():
        if cell.algorithm == "lookup":
            continue
        (step, micro), options = of_cell(name), cell.options
        operations = step.operations * options.steps
        rows.append(
            Job(
                chapter=6,
                network=f"transformer, {cell.size.upper()}, {cell.algorithm}",
                data={"pcfg": "grammar", "hmm": "Markov chain"}[cell.data],
                networks=1,
                updates=options.steps,
                batch=options.batch_size,
                each=options.steps,
                operations=operations,
                besides=0.0,
                gib=(step.kept + step.state) / 2**30,
                hours=operations / rates.get(cell.size, rates["9m"]) / 3600,
                assumed=cell.algorithm != "adamw" or cell.size not in rates,
                command=f"{name} --micro {micro}",
            )
        )
    return rows


def jobs() -> list[Job]:
    """All rows, by chapter; chapter 5 trains nothing at this scale."""
    return [*spectral(), *stepwise(), *alignment(), *message_passing(), *flatness()]


def document() -> dict[str, Any]:
    """What `gpu_profile.json` holds."""
    measured = {size: {"seconds": seconds, "gib": gib} for size, (seconds, gib) in MEASURED.items()}
    return {"assumed_rate": ASSUMED, "measured": measured, "jobs": [asdict(found) for found in jobs()]}


if __name__ == "__main__":
    STORE.write_text(json.dumps(document(), indent=1) + "\n", encoding="utf-8")
