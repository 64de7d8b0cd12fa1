r"""How good the predictions of many transformers are, exactly.

The excess loss of a run is $\E_c\,\mathrm{KL}(p(\cdot\mid c)\Vert q_\theta(\cdot\mid c))$, on a fixed set of masked
sentences with known laws: no label enters, so two runs are compared sentence by sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from companion.lab.languages.floors import Estimate, entropies, mean
from companion.lab.languages.tokens import slices
from companion.lab.masked.architecture import Shape
from companion.lab.masked.sentences import Language, Length, masked, sentences, uniform_positions
from companion.lab.masked.transformer import Transformers

WORDS = 2**16  # words, over all runs, that go through the networks at once


@dataclass(frozen=True)
class Excess:
    """Excess loss of S runs on the sentences of one evaluation, or a difference of two such.

    Attributes:
        sentences: Kullback-Leibler divergence in each masked sentence, in nats, (S, n) float64.
    """

    sentences: Float[Tensor, "S n"]

    @property
    def value(self) -> Float[Tensor, " S"]:
        """Mean over sentences."""
        return self.sentences.mean(1)

    @property
    def stderr(self) -> Float[Tensor, " S"]:
        """Standard error of `value`, from the spread over sentences."""
        return self.sentences.std(1) / math.sqrt(self.sentences.shape[1])

    def minus(self, other: Excess) -> Excess:
        """Differences sentence by sentence, whose standard error leaves out what both find hard.

        Raises:
            ValueError: the two are not of the same number of runs and sentences.
        """
        if self.sentences.shape != other.sentences.shape:
            found = f"{tuple(self.sentences.shape)} and {tuple(other.sentences.shape)}"
            raise ValueError(f"Excess.minus: expected the same runs and sentences, found {found}")
        return Excess(self.sentences - other.sentences)

    def difference(self, first: int, second: int) -> Estimate:
        """Excess of one run less that of another."""
        return mean(self.sentences[first] - self.sentences[second])


@dataclass(frozen=True)
class Evaluation:
    """Masked sentences with the exact laws of the masked words.

    Attributes:
        tokens: sentences as a transformer reads them, (n, T) int64.
        at: the masked position of each, (n,) int64.
        truth: law of the masked word given the others, (n, V) float64.
    """

    tokens: Int64[Tensor, "n T"]
    at: Int64[Tensor, " n"]
    truth: Float[Tensor, "n V"]

    @classmethod
    def draw(
        cls, language: Language, shape: Shape, n: int, generator: torch.Generator, *, length: Length = None
    ) -> Evaluation:
        """Draw n sentences, mask a uniformly drawn word in each; arguments as for `sentences.sentences`."""
        tokens, lengths = sentences(language, shape, n, generator, length)
        at = uniform_positions(lengths, generator)
        truth = [
            language.conditionals(tokens[rows], lengths[rows])[torch.arange(len(at[rows]), device=at.device), at[rows]]
            for rows in slices(n, 4096)
        ]
        return cls(masked(tokens, at, shape), at, torch.cat(truth))

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.at)

    @property
    def floor(self) -> float:
        """Mean entropy of the masked word, in nats: the least loss on these sentences."""
        return float(entropies(self.truth).mean())

    def to(self, device: torch.device | str) -> Evaluation:
        """The same on another device."""
        return Evaluation(self.tokens.to(device), self.at.to(device), self.truth.to(device))

    def first(self, n: int) -> Evaluation:
        """The first n sentences.

        Raises:
            ValueError: there are not as many, or n is below two.
        """
        if not 2 <= n <= len(self):
            raise ValueError(f"Evaluation.first: expected 2 to {len(self)} sentences, found {n}; draw more")
        return Evaluation(self.tokens[:n], self.at[:n], self.truth[:n])

    @torch.no_grad()
    def log_predictions(self, model: Transformers) -> Float[Tensor, "S n V"]:
        r"""Return $\log q_\theta(v\mid c)$, normalised in float64.

        Raises:
            ValueError: the model is in training mode, or its vocabulary is another.
        """
        ready(model, self, "Evaluation")
        size = max(1, WORDS // (model.runs * self.tokens.shape[1]))
        return torch.cat(
            [model(self.tokens[rows], self.at[rows]).double().log_softmax(-1) for rows in slices(len(self), size)], 1
        )

    def compare(self, model: Transformers) -> Excess:
        """Excess loss of every run in every sentence."""
        log_q = self.log_predictions(model)
        return Excess((torch.special.xlogy(self.truth, self.truth) - self.truth * log_q).sum(-1))

    def excess(self, model: Transformers) -> Float[Tensor, " S"]:
        """Excess loss of every run, (S,) float64."""
        return self.compare(model).value


class Watch:
    """An observer for the training loop: measures the runs now and then; checkpoints hold what it has seen.

    Args:
        measures: by name, from a model in evaluation mode to a tensor, the same shape each time.

    Examples:
        >>> watch = Watch(norm=lambda model: model.tokens.detach().square().sum((1, 2)))
        >>> watch(0, Transformers(Shape(3, 2, width=4), 2, torch.Generator().manual_seed(0)))
        >>> watch.steps, watch.seen("norm").shape
        ([0], torch.Size([1, 2]))
    """

    def __init__(self, **measures: Callable[[Transformers], Tensor]) -> None:
        self.measures, self.steps = measures, []
        self.values: dict[str, list[Tensor]] = {name: [] for name in measures}

    def __call__(self, done: int, model: nn.Module) -> None:
        """Measure, and put the model back into its mode."""
        assert isinstance(model, Transformers)
        training = model.training
        model.eval()
        self.steps.append(done)
        for name, measure in self.measures.items():
            with torch.enable_grad():
                self.values[name].append(measure(model).detach().cpu())
        model.train(training)

    def seen(self, name: str) -> Tensor:
        """All values of one measure, (looks, ...)."""
        return torch.stack(self.values[name])

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"steps": list(self.steps), "values": {name: list(values) for name, values in self.values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up again."""
        self.steps = list(state["steps"])
        self.values = {name: [value.cpu() for value in values] for name, values in state["values"].items()}


def ready(model: Transformers, evaluation: Evaluation, name: str) -> None:
    """Refuse a model in training mode, or sentences of another language."""
    if model.training:
        raise ValueError(f"{name}: the model is in training mode; call .eval() first")
    if evaluation.truth.shape[1] != model.shape.vocabulary:
        found = f"{evaluation.truth.shape[1]} words and {model.shape.vocabulary}"
        raise ValueError(f"{name}: expected sentences and model of one vocabulary, found {found}")
