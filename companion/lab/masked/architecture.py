r"""The architecture of a pre-LN transformer, and its function of the parameters, for one run or for many at once.

With $h_t=E_{x_t}+P_t$, blocks $h\leftarrow h+\mathrm{Attention}(\mathrm{LN}(h))$ and
$h\leftarrow h+W_2\,\mathrm{GELU}(W_1\mathrm{LN}(h)+b_1)+b_2$, features $\phi=\mathrm{LN}(h)$ and logits $U\phi+b$.
Matrices act from the right: a row of the input times a matrix (in, out). There is no dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from companion.theory.flatness import tiling
from companion.theory.trace_estimates import Params

EPSILON = 1e-5  # of LayerNorm


@dataclass(frozen=True)
class Shape:
    """The architecture.

    Attributes:
        vocabulary: V words, 0, ..., V - 1; the token `mask` = V hides a word, `pad` = V + 1 follows the last.
        length: T, most words in a sentence.
        width: d, dimension of the hidden vectors.
        layers: number of blocks.
        heads: of attention, each of dimension width / heads.
        hidden: units between the two matrices of a block; None for four times the width.
        padded: whether sentences may be shorter than others; nothing then attends to padding.

    Raises:
        ValueError: a number below one, or a width that is not a multiple of heads.
    """

    vocabulary: int
    length: int
    width: int = 32
    layers: int = 2
    heads: int = 2
    hidden: int | None = None
    padded: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "length", "width", "layers", "heads", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"Shape: expected {name} of at least 1, found {getattr(self, name)}")
        if self.width % self.heads:
            wanted = f"a multiple of heads, {self.heads}; take {self.heads * max(1, self.width // self.heads)}"
            raise ValueError(f"Shape: expected width {wanted}, found {self.width}")

    @property
    def mask(self) -> int:
        """The token in place of the word to predict."""
        return self.vocabulary

    @property
    def pad(self) -> int:
        """The token after the end."""
        return self.vocabulary + 1

    @property
    def units(self) -> int:
        """Units between the two matrices of a block, a number."""
        return 4 * self.width if self.hidden is None else self.hidden

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of one run, in their order."""
        d, hidden, V = self.width, self.units, self.vocabulary
        sizes: dict[str, tuple[int, ...]] = {"tokens": (V + 2, d), "positions": (self.length, d)}
        block = {"attend_gain": (d,), "attend_bias": (d,), "qkv": (d, 3 * d), "qkv_bias": (3 * d,)}
        block |= {"mix": (d, d), "mix_bias": (d,), "expand_gain": (d,), "expand_bias": (d,)}
        block |= {"up": (d, hidden), "up_bias": (hidden,), "down": (hidden, d), "down_bias": (d,)}
        for layer in range(self.layers):
            sizes |= {f"blocks.{layer}.{name}": size for name, size in block.items()}
        return sizes | {"gain": (d,), "bias": (d,), "output": (d, V), "output_bias": (V,)}

    @property
    def parameters(self) -> int:
        """Number of parameters of one run."""
        return sum(prod(size) for size in self.sizes.values())

    def tiling(self) -> dict[str, tiling.Rule]:
        """How each parameter is copied into a network of a multiple of width, heads and hidden units."""
        rules = {"tokens": tiling.HIDDEN, "positions": tiling.HIDDEN, "gain": tiling.HIDDEN, "bias": tiling.HIDDEN}
        rules |= {"output": tiling.Rule((-2,), 1.0), "output_bias": tiling.KEEP}
        thirds = ((-1, 3),)  # queries, keys and values lie one after the other
        special = {"qkv": tiling.Rule((-2, -1), 1.0, thirds), "qkv_bias": tiling.Rule((-1,), parts=thirds)}
        for name, size in self.sizes.items():
            if name.startswith("blocks."):
                plain = tiling.MATRIX if len(size) == 2 else tiling.HIDDEN
                rules[name] = special.get(name.split(".")[-1], plain)
        return {name: rules[name] for name in self.sizes}


def logits(
    params: Params, shape: Shape, tokens: Int64[Tensor, "*n T"], at: Int64[Tensor, "*n"] | None = None
) -> Float[Tensor, "*m V"]:
    r"""Return the logits of the word at one position of each sentence, or at all positions.

    Nothing is checked; `Transformers` does that. The function may be differentiated twice, forward and backward, and
    mapped by `torch.func.vmap`, where attention is computed by its formula, `sdpa_kernel(SDPBackend.MATH)`.

    Args:
        params: of `Shape.sizes`, all with a leading dimension of S runs or all without.
        shape: the architecture.
        tokens: (S, B, T) for S runs; for one run (B, T), or (T,) for one sentence.
        at: (S, B), (B,) or (), one position a sentence; None for all. The last block is computed there only.

    Returns:
        Shape of `at`, or of `tokens`, followed by V.
    """
    phi = features(params, shape, tokens, at)
    if params["tokens"].ndim == 2:
        return phi @ params["output"] + params["output_bias"]
    return _linear(phi, params["output"], params["output_bias"])


def features(
    params: Params, shape: Shape, tokens: Int64[Tensor, "*n T"], at: Int64[Tensor, "*n"] | None = None
) -> Float[Tensor, "*m d"]:
    """Return the hidden vectors after the last LayerNorm; as `logits`, with d in place of V."""
    if params["tokens"].ndim == 2:
        one = {name: p[None] for name, p in params.items()}
        rows = tokens.reshape(1, -1, tokens.shape[-1])
        phi = features(one, shape, rows, None if at is None else at.reshape(1, -1))
        return phi.reshape(*(tokens.shape if at is None else at.shape), shape.width)
    S, B, T = tokens.shape
    first = torch.arange(S, device=tokens.device)[:, None, None] * len(params["tokens"][0])
    h = F.embedding(tokens + first, params["tokens"].flatten(0, 1)) + params["positions"][:, None, :T]
    seen = (tokens != shape.pad).reshape(S * B, 1, 1, T) if shape.padded else None
    for layer in range(shape.layers):
        block = {name.rpartition(".")[2]: p for name, p in params.items() if name.startswith(f"blocks.{layer}.")}
        h = _block(block, shape, h, seen, at if layer == shape.layers - 1 else None)
    h = _norm(h, params["gain"], params["bias"])
    return h if at is None else h.squeeze(2)


def _block(block: Params, shape: Shape, h: Tensor, seen: Tensor | None, at: Tensor | None) -> Tensor:
    """Attention and the two layers after it; with `at`, of that position only, (S, B, 1, d)."""
    S, B, _, d = h.shape

    def heads(x: Tensor) -> Tensor:
        return x.reshape(S * B, -1, shape.heads, d // shape.heads).transpose(1, 2)

    x = _norm(h, block["attend_gain"], block["attend_bias"])
    if at is None:
        q, k, v = _linear(x, block["qkv"], block["qkv_bias"]).chunk(3, -1)
    else:
        here = at[..., None, None].expand(S, B, 1, d)
        h = h.gather(2, here)
        q = _linear(x.gather(2, here), block["qkv"][..., :d], block["qkv_bias"][..., :d])
        k, v = _linear(x, block["qkv"][..., d:], block["qkv_bias"][..., d:]).chunk(2, -1)
    mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=seen)
    h = h + _linear(mixed.transpose(1, 2).reshape(h.shape), block["mix"], block["mix_bias"])
    x = _norm(h, block["expand_gain"], block["expand_bias"])
    return h + _linear(F.gelu(_linear(x, block["up"], block["up_bias"])), block["down"], block["down_bias"])


def _norm(x: Float[Tensor, "S B *T d"], gain: Float[Tensor, "S d"], bias: Float[Tensor, "S d"]) -> Tensor:
    if len(gain) == 1:  # one kernel
        return F.layer_norm(x, x.shape[-1:], gain[0], bias[0], EPSILON)
    size = (len(gain), *(1,) * (x.ndim - 2), -1)
    return torch.addcmul(bias.view(size), F.layer_norm(x, x.shape[-1:], eps=EPSILON), gain.view(size))


def _linear(x: Float[Tensor, "S B *T i"], W: Float[Tensor, "S i o"], b: Float[Tensor, "S o"]) -> Tensor:
    """Apply the map of each run, all runs in one batched product."""
    return torch.baddbmm(b[:, None], x.reshape(len(W), -1, W.shape[1]), W).reshape(*x.shape[:-1], -1)
