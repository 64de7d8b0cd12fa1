"""One training loop for all: one process or torchrun, CPU or GPU; killed and resumed on a CPU, the same numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from companion.lab import checkpoints, distributed, optimizers
from companion.progress import track

Pairs = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[torch.Generator], Tensor]
Observer = Callable[[int, nn.Module], None]


@runtime_checkable
class Follows(Protocol):
    """A model that does something after each update."""

    def after_update(self) -> None:
        """Called without gradients, on every worker, before anybody looks."""


@dataclass(frozen=True)
class Options:
    """How to train; the whole configuration of a run.

    Attributes:
        steps: number of updates.
        batch_size: positive pairs in one update, over all workers together.
        lr: largest learning rate.
        optimizer: "sgd", "lars", "adam", "adamw" or "muon": Muon for weights, convolutions as matrices (out, in x
            height x width), and AdamW for biases and norms.
        momentum: of SGD and LARS and, as Nesterov's, of Muon.
        weight_decay: added to the gradient as weight_decay times the parameter; under "adamw" and "muon" decoupled,
            the parameter shrinks by rate times weight_decay.
        betas: shares of the past in the two running moments of "adam" and "adamw".
        adamw_lr: largest learning rate of AdamW under "muon"; it rises and falls as that of Muon, lr, does.
        warmup_steps: updates over which the rate rises linearly to lr.
        cosine: whether the rate then falls along half a cosine to 0; else it stays.
        milestones: updates at which the rate falls to a tenth.
        bf16: forward pass in bfloat16 autocast; loss and parameters stay in float32.
        channels_last: memory layout of images and convolutions.
        log_every: updates between two looks at the loss (a look waits for the device).
        checkpoint_every: updates between two checkpoints.
        seed: of the generator that draws the pairs.
    """

    steps: int = 600
    batch_size: int = 256
    lr: float = 0.06
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    adamw_lr: float = 1e-3
    warmup_steps: int = 0
    cosine: bool = True
    milestones: tuple[int, ...] = ()
    bf16: bool = False
    channels_last: bool = False
    log_every: int = 20
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a configuration that cannot be meant."""
        if self.optimizer not in optimizers.NAMES:
            raise ValueError(f"optimizer: expected one of {', '.join(optimizers.NAMES)}, found {self.optimizer!r}")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")

    def rate(self, step: int, largest: float | None = None) -> float:
        """Learning rate of update number `step` = 0, 1, ...; `largest` in place of lr, if given.

        >>> [Options(steps=4, lr=1.0, warmup_steps=2).rate(step) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        largest = self.lr if largest is None else largest
        if step < self.warmup_steps:
            return largest * (step + 1) / self.warmup_steps
        lr = largest * 0.1 ** sum(step >= milestone for milestone in self.milestones)
        if not self.cosine:
            return lr
        return lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / (self.steps - self.warmup_steps)))


@dataclass(frozen=True)
class History:
    """What a run leaves behind.

    Attributes:
        steps: (steps,) int64, 1, 2, ...
        losses: (steps,) float64, the loss of each batch before its update.
        seconds: wall time of the loop, over all its parts if it was resumed.
    """

    steps: Tensor
    losses: Tensor
    seconds: float


def fit(
    model: nn.Module,
    sample_pairs: Pairs,
    loss: Loss,
    options: Options,
    *,
    what: str = "training",
    checkpoint: str | Path | None = None,
    observe: Observer | None = None,
    observe_every: int = 20,
    device: torch.device | str | None = None,
) -> History:
    """Train `model` in place on positive pairs, and leave it in evaluation mode.

    Both views of a batch go through the model together, so batch norm takes its moments over the 2n views. Under
    torchrun (after `distributed.start`) every worker draws the same batch and embeds its own rows; given a loss that is
    written with `distributed.sum_over_workers` or `distributed.gather`, the result is that of one process.

    Args:
        model: from a batch of views to (n, k) embeddings.
        sample_pairs: (batch size, generator) to two batches of views (x, x+).
        loss: (z, z+) to a scalar.
        options: the configuration.
        what, checkpoint, observe, observe_every, device: as for `descend`, which also says what it raises.

    Returns:
        The history.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    layout = torch.channels_last if options.channels_last else torch.preserve_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    cast = torch.autocast(device.type, torch.bfloat16) if options.bf16 else nullcontext()
    rows = distributed.own_rows(options.batch_size)

    def objective(generator: torch.Generator) -> Tensor:
        x1, x2 = sample_pairs(options.batch_size, generator)
        x = torch.cat([x1[rows], x2[rows]]).to(memory_format=layout if x1.ndim == 4 else torch.preserve_format)
        with cast:
            z = model(x)
        return loss(*(z.float() if options.bf16 else z).chunk(2))

    return descend(
        model,
        objective,
        options,
        what=what,
        checkpoint=checkpoint,
        observe=observe,
        observe_every=observe_every,
        device=device,
    )


def descend(
    model: nn.Module,
    objective: Objective,
    options: Options,
    *,
    what: str = "training",
    checkpoint: str | Path | None = None,
    observe: Observer | None = None,
    observe_every: int = 20,
    device: torch.device | str | None = None,
) -> History:
    """The loop of all training: lower an objective of `model` in place, and leave the model in evaluation mode.

    A model may have `parameter_groups` (see `optimizers.build`) and `after_update`; its memory belongs into buffers.

    Args:
        model: what holds the parameters.
        objective: draws a batch from the run's generator, which is on the device, and returns its loss, a scalar.
        options: the configuration; batch_size, bf16 and channels_last are the objective's business.
        what: name of the run in the progress bar.
        checkpoint: file to save the state in and to continue from; on a CPU, a run that was killed continues to the
            very numbers of one that was not. One file a run: it holds the options, not the data, the loss or the code.
        observe: called with 0 and the model before the first update, and with the number of updates done after every
            `observe_every`-th and the last; without gradients, in the model's present mode, which it must restore if
            it changes it. If it has `state_dict` and `load_state_dict`, checkpoints hold what it has seen.
        observe_every: updates between two of its calls.
        device: where to train; by default where the model is.

    Returns:
        The history.

    Raises:
        ValueError: the checkpoint belongs to a run with other options, or to one that was not observed;
            observe_every is not positive.
        FloatingPointError: the loss is not finite.
    """
    if observe_every < 1:
        raise ValueError(f"observe_every: expected at least 1, found {observe_every}")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    distributed.with_global_batch_norm(model.to(device)).train()
    optimizer = optimizers.build(model, options)
    follow = model.after_update if isinstance(model, Follows) else None
    generator = torch.Generator(device).manual_seed(options.seed)
    losses = torch.zeros(options.steps, dtype=torch.float64, device=device)
    path = Path(checkpoint) if checkpoint is not None else None
    run = checkpoints.Run(model, optimizer, generator, losses, options, observe)
    first, before = run.resume(path) if path else (0, 0.0)
    began, shown = time.perf_counter(), ""
    if first == 0:
        run.look(0)

    for step in track(range(first, options.steps), what, note=lambda: shown):  # noqa: B023 - the newest text
        for group in optimizer.param_groups:
            group["lr"] = group["largest_lr"] if group.get("constant") else options.rate(step, group["largest_lr"])
        value = objective(generator)
        optimizer.zero_grad()
        value.backward()
        distributed.average_gradients(model)
        optimizer.step()
        if follow is not None:
            with torch.no_grad():
                follow()
        losses[step] = value.detach()
        done = step + 1
        save = path is not None and (done % options.checkpoint_every == 0 or done == options.steps)
        look = observe is not None and (done % observe_every == 0 or done == options.steps)
        if save or look or done % options.log_every == 0 or done == options.steps:
            shown = f"loss {_finite(losses[:done], what):.4f}"
        if look:
            run.look(done)
        if path and save:
            run.save(path, done, before + time.perf_counter() - began)

    model.eval()
    return History(torch.arange(1, options.steps + 1), losses.cpu(), before + time.perf_counter() - began)


def image_pairs(
    images: UInt8[Tensor, "N c h w"],
    augment: Callable[[Tensor, torch.Generator], Tensor],
) -> Pairs:
    """Positive pairs of a set of images: an image drawn uniformly, and two independent views of it.

    Images are drawn with replacement, as the population loss has it: two rows of a batch are independent.

    Args:
        images: the set, on the device on which to train.
        augment: (images, generator) to views, each image with its own draw.

    Returns:
        The sampler that `fit` takes.
    """

    def sample(n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        index = torch.randint(len(images), (n,), generator=generator, device=images.device)
        x1, x2 = augment(images[index].repeat(2, 1, 1, 1), generator).chunk(2)
        return x1, x2

    return sample


def _finite(losses: Tensor, what: str) -> float:
    bad = torch.nonzero(~torch.isfinite(losses))
    if len(bad):
        raise FloatingPointError(
            f"{what}: the loss of step {int(bad[0]) + 1} is {float(losses[bad[0]])}, expected a finite number. "
            "Try a smaller lr, more warmup_steps, or clip_to_ball on the embeddings."
        )
    return float(losses[-1])
