"""Run by torchrun: the runs of `test_workers`, on as many workers as there are; worker 0 saves what came out."""

import sys
from functools import partial
from pathlib import Path

import torch

from companion.lab import byol, contrast, distributed, predictors
from companion.lab.encoders import mlp, small_cnn
from companion.lab.steps import Watch, preconditioned
from companion.lab.train import Options, fit
from companion.theory.direct_predictor import direct_pred
from companion.theory.losses import barlow_twins, info_nce, spectral_contrastive, vicreg

STEPS, BATCH = 20, 12
barlow = partial(barlow_twins, lam=0.3, sum_over_workers=distributed.sum_over_workers)
rule = partial(direct_pred, epsilon=0.1)
#: Predictor, momentum and stop-gradient of each Siamese run.
SIAMESE = {
    "byol": (partial(predictors.Trained, hidden=5, bias=True, affine=True), 0.9, True),
    "byol, symmetric": (partial(predictors.Trained, hidden=5, symmetric=True, lr_ratio=2.0), 0.0, True),
    "byol, direct": (partial(predictors.Direct, rule=rule, every=2), 0.9, True),
    "byol, optimal": (partial(predictors.Optimal, ridge=0.1), 0.9, True),
    "byol, no stop": (predictors.Trained, 0.0, False),
}
#: What tells the recipes of SimCLR's and SimSiam's kin from each other.
CONTRAST = {
    "attention": {"method": "simclr-attn", "beta": 3.0},
    "attention, shuffled": {"method": "simclr-shuffled", "beta": 3.0},
    "stages": {"method": "simsiam-multi", "stages": 3, "after": 2},
    "centred": {"method": "alignment", "centre": 0.9},
}
LOSSES = {
    "spectral": partial(spectral_contrastive, mu=2.0, sum_over_workers=distributed.sum_over_workers),
    "barlow": barlow,
    "barlow, normalized": partial(barlow, normalize=True),
    "barlow, preconditioned": preconditioned(barlow, 0.1),
    "vicreg": partial(vicreg, sum_over_workers=distributed.sum_over_workers),
    **dict.fromkeys(SIAMESE, byol.objective),
    **dict.fromkeys(CONTRAST),
    "info_nce": partial(info_nce, temperature=0.5, gather=distributed.gather),
    "local": partial(info_nce, temperature=0.5),  # control: forgets the other workers' negatives
}
#: Runs that at the others' rate blow up rounding errors, or themselves, within twenty updates.
STEEP = ("barlow, preconditioned", "byol, symmetric")


def models(loss):
    """A perceptron without and a convolutional network with batch norm, in float64."""
    encoders = {
        "mlp": mlp((64, 10, 6), generator=torch.Generator().manual_seed(0)),
        "cnn": small_cnn(1, 12, 4, size=8, width=4, hidden=(8,), generator=torch.Generator().manual_seed(0)),
    }
    if loss in SIAMESE:
        build, momentum, stop = SIAMESE[loss]
        for name, k in (("mlp", 6), ("cnn", 4)):
            predictor = build(k, generator=torch.Generator().manual_seed(1))
            encoders[name] = byol.Siamese(encoders[name], predictor, momentum, stop_gradient=stop)
    if loss in CONTRAST:
        for name, k in (("mlp", 6), ("cnn", 4)):
            encoders[name] = recipe(loss, encoders[name], k).start(0, images=9)
    return {name: model.double() for name, model in encoders.items()}


def recipe(loss, encoder, k):
    """Of one of `CONTRAST`, for an encoder that is there already."""
    trained = partial(predictors.Trained, k, hidden=5, bias=True, affine=True)
    predictor = trained if loss == "stages" else predictors.Identity
    return contrast.Recipe(
        encoder=lambda _: encoder,
        predictor=lambda generator: predictor(generator=generator),
        k=k,
        augmentation=views,
        options=Options(),
        **CONTRAST[loss],
    )


def views(x, generator):
    return x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def pairs(n, generator):
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return tuple(views(x, generator) for _ in range(2))


def training(loss, model):
    """Where the pairs come from, and what is made of them: nine images where a network is to know them."""
    if loss not in CONTRAST:
        return pairs, LOSSES[loss]
    images = torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return model.pairs(images, views), partial(recipe(loss, None, model.k).objective, model)


def first_gradient(model, sample, loss):
    """Loss and gradient of the first batch."""
    rows = distributed.own_rows(BATCH)
    x = torch.cat([v[rows] for v in sample(BATCH, torch.Generator().manual_seed(1))])
    distributed.with_global_batch_norm(model).train()
    value = loss(*model(x).chunk(2))
    value.backward()
    distributed.average_gradients(model)
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run(folder):
    """Everything that must not depend on the number of workers."""
    found = {}
    for loss_name in LOSSES:
        for name in ("mlp", "cnn"):
            model = models(loss_name)[name]
            value, gradient = first_gradient(model, *training(loss_name, model))
            model = models(loss_name)[name]
            sample, loss = training(loss_name, model)
            watch = Watch(*pairs(9, torch.Generator().manual_seed(2)), layers=("embedding",))
            lr = 0.002 if loss_name in STEEP else 0.01
            options = Options(STEPS, BATCH, lr=lr, log_every=5, checkpoint_every=15)
            path = Path(folder) / f"{loss_name}-{name}.pt"
            history = fit(model, sample, loss, options, checkpoint=path, observe=watch, observe_every=5)
            found[f"{loss_name} {name}"] = {
                "loss": value,
                "gradient": gradient,
                "losses": history.losses,
                "watched": torch.cat([watch.correlation, watch.covariance]),
                "parameters": torch.cat([p.detach().double().flatten() for p in model.state_dict().values()]),
            }
    return found


if __name__ == "__main__":
    distributed.start()
    result = run(sys.argv[1])
    if distributed.rank() == 0:
        torch.save(result, Path(sys.argv[1]) / "found.pt")
    torch.distributed.destroy_process_group()
