"""Labels that a language knows behind its words, and how often the best guess of them is right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.lab.languages.hmm import HiddenMarkov
from companion.lab.languages.tokens import MASKED
from companion.lab.masked.architecture import Shape
from companion.lab.masked.sentences import Language, Length, masked


@dataclass(frozen=True)
class Task:
    """What to read off a sentence.

    Attributes:
        kind: "state", the hidden state behind a word of a hidden Markov chain; "emitter", the symbol of a grammar that
            emits a word; "spine", a symbol on the left spine of the tree, from 0 for the top, over the first words.
        place: position of the word, or depth on the spine, from 0.
        view: "sentence", the features of all positions in a row; or "masked", those of the word's position where the
            word is masked, as in training. A spine has no word, and only the first view.
    """

    kind: Literal["state", "emitter", "spine"]
    place: int
    view: Literal["sentence", "masked"] = "sentence"

    def __post_init__(self) -> None:
        if self.kind not in ("state", "emitter", "spine") or self.view not in ("sentence", "masked") or self.place < 0:
            raise ValueError(
                f'Task: expected kind "state", "emitter" or "spine", place >= 0 and view "sentence" or "masked", '
                f"found {self.kind!r}, {self.place}, {self.view!r}"
            )
        if self.kind == "spine" and self.view == "masked":
            raise ValueError('Task: a symbol on the spine has no word to mask; take view="sentence"')

    def draw(self, language: Language, n: int, length: Length, generator: torch.Generator) -> Labelled:
        """Draw n sentences with their labels; a chain needs a `length`.

        Raises:
            ValueError: the language has no such labels, or sentences are too short for the place.
        """
        if isinstance(language, HiddenMarkov):
            self._only("state", language)
            if not isinstance(length, int):
                raise ValueError(f"Task.draw: a chain needs one length, found {length}")
            self._within(length)
            tokens, states = language.sample(n, length, generator)
            lengths = torch.full((n,), length, device=tokens.device)
            return Labelled(self, tokens, lengths, states[:, self.place], language.states)
        if self.kind == "spine":
            drawn = language.sample(n, generator, length=length, depth=self.place + 1)
            labels = drawn.spine[:, self.place]
        else:
            self._only("emitter", language)
            drawn = language.sample(n, generator, length=length)
            self._within(int(drawn.lengths.min()) if n else drawn.tokens.shape[1])
            labels = drawn.emitters[:, self.place]
        return Labelled(self, drawn.tokens, drawn.lengths, labels, language.symbols)

    def posteriors(self, language: Language, data: Labelled) -> Float[Tensor, "n K"]:
        """The law of the label given what a probe is shown, (n, K) float64."""
        tokens = data.tokens
        if self.view == "masked":
            tokens = tokens.clone()
            tokens[:, self.place] = MASKED
        if isinstance(language, HiddenMarkov):
            return language.posteriors(tokens, data.lengths)[:, self.place]
        if self.kind == "spine":
            return language.spine_posteriors(tokens, data.lengths, depth=self.place + 1)[:, self.place]
        return language.emitter_posteriors(tokens, data.lengths)[:, self.place]

    def bayes(self, language: Language, data: Labelled) -> float:
        """Accuracy of the best guess that can be made from what a probe is shown, on average over these sentences."""
        return float(self.posteriors(language, data).max(1).values.mean())

    def _only(self, kind: str, language: Language) -> None:
        if self.kind != kind:
            wanted = f'"{kind}"' + ' or "spine"' * (kind == "emitter")
            raise ValueError(f'Task: {type(language).__name__} has labels {wanted}, found "{self.kind}"')

    def _within(self, shortest: int) -> None:
        if self.place >= shortest:
            raise ValueError(f"Task: there are sentences of {shortest} words, place counts from 0, found {self.place}")


@dataclass(frozen=True)
class Labelled:
    """Sentences of a language with one label each.

    Attributes:
        task: what the labels are.
        tokens: (n, T) int64, with `PAD` after the end.
        lengths: (n,) int64.
        labels: (n,) int64.
        classes: K.
    """

    task: Task
    tokens: Int64[Tensor, "n T"]
    lengths: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    classes: int

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self.tokens)

    def first(self, n: int) -> Labelled:
        """The first n of them."""
        return replace(self, tokens=self.tokens[:n], lengths=self.lengths[:n], labels=self.labels[:n])

    def read(self, shape: Shape) -> tuple[Tensor, Tensor | None]:
        """What a transformer is shown: tokens and the masked position, or None."""
        at = torch.full_like(self.lengths, self.task.place) if self.task.view == "masked" else None
        return masked(self.tokens, at, shape), at
