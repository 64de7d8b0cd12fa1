r"""The networks behind the tables of Liu et al. (2023), cell by cell: ``python -m companion.lab.masked.tables CELL``.

Known of the paper and its code: 16 layers of width 1024 with 16 heads are 235M parameters, pre-LN, GELU; AdamW
$10^{-3}$, warm-up .06, batch 4096, 30,000 updates, weight decay .01, $\beta=(.9,.98)$; SGD with warm-up .12 and then
constant $10^{-3}$; 50 non-terminals or 100 states, 200 words. Ours: the very grammar and chain, the chain's laws chosen
for a floor near the paper's 3.758, the grammar's floor, about 4.3, far from its 3.196; sentences of at most 16 words,
fresh ones in every update; cosine decay; no dropout; the smaller sizes' widths and layers; the adversary's strength,
task and head; ridge heads in place of trained ones, on a random projection of the features to 512 dimensions.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from companion.lab import train
from companion.lab.languages.grammars import levelled
from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.masked import adversary, measure, training, transfer
from companion.lab.masked.architecture import Shape
from companion.lab.masked.sentences import Language
from companion.lab.masked.tasks import Task
from companion.lab.masked.transformer import Transformers

LENGTH, WORDS = 16, 200
PIECES, POSITIONS = 30_522, 512  # of BERT's vocabulary and sentences, which the paper's sizes count

#: Width, layers and heads: BERT's family, with its tables of words and positions 9M, 41M, 67M and 235M parameters.
SIZES = {"9m": (256, 2, 4), "41m": (512, 8, 8), "67m": (768, 6, 12), "235m": (1024, 16, 16)}
#: Pre-training loss in nats, accuracies in percent with their uncertainty, trace: Tables 1 and 2, 235M, grammar.
PUBLISHED: dict[str, dict[str, tuple[float, float | None]]] = {
    "pcfg-adamw-235m": {
        "loss": (3.204, None), "A": (89.9, 0.3), "B": (49.2, 0.8), "C": (55.7, 0.6), "trace": (8.01, 0.73),
    },
    "pcfg-adversarial-235m": {
        "loss": (3.206, None), "A": (83.1, 0.6), "B": (42.3, 1.5), "C": (50.2, 1.0), "trace": (19.34, 0.92),
    },
    "pcfg-lookup": {"loss": (3.196, None), "A": (71.2, None), "B": (39.7, None)},
}  # fmt: skip
#: Figures: by size above 9M on the grammar, from the smallest to the largest; gains in points of accuracy.
FIGURES = {
    "trace by size": (19.8, 12.6),
    "B by size": (40.4, 50.5),
    "gain by size, pcfg": 6.9,
    "gain by size, hmm": 4.5,
    "gain by SGD, pcfg-sgd-235m, C": 1.6,
    "gain by SGD, hmm-sgd-67m, task-10": 4.0,
}
#: The paper's spans of 32, 16 and 8 words are here the whole sentence, its first half and its first quarter.
TASKS = {
    "pcfg": {"A": Task("spine", 0), "B": Task("spine", 1), "C": Task("spine", 2)},
    "hmm": {"task-6": Task("state", 5), "task-10": Task("state", 9)},
}
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Judged:
    """How a network is judged.

    Attributes:
        sentences: masked ones for the loss.
        traced: sentences for the trace.
        labels: numbers of labels of a head.
        test: sentences to count on.
        dimensions: of the random projection.
        penalty: of a head.
    """

    sentences: int = 20_000
    traced: int = 256
    labels: tuple[int, ...] = (1000, 100_000)
    test: int = 20_000
    dimensions: int = 512
    penalty: float = 1e-3


@dataclass(frozen=True)
class Cell:
    """One network of the tables.

    Attributes:
        data: "pcfg" or "hmm".
        algorithm: "adamw"; "adversarial", against task B or task-10; "sgd", which goes on where "adamw" has ended; or
            "lookup", the true conditional laws, which nobody trains.
        size: a key of `SIZES`; empty for "lookup".
        shape: another shape in place of that of the size, to try the way out.
        judged: how it is judged.
        options: of the loop.
    """

    data: str
    algorithm: str
    size: str = ""
    shape: Shape | None = None
    judged: Judged = field(default_factory=Judged)
    options: train.Options = field(default_factory=lambda: recipe("adamw"))

    @property
    def name(self) -> str:
        """For files: "pcfg-adamw-235m"."""
        return "-".join(part for part in (self.data, self.algorithm, self.size) if part)

    @property
    def network(self) -> Shape:
        """The shape that is trained."""
        if self.shape is not None:
            return self.shape
        width, layers, heads = SIZES[self.size or "9m"]
        return Shape(WORDS, LENGTH, width, layers, heads, padded=self.data == "pcfg")

    def language(self) -> Language:
        """The grammar or the chain, always the same."""
        generator = torch.Generator().manual_seed(0)
        if self.data == "pcfg":
            return levelled(generator, words=WORDS)
        return HiddenMarkov.random(100, WORDS, generator, transition=0.01, emission=0.06)


def recipe(algorithm: str, steps: int = 30_000, batch_size: int = 4096) -> train.Options:
    """The configuration of the paper; in bfloat16."""
    shared: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": 1e-3, "bf16": True}
    shared |= {"log_every": 50, "checkpoint_every": 1000}
    if algorithm == "sgd":
        plain = {"momentum": 0.0, "weight_decay": 0.0, "cosine": False}
        return train.Options(**shared, **plain, warmup_steps=round(0.12 * steps))
    adamw = {"optimizer": "adamw", "weight_decay": 0.01, "betas": (0.9, 0.98)}
    return train.Options(**shared, **adamw, warmup_steps=round(0.06 * steps))


def counted(shape: Shape) -> int:
    """Parameters as the paper's sizes count them: with BERT's tables, pooler and head."""
    bert = replace(shape, vocabulary=PIECES, length=POSITIONS)
    return bert.parameters - PIECES * shape.width + 2 * shape.width**2  # input and output share a table


def cells() -> dict[str, Cell]:
    """All cells, by their names."""
    found = [Cell("pcfg", "adamw", size) for size in SIZES]
    found += [Cell("pcfg", "adversarial", "235m"), Cell("pcfg", "sgd", "235m", options=recipe("sgd"))]
    found += [Cell("hmm", "adamw", "9m"), Cell("hmm", "adamw", "67m"), Cell("hmm", "adversarial", "67m")]
    found += [Cell("hmm", "sgd", "67m", options=recipe("sgd")), Cell("pcfg", "lookup"), Cell("hmm", "lookup")]
    return {cell.name: cell for cell in found}


def run(
    cell: Cell, *, device: torch.device | str, seed: int = 0, micro: int | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Train the network of a cell, from its checkpoint if there is one, judge it, and write ``<cell>-<seed>.json``.

    Args:
        cell: what to train.
        device: where.
        seed: of weights and sentences; languages are always the same.
        micro: sentences in memory at once, if not all of a batch.
        folder: of results and, below ``checkpoints``, of states; by default ``_build/gpu/masked``.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: the network that this one goes on from was not trained.
    """
    folder, device = folder or ROOT / "_build" / "gpu" / "masked", torch.device(device)
    language, shape = cell.language().to(device), cell.network
    generator = torch.Generator(device).manual_seed(2**31 + seed)
    evaluation = measure.Evaluation.draw(language, shape, cell.judged.sentences, generator)
    result: dict[str, Any] = {"cell": cell.name, "seed": seed, "floor": evaluation.floor}
    model = None
    if cell.algorithm == "lookup":
        result |= {"loss": evaluation.floor, "excess": 0.0}
    else:
        model, history, path = _trained(cell, language, device, seed, micro, folder)
        compared = evaluation.compare(model)
        trace = measure.traces(model, evaluation, sentences=cell.judged.traced, generator=generator)[0]
        every = max(1, len(history.losses) // 200)
        result |= {"excess": float(compared.value), "stderr": float(compared.stderr), "trace": asdict(trace)}
        result |= {"loss": evaluation.floor + result["excess"], "seconds": history.seconds, "checkpoint": str(path)}
        result |= {"steps": history.steps[::every].tolist(), "losses": history.losses[::every].tolist()}
        result |= {"shape": asdict(shape), "parameters": shape.parameters, "counted": counted(shape)}
    result["accuracy"] = {
        name: _accuracy(cell, task, language, model, generator) for name, task in TASKS[cell.data].items()
    }
    result |= {"options": asdict(cell.options), "judged": asdict(cell.judged), "published": PUBLISHED.get(cell.name)}
    result |= {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    return _written(folder / f"{cell.name}-{seed}.json", result)


def harvest(folder: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """All results in a folder, by cell, sorted by seed; empty where nothing has run.

    Args:
        folder: where to look; by default in ``_build/gpu/masked`` and, for cells and seeds that are not there, among
            those that come with the book, in ``results/gpu/masked``.
    """
    folders = [folder] if folder else [ROOT / "results" / "gpu" / "masked", ROOT / "_build" / "gpu" / "masked"]
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in (file for place in folders for file in sorted(place.glob("*.json"))):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["cell"], {})[result["seed"]] = result
    return {name: [results[seed] for seed in sorted(results)] for name, results in found.items()}


def checkpoint(cell: Cell, seed: int, folder: Path) -> Path:
    """Where a run keeps its state; its name has a hash of the configuration and of the code that trains."""
    digest = hashlib.sha256(repr((cell.network, cell.options)).encode())
    here = Path(__file__).parent
    for file in (*sorted(here.glob("*.py")), *sorted((here.parent / "languages").glob("*.py"))):
        if file.name != Path(__file__).name:
            digest.update(file.read_bytes())
    return folder / "checkpoints" / f"{cell.name}-{seed}-{digest.hexdigest()[:12]}.pt"


def _trained(
    cell: Cell, language: Language, device: torch.device, seed: int, micro: int | None, folder: Path
) -> tuple[Transformers, train.History, Path]:
    """The network of a cell in evaluation mode, its history and its checkpoint."""
    path = checkpoint(cell, seed, folder)
    model = Transformers(cell.network, 1, torch.Generator().manual_seed(seed))
    if cell.algorithm == "sgd":
        before = folder / f"{replace(cell, algorithm='adamw').name}-{seed}.json"
        state = Path(json.loads(before.read_text(encoding="utf-8"))["checkpoint"]) if before.is_file() else before
        if not state.is_file():
            raise FileNotFoundError(
                f"{cell.name} goes on from {before.stem}, found no {state}; run that cell first, with the same seed"
            )
        model.load_state_dict(torch.load(state, map_location="cpu", weights_only=True)["model"])
    loop: dict[str, Any] = {"what": cell.name, "checkpoint": path, "device": device, "micro": micro}
    options = replace(cell.options, seed=seed, bf16=cell.options.bf16 and device.type == "cuda")
    if cell.algorithm == "adversarial":
        task = list(TASKS[cell.data].values())[1]
        found = adversary.go_on(model, language, options, adversary.Adversary(task), **loop)
    else:
        found = training.go_on(model, language, options, **loop)
    return *found, path


def _accuracy(
    cell: Cell, task: Task, language: Language, model: Transformers | None, generator: torch.Generator
) -> dict[str, float]:
    """Accuracy of heads in percent, by their number of labels, and that of the best guess."""
    judged, length = cell.judged, cell.network.length if cell.data == "hmm" else None
    data = task.draw(language, max(judged.labels) + judged.test, length, generator)
    width = cell.network.length * (cell.network.width if model is not None else language.words)
    device = data.tokens.device
    projection = torch.randn(width, judged.dimensions, generator=generator, device=device) / judged.dimensions**0.5
    if model is not None:
        features = transfer.extract(model, data, projection=projection)
    else:
        features = transfer.lookup(language, data, projection=projection)
    draws = transfer.Draws.of(len(data), judged.labels, 1, generator, test=judged.test)
    found = transfer.few_shot(features, data, draws, penalty=judged.penalty)
    some = data.first(min(len(data), 2000))
    return {str(n): 100 * float(value) for n, value in found.items()} | {"best": 100 * task.bayes(language, some)}


def _written(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write a result whole or not at all; return it as it is read."""
    text = json.dumps(result, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)
    return json.loads(text)


if __name__ == "__main__":
    from companion.lab.masked.__main__ import main

    sys.exit(main())
