r"""Masked-word training of many transformers at once, on fresh sentences, in the one training loop.

In every update each run sees sentences of its own, in each of which one word, uniformly drawn, is masked. The target is
that word, or its exact law given the others: the same expected loss and gradient, without the noise of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from companion.lab import train
from companion.lab.masked.accumulate import in_parts
from companion.lab.masked.architecture import Shape, logits
from companion.lab.masked.sentences import Batch, Language, Length, Targets, hide, sentences
from companion.lab.masked.transformer import BERT, Transformers
from companion.theory.trace_estimates import Params


def cross_entropy(params: Params, shape: Shape, batch: Batch) -> Float[Tensor, " S"]:
    r"""Return each run's mean of $-\log q_\theta(v\mid c)$ under the targets, in float32 at least."""
    z = logits(params, shape, batch.tokens, batch.at)
    log_q = z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1)
    if batch.law is None:
        return -log_q.gather(2, batch.words[..., None]).mean((1, 2))
    return -(batch.law * log_q).sum(-1).mean(1)


def objective(
    model: Transformers,
    language: Language,
    batch_size: int,
    *,
    targets: Targets | Sequence[Targets] = "sampled",
    weights: Float[Tensor, " S"] | None = None,
    groups: int = 1,
    length: Length = None,
    micro: int | None = None,
    bf16: bool = False,
) -> train.Objective:
    """The sum over runs of the masked-word loss on fresh sentences, for `train.descend`.

    Args:
        model: the runs.
        language: on the device of the loop.
        batch_size: B, sentences of each run in an update.
        targets: "sampled", the masked word, or "exact", its law given the others; one for all or one a run.
        weights: factor of the loss of each run, which is a factor of its learning rate under SGD without decay; Adam
            does not see it, see `Paced`.
        groups: groups of runs that see the same sentences, run s of each group those of run s: for copies made by
            `transformer.repeat`, so that arms of an experiment differ by nothing else.
        length: of the sentences, see `sentences`.
        micro: sentences of each run that are in memory at once; None for all. Gradients are the same up to rounding.
        bf16: forward pass in bfloat16 autocast.

    Raises:
        ValueError: an unknown target, numbers that do not fit the runs, or a language that does not fit the shape.
    """
    wanted = one_each(targets, model, groups, batch_size, micro)
    if weights is not None and weights.shape != (model.runs,):
        raise ValueError(f"objective: expected one weight for each of {model.runs} runs, found {tuple(weights.shape)}")
    shape, device = model.shape, next(model.parameters()).device
    sentences(language, shape, 1, torch.Generator(language.device).manual_seed(0), length)  # does it fit?
    factors = None if weights is None else weights.to(device)

    def loss(generator: torch.Generator) -> Tensor:
        tokens, lengths = sentences(language, shape, model.runs // groups * batch_size, generator, length)
        batch = hide(language, shape, wanted, tokens, lengths, generator, groups)

        def part(rows: slice) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                values = cross_entropy(model.params(), shape, batch[rows])
            return (values if factors is None else factors * values).sum()

        return in_parts(part, batch_size, micro, list(model.parameters()))

    return loss


def one_each(
    targets: Targets | Sequence[Targets], model: Transformers, groups: int, batch_size: int, micro: int | None
) -> list[Targets]:
    """Return one target a run, or say what does not fit the runs."""
    wanted: list[Any] = [targets] * model.runs if isinstance(targets, str) else list(targets)
    if unknown := [target for target in wanted if target not in ("sampled", "exact")]:
        raise ValueError(f'objective: expected targets "sampled" or "exact", found {unknown[0]!r}')
    if len(wanted) != model.runs:
        raise ValueError(f"objective: expected one target for each of {model.runs} runs, found {len(wanted)}")
    if groups < 1 or model.runs % groups:
        raise ValueError(f"objective: expected a number of groups that divides {model.runs} runs, found {groups}")
    if min(batch_size, 1 if micro is None else micro) < 1:
        raise ValueError(f"objective: expected batch_size and micro of at least 1, found {batch_size} and {micro}")
    return wanted


class Paced(Transformers):
    r"""Transformers whose runs have learning rates of their own, under any optimiser that works entry by entry.

    After every update each run goes only the share $r_s$ of its way, $\theta\leftarrow\theta+r_s\,\Delta\theta$. For
    SGD with momentum, Adam and AdamW, decay included, that is the run with $r_s$ times the learning rate: their state
    holds gradients, not updates.
    """

    rates: Tensor

    @classmethod
    def at(cls, model: Transformers, rates: Float[Tensor, " S"]) -> Paced:
        """Return a copy of the model with a factor of the learning rate for each run.

        Raises:
            ValueError: there is not one finite factor from 0 on for each run.
        """
        rates = torch.as_tensor(rates, dtype=torch.float32)
        if rates.shape != (model.runs,) or not bool((rates.isfinite() & (rates >= 0)).all()):
            raise ValueError(f"Paced: expected a factor >= 0 for each of {model.runs} runs, found {rates.tolist()}")
        paced = cls.of(model.shape, model.params()).train(model.training)
        paced.register_buffer("rates", rates.to(paced.tokens))
        for number, p in enumerate(paced.parameters()):
            paced.register_buffer(f"before_{number}", p.detach().clone())
        return paced

    def after_update(self) -> None:
        """Called by the training loop."""
        for number, p in enumerate(self.parameters()):
            before = self.get_buffer(f"before_{number}")
            before.lerp_(p, self.rates.view(-1, *(1,) * (p.ndim - 1)))
            p.copy_(before)


def pretrain(
    shape: Shape,
    language: Language,
    options: train.Options,
    *,
    runs: int,
    generator: torch.Generator,
    embedding: float = BERT,
    gain: float = 1.0,
    init: Literal["bert", "wide"] = "bert",
    **keywords: Any,
) -> tuple[Transformers, train.History]:
    """Train new transformers; `runs` to `init` as for `Transformers`, all others as for `go_on`."""
    model = Transformers(shape, runs, generator, embedding=embedding, gain=gain, init=init)
    return go_on(model, language, options, **keywords)


def go_on(
    model: Transformers,
    language: Language,
    options: train.Options,
    *,
    targets: Targets | Sequence[Targets] = "sampled",
    groups: int = 1,
    length: Length = None,
    micro: int | None = None,
    rates: Float[Tensor, " S"] | None = None,
    device: torch.device | str | None = None,
    **loop: Any,
) -> tuple[Transformers, train.History]:
    """Train copies of the runs, and leave the model as it is.

    Args:
        model: where the runs start.
        language: what they read; it is moved to the device.
        options: of the loop; its batch_size is the number of sentences of each run in an update.
        targets, groups, length, micro: as for `objective`.
        rates: factor of the learning rate of each run, see `Paced`; None for the same rate.
        device: where to train; by default where the model is.
        loop: what, checkpoint, observe, observe_every, as for `train.descend`.

    Returns:
        The trained copies, in evaluation mode, and the history of the sum of their losses.

    Raises:
        ValueError: as `objective`, `Paced` and `train.descend`.
        FloatingPointError: the loss is not finite.
    """

    def build(copy: Transformers, moved: Language) -> train.Objective:
        return objective(
            copy,
            moved,
            options.batch_size,
            targets=targets,
            groups=groups,
            length=length,
            micro=micro,
            bf16=options.bf16,
        )

    return lower(model, language, build, options, rates=rates, device=device, **loop)


def lower(
    model: Transformers,
    language: Language,
    build: Callable[[Transformers, Language], train.Objective],
    options: train.Options,
    *,
    rates: Float[Tensor, " S"] | None = None,
    device: torch.device | str | None = None,
    **loop: Any,
) -> tuple[Transformers, train.History]:
    """Lower an objective of copies of the runs, and leave the model as it is; arguments and results as for `go_on`.

    Args:
        build: from the copies and the language, both on the device, to the objective.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    copy = Transformers.of(model.shape, model.params()) if rates is None else Paced.at(model, rates)
    copy.to(device)
    history = train.descend(copy, build(copy, language.to(device)), options, **loop)
    return (copy if rates is None else Transformers.of(copy.shape, copy.params()).eval()), history
