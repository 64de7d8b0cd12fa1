"""Languages with a known optimum: exact conditionals of 20,000 sentences, floors, fresh batches for every step."""

import os
import statistics

import torch

from benchmarks.measure import Measurement, seconds, summary
from companion.lab.languages.grammars import levelled
from companion.lab.languages.hmm import HiddenMarkov

SENTENCES, BATCH = 20_000, 256


def measure() -> list[Measurement]:
    """A grammar of 49 symbols and 200 words, one of 16 symbols and 12 words, a chain of 8 states and 10 words."""
    generator = torch.Generator().manual_seed(0)
    large = levelled(generator)
    small = levelled(generator, levels=3, symbols=4, words=12, tops=4, rules=5, emitted=5)
    chain = HiddenMarkov.random(8, 10, generator)
    drawn, before = large.sample(SENTENCES, generator), torch.get_num_threads()
    rows = []
    for threads in (1, min(2, os.cpu_count() or 1)):
        torch.set_num_threads(threads)
        for dtype in (torch.float64, torch.float32):
            values = seconds(lambda dtype=dtype: large.conditionals(drawn.tokens, drawn.lengths, dtype=dtype), n=3)
            what = f"grammar, conditionals of {SENTENCES} sentences, {str(dtype).removeprefix('torch.')}"
            words = int(drawn.lengths.sum())
            speed = f"{words / statistics.median(values) / 1e3:.0f} thousand words/s"
            why = "the inside algorithm over the spans of a sentence; next: fewer symbols a level in one product"
            rows.append(summary(what, values, "s", f"threads {threads}, {speed}", goal=(None, 60.0), missed=why))
    torch.set_num_threads(1)
    batches = {
        "chain, draw": lambda: chain.sample(BATCH, 8, generator),
        "grammar, draw": lambda: large.sample(BATCH, generator),
        "small grammar, draw": lambda: small.sample(BATCH, generator),
        "grammar, draw 5 to 16 words": lambda: large.sample(BATCH, generator, length=(5, 16)),
    }
    tokens, sentences = chain.sample(BATCH, 8, generator)[0], small.sample(BATCH, generator).tokens
    batches["chain, conditionals"] = lambda: chain.conditionals(tokens)
    batches["small grammar, conditionals"] = lambda: small.conditionals(sentences)
    for what, call in batches.items():
        values = [1e3 * v for v in seconds(call, n=200, warm=5)]
        goal = (None, {"chain, draw": 1.0, "grammar, draw": 2.0}.get(what))
        why = "a draw a place, one after the other; next: draws of several batches at once"
        rows.append(summary(what, values, "ms", f"batch {BATCH}", goal=goal, missed=why))
    torch.set_num_threads(before)
    return rows
