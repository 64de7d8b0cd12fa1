"""What a run of `companion.lab.train` saves, and how a killed one goes on: on a CPU, to the very same numbers."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from companion.lab import distributed
from companion.lab.muon import Muon

if TYPE_CHECKING:
    from companion.lab.train import Observer, Options


@dataclass(frozen=True)
class Run:
    """What a checkpoint holds, and where it goes back to."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | Muon
    generator: torch.Generator
    losses: Tensor
    options: Options
    observe: Observer | None
    observe_every: int

    @torch.no_grad()
    def look(self, done: int) -> None:
        """Let the observer see the model after `done` updates."""
        if self.observe is not None:
            self.observe(done, self.model)

    def save(self, path: Path, done: int, seconds: float) -> None:
        """Write the whole state, atomically; of several workers, the first one does."""
        if distributed.rank():
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            "options": asdict(self.options),
            "observed": self.observe.state_dict() if isinstance(self.observe, _Remembers) else None,
            "observe_every": self.observe_every,
            "done": done,
            "seconds": seconds,
        }
        write(path, state)

    def resume(self, path: Path) -> tuple[int, float]:
        """Take up the state in `path`, if there is one; how many updates it has, and how many seconds they took."""
        state = torch.load(path, map_location=self.losses.device, weights_only=True) if path.exists() else None
        if not distributed.agree(state["done"] if state else 0, self.losses.device):
            raise ValueError(f"{path}: expected one checkpoint for all workers; put it where every machine can read it")
        if state is None:
            return 0, 0.0
        ours = asdict(self.options)
        # an option that is younger than the checkpoint had its present default
        theirs = asdict(type(self.options)()) | state["options"]
        if other := [name for name in ours if theirs[name] != ours[name]]:
            found = ", ".join(f"{name} {theirs[name]!r} there, {ours[name]!r} here" for name in other)
            raise ValueError(
                f"{path}: expected a checkpoint of this run, found other {', '.join(other)} ({found}); "
                "remove it or name another"
            )
        every = state.get("observe_every", self.observe_every)
        if self.observe is not None and every != self.observe_every:
            raise ValueError(
                f"{path}: expected a run observed every {self.observe_every} updates, found every {every}; "
                "take that number, or remove the checkpoint"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.losses.copy_(state["losses"])
        if isinstance(self.observe, _Remembers):
            if state["observed"] is None:
                raise ValueError(f"{path}: expected a checkpoint of an observed run, found none; remove it or rename")
            self.observe.load_state_dict(state["observed"])
        return state["done"], state["seconds"]


@runtime_checkable
class _Remembers(Protocol):
    """An observer whose memory belongs to the run."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def write(path: Path, state: dict[str, Any]) -> None:
    """Write what `torch.load` reads, whole or not at all.

    Args:
        path: the file; its folder is made if need be. What was there before stays until the new one is complete.
        state: tensors, numbers, texts, and lists and dictionaries of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)
