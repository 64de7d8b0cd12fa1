r"""Transformers that predict a masked word, many independent ones in one module.

Every parameter has a leading dimension of S runs, and no operation mixes runs: the gradient of the sum of their losses
holds the gradient of each. Updates that work entry by entry (SGD, Adam, AdamW) then train each run as it would be
trained alone. One run, without the leading dimension, goes through the same functions of `architecture`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from companion.lab.masked.architecture import Shape, features, logits
from companion.theory.flatness import tiling
from companion.theory.trace_estimates import Params

__all__ = ["Shape", "Transformers", "logits", "features", "repeat", "enlarge", "select"]

BERT = 0.02  # standard deviation of BERT's initial weights


class Transformers(nn.Module):
    """S independent transformers.

    Args:
        shape: their architecture.
        runs: S.
        generator: source of the initial weights, run after run: those of the first runs do not depend on S.
        embedding: standard deviation of the embeddings of words and positions.
        gain: matrices have this times 0.02 ("bert") or times one over the root of their fan-in ("wide").
        init: "bert" or "wide".

    Raises:
        ValueError: `init` is neither, or there are no runs.

    Examples:
        >>> model = Transformers(Shape(5, 4, width=8), 3, torch.Generator().manual_seed(0)).eval()
        >>> sentence = torch.tensor([[0, 1, model.shape.mask, 2]])
        >>> model(sentence, torch.tensor([2])).shape, model(sentence).shape
        (torch.Size([3, 1, 5]), torch.Size([3, 1, 4, 5]))
    """

    tokens: nn.Parameter

    def __init__(
        self,
        shape: Shape,
        runs: int,
        generator: torch.Generator,
        *,
        embedding: float = BERT,
        gain: float = 1.0,
        init: Literal["bert", "wide"] = "bert",
    ) -> None:
        super().__init__()
        if init not in ("bert", "wide"):
            raise ValueError(f'Transformers: expected init "bert" or "wide", found {init!r}')
        if runs < 1:
            raise ValueError(f"Transformers: expected at least one run, found {runs}")
        self.shape = shape
        started: Params = {}
        for name, size in shape.sizes.items():
            value = torch.ones if name.endswith("gain") else torch.zeros
            started[name] = value(runs, *size, device=generator.device)
        for run in range(runs):
            for name, size in shape.sizes.items():
                if len(size) == 2:
                    table = name in ("tokens", "positions")
                    spread = embedding if table else gain * (BERT if init == "bert" else size[0] ** -0.5)
                    started[name][run].normal_(0, spread, generator=generator)
        _register(self, started)

    @classmethod
    def of(cls, shape: Shape, params: Params) -> Self:
        """Return the module that has copies of these parameters; one run may come without the leading dimension."""
        if params["tokens"].ndim == 2:
            params = {name: p[None] for name, p in params.items()}
        runs = len(params["tokens"])
        found = {name: tuple(p.shape) for name, p in params.items()}
        if found != (expected := {name: (runs, *size) for name, size in shape.sizes.items()}):
            wrong = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
            name = wrong[0]
            raise ValueError(
                f'Transformers.of: expected "{name}" of shape {expected.get(name)}, found {found.get(name)}; '
                f"{len(wrong)} parameters do not fit the shape"
            )
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.shape = shape
        _register(made, {name: params[name].detach().clone() for name in shape.sizes})
        return made

    @property
    def runs(self) -> int:
        """S."""
        return len(self.tokens)

    def params(self) -> Params:
        """Return the parameters by name, with their leading dimension; not copied."""
        return dict(self.named_parameters())

    def state(self) -> Params:
        """Return a detached copy of `params`."""
        return {name: p.detach().clone() for name, p in self.params().items()}

    def run(self, s: int) -> Params:
        """Return a detached copy of the parameters of run s, without the leading dimension."""
        return {name: p[s].detach().clone() for name, p in self.params().items()}

    def forward(
        self, tokens: Int64[Tensor, "*S B T"], at: Int64[Tensor, "*S B"] | None = None
    ) -> Float[Tensor, "S B *T V"]:
        """Return the logits of the word at one position of each sentence, or at all.

        Args:
            tokens: sentences of every run, (S, B, T), or one batch for all runs, (B, T); int64, with `shape.mask` and
                `shape.pad`. Sentences may be shorter than `shape.length`.
            at: position in each sentence, (S, B) or (B,); the last block then costs a T-th. None for all positions.

        Returns:
            Shape (S, B, V), or (S, B, T, V) for all positions.

        Raises:
            ValueError: shapes do not fit, a token is unknown, or there is padding and the shape has not `padded`.
        """
        return logits(self.params(), self.shape, *self._checked(tokens, at))

    def features(
        self, tokens: Int64[Tensor, "*S B T"], at: Int64[Tensor, "*S B"] | None = None
    ) -> Float[Tensor, "S B *T d"]:
        """Return the last hidden vectors, after the final LayerNorm; arguments as for `forward`."""
        return features(self.params(), self.shape, *self._checked(tokens, at))

    def _checked(self, tokens: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Spread a common batch over the runs, and refuse what the tables do not hold."""
        shape = self.shape
        if tokens.ndim not in (2, 3) or (tokens.ndim == 3 and len(tokens) != self.runs):
            raise ValueError(
                f"Transformers: expected tokens (B, T) or ({self.runs}, B, T), found {tuple(tokens.shape)}"
            )
        if not 1 <= tokens.shape[-1] <= shape.length:
            raise ValueError(f"Transformers: expected 1 to {shape.length} words, found {tokens.shape[-1]}")
        tokens = tokens.expand(self.runs, *tokens.shape[-2:])
        low, high = (int(value) for value in tokens.aminmax())
        last = shape.pad if shape.padded else shape.mask
        if low < 0 or high > last:
            why = "the shape has no padding; build it with padded=True" if high == shape.pad else "it is no token"
            what = f"words 0 to {shape.vocabulary - 1}, {shape.mask} for the mask"
            what += f", {shape.pad} after the end" * shape.padded
            raise ValueError(f"Transformers: expected {what}, found {low if low < 0 else high}: {why}")
        if at is not None:
            if at.shape not in (tokens.shape[:2], tokens.shape[1:2]):
                raise ValueError(f"Transformers: expected positions {tuple(tokens.shape[:2])}, found {tuple(at.shape)}")
            if at.numel() and not 0 <= int(at.min()) <= int(at.max()) < tokens.shape[-1]:
                raise ValueError(f"Transformers: expected positions 0 to {tokens.shape[-1] - 1}, found others")
            at = at.expand(tokens.shape[:2])
        return tokens, at


def _register(module: Transformers, params: Params) -> None:
    """Make parameters of tensors; those of a block live in a dictionary, "blocks.0.qkv"."""
    shape, own = module.shape, {name: p for name, p in params.items() if "." not in name}
    for name in ("tokens", "positions"):
        module.register_parameter(name, nn.Parameter(own.pop(name)))
    blocks = []
    for layer in range(shape.layers):
        prefix = f"blocks.{layer}."
        blocks.append({k.removeprefix(prefix): nn.Parameter(p) for k, p in params.items() if k.startswith(prefix)})
    module.blocks = nn.ModuleList(nn.ParameterDict(block) for block in blocks)
    for name, p in own.items():
        module.register_parameter(name, nn.Parameter(p))


def repeat(model: Transformers, times: int) -> Transformers:
    """Return `times` copies of every run: run s of copy c is run c S + s, so that copies are groups of runs.

    Raises:
        ValueError: `times` is below one.
    """
    if times < 1:
        raise ValueError(f"repeat: expected at least one copy, found {times}")
    return _like(model, {name: torch.cat([p] * times) for name, p in model.params().items()})


def select(model: Transformers, runs: list[int] | slice) -> Transformers:
    """Return a model of some of the runs, copied."""
    return _like(model, {name: p[runs] for name, p in model.params().items()})


def enlarge(model: Transformers, times: int) -> Transformers:
    r"""Return transformers with `times` the width, heads and hidden units, that compute the same function.

    References:
        `thm-flat-tiling`; the rules are those of `Shape.tiling`.
    """
    shape = model.shape
    wide = replace(shape, width=times * shape.width, heads=times * shape.heads, hidden=times * shape.units)
    return _like(model, tiling.tile(model.params(), shape.tiling(), times), wide)


def _like(model: Transformers, params: Params, shape: Shape | None = None) -> Transformers:
    return Transformers.of(shape or model.shape, params).train(model.training)
