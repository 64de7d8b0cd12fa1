r"""Losses of self-supervised learning as pure functions of two batches of embeddings.

Every function serves one process and many: `sum_over_workers` and `gather` are the only places where workers talk.
Give them autograd-aware collectives (`companion.lab.distributed` has them): each worker then returns
the loss of the *global* batch. Their backward passes add up the gradients of all workers' copies of
that loss, so the mean of gradients over workers, which `DistributedDataParallel` takes, is the gradient of one copy.
A loss that has neither is a mean over rows; the mean of it over workers is the loss of the global batch.
"""

from companion.theory.losses.contrastive import (
    attentive_info_nce,
    clip_to_ball,
    info_nce,
    uniformity,
)
from companion.theory.losses.redundancy import barlow_twins, vicreg
from companion.theory.losses.siamese import alignment, byol, multi_stage, simsiam
from companion.theory.losses.spectral import spectral_contrastive

__all__ = [
    "spectral_contrastive",
    "info_nce",
    "attentive_info_nce",
    "uniformity",
    "clip_to_ball",
    "barlow_twins",
    "vicreg",
    "byol",
    "alignment",
    "simsiam",
    "multi_stage",
]
