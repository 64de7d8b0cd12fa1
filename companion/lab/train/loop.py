"""The loop of all training: one process or torchrun, CPU or GPU; killed and resumed on a CPU, the same numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypedDict, Unpack, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from companion.lab import checkpoints, distributed, optimizers, precision
from companion.lab.train.options import History, Options
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


class Keywords(TypedDict, total=False):
    """The keywords of `descend`, which `fit` passes on."""

    what: str
    checkpoint: str | Path | None
    observe: Observer | None
    observe_every: int
    device: torch.device | str | None


def fit(model: nn.Module, sample_pairs: Pairs, loss: Loss, options: Options, **keywords: Unpack[Keywords]) -> History:
    """Train `model` in place on positive pairs, and leave it in evaluation mode.

    Both views of a batch go through the model together, so batch norm takes its moments over the 2n views. Under
    torchrun (after `distributed.start`) every worker draws the same batch and embeds its own rows; given a loss that is
    written with `distributed.sum_over_workers` or `distributed.gather`, the result is that of one process.

    Args:
        model: from a batch of views to (n, k) embeddings.
        sample_pairs: (batch size, generator) to two batches of views (x, x+).
        loss: (z, z+) to a scalar.
        options: the configuration.
        keywords: what, checkpoint, observe, observe_every and device, as for `descend`, which also says what it raises.

    Returns:
        The history.
    """
    device = torch.device(keywords.get("device") or next(model.parameters()).device)
    options = replace(options, bf16=options.bf16 and precision.bfloat16_is_fast(device))
    layout = torch.channels_last if options.channels_last else torch.preserve_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    cast = precision.autocast(device, options.bf16)
    rows = distributed.own_rows(options.batch_size)

    def objective(generator: torch.Generator) -> Tensor:
        x1, x2 = sample_pairs(options.batch_size, generator)
        x = torch.cat([x1[rows], x2[rows]]).to(memory_format=layout if x1.ndim == 4 else torch.preserve_format)
        with cast:
            z = model(x)
        return loss(*(z.float() if options.bf16 else z).chunk(2))

    return descend(model, objective, options, **keywords)


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
        ValueError: the checkpoint belongs to a run with other options, to one that was not observed or that was
            observed at other times, or not all workers find it; observe_every is not positive.
        FloatingPointError: the loss is not finite.
        distributed.WorkerLostError: another worker has ended.
    """
    if observe_every < 1:
        raise ValueError(f"observe_every: expected at least 1, found {observe_every}")
    device = torch.device(device or next(model.parameters()).device)
    distributed.with_global_batch_norm(model.to(device)).train()
    optimizer = optimizers.build(model, options)
    follow = model.after_update if isinstance(model, Follows) else None
    generator = torch.Generator(device).manual_seed(options.seed)
    losses = torch.zeros(options.steps, dtype=torch.float64, device=device)
    path = Path(checkpoint) if checkpoint is not None else None
    run = checkpoints.Run(model, optimizer, generator, losses, options, observe, observe_every)
    first, before = run.resume(path) if path else (0, 0.0)
    began, shown = time.perf_counter(), ""
    if first == 0:
        run.look(0)

    updates = range(first, options.steps)
    for step in updates if distributed.rank() else track(updates, what, note=lambda: shown):  # noqa: B023 - the newest
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
        x1, x2 = augment(images.index_select(0, index).repeat(2, 1, 1, 1), generator).chunk(2)
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
