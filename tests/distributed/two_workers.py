"""Run by torchrun: the runs of `test_workers`, on as many workers as there are; worker 0 saves what came out."""

import sys
from functools import partial
from pathlib import Path

import torch

from companion.lab import distributed
from companion.lab.encoders import mlp, small_cnn
from companion.lab.train import Options, fit
from companion.theory.losses import info_nce, spectral_contrastive

LOSSES = {
    "spectral": partial(spectral_contrastive, mu=2.0, sum_over_workers=distributed.sum_over_workers),
    "info_nce": partial(info_nce, temperature=0.5, gather=distributed.gather),
    "local": partial(info_nce, temperature=0.5),  # control: forgets the other worker's negatives
}


def models():
    """A perceptron without and a convolutional network with batch norm, in float64."""
    return {
        "mlp": mlp((64, 10, 6), generator=torch.Generator().manual_seed(0)).double(),
        "cnn": small_cnn(1, 12, 4, size=8, width=4, hidden=(8,), generator=torch.Generator().manual_seed(0)).double(),
    }


def pairs(n, generator):
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return tuple(x + 0.3 * torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))


def first_gradient(model, loss):
    """Loss and gradient of the first batch."""
    rows = distributed.own_rows(8)
    x = torch.cat([v[rows] for v in pairs(8, torch.Generator().manual_seed(1))])
    distributed.with_global_batch_norm(model).train()
    value = loss(*model(x).chunk(2))
    value.backward()
    distributed.average_gradients(model)
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def run(folder):
    """Everything that must not depend on the number of workers."""
    found = {}
    for loss_name, loss in LOSSES.items():
        for name in models():
            value, gradient = first_gradient(models()[name], loss)
            model = models()[name]
            options = Options(steps=6, batch_size=8, lr=0.02, log_every=2, checkpoint_every=4)
            history = fit(model, pairs, loss, options, checkpoint=Path(folder) / f"{loss_name}-{name}.pt")
            found[f"{loss_name} {name}"] = {
                "loss": value,
                "gradient": gradient,
                "losses": history.losses,
                "parameters": torch.cat([p.detach().double().flatten() for p in model.state_dict().values()]),
            }
    return found


if __name__ == "__main__":
    distributed.start()
    result = run(sys.argv[1])
    if distributed.rank() == 0:
        torch.save(result, Path(sys.argv[1]) / "found.pt")
    torch.distributed.destroy_process_group()
