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
            "done": done,
            "seconds": seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        with unfinished.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)

    def resume(self, path: Path) -> tuple[int, float]:
        """Take up the state in `path`, if there is one; how many updates it has, and how many seconds they took."""
        if not path.exists():
            return 0, 0.0
        state = torch.load(path, map_location=self.losses.device, weights_only=True)
        options = asdict(self.options)
        if state["options"] != options:
            other = [name for name, value in options.items() if state["options"].get(name) != value]
            raise ValueError(
                f"{path}: expected a checkpoint of this run, found other {', '.join(other)}; remove it or rename"
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
