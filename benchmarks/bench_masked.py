"""An update of masked-word training: many small transformers in one stack, and, on a GPU, those of the paper's size."""

import time
from collections.abc import Callable

import torch

from benchmarks.measure import Measurement, paired, summary, versus
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.masked import tables, training
from companion.lab.masked.architecture import Shape
from companion.lab.masked.transformer import Transformers

RUNS, BATCH, UPDATES = 6, 32, 20


def small(runs: int) -> Callable[[], None]:
    """Updates of `runs` small transformers in one stack."""
    chain = HiddenMarkov.random(4, 6, torch.Generator().manual_seed(0), transition=0.3, emission=0.4)
    model = Transformers(Shape(6, 6), runs, torch.Generator().manual_seed(0)).train()
    lower, generator = training.objective(model, chain, BATCH), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def updates() -> None:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            lower(generator).backward()
            optimizer.step()

    return updates


def large(name: str, micro: int, n: int = 4) -> tuple[list[float], float]:
    """Seconds of an update of a cell of the paper's size on the GPU, and its peak of memory in GiB."""
    cell, device = tables.cells()[name], torch.device("cuda")
    model = Transformers(cell.network, 1, torch.Generator().manual_seed(0)).to(device).train()
    lower = training.objective(model, cell.language().to(device), 4096, micro=micro, bf16=True)
    generator = torch.Generator(device).manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    torch.cuda.reset_peak_memory_stats()
    values = []
    for _ in range(n + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        optimizer.zero_grad()
        lower(generator).backward()
        optimizer.step()
        torch.cuda.synchronize()
        values.append(time.perf_counter() - began)
    return values[1:], torch.cuda.max_memory_allocated() / 2**30


def measure() -> list[Measurement]:
    """Six small transformers together and one by one; cells of the paper's size where there is a GPU."""
    found = paired({"stack": small(RUNS), "one": small(1)}, 7)
    together, alone = ([1e3 * x * runs / UPDATES for x in found[name]] for name, runs in (("stack", 1), ("one", RUNS)))
    what, ratio = f"batch {BATCH}, six words, width 32, two layers", versus(together, alone)
    rows = [
        summary(f"{RUNS} transformers in one stack", together, "ms", what, ratio=ratio, peer="one by one"),
        summary(f"{RUNS} times one transformer", alone, "ms", what),
    ]
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        for name, micro in (("pcfg-adamw-9m", 4096), ("pcfg-adamw-235m", 512), ("pcfg-adamw-235m", 1024)):
            times, gib = large(name, micro)
            words = 6 * tables.cells()[name].network.parameters * 4096 * tables.LENGTH
            rate = words / sorted(times)[len(times) // 2] / 1e12
            note = f"{gpu}; {micro} at a time, {gib:.1f} GiB, {rate:.0f} TFLOP/s of 6 operations a parameter and place"
            rows.append(summary(f"{name}, batch of 4,096", times, "s", note))
    return rows
