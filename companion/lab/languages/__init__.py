"""Languages whose best prediction of a masked token is known: hidden Markov chains and context-free grammars."""
