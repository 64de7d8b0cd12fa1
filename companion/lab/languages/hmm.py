r"""Hidden Markov chains: sentences of one length, and the exact law of a masked word given all the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.lab.languages.floors import Estimate, mean
from companion.lab.languages.tokens import (
    law,
    numpy_generator,
    on_device,
    pick,
    read_sentences,
    slices,
    table,
    uniforms,
)

CELLS = 2**22  # numbers in one intermediate array


@dataclass(frozen=True, eq=False)
class HiddenMarkov:
    r"""A chain of hidden states $z_1\to z_2\to\dots$ each of which emits one word $x_t$.

    $$\Pr(x,z)=\pi_{z_1}E_{z_1x_1}\prod_{t\ge2}P_{z_{t-1}z_t}E_{z_tx_t}.$$

    Attributes:
        initial: $\pi$, law of the first state, (H,) float64.
        transition: $P$, rows are laws, (H, H) float64.
        emission: $E$, rows are laws, (H, V) float64.

    Raises:
        ValueError: shapes that do not fit, or a law that does not sum to one.

    References:
        The companion's own; `prop-flat-conditionals`.

    Examples:
        >>> half, same = torch.tensor([0.5, 0.5]), torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> chain = HiddenMarkov(half, torch.eye(2), same)  # a coin of unknown side, thrown again and again
        >>> chain.conditionals(torch.tensor([[0, 0]]))[0, 0].tolist()  # (3/4)^2 + (1/4)^2 against 2 (3/4)(1/4)
        [0.625, 0.375]
    """

    initial: Float[Tensor, " H"]
    transition: Float[Tensor, "H H"]
    emission: Float[Tensor, "H V"]
    _moves: Tensor = field(init=False, repr=False)
    _words: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        H = len(self.initial)
        shapes = [tuple(x.shape) for x in (self.initial, self.transition, self.emission)]
        if not (H and shapes[0] == (H,) and shapes[1] == (H, H) and len(shapes[2]) == 2 and shapes[2][0] == H):
            raise ValueError(
                f"HiddenMarkov: expected initial (H,), transition (H, H), emission (H, V), "
                f"got {', '.join(map(str, shapes))}"
            )
        for name in ("initial", "transition", "emission"):
            object.__setattr__(self, name, law(getattr(self, name), f"HiddenMarkov: {name}"))
        # row H of the moves is the law of the first state
        object.__setattr__(self, "_moves", table(torch.cat([self.transition, self.initial[None]])))
        object.__setattr__(self, "_words", table(self.emission))

    @classmethod
    def random(
        cls,
        states: int,
        words: int,
        generator: torch.Generator | np.random.Generator,
        *,
        transition: float = 0.1,
        emission: float = 0.2,
        smooth_transition: float = 0.05,
        smooth_emission: float = 0.02,
    ) -> HiddenMarkov:
        r"""Draw the rows of $P$, then of $E$, from symmetric Dirichlet laws, mixed with a little of the uniform law.

        Args:
            states: H.
            words: V.
            generator: source of the draw; one of numpy's gives its own stream, one of torch's seeds a numpy one.
            transition: concentration of the rows of $P$; small values give few successors to a state.
            emission: concentration of the rows of $E$.
            smooth_transition: weight of the uniform law in the rows of $P$, in [0, 1].
            smooth_emission: the same in the rows of $E$.

        Returns:
            The chain on the CPU, its first state uniform.

        Raises:
            ValueError: no states or words, a concentration that is not positive, a weight outside [0, 1].
        """
        if min(states, words) < 1 or min(transition, emission) <= 0:
            raise ValueError(
                f"HiddenMarkov.random: expected states, words >= 1 and concentrations > 0, "
                f"got {states}, {words}, {transition:g}, {emission:g}"
            )
        if not all(0 <= weight <= 1 for weight in (smooth_transition, smooth_emission)):
            raise ValueError(
                f"HiddenMarkov.random: the uniform law has a weight in [0, 1], "
                f"got {smooth_transition:g} and {smooth_emission:g}"
            )
        rng, rows = numpy_generator(generator), []
        for n, concentration, weight in ((states, transition, smooth_transition), (words, emission, smooth_emission)):
            drawn = torch.from_numpy(rng.dirichlet(np.full(n, concentration), size=states))
            rows.append((1 - weight) * drawn + weight / n)
        return cls(torch.full((states,), 1 / states), *rows)

    @property
    def states(self) -> int:
        """H."""
        return len(self.initial)

    @property
    def words(self) -> int:
        """V."""
        return self.emission.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tables are; sentences and generators have to be there too."""
        return self.initial.device

    def to(self, device: torch.device | str) -> HiddenMarkov:
        """Return the chain on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("initial", "transition", "emission")})

    def sample(
        self, n: int, length: int, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, "n T"]]:
        """Draw sentences and the states behind them.

        Args:
            n: number of sentences.
            length: T, words a sentence.
            generator: source of the draw, on the chain's device.

        Returns:
            Words and states, both (n, T) int64.

        Raises:
            ValueError: a length below one, or a generator on another device.
        """
        on_device(self.device, generator, "HiddenMarkov.sample")
        if length < 1:
            raise ValueError(f"HiddenMarkov.sample: expected a length of at least 1, got {length}")
        H, u = self.states, uniforms((2, length, n), generator)
        state = torch.full((n,), H, device=self.device)
        path = []
        for t in range(length):
            state = pick(self._moves, state, u[0, t]) % H
            path.append(state)
        states = torch.stack(path, 1)
        return pick(self._words, states, u[1].T) % self.words, states

    def draw(
        self, n: int, length: int | None, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, " n"]]:
        """Draw sentences and their lengths, what `floor` asks of a language."""
        if length is None:
            raise ValueError("HiddenMarkov.draw: a chain does not say where a sentence ends; pass length")
        return self.sample(n, length, generator)[0], torch.full((n,), length, device=self.device)

    def state_law(self, position: int) -> Float[Tensor, " H"]:
        """Return the law of the state at a position, counted from 0, before any word is seen."""
        p = self.initial
        for _ in range(position):
            p = p @ self.transition
        return p

    def conditionals(
        self, tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n T V"]:
        r"""Return the law of each word given all the others, $p(v\mid x_{-t})$, by one forward and one backward pass.

        $$p(v\mid x_{-t})\propto\sum_z a_t(z)\,b_t(z)\,E_{zv},\qquad a_t(z)=\Pr(z_t=z,x_{<t}),\quad
        b_t(z)=\Pr(x_{>t}\mid z_t=z).$$

        Args:
            tokens: sentences, (n, T) int64; `MASKED` words are summed over.
            lengths: number of words of each; None where padding says it.

        Returns:
            Shape (n, T, V), float64; zero after the end of a sentence.

        Raises:
            ValueError: a token that is no word, or a sentence of probability zero.

        References:
            The companion's own; `prop-flat-conditionals`, `eq-flat-forward-backward`.
        """
        words, lengths = read_sentences(tokens, lengths, self.words, "HiddenMarkov.conditionals")
        out = self.emission.new_empty(*tokens.shape, self.words)
        for part in slices(len(tokens), CELLS // (tokens.shape[1] * max(self.states, self.words))):
            a, b, _, _ = self._passes(words[part], part.start)
            joint = a * b
            out[part] = (joint / joint.sum(-1, keepdim=True)) @ self.emission
        return out.masked_fill_((words > self.words)[..., None], 0)

    def posteriors(
        self, tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n T H"]:
        r"""Return the law of each state given the whole sentence, $\Pr(z_t\mid x)\propto a_tE_{\cdot x_t}b_t$.

        Args, Raises: as `conditionals`.

        Returns:
            Shape (n, T, H), float64; zero after the end of a sentence.
        """
        words, lengths = read_sentences(tokens, lengths, self.words, "HiddenMarkov.posteriors")
        out = self.emission.new_empty(*tokens.shape, self.states)
        for part in slices(len(tokens), CELLS // (tokens.shape[1] * self.states)):
            a, b, seen, _ = self._passes(words[part], part.start)
            joint = a * b * seen
            out[part] = joint / joint.sum(-1, keepdim=True)
        return out.masked_fill_((words > self.words)[..., None], 0)

    def log_probability(
        self, tokens: Int64[Tensor, "n T"], lengths: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return the logarithm of the probability of each sentence among those of its length, (n,) float64."""
        words, _ = read_sentences(tokens, lengths, self.words, "HiddenMarkov.log_probability")
        return self._passes(words)[3]

    def state_accuracy(self, position: int, length: int, n: int, generator: torch.Generator) -> Estimate:
        r"""Estimate how often the best guess of a state is right, $\mathbb E\max_z\Pr(z_t=z\mid x)$.

        The guess sees the whole sentence.

        Args:
            position: t, counted from 0.
            length: T.
            n: sentences to average over.
            generator: source of the sentences.

        Returns:
            The mean of the largest posterior probability, with its standard error.
        """
        if not 0 <= position < length:
            raise ValueError(f"HiddenMarkov.state_accuracy: expected a position from 0 to {length - 1}, got {position}")
        tokens, _ = self.sample(n, length, generator)
        return mean(self.posteriors(tokens)[:, position].max(1).values)

    def _passes(self, words: Int64[Tensor, "n T"], first: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both passes, scaled at each position: a, b, likelihood of the word seen, each (n, T, H); log p, (n,)."""
        unseen = self.emission.new_ones(2, self.states)  # what is masked, and what comes after the end, says nothing
        seen = torch.cat([self.emission.T, unseen])[words]
        n, T = words.shape
        a, b = torch.empty_like(seen), torch.empty_like(seen)
        scale = seen.new_empty(n, T)
        forward, backward = self.initial.expand(n, -1), self.emission.new_ones(n, self.states)
        for t in range(T):
            a[:, t] = forward
            filtered = forward * seen[:, t]
            scale[:, t] = filtered.sum(1)
            forward = (filtered / scale[:, t, None]) @ self.transition
        if not (scale > 0).all():
            i, t = (int(v) for v in (~(scale > 0)).nonzero()[0])
            raise ValueError(
                f"HiddenMarkov: sentence {first + i} has probability zero: no state emits word {int(words[i, t])} at "
                f"position {t} after the words before it; check the sentence, or smooth transition and emission"
            )
        for t in reversed(range(T)):
            b[:, t] = backward
            backward = (backward * seen[:, t]) @ self.transition.T
            backward = backward / backward.sum(1, keepdim=True)
        return a, b, seen, scale.log().sum(1)
