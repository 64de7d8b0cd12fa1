# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-alignment)=
# # Agreement without negatives
#
# Show a network two views of an image and ask only that it give them the same embedding. Nothing pushes different
# images apart, so a network that sends every image to zero has no loss at all. BYOL {cite:p}`grill2020bootstrap` and
# SimSiam {cite:p}`chen2021exploring` train with just this loss. They add two oddities, a small *predictor* on one side
# and no gradient on the other, and they do not collapse. Why not? {cite:t}`tian2021understanding` answered for networks
# that are linear, where everything can be followed by hand. In this chapter you see that either oddity alone is not
# enough; that the predictor pulls the online network up after it, and turns until both have the same eigenvectors;
# how big a start and how little weight decay it takes to survive; which features come out; and that one need not train
# the predictor at all. Every statement is checked in double precision and broken on purpose. Then we look
# at networks, and at a breakdown of theirs that the paper leaves open.
#
# **Prerequisites.** Eigenvalues, the trace, linear differential equations, and the Frobenius norm. Symbols are
# collected in [the notation page](../notation.md). As in {ref}`ch-stepwise`, an encoder is one matrix and time is
# learning rate times steps. {ref}`ch-spectral` has the loss that we compare with at the end.
#
# ```{cost-card} 03_eigenspace_alignment
# ```

# %% tags=["parameters"]
profile = "cpu"  # "smoke": seconds, bundled digits; "cpu": minutes, Fashion-MNIST; "gpu": ResNets
seed = 0

# %% tags=["hide-input"]
import dataclasses
import functools
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import cumulative_simpson, solve_ivp
from scipy.interpolate import CubicSpline
from scipy.stats import binomtest

from companion import ledger
from companion.lab import alignment, alignment_tables, augment, data, encoders, predictors, probe
from companion.ledger.figures import COLORS, label_line
from companion.progress import track
from companion.theory import losses, predictor

ledger.figures.house_style()
ledger.begin("03_eigenspace_alignment", claims="alignment", profile=profile, seed=seed)
generator = torch.Generator().manual_seed(seed)
smoke = profile == "smoke"
images = data.load("digits" if smoke else "fashion-mnist", "train")
unseen = data.load("digits" if smoke else "fashion-mnist", "test")

# %% [markdown]
# ## The model
#
# ```{prf:definition} Linear Siamese network
# :label: def-siamese
#
# An image is drawn, then two views $x,x^+\in\R^m$ of it, independently and by the same law. With $\nu$ the mean view of
# an image, the *cross-correlation* of two views, the *mean covariance of the views of one image*, and the second moment
# of a view are
#
# $$
# \begin{aligned}
# \Gamma&=\E\,xx^{+\top}=\E\,\nu\nu^\top,\\
# \Sigma_{\rm aug}&=\E\,(x-\nu)(x-\nu)^\top,\\
# \Sigma_x&=\E\,xx^\top=\Gamma+\Sigma_{\rm aug} .
# \end{aligned}
# $$ (eq-view-moments)
#
# The *online network* is $W\in\R^{k\times m}$, the *predictor* $W_p\in\R^{k\times k}$, the *target network*
# $W_a\in\R^{k\times m}$; none has a bias. The loss is
#
# $$
# \mathcal L(W,W_p)=\tfrac12\,\E\norm{W_pWx-W_ax^+}^2,
# $$ (eq-siamese-loss)
#
# and *stop-gradient* means that $W_a$ is held fixed when it is differentiated, even where $W_a=W$. The target follows
# the online network at the rate $\beta$ (BYOL) or equals it (SimSiam). The predictor's learning rate is $\alpha_p$
# times that of $W$, and both have weight decay $\eta$. $C=W\Gamma W^\top$ is the correlation of the embeddings of two
# views.
# ```
#
# $\E\,xx^{+\top}=\E\,\nu\nu^\top$ holds because the views are independent given their image, the last line because
# $\E\,(x-\nu)\nu^\top=0$. Both matrices are positive semidefinite; $\Sigma_{\rm aug}$ is what augmentation adds.
#
# **The puzzle.** $W=W_a=0$ has zero loss, with every predictor, and weight decay pulls there too. The networks that
# training finds have a *larger* loss. This is possible because with stop-gradient the weights do not follow the
# gradient of {eq}`eq-siamese-loss` or of any other function ({ref}`an exercise <ex-no-potential>`). So that collapse
# has the least loss says nothing about whether it happens. We have to look at the flow.
#
# Some statements below need one or all of the paper's three assumptions, and name them:
#
# | | assumption | says |
# |---|---|---|
# | A1 | proportional target | $W_a=\tau W$ with a number $\tau(t)$; $\tau=1$ is SimSiam |
# | A2 | isotropic data | $\Gamma=I$ and $\Sigma_{\rm aug}=\sigma^2I$: whitened images with additive isotropic noise, say |
# | A3 | symmetric predictor | $W_p(0)$ is symmetric, and the symmetric part of $\dot W_p$ is taken |
#
# And this is how the flow's constants come from those of a training run. The last two rows are the companion's own.
#
# | in the flow | in a training run |
# |---|---|
# | time $t$ | learning rate times steps |
# | $\alpha_p$ | learning rate of the predictor over that of the online network |
# | $\beta$ | $(1-\text{momentum of the target})/\text{learning rate}$; momentum 0.996 and learning rate 0.01 give 0.4 |
# | $\eta$ | $W$ and $W_p$ are multiplied by $1-\text{learning rate}\cdot\eta$ in every step |
# | $\eta$ in PyTorch's `SGD` | `weight_decay` is $\eta$ for $W$, but $\eta/\alpha_p$ for $W_p$: each group has its own rate |
# | heavy-ball momentum 0.9 | the learning rate counts ten times, in $t$ and in $\beta$ |
#
# ## The flow
#
# ```{prf:lemma} The flow
# :label: lem-siamese-flow
#
# With the *drive* $G=W_a\Gamma-W_pW\Sigma_x$, gradient flow of {eq}`eq-siamese-loss` with stop-gradient, weight decay
# and a target that follows is
#
# $$
# \dot W_p=\alpha_p\,GW^\top-\eta W_p,\qquad\dot W=W_p^\top G-\eta W,\qquad\dot W_a=\beta\,(W-W_a).
# $$ (eq-siamese-flow)
#
# For SimSiam put $W_a=W$ and drop the third equation. The loss that uses both directions,
# $\frac14\E\big[\norm{W_pWx-W_ax^+}^2+\norm{W_pWx^+-W_ax}^2\big]$, has the same flow.
# *{cite:t}`tian2021understanding`, Lemma 1, Eqs. (2)–(4).*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# Let $e=W_pWx-W_ax^+$. By {eq}`eq-view-moments`,
#
# $$
# \E\,ex^\top=W_pW\,\E\,xx^\top-W_a\,\E\,x^+x^\top=W_pW\Sigma_x-W_a\Gamma=-G,
# $$ (eq-drive)
#
# where $\E\,x^+x^\top=\Gamma^\top=\Gamma$. The loss is $\frac12\E\,e^\top e$, and $W_a$ is held fixed, so a change of
# the weights changes it by
#
# $$
# \begin{aligned}
# d\mathcal L&=\E\,e^\top dW_p\,Wx+\E\,e^\top W_p\,dW\,x\\
# &=\tr\big(dW_p\,W\,\E\,xe^\top\big)+\tr\big(W_p\,dW\,\E\,xe^\top\big)\\
# &=\langle-GW^\top,dW_p\rangle+\langle-W_p^\top G,dW\rangle ,
# \end{aligned}
# $$ (eq-siamese-gradient)
#
# with $\langle A,B\rangle=\tr A^\top B$. A step of gradient descent with learning rate $h$ for $W$ and $\alpha_ph$ for
# $W_p$, after multiplication of both with $1-h\eta$, changes them by $h$ times the right sides of
# {eq}`eq-siamese-flow`. The target moves by $(1-\text{momentum})(W-W_a)=h\beta(W-W_a)$. In time $t=h\cdot\text{steps}$,
# as $h\to0$, this is the flow. Finally, $(x^+,x)$ has the same law as $(x,x^+)$, so each half of the two-way loss has
# half the gradient of {eq}`eq-siamese-loss`. $\square$
# ````
#
# The data enter by $\Gamma$ and $\Sigma_{\rm aug}$ only. They need not be Gaussian, and thirty images will do for the
# check: all ordered pairs of six views each, automatic differentiation of the loss on pairs, against the formula. If
# the gradient also runs through the target, the formula must fail; if first views are augmented less than second ones,
# so must the equality of the two losses.


# %%
def normal(*shape):
    """Independent standard normal numbers in double precision."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def symmetric_part(A):
    return (A + A.mT) / 2


def frobenius(A):
    return torch.linalg.matrix_norm(A)


def random_moments(m):
    """A cross-correlation and a mean covariance of views that do not commute, both positive definite."""
    roots = normal(2, 2 * m, m) / math.sqrt(2 * m)
    Gamma, Sigma_aug = roots.mT @ roots
    return Gamma, 0.5 * Sigma_aug


def isotropic(m, sigma2):
    """The moments of assumption A2."""
    eye = torch.eye(m, dtype=torch.float64)
    return eye, sigma2 * eye


def relative(found, expected):
    """Largest difference, relative to the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max())


# %%
def gradients(x, x_plus, W, Wp, Wa=None, **how):
    """Automatic differentiation of the loss on pairs, by W and by Wp; no target: the online network itself."""
    W, Wp = W.clone().requires_grad_(), Wp.clone().requires_grad_()
    target = W if Wa is None else Wa
    loss = losses.byol(x @ W.T @ Wp.T, x_plus @ target.T, normalize=False, **how)  # eq-siamese-loss
    return torch.autograd.grad(loss, (W, Wp))


# %%
n, views, m, k = 30, 6, 7, 4
x = normal(n, 1, m) + torch.linspace(0.2, 1.5, views, dtype=torch.float64)[:, None] * normal(n, views, m)
nu = x.mean(1, keepdim=True)
Gamma, Sigma_aug = (y.reshape(-1, m).T @ y.reshape(-1, m) / len(y.reshape(-1, m)) for y in (nu, x - nu))
first, second = x[:, :, None].expand(-1, -1, views, -1), x[:, None].expand(-1, views, -1, -1)  # all ordered pairs
pairs = first.reshape(-1, m), second.reshape(-1, m)
W, Wp, Wa = normal(k, m), normal(k, k), normal(k, m)
gaps, both = {"": [], "-through-target": []}, {}
for target in (None, Wa):
    law = predictor.velocity(predictor.State(W, Wp, target), Gamma, Sigma_aug)
    for name in gaps:
        found = gradients(*pairs, W, Wp, target, stop_gradient=not name)
        gaps[name] += [relative(-g, v) for g, v in zip(found, law[:2], strict=True)]
for name, values in gaps.items():
    ledger.record("alignment.gradients" + name, max(values))
weak, strong = x[:, :3].repeat_interleave(3, 1).reshape(-1, m), x[:, 3:].repeat(1, 3, 1).reshape(-1, m)
for name, (one, two) in {"": pairs, "-unequal": (weak, strong)}.items():
    there, back = gradients(one, two, W, Wp, Wa), gradients(two, one, W, Wp, Wa)
    gap = max(relative((g + h) / 2, g) for g, h in zip(there, back, strict=True))
    ledger.record("alignment.both-directions" + name, gap)

# %% [markdown]
# The formula agrees with automatic differentiation to {measured}`alignment.gradients|.1e`
# {verdict}`alignment.gradients`; with a gradient through the target it is off by
# {measured}`alignment.gradients-through-target|.1f` of the largest entry. The two-way loss has the same gradient, to
# {measured}`alignment.both-directions|.1e` {verdict}`alignment.both-directions`, as long as both views follow one law.
#
# ## What the predictor learns, the online network learns
#
# ```{prf:theorem} Balance
# :label: thm-balance
#
# Under {eq}`eq-siamese-flow`, for all data and every target $W_a(t)$, the *imbalance* decays at a known rate:
#
# $$
# \Omega=WW^\top-\frac1{\alpha_p}W_p^\top W_p,\qquad\Omega(t)=e^{-2\eta t}\,\Omega(0).
# $$ (eq-balance)
#
# *{cite:t}`tian2021understanding`, Theorem 1.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# Multiply the predictor's equation by $\alpha_p^{-1}W_p^\top$ from the left and that of the online network by $W^\top$
# from the right. The drive enters both by the same matrix, which we eliminate:
#
# $$
# \frac1{\alpha_p}\big(W_p^\top\dot W_p+\eta W_p^\top W_p\big)=W_p^\top GW^\top=\dot WW^\top+\eta WW^\top .
# $$ (eq-same-drive)
#
# Add the transpose, and use $\frac d{dt}(W_p^\top W_p)=W_p^\top\dot W_p+\dot W_p^\top W_p$ and its like for $WW^\top$:
#
# $$
# \frac1{\alpha_p}\Big[\frac d{dt}(W_p^\top W_p)+2\eta W_p^\top W_p\Big]=\frac d{dt}(WW^\top)+2\eta WW^\top .
# $$ (eq-balance-rates)
#
# The difference of the two sides is $\dot\Omega+2\eta\Omega=0$. $\square$
# ````
#
# Weight decay makes the flow forget its start: if $\eta>0$, then in the end $WW^\top=W_p^\top W_p/\alpha_p$, and the
# online network has the predictor's singular values, up to $\sqrt{\alpha_p}$. A predictor that grows pulls the online
# network along. Two warnings belong to the theorem. It needs equal decay, which PyTorch's default does *not* give when
# $\alpha_p\ne1$ (see the table above). And under A3 it does not hold as it stands:
#
# ```{prf:proposition} Balance under the symmetrised flow
# :label: prop-balance-symmetrised
#
# Let $W_p$ be symmetric and take the symmetric part of $\dot W_p$ in {eq}`eq-siamese-flow`. With $A=GW^\top-WG^\top$,
#
# $$
# \dot\Omega+2\eta\,\Omega=\tfrac12\,[W_p,A],\qquad[W_p,A]=W_pA-AW_p .
# $$ (eq-balance-symmetrised)
#
# So {eq}`eq-balance` holds for the trace, $\tr\Omega(t)=e^{-2\eta t}\tr\Omega(0)$, but in general not for the matrix.
# Under A1 and A2, $A=(1+\sigma^2)[C,W_p]$: the matrix obeys {eq}`eq-balance` again once $C$ and $W_p$ commute. *The
# companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# Write $B=GW^\top$ in this proof, so $A=B-B^\top$. With $W_p=W_p^\top$ the two equations are
# $\dot W_p=\frac{\alpha_p}2(B+B^\top)-\eta W_p$ and $\dot WW^\top=W_pB-\eta WW^\top$. Hence
#
# $$
# \begin{aligned}
# \frac d{dt}(WW^\top)+2\eta WW^\top&=W_pB+B^\top W_p,\\
# \frac1{\alpha_p}\Big[\frac d{dt}W_p^2+2\eta W_p^2\Big]&=\tfrac12(B+B^\top)W_p+\tfrac12W_p(B+B^\top),
# \end{aligned}
# $$ (eq-symmetrised-rates)
#
# and their difference is
#
# $$
# \begin{aligned}
# \dot\Omega+2\eta\Omega&=\tfrac12\big(W_pB+B^\top W_p-BW_p-W_pB^\top\big)\\
# &=\tfrac12\big(W_p(B-B^\top)-(B-B^\top)W_p\big)=\tfrac12[W_p,A].
# \end{aligned}
# $$ (eq-symmetrised-gap)
#
# The trace of a commutator is zero. Under A1 and A2, $G=\tau W-(1+\sigma^2)W_pW$ and $C=WW^\top$, so
# $B=\tau C-(1+\sigma^2)W_pC$ and $A=B-B^\top=(1+\sigma^2)(CW_p-W_pC)$. $\square$
# ````
#
# **Check.** Data and weights without any symmetry, a target that follows, and four sets of constants; then plain
# gradient descent, which breaks the law at first order of the learning rate; then the symmetrised flow, and
# {eq}`eq-balance-symmetrised` as it stands. The control for the first two is PyTorch's default.

# %%
m, k, span = 6, 4, 20
clock = torch.linspace(0, span, 21, dtype=torch.float64)
Gamma, Sigma_aug = random_moments(m)


def imbalance_drift(path, times, alpha_p, eta):
    """How far the imbalance times exp(2 eta t) moves from its start, relative to that."""
    omega = predictor.imbalance(path, alpha_p) * (2 * eta * times)[:, None, None].exp()  # eq-balance
    return float((omega - omega[0]).norm(dim=(1, 2)).max() / omega[0].norm())


drifts = {"": [], "-default": []}
for alpha_p, eta, beta in ((1, 0, 0.4), (1, 0.05, 0.4), (4, 0.05, 0.4), (4, 0.2, 0.1)):
    start = predictor.State(0.5 * normal(k, m), 0.5 * normal(k, k), 0.3 * normal(k, m))
    for name in drifts:  # the default decays the predictor by its own learning rate
        law = {"alpha_p": alpha_p, "eta": eta, "eta_p": alpha_p * eta if name else eta, "beta": beta}
        path = predictor.flow(start, Gamma, Sigma_aug, clock, rtol=1e-12, **law)
        drifts[name].append(imbalance_drift(path, clock, alpha_p, eta))
for name, values in drifts.items():
    ledger.record("alignment.balance" + name, max(values), n=len(values))

# %%
alpha_p, eta, end = 4, 0.05, 3.0
for name in ("", "-default"):
    law = {"alpha_p": alpha_p, "eta": eta, "eta_p": alpha_p * eta if name else eta, "beta": 0.4}
    drifts = []
    for rate in (5e-3, 5e-4):
        steps = round(end / rate)
        path = predictor.descend(start, Gamma, Sigma_aug, rate, steps, every=steps, **law)
        drifts.append(imbalance_drift(path, torch.tensor([0, end], dtype=torch.float64), alpha_p, eta))
    ledger.record("alignment.balance-order" + name, drifts[0] / drifts[1])
    print(f"gradient descent{name}: drift {drifts[0]:.1e} at learning rate 0.005, {drifts[1]:.1e} at 0.0005")

W, Wp, eta = 0.5 * normal(k, m), symmetric_part(0.5 * normal(k, k)), 0.05
law = {"alpha_p": alpha_p, "eta": eta, "symmetric": True}
path = predictor.flow(predictor.State(W, Wp), Gamma, Sigma_aug, clock, rtol=1e-12, **law)
omega = predictor.imbalance(path, alpha_p) * (2 * eta * clock)[:, None, None].exp()
trace = omega.diagonal(dim1=1, dim2=2).sum(1)
ledger.record("alignment.balance-trace", (trace - trace[0]).abs().max() / omega[0].norm())
ledger.record("alignment.balance-trace-matrix", imbalance_drift(path, clock, alpha_p, eta))
for name, (X, X_aug) in {"": isotropic(m, 0.3), "-correlated": (Gamma, Sigma_aug)}.items():
    now, C = predictor.State(W, Wp), W @ X @ W.T
    dW, dWp, _ = predictor.velocity(now, X, X_aug, **law)
    rate = (
        2 * symmetric_part(dW @ W.T)
        - 2 * symmetric_part(Wp @ dWp) / alpha_p
        + 2 * eta * predictor.imbalance(now, alpha_p)
    )
    turn = predictor.commutator(Wp, 1.3 * predictor.commutator(C, Wp)) / 2  # eq-balance-symmetrised under A1, A2
    ledger.record("alignment.balance-commutator" + name, relative(rate, turn))

# %% [markdown]
# The imbalance follows {eq}`eq-balance` to {measured}`alignment.balance|.1e` {verdict}`alignment.balance`. With
# gradient descent the drift falls by the factor {measured}`alignment.balance-order|.1f` when the learning rate falls by
# ten {verdict}`alignment.balance-order`. With PyTorch's default decay it does not fall
# ({measured}`alignment.balance-order-default|.2f`): so one can tell a step that is too long from a law that is broken.
# Under the symmetrised flow the trace is conserved to {measured}`alignment.balance-trace|.1e`
# {verdict}`alignment.balance-trace`, while the matrix moves by {measured}`alignment.balance-trace-matrix|percent.0` of
# its size. The commutator in {eq}`eq-balance-symmetrised` agrees to {measured}`alignment.balance-commutator|.1e`
# {verdict}`alignment.balance-commutator` for isotropic data.
#
# ## Either oddity alone is not enough
#
# ```{prf:lemma} Contraction
# :label: lem-contraction
#
# Let $\dot w=-H(t)w$ with symmetric $H(t)$, continuous in $t$. Then
#
# $$
# \norm{w(t)}\le\exp\Big(-\int_0^t\lambda_{\min}(H)\Big)\norm{w(0)} .
# $$ (eq-contraction)
#
# In particular $w\to0$ if $\lambda_{\min}(H(t))\ge\lambda_0>0$ for all $t$. *{cite:t}`tian2021understanding`, Lemma 2
# (appendix). The paper has the constant $\lambda_0$; the integral is the companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# $\frac d{dt}\norm w^2=-2w^\top Hw\le-2\lambda_{\min}(H)\norm w^2$. So the derivative of
# $\norm w^2\exp\big(2\int_0^t\lambda_{\min}(H)\big)$ is not positive, and this product is at most its start,
# $\norm{w(0)}^2$. $\square$
# ````
#
# ```{prf:theorem} Stop-gradient is needed
# :label: thm-stop-gradient
#
# Let $W_a=W$, and let the gradient run through the target as well. Then, whatever $W_p$ does,
#
# $$
# \begin{aligned}
# \dot W&=-(W_p^\top W_p+I)\,W\Sigma_{\rm aug}-(W_p-I)^\top(W_p-I)\,W\Gamma-\eta W,\\
# \tfrac d{dt}\operatorname{vec}W&=-H(t)\operatorname{vec}W,\\
# H&=\Sigma_{\rm aug}\otimes(W_p^\top W_p+I)+\Gamma\otimes(W_p-I)^\top(W_p-I)+\eta I\succeq0,
# \end{aligned}
# $$ (eq-no-stop)
#
# where $\operatorname{vec}$ stacks columns. If $\lambda_{\min}(H(t))\ge\lambda_0>0$ for all $t$, then $W(t)\to0$.
# *{cite:t}`tian2021understanding`, Theorem 2.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# With $W_a=W$ the loss is, by {eq}`eq-view-moments`,
#
# $$
# \mathcal L=\tfrac12\big[\tr(W_p^\top W_pW\Sigma_xW^\top)-2\tr(W_pW\Gamma W^\top)+\tr(W\Sigma_xW^\top)\big].
# $$ (eq-loss-moments)
#
# For symmetric $S$, $d\tr(QWSW^\top)=\langle(Q+Q^\top)WS,dW\rangle$, so
#
# $$
# \begin{aligned}
# \nabla_W\mathcal L&=W_p^\top W_pW\Sigma_x-(W_p+W_p^\top)W\Gamma+W\Sigma_x\\
# &=(W_p^\top W_p+I)W\Sigma_{\rm aug}+(W_p^\top W_p-W_p-W_p^\top+I)W\Gamma .
# \end{aligned}
# $$ (eq-no-stop-gradient)
#
# The last bracket is $(W_p-I)^\top(W_p-I)$, and $\dot W=-\nabla_W\mathcal L-\eta W$ is the first line of
# {eq}`eq-no-stop`. Since $\operatorname{vec}(QWS)=(S^\top\otimes Q)\operatorname{vec}W$ and $\Sigma_{\rm aug}$,
# $\Gamma$ are symmetric, it is the second. Kronecker products and sums of positive semidefinite matrices are positive
# semidefinite. {prf:ref}`lem-contraction` gives the rest. $\square$
# ````
#
# The hypothesis speaks of a predictor that we do not know. It can be replaced by one about the data:
#
# ```{prf:proposition} Collapse at a known rate, and when there is none
# :label: prop-isotropic-collapse
#
# Without stop-gradient, and for every course of $W_p$,
#
# $$
# \norm{W(t)}_F\le e^{-(\lambda_{\min}(\Sigma_{\rm aug})+\eta)t}\,\norm{W(0)}_F ,
# $$ (eq-collapse-rate)
#
# and for isotropic data (A2) even
#
# $$
# \norm{W(t)}_F\le\exp\Big(-\Big[\frac{\sigma^2(2+\sigma^2)}{1+\sigma^2}+\eta\Big]t\Big)\,\norm{W(0)}_F ,
# $$ (eq-slowest-collapse)
#
# a rate between $\sigma^2+\eta$ and $2\sigma^2+\eta$ that $W_p=I/(1+\sigma^2)$, held fixed, attains. But if $\eta=0$
# and $\Sigma_{\rm aug}$ is singular, the network need not collapse: all $W\ne0$ with $W\Sigma_{\rm aug}=0$, with any
# $W_p$ that has $W_pW=W$, rest, and have zero loss. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# The second term of $H$ is positive semidefinite. The eigenvalues of the first are products of one eigenvalue of
# $\Sigma_{\rm aug}$ with one of $W_p^\top W_p+I\succeq I$, so
# $\lambda_{\min}(H)\ge\lambda_{\min}(\Sigma_{\rm aug})+\eta$, and {eq}`eq-contraction` is {eq}`eq-collapse-rate`. For
# isotropic data $H=I\otimes H_1$ with
#
# $$
# \begin{aligned}
# H_1&=\sigma^2(W_p^\top W_p+I)+(W_p-I)^\top(W_p-I)+\eta I\\
# &=(1+\sigma^2)\Big(W_p-\frac I{1+\sigma^2}\Big)^{\!\top}\Big(W_p-\frac I{1+\sigma^2}\Big)\\
# &\quad+\Big(1+\sigma^2-\frac1{1+\sigma^2}+\eta\Big)I,
# \end{aligned}
# $$ (eq-complete-square)
#
# where we completed the square. The last bracket is the rate in {eq}`eq-slowest-collapse`, and the square vanishes for
# $W_p=I/(1+\sigma^2)$. If $\eta=0$, $W\Sigma_{\rm aug}=0$ and $(W_p-I)W=0$, all terms of $\dot W$ in {eq}`eq-no-stop`
# vanish, and so does $G=W\Gamma-W_pW(\Gamma+\Sigma_{\rm aug})=(W-W_pW)\Gamma$, which moves $W_p$. Such a network sees
# only directions in which the two views agree, $Wx=Wx^+$, and its predictor leaves $Wx$ as it is. $\square$
# ````
#
# Directions that augmentation leaves alone make invariance free, and then there is nothing to collapse for. Weight
# decay or noise in all directions removes this way out.
#
# ```{prf:proposition} A predictor is needed
# :label: prop-no-predictor
#
# With stop-gradient, but no predictor, $W_p=I$ and $W_a=W$,
#
# $$
# \dot W=-W(\Sigma_{\rm aug}+\eta I),\qquad W(t)=W(0)\,e^{-(\Sigma_{\rm aug}+\eta I)t} .
# $$ (eq-no-predictor)
#
# $W\to0$ if $\Sigma_{\rm aug}+\eta I$ is invertible, for isotropic data at the rate $\sigma^2+\eta$ exactly. With
# neither predictor nor stop-gradient the exponent has $2\Sigma_{\rm aug}$ in place of $\Sigma_{\rm aug}$.
# *{cite:t}`tian2021understanding`, appendix, where the factors of $\dot W$ stand in the other order (see
# [the errata](../errata.md)); the solution and the last sentence are the companion's.*
# ```
#
# *Proof.* $G=W\Gamma-W\Sigma_x=-W\Sigma_{\rm aug}$ in {eq}`eq-siamese-flow`, and $W_p=I$ in {eq}`eq-no-stop`. The
# equations are linear with constant coefficients. $\square$
#
# The pull of the target, $W\Gamma$, is cancelled exactly by what the online network already has; noise remains. So the
# predictor's task is to *fall short*: with $W_p=pI$ the drive is $(1-p)\,W\Gamma-p\,W\Sigma_{\rm aug}$, and for $p<1$
# there is something left to pull with.

# %%
x, x_plus = pairs
Gamma = x.T @ x_plus / len(x)
Sigma_aug, m, k = x.T @ x / len(x) - Gamma, x.shape[1], 4
W, Wp, eta = normal(k, m), normal(k, k), 0.1
H = predictor.no_stop_matrix(Wp, Gamma, Sigma_aug, eta)
for name in ("", "-stopped"):
    by_W, _ = gradients(x, x_plus, W, Wp, stop_gradient=bool(name))
    ledger.record("alignment.no-stop-matrix" + name, relative(H @ W.T.flatten(), (by_W + eta * W).T.flatten()))

W, times = normal(m, m), torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
alone = predictor.State(W, torch.eye(m, dtype=torch.float64))
path = predictor.flow(alone, Gamma, Sigma_aug, times, rtol=1e-12, eta=eta, fixed_predictor=True).W
shrink = torch.matrix_exp(-(Sigma_aug + eta * torch.eye(m).double()) * times[:, None, None])
for name, closed in (("", W @ shrink), ("-left", shrink @ W)):  # eq-no-predictor, and the printed order
    ledger.record("alignment.no-predictor" + name, relative(path, closed))

# %%
m, k, sigma2 = 8, 4, 0.25
even, odd = isotropic(m, sigma2), (isotropic(m, 0)[0], torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4).double()))
clock = torch.linspace(0, 40, 161, dtype=torch.float64)
W, Wp, eye = 0.35 * normal(k, m), 0.3 * torch.eye(k) + 0.1 * normal(k, k), torch.eye(k, dtype=torch.float64)
variants = {  # data, predictor, keywords of the flow
    "both": (even, Wp, {}),
    "no predictor": (even, eye, {"fixed_predictor": True}),
    "no stop-gradient": (even, Wp, {"stop_gradient": False}),
    "neither": (even, eye, {"fixed_predictor": True, "stop_gradient": False}),
    "no stop-gradient, free directions": (odd, Wp, {"stop_gradient": False}),
}
sizes = {}
for eta in (0.05, 0.0):
    for name, (moments, start, law) in variants.items():
        path = predictor.flow(predictor.State(W, start), *moments, clock, eta=eta, **law)
        sizes[name, eta] = path.W.norm(dim=(1, 2))


# %%
def decay_rates(name, bound):
    """Mean rates of decay up to each time over `bound` + eta, without and with weight decay."""
    found = [-(sizes[name, eta][1:] / sizes[name, eta][0]).log() / clock[1:] / (bound + eta) for eta in (0.0, 0.05)]
    return torch.cat(found)


slowest = sigma2 * (2 + sigma2) / (1 + sigma2)
for claim, name in (("", "no stop-gradient"), ("-stopped", "both")):
    ledger.record("alignment.no-stop-decay" + claim, decay_rates(name, slowest).min())  # eq-slowest-collapse
for claim, name in (("", "no predictor"), ("-trained", "both")):
    rates = decay_rates(name, sigma2)
    ledger.record("alignment.no-predictor-rate" + claim, rates[(rates - 1).abs().argmax()])
for claim, name in (("", "no stop-gradient, free directions"), ("-noisy", "no stop-gradient")):
    ledger.record("alignment.free-directions" + claim, sizes[name, 0.0][-1] / sizes[name, 0.0][0])

# %% mystnb={"figure": {"caption": "What keeps the network from collapsing? Norm of $W$ from one start, without weight decay, isotropic data with $\\sigma^2=\\frac14$. Predictor and stop-gradient together (blue) are enough. Without either of them it collapses, at the rates of {eq}`eq-no-predictor` (dashed) or at least as fast as {eq}`eq-slowest-collapse` (dotted); unless four of the eight directions are free of noise (grey).", "name": "fig-collapse"}, "image": {"alt": "Five curves over time on a logarithmic axis. Two stay near one; three fall along straight lines, the steepest without predictor and without stop-gradient."}}
fig, ax = plt.subplots(figsize=(7.2, 3.8))
colors = dict(zip(variants, (COLORS[0], COLORS[1], COLORS[2], COLORS[3], COLORS[6]), strict=True))
places = {"both": (26, 9.0), "no predictor": (22, 4e-2), "no stop-gradient": (22.5, 4e-4), "neither": (13, 3e-5)}
for name, color in colors.items():
    ax.semilogy(clock, sizes[name, 0.0], color=color, lw=2.5, alpha=0.8)
    label_line(ax, *places.get(name, (20, 0.45)), name, color)
for name, rate, style in (
    ("no predictor", sigma2, "--"),
    ("neither", 2 * sigma2, "--"),
    ("no stop-gradient", slowest, ":"),
):
    ax.semilogy(clock, sizes[name, 0.0][0] * (-rate * clock).exp(), style, color="black", lw=1)
_ = ax.set(xlabel="time of the flow", ylabel="$\\Vert W\\Vert_F$", xlim=(0, 40), ylim=(1e-8, 30))

# %% [markdown]
# $H$ agrees with automatic differentiation of the whole loss to {measured}`alignment.no-stop-matrix|.1e`
# {verdict}`alignment.no-stop-matrix`. In {numref}`fig-collapse` the network without stop-gradient falls at
# {measured}`alignment.no-stop-decay|.3f` times the rate of {eq}`eq-slowest-collapse` or faster
# {verdict}`alignment.no-stop-decay`, but keeps {measured}`alignment.free-directions|percent.0` of its norm when half of
# the directions are free of noise {verdict}`alignment.free-directions`. Without predictor it follows
# {eq}`eq-no-predictor` to {measured}`alignment.no-predictor|.1e` {verdict}`alignment.no-predictor`, at a rate of
# {measured}`alignment.no-predictor-rate|.4f` times $\sigma^2+\eta$ {verdict}`alignment.no-predictor-rate`.
#
# ## How far should the predictor fall short?
#
# The predictor exists to predict, so one may want the best one, the least-squares solution for the current $W$. But
# with it the online network cannot grow.
#
# ```{prf:proposition} The optimal predictor stops all growth
# :label: prop-optimal-predictor
#
# Let the predictor be, at every time, the minimiser of {eq}`eq-siamese-loss` plus $\frac r2\norm{W_p}_F^2$ for the
# current $W$ and $W_a$, with a ridge $r\ge0$; if $r=0$, any minimiser. For all data and every target,
#
# $$
# GW^\top=r\,W_p,\qquad\frac d{dt}(WW^\top)=2r\,W_p^\top W_p-2\eta\,WW^\top .
# $$ (eq-optimal-predictor)
#
# So with the optimal predictor, $r=0$, $W(t)W(t)^\top=e^{-2\eta t}\,W(0)W(0)^\top$. *The companion's own; the paper's
# words are only that a predictor which learns too fast leaves the online network no room to grow.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# By {eq}`eq-siamese-gradient` the gradient of the sum by $W_p$ is $-GW^\top+rW_p$, which is zero at a minimiser. Insert
# this in the online network's equation of {eq}`eq-siamese-flow`, multiplied by $W^\top$ from the right:
#
# $$
# \dot WW^\top=W_p^\top GW^\top-\eta WW^\top=r\,W_p^\top W_p-\eta WW^\top .
# $$ (eq-optimal-growth)
#
# Add the transpose. $\square$
# ````
#
# The online network may still turn in input space, but its singular values are frozen, or decay. It grows exactly by
# what the predictor falls short of the optimum: a ridge that is zero or infinite gives nothing, and in between there is
# a best one ({ref}`another exercise <ex-best-ridge>`). A predictor that is trained by gradient steps, and lags, falls
# short by itself. In the paper's Table 1 a predictor that is set to the optimum does much worse than a trained one.

# %%
m, k, eta = 6, 4, 0.1
Gamma, Sigma_aug = random_moments(m)
start, times = 0.5 * normal(k, m), np.linspace(0, 10, 11)
drives, kept, growth = {}, {}, {}
for name, ridge in (("", 0.0), ("-ridge", 0.5)):

    def online(W, ridge=ridge):
        """The online network's velocity when its predictor is always the best one."""
        Wp = predictor.optimal_predictor(W, Gamma, Sigma_aug, ridge=ridge)  # for a target equal to W
        return Wp, predictor.velocity(predictor.State(W, Wp), Gamma, Sigma_aug, eta=eta)

    def right(_, w, online=online):
        return online(torch.from_numpy(w).reshape(k, m))[1].W.numpy().ravel()

    w = solve_ivp(right, (0, 10), start.numpy().ravel(), "DOP853", times, rtol=1e-11, atol=1e-14).y.T
    path = torch.from_numpy(w.copy()).reshape(-1, k, m)
    gram = path @ path.mT * torch.from_numpy(np.exp(2 * eta * times))[:, None, None]
    kept[name] = float((gram - gram[0]).norm(dim=(1, 2)).max() / gram[0].norm())  # eq-optimal-predictor, r = 0
    Wp, (dW, dWp, _) = online(start)
    drives[name] = float((dWp + eta * Wp).abs().max())  # the drive of the predictor, G W^T
    for claim, r in (("", ridge), ("-half", ridge / 2)):
        growth[claim] = relative(2 * symmetric_part(dW @ start.T), 2 * r * Wp.T @ Wp - 2 * eta * start @ start.T)
for found, claim in ((drives, "optimal-drive"), (kept, "optimal-predictor"), (growth, "ridge-growth")):
    for name, value in found.items():
        ledger.record(f"alignment.{claim}{name}", value)

# %% [markdown]
# At the optimal predictor $GW^\top$ vanishes to {measured}`alignment.optimal-drive|.1e`
# {verdict}`alignment.optimal-drive`, and along the flow $e^{2\eta t}WW^\top$ stays what it was to
# {measured}`alignment.optimal-predictor|.1e` {verdict}`alignment.optimal-predictor`, on data that are not isotropic.
# With the ridge it moves by {measured}`alignment.optimal-predictor-ridge|.1f` times its size, by
# {eq}`eq-optimal-predictor` {verdict}`alignment.ridge-growth`.
#
# ## The reduced flow
#
# From here to the end of the section on alignment, A1 to A3 hold unless we say otherwise. Then $C=WW^\top$, the drive
# is $G=\tau W-(1+\sigma^2)W_pW$, and $GW^\top=\tau C-(1+\sigma^2)W_pC$. The symmetric part of this, and
# $\dot C=\dot WW^\top+W\dot W^\top$, give equations in which the input dimension no longer occurs. With
# $\{A,B\}=AB+BA$,
#
# $$
# \begin{aligned}
# \dot W_p&=-\tfrac{\alpha_p}2(1+\sigma^2)\{W_p,C\}+\alpha_p\tau C-\eta W_p,\\
# \dot C&=-(1+\sigma^2)\{W_p^2,C\}+\tau\{W_p,C\}-2\eta C .
# \end{aligned}
# $$ (eq-reduced-flow)
#
# They have a solution for all times. Completing the square in $\tr\dot C$, one finds that $\tr C$ grows at the rate
# $\frac{\tau^2}{2(1+\sigma^2)}$ at most, and for given $C(t)$ the first equation is linear in $W_p$.
#
# How much do the assumptions cost? A2 is a choice of data; the second half of the chapter goes without it. For A3 there
# is this:
#
# ```{prf:proposition} A trained predictor becomes symmetric
# :label: prop-symmetric-fixed
#
# Let A1 and A2 hold, let $C$ and $\tau$ stand still, and let $W_p$ follow its equation in {eq}`eq-siamese-flow`, not
# symmetrised. If $\eta>0$, there is one rest point, it is symmetric and commutes with $C$, and the predictor reaches it
# from every start:
#
# $$
# \begin{aligned}
# W_p^\circ&=\tau\,C\Big[(1+\sigma^2)\,C+\frac\eta{\alpha_p}I\Big]^{-1},\\
# W_p(t)&=W_p^\circ+(W_p(0)-W_p^\circ)\,e^{-(\alpha_p(1+\sigma^2)C+\eta I)t}.
# \end{aligned}
# $$ (eq-symmetric-fixed)
#
# If $\eta=0$, $k\ge2$ and $C$ is singular, there are rest points that are not symmetric.
# *{cite:t}`tian2021understanding`, on symmetric predictors; the course in time and the last sentence are the
# companion's.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# With $GW^\top=\tau C-(1+\sigma^2)W_pC$ the predictor's equation is linear in $W_p$, with constant coefficients:
#
# $$
# \dot W_p=\alpha_p\tau C-W_pK,\qquad K=\alpha_p(1+\sigma^2)C+\eta I .
# $$ (eq-frozen)
#
# For $\eta>0$, $K\succ0$ is invertible, the rest point is $\alpha_p\tau CK^{-1}=W_p^\circ$, and $D=W_p-W_p^\circ$ obeys
# $\dot D=-DK$, so $D(t)=D(0)e^{-Kt}$. A product of functions of the symmetric matrix $C$ is symmetric and commutes with
# $C$. For $\eta=0$ every $W_p$ with $(1+\sigma^2)W_pC=\tau C$ rests; to $\frac\tau{1+\sigma^2}I$ add any $uv^\top$ with
# $Cv=0$, $v\ne0$, and $u$ not a multiple of $v$. $\square$
# ````
#
# So the asymmetric part is forgotten at the rate $\eta$ at least while $C$ stands still. While $C$ moves we have no
# proof, and measure: the flow without A3, balanced at the start as {prf:ref}`thm-balance` has it in the end, for three
# values of $\eta$ and three of $\tau$. The control has no decay, and more embedding than input dimensions, so that $C$
# is singular.

# %%
m, k, sigma2, alpha_p, eta = 7, 5, 0.3, 3.0, 0.1
W, Wp, tau = normal(k, m), symmetric_part(normal(k, k)), 0.7
C = W @ W.T
for name, (X, X_aug) in {"": isotropic(m, sigma2), "-correlated": random_moments(m)}.items():
    law = {"alpha_p": alpha_p, "eta": eta, "tau": tau, "symmetric": True}
    dW, dWp, _ = predictor.velocity(predictor.State(W, Wp), X, X_aug, **law)
    by_hand = -alpha_p * (1 + sigma2) * symmetric_part(Wp @ C) + alpha_p * tau * C - eta * Wp  # eq-reduced-flow
    dC = -2 * (1 + sigma2) * symmetric_part(Wp @ Wp @ C) + 2 * tau * symmetric_part(Wp @ C) - 2 * eta * C
    gap = max(relative(dWp, by_hand), relative(2 * symmetric_part(dW @ W.T), dC))
    ledger.record("alignment.reduced-flow" + name, gap)
eye = torch.eye(k, dtype=torch.float64)
for name, decay in (("", eta / alpha_p), ("-unscaled", eta)):
    rest = tau * C @ torch.linalg.inv((1 + sigma2) * C + decay * eye)  # eq-symmetric-fixed
    law = {"alpha_p": alpha_p, "eta": eta, "tau": tau}
    still = predictor.velocity(predictor.State(W, rest), *isotropic(m, sigma2), **law)
    ledger.record("alignment.fixed-predictor" + name, still.Wp.abs().max())

# %%
k, runs, times = 8, 5, torch.tensor([0.0, 200.0, 1000.0])


def skew_left(W, Wp, **law):
    """What is left of the asymmetric part of the predictor at the times, largest over the runs."""
    path = predictor.flow(predictor.State(W, Wp), *isotropic(W.shape[-1], 0.04), times, rtol=1e-8, **law)
    skew = frobenius(path.Wp - path.Wp.mT)
    return (skew / skew[0]).amax(1).tolist()


table = {}
for eta in (0.01,) if smoke else (0.001, 0.01, 0.05):
    for tau in (0.5, 1.0) if smoke else (0.2, 0.5, 1.0):
        Wp = 0.4 * normal(runs, k, k)
        table[eta, tau] = skew_left(Wp.mT, Wp, eta=eta, tau=tau)  # balanced: W W^T = W_p^T W_p
        print(
            f"eta = {eta:<5}  tau = {tau}:  {table[eta, tau][1]:.0e} at t = 200,  {table[eta, tau][2]:.0e} at t = 1000"
        )
decayed = [left[2] for (eta, tau), left in table.items() if eta >= 0.01 and tau >= 0.5]
singular = [skew_left(0.4 * normal(runs, k, 4), 0.4 * normal(runs, k, k), tau=tau)[2] for tau in (0.5, 1.0)]
for name, values in (("", decayed), ("-no-decay", singular)):
    ledger.record("alignment.asymmetry" + name, max(values), n=runs * len(values))

# %% [markdown]
# Of the asymmetric part {measured}`alignment.asymmetry|.1e` is left at $t=1000$, at most, for $\eta\ge0.01$ and
# $\tau\ge\frac12$ {verdict}`alignment.asymmetry`. We wait that long because of the slow cases in the printed table:
# between two modes that die, $C$ has nothing left to pull with, and only the rate $\eta$ remains; at $t=200$ the factor
# $e^{-\eta t}$ alone is still $e^{-2}$ for $\eta=0.01$. Without decay and with a singular $C$,
# {measured}`alignment.asymmetry-no-decay|percent.0` stay. The rest point {eq}`eq-symmetric-fixed` is one to
# {measured}`alignment.fixed-predictor|.1e` {verdict}`alignment.fixed-predictor`, and {eq}`eq-reduced-flow` is the flow
# to {measured}`alignment.reduced-flow|.1e` {verdict}`alignment.reduced-flow`.
#
# A1 is the boldest of the three: a target that follows is a mean over the past of $W$, so it is proportional to $W$
# only if $W$ does not turn. Let us see how parallel the two matrices are, by the cosine
# $\langle W_a,W\rangle/(\norm{W_a}_F\norm W_F)$, when the target starts at zero, as the paper's analysis has it. In
# BYOL it starts as a copy; in the authors' published code it starts from random weights of its own, our control.

# %%
m, k, runs = 20, 10, 10
times = torch.cat([torch.tensor([1e-3, 1e-2, 0.1]), torch.linspace(0.5, 60, 120)])
lowest = {"": [], "-own": []}
for eta in (0.0, 0.01, 0.1):
    W, Wp, own = 0.3 * normal(runs, k, m), 0.3 * normal(runs, k, k), 0.3 * normal(runs, k, m)
    for name, Wa in (("", torch.zeros_like(W)), ("-own", own)):
        start = predictor.State(W, Wp, Wa)
        path = predictor.flow(start, *isotropic(m, 0.03**2), times, eta=eta, beta=0.4, rtol=1e-7)
        cosine = torch.cosine_similarity(path.W.flatten(2), path.Wa.flatten(2), dim=2)
        lowest[name].append(float(cosine.min()))
for name, values in lowest.items():
    ledger.record("alignment.proportional-target" + name, min(values), n=3 * runs)

# %% [markdown]
# From zero, the cosine never falls below {measured}`alignment.proportional-target|.3f` in thirty runs
# {verdict}`alignment.proportional-target`; from random weights it starts near zero and has to build up.
#
# ## Alignment
#
# Two symmetric matrices have common eigenvectors if and only if they commute. So measure by
# $M=[C,W_p]=CW_p-W_pC$ how far predictor and embeddings are from sharing their eigenvectors.
#
# ```{prf:theorem} Alignment
# :label: thm-alignment
#
# Under A1 to A3,
#
# $$
# \begin{aligned}
# \dot M&=-\Xi M-M\,\Xi,\\
# \Xi(t)&=(1+\sigma^2)\Big[\frac{\alpha_p}2C+W_p^2-\frac\tau{1+\sigma^2}W_p\Big]+\frac32\,\eta I,
# \end{aligned}
# $$ (eq-commutator)
#
# and therefore
#
# $$
# \norm{M(t)}_F\le\exp\Big(-2\int_0^t\lambda_{\min}(\Xi)\Big)\norm{M(0)}_F .
# $$ (eq-commutator-bound)
#
# If $\inf_t\lambda_{\min}(\Xi(t))=\lambda_0>0$, then $\norm{M(t)}_F\le e^{-2\lambda_0t}\norm{M(0)}_F\to0$.
# *{cite:t}`tian2021understanding`, Theorem 3. (The paper has the constant $\lambda_0$, and the appendix prints $\max_t$
# where $\inf_t$ is meant, see [the errata](../errata.md); the integral is the companion's own.)*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# $\dot M=[\dot C,W_p]+[C,\dot W_p]$, and we insert {eq}`eq-reduced-flow`. Three commutators are needed; multiply them
# out, and the terms $CW_pC$, and $W_pCW_p$, cancel:
#
# $$
# \begin{aligned}
# [C,\{W_p,C\}]&=C^2W_p-W_pC^2=CM+MC,\\
# [\{W_p,C\},W_p]&=CW_p^2-W_p^2C=W_pM+MW_p,\\
# [\{W_p^2,C\},W_p]&=W_p^2CW_p+CW_p^3-W_p^3C-W_pCW_p^2\\
# &=W_p^2M+MW_p^2 .
# \end{aligned}
# $$ (eq-three-commutators)
#
# (Each second equality is read from the right: $CM+MC=C(CW_p-W_pC)+(CW_p-W_pC)C$, and so on.) With $[C,C]=0$,
#
# $$
# \begin{aligned}
# [C,\dot W_p]&=-\tfrac{\alpha_p}2(1+\sigma^2)(CM+MC)-\eta M,\\
# [\dot C,W_p]&=-(1+\sigma^2)(W_p^2M+MW_p^2)+\tau(W_pM+MW_p)-2\eta M .
# \end{aligned}
# $$ (eq-commutator-parts)
#
# Write $-3\eta M=-\frac32\eta M-M\frac32\eta$; the sum is {eq}`eq-commutator`. For the norm,
#
# $$
# \begin{aligned}
# \frac d{dt}\norm M_F^2=2\tr(M^\top\dot M)&=-2\tr(M^\top\Xi M)-2\tr(M\,\Xi M^\top)\\
# &\le-4\lambda_{\min}(\Xi)\norm M_F^2,
# \end{aligned}
# $$ (eq-commutator-norm)
#
# and as in {prf:ref}`lem-contraction` this integrates to {eq}`eq-commutator-bound`. $\square$
# ````
#
# If the predictor's decay $\eta_p$ differs from that of the online network, the only change is $\frac12(\eta_p+2\eta)$
# in place of $\frac32\eta$, by {eq}`eq-commutator-parts` (the companion's remark).
#
# Every constant has its say in $\Xi$. A fast predictor ($\alpha_p$), weight decay and a lagging target (small $\tau$)
# make it more positive. But near the start, where $C$ and $W_p$ are small, $\Xi\approx\frac32\eta I-\tau W_p$ has
# negative eigenvalues as soon as $W_p$ exceeds $\frac{3\eta}{2\tau}$: growth and this condition pull in opposite
# directions. Does alignment then fail? While the features grow, the commutator grows with them, and it tells little
# that $\norm M_F$ does. One has to ask for its size relative to $C$.
#
# ```{prf:proposition} Alignment without a condition
# :label: prop-scale-free
#
# Let A1 to A3 hold and $C(0)\succ0$. For every course $\tau(t)$ and all $\sigma^2,\eta\ge0$, $\alpha_p>0$ and symmetric
# $W_p(0)$, even an indefinite one, the *scale-free commutator* $\mathcal M=\norm{C^{-1/2}\,[C,W_p]\,C^{-1/2}}_F$ obeys
#
# $$
# \mathcal M(t)\le\exp\Big(-\int_0^t\big[\alpha_p(1+\sigma^2)\,\lambda_{\min}(C)+\eta\big]\Big)\,\mathcal M(0) .
# $$ (eq-scale-free)
#
# It never grows, and $\norm M_F\le\lambda_{\max}(C)\,\mathcal M$. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# The letters $B$, $Y$, $Z$, $S$ and $a=\frac{\alpha_p}2(1+\sigma^2)$ are of this proof only. The symmetric matrix
# $B=-(1+\sigma^2)W_p^2+\tau W_p-\eta I$ turns {eq}`eq-reduced-flow` and {eq}`eq-commutator` into
#
# $$
# \dot C=BC+CB,\qquad\Xi=aC-B+\tfrac\eta2I .
# $$ (eq-common-factor)
#
# *A square root that moves with $C$.* Let $\dot Y=BY$ with $Y(0)=C(0)^{1/2}$. Then
# $\frac d{dt}(YY^\top)=B\,YY^\top+YY^\top B$, the linear equation of $C$, from the start of $C$; so $C=YY^\top$. $Y$
# stays invertible, since $\frac d{dt}\log\det Y=\tr B$ is finite.
#
# *The commutator in its coordinates.* Put $M=YZY^\top$. From this, and from {eq}`eq-commutator` with
# {eq}`eq-common-factor`,
#
# $$
# \begin{aligned}
# \dot M&=BM+MB+Y\dot ZY^\top,\\
# \dot M&=BM+MB-a(CM+MC)-\eta M .
# \end{aligned}
# $$ (eq-two-ways)
#
# With $S=Y^\top Y$, $CM=YY^\top YZY^\top=Y(SZ)Y^\top$ and $MC=Y(ZS)Y^\top$. Compare, and cancel the invertible $Y$:
#
# $$
# \dot Z=-a(SZ+ZS)-\eta Z .
# $$ (eq-scale-free-flow)
#
# All that could make $M$ grow has gone into $Y$. $S=Y^\top Y$ has the eigenvalues of $YY^\top=C$, so as in
# {eq}`eq-commutator-norm`
#
# $$
# \begin{aligned}
# \frac d{dt}\norm Z_F^2&\le-\big(4a\lambda_{\min}(C)+2\eta\big)\norm Z_F^2\\
# &=-2\big(\alpha_p(1+\sigma^2)\lambda_{\min}(C)+\eta\big)\norm Z_F^2 .
# \end{aligned}
# $$ (eq-scale-free-norm)
#
# *Back.* With $Z=Y^{-1}MY^{-\top}$ and $Y^{-\top}Y^{-1}=C^{-1}$,
#
# $$
# \norm Z_F^2=\tr(ZZ^\top)=\tr(C^{-1}MC^{-1}M^\top)=\norm{C^{-1/2}MC^{-1/2}}_F^2=\mathcal M^2 .
# $$ (eq-scale-free-back)
#
# Finally $\norm M_F=\norm{C^{1/2}(C^{-1/2}MC^{-1/2})C^{1/2}}_F\le\lambda_{\max}(C)\,\mathcal M$. $\square$
# ````
#
# In the linear model without noise, then, $M$ relative to $C$ cannot fail to settle as long as the features stay alive
# or there is weight decay. The sign of $\Xi$ only decides whether the *absolute* norm may grow on the way. That it is
# not positive can matter only through what the flow leaves out: noise of the gradients, the length of steps, nonlinear
# networks, data that are not isotropic. (With another decay $\eta_p$ of the predictor, read $\eta_p$ for $\eta$ in
# {eq}`eq-scale-free`.) $\mathcal M$ does not change when $C$ is multiplied by a number, but it scales with $W_p$; so
# {numref}`fig-alignment` also shows the *relative commutator* $\norm M_F/(\norm C_F\norm{W_p}_F)$. (Where all modes
# live, $W_p$ tends to a multiple of $I$, with weight decay $C$ as well, and $M\to0$ says nothing of eigenvectors; what
# counts is the time before.) Multiples of $I$ do not change $M$, so the strictest measure is the *traceless commutator*
# $\norm M_F/(\norm{C'}_F\norm{W_p'}_F)$, with the traceless parts $A'=A-\frac1k(\tr A)I$: it cannot be small just
# because the eigenvalues come close.

# %%
m, k, sigma2, eta, alpha_p = 7, 5, 0.2, 0.1, 3.0
laws = {"": {"symmetric": True}, "-split": {"symmetric": True, "eta_p": 0.4}, "-unsymmetrised": {}}
gaps = {}
for name, law in laws.items():
    W, Wp, tau = normal(k, m), symmetric_part(normal(k, k)), 0.6
    law = law | {"eta": eta, "alpha_p": alpha_p, "tau": tau}
    dW, dWp, _ = predictor.velocity(predictor.State(W, Wp), *isotropic(m, sigma2), **law)
    C, dC = W @ W.T, 2 * symmetric_part(dW @ W.T)
    M, dM = predictor.commutator(C, Wp), predictor.commutator(dC, Wp) + predictor.commutator(C, dWp)
    decay = {"alpha_p": alpha_p, "eta": eta, "eta_p": law.get("eta_p")}
    Xi = predictor.alignment_matrix(C, Wp, tau=tau, sigma2=sigma2, **decay)
    gaps[name] = relative(dM, -Xi @ M - M @ Xi)  # eq-commutator
ledger.record("alignment.commutator-law", max(gaps[""], gaps["-split"]), n=2)
ledger.record("alignment.commutator-law-unsymmetrised", gaps["-unsymmetrised"])


# %%
def alignment_run(W, Wp, moments, clock, sigma2=0.04, **law):
    """The symmetrised flow: C, the predictor, and the smallest eigenvalue of Xi, over time."""
    path = predictor.flow(predictor.State(W, Wp), *moments, clock, symmetric=True, rtol=1e-11, **law)
    C, tau = path.W @ moments[0] @ path.W.mT, law.pop("tau", lambda time: 1.0)
    tau = torch.tensor([tau(float(time)) for time in clock], dtype=torch.float64)
    Xi = predictor.alignment_matrix(C, path.Wp, tau=tau, sigma2=sigma2, **law)
    return C, path.Wp, torch.linalg.eigvalsh(Xi)[:, 0]


def relative_commutator(C, Wp):
    return frobenius(predictor.commutator(C, Wp)) / (frobenius(C) * frobenius(Wp))


def traceless_commutator(C, Wp):
    """The commutator relative to the traceless parts: it stays large where only the eigenvalues come together."""
    C, Wp = (A - A.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(A.shape[-1]) for A in (C, Wp))
    return relative_commutator(C, Wp)


def integral(values, clock):
    return torch.from_numpy(cumulative_simpson(values.numpy(), x=clock.numpy(), initial=0))


# %%
m, k, sigma2 = 8, 6, 0.04
even, clock = isotropic(m, sigma2), torch.linspace(0, 60, 1201, dtype=torch.float64)
eye = torch.eye(k, dtype=torch.float64)
factor = 0.2 * normal(k, k)
starts = {  # online network, predictor, weight decay
    "positive": (0.6 * normal(k, m), 1.5 * eye + symmetric_part(0.2 * normal(k, k)), 0.2),
    "small": (0.03 * normal(k, m), factor @ factor.T, 0.0),
}
courses = {name: alignment_run(W, Wp, even, clock, eta=eta) for name, (W, Wp, eta) in starts.items()}
sizes = {name: frobenius(predictor.commutator(C, Wp)) for name, (C, Wp, _) in courses.items()}
size, lowest = sizes["positive"], courses["positive"][2]
for name, exponent in (("", integral(lowest, clock)), ("-largest", lowest.max() * clock)):
    ratio = size / (size[0] * (-2 * exponent).exp())  # eq-commutator-bound; max for inf is the control
    ledger.record("alignment.commutator-bound" + name, ratio[1:][size[1:] > 1e-8 * size[0]].max())
for name, run in (("", "small"), ("-positive", "positive")):
    ledger.record("alignment.commutator-growth" + name, (sizes[run] / sizes[run][0]).max())
    print(f"{run}: smallest eigenvalue of Xi between {courses[run][2].min():.3f} and {courses[run][2].max():.3f}")
C, Wp, _ = courses["small"]
traceless = traceless_commutator(C, Wp)
ledger.record("alignment.traceless", float(traceless.min()))  # on the way: settled modes show rounding
ledger.record("alignment.traceless-start", float(traceless[0]))

# %%
m, k = 5, 4
clock, excess = torch.linspace(0, 10, 201, dtype=torch.float64), {"": [], "-double": []}
for _ in track(range(6 if smoke else 40), "random flows"):
    sigma2, alpha_p, eta, scale, pace = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    law = {"alpha_p": 10 ** (1.5 * alpha_p - 0.5), "eta": 0.2 * eta}
    W, Wp = 10 ** (1.5 * scale - 1.5) * normal(k, m), 0.3 * torch.eye(k) + symmetric_part(0.3 * normal(k, k))

    def tau(time, pace=pace):
        return 0.6 + 0.4 * math.sin(3 * pace * time)

    C, Wp, _ = alignment_run(W, Wp, isotropic(m, sigma2), clock, sigma2, tau=tau, **law)
    c = torch.linalg.eigvalsh(C)
    bound = (-integral(law["alpha_p"] * (1 + sigma2) * c[:, 0] + law["eta"], clock)).exp()
    seen = (bound > 1e-6) & (c[:, 0] > 1e-6 * c[:, -1])  # beyond, rounding in the inverse root of C shows
    scale_free, bound = predictor.scale_free_commutator(C[seen], Wp[seen]), bound[seen]
    for name, power in (("", 1), ("-double", 2)):
        excess[name].append(float((scale_free / scale_free[0] / bound**power)[1:].max()))  # eq-scale-free
for name, values in excess.items():
    ledger.record("alignment.scale-free" + name, max(values), n=len(values))

# %% mystnb={"figure": {"caption": "Can alignment fail? Size of the commutator $[C,W_p]$ over time: absolute (blue), relative to the norms of $C$ and $W_p$ (orange), and scale-free (green), each over its start. Left: $\\Xi\\succ0$ at all times. Right: a small start without weight decay, with $\\Xi\\not\\succ0$ where the ground is grey; the absolute commutator grows, the others do not. Dashed: the bounds {eq}`eq-commutator-bound` and {eq}`eq-scale-free`.", "name": "fig-alignment"}, "image": {"alt": "Two panels with a logarithmic axis. Left, three curves fall together. Right, one curve first rises several-fold before it falls, while the other two fall from the beginning."}}
clock, sigma2 = torch.linspace(0, 60, 1201, dtype=torch.float64), 0.04
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.8), sharey=True)
for ax, name, title, end in zip(
    axes, starts, ("$\\Xi$ positive, $\\eta=0.2$", "small start, $\\eta=0$"), (30, 60), strict=True
):
    C, Wp, lowest = courses[name]
    rates = 2 * lowest, None, (1 + sigma2) * torch.linalg.eigvalsh(C)[:, 0] + starts[name][2]
    measures = sizes[name], relative_commutator(C, Wp), predictor.scale_free_commutator(C, Wp)
    for values, rate, color in zip(measures, rates, COLORS, strict=False):
        ax.semilogy(clock, values / values[0], color=color, lw=2.2, alpha=0.85)
        if rate is not None:
            ax.semilogy(clock, (-integral(rate, clock)).exp(), "--", color=color, lw=1)
    ax.fill_between(clock, 1e-6, 100, where=lowest < 0, color="0.5", alpha=0.15, lw=0)
    ax.set(title=title, xlabel="time of the flow", xlim=(0, end), ylim=(1e-6, 100))
for height, name, color in zip((40, 12, 3.6), ("absolute", "relative", "scale-free"), COLORS, strict=False):
    label_line(axes[0], 12, height, name, color)
_ = axes[0].set(ylabel="commutator over its start")

# %% [markdown]
# The law {eq}`eq-commutator` holds to {measured}`alignment.commutator-law|.1e` {verdict}`alignment.commutator-law`, and
# the bound {eq}`eq-commutator-bound` is kept {verdict}`alignment.commutator-bound`, at a ratio of at most
# {measured}`alignment.commutator-bound|.3f`; with the largest value of $\lambda_{\min}(\Xi)$ over time, the printed
# hypothesis, in place of the smallest, it fails by orders of magnitude. From a small start, {numref}`fig-alignment` on
# the right, the absolute commutator first grows {measured}`alignment.commutator-growth|.1f`-fold
# {verdict}`alignment.commutator-growth`. The eigenvectors align all the same: on the way the
# traceless commutator falls to {measured}`alignment.traceless|.1e` {verdict}`alignment.traceless`, from
# {measured}`alignment.traceless-start|.2f|value` at the start. In random flows with
# every constant drawn anew and a $\tau$ that goes up and down, the scale-free commutator is never above
# {eq}`eq-scale-free` {verdict}`alignment.scale-free` (largest ratio {measured}`alignment.scale-free|.4f`); with twice
# its rate the bound fails.

# %% [markdown]
# ## Every mode by itself
#
# Once the eigenvectors agree, nothing turns any more, and the matrices fall apart into pairs of numbers. For this A3 is
# not even needed.
#
# ```{prf:lemma} Eigenvectors rest once aligned
# :label: lem-eigenvectors-rest
#
# Let the data be isotropic (A2) and $k\le m$. Suppose that at one time $W_p$ is symmetric, commutes with $C=WW^\top$,
# and $W_a=\tau W$. Then there are orthonormal $u_1,\dots,u_k\in\R^k$ and orthonormal $e_1,\dots,e_k\in\R^m$ that do
# not depend on time, such that from this time on, under {eq}`eq-siamese-flow` as it stands,
#
# $$
# W_p=\sum_jp_ju_ju_j^\top,\qquad W=\sum_jw_ju_je_j^\top,\qquad W_a=\sum_ja_ju_je_j^\top .
# $$ (eq-aligned)
#
# Where $w_j\ne0$ we write $\tau_j=a_j/w_j$. *That the eigenvectors rest is in {cite:t}`tian2021understanding`; this
# form, without symmetrisation and with a target of its own for each mode, is the companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# *The start has this form.* Commuting symmetric matrices have a common orthonormal basis $u_j$ of eigenvectors. The
# vectors $W^\top u_j$ are orthogonal, since $u_i^\top WW^\top u_j=u_i^\top Cu_j=0$ for $i\ne j$. Let $w_j$ be their
# lengths and $W^\top u_j=w_je_j$; where $w_j=0$, complete the $e_j$ to an orthonormal set, which $k\le m$ allows. Then
# $W=\sum_ju_ju_j^\top W=\sum_jw_ju_je_j^\top$, and $a_j=\tau w_j$.
#
# *The flow keeps it.* Insert {eq}`eq-aligned`, with $\Gamma=I$ and $\Sigma_x=(1+\sigma^2)I$, in the drive:
#
# $$
# G=\sum_j\big(a_j-(1+\sigma^2)p_jw_j\big)\,u_je_j^\top .
# $$ (eq-aligned-drive)
#
# $GW^\top$ is then diagonal in the $u_j$, and $W_p^\top G$ and $W-W_a$ are combinations of the $u_je_j^\top$. So all
# three equations {eq}`eq-siamese-flow` are solved by {eq}`eq-aligned` with resting $u_j,e_j$, if the numbers solve
#
# $$
# \begin{aligned}
# \dot p_j&=\alpha_p\,w_j\big(a_j-(1+\sigma^2)p_jw_j\big)-\eta p_j,\\
# \dot w_j&=p_j\big(a_j-(1+\sigma^2)p_jw_j\big)-\eta w_j,\qquad\dot a_j=\beta(w_j-a_j) .
# \end{aligned}
# $$ (eq-scalar-flow)
#
# The right sides are polynomials in $p_j$, $w_j$ and $a_j$, so these have a solution. The solution of
# {eq}`eq-siamese-flow` from a start is unique, hence it is this one. (If the target is $\tau W$ by construction, with
# a given $\tau(t)$, put $a_j=\tau w_j$ and drop the last equation.) $\square$
# ````
#
# ```{prf:proposition} The law of a mode
# :label: prop-modes
#
# In {prf:ref}`lem-eigenvectors-rest` the eigenvalues $p_j$ of $W_p$ and $s_j=w_j^2$ of $C$ obey, as long as $s_j>0$,
#
# $$
# \begin{aligned}
# \dot p_j&=\alpha_ps_j\big[\tau_j-(1+\sigma^2)p_j\big]-\eta p_j,\\
# \dot s_j&=2p_js_j\big[\tau_j-(1+\sigma^2)p_j\big]-2\eta s_j,\\
# \dot\tau_j&=\beta(1-\tau_j)-\tau_j\,\frac{\dot s_j}{2s_j}.
# \end{aligned}
# $$ (eq-modes)
#
# From $s_j(0)>0$ this is for ever if $p_j(0)\ge0$ and $\tau_j(0)\ge0$, or if $\tau_j=\tau$ is given and $W_a=\tau W$.
# (From $p_j<0$ a target that follows can drive $w_j$ through zero.)
#
# $\alpha_p$ is only a unit of $s$: in $(p,\alpha_ps,\tau)$ it disappears. The noise is only a unit, too: with
#
# $$
# \begin{aligned}
# q&=(1+\sigma^2)p,& z&=\alpha_p(1+\sigma^2)^2s,& t'&=t/(1+\sigma^2),\\
# \eta'&=(1+\sigma^2)\eta,&\beta'&=(1+\sigma^2)\beta
# \end{aligned}
# $$ (eq-rescaled)
#
# the law is that of $\alpha_p=1$ and $\sigma^2=0$. *{cite:t}`tian2021understanding`, Eqs. (11)–(13), with a single
# $\tau$; the rescalings are the companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# The first two lines are {eq}`eq-scalar-flow` with $a=\tau w$ and $\dot s=2w\dot w$. Its last equation is
# $\dot\tau w+\tau\dot w=\beta(1-\tau)w$; divide by $w$ and use $\dot w/w=\dot s/2s$. *The sign of $w$.* With a given
# $\tau$, $\dot w$ is a multiple of $w$, and $w$ does not vanish. With a target that follows let $w(0)>0$ and
# $p(0),a(0)\ge0$. On the faces of the octant $p,w,a\ge0$ {eq}`eq-scalar-flow` has $\dot p=\alpha_pwa\ge0$ where $p=0$,
# $\dot w=pa\ge0$ where $w=0$ and $\dot a=\beta w\ge0$ where $a=0$, so it is not left; and in it
# $\dot w\ge-\big((1+\sigma^2)p^2+\eta\big)w$, so $w$ stays positive. *Rescaling.* Multiply derivatives by $1+\sigma^2$
# to get those with respect to $t'$:
#
# $$
# \begin{aligned}
# \frac{dq}{dt'}&=(1+\sigma^2)^2\big(\alpha_ps\,[\tau-q]-\eta p\big)=z\,[\tau-q]-\eta'q,\\
# \frac{dz}{dt'}&=\alpha_p(1+\sigma^2)^3\big(2ps\,[\tau-q]-2\eta s\big)=2qz\,[\tau-q]-2\eta'z,
# \end{aligned}
# $$ (eq-rescaled-modes)
#
# and $\frac{d\tau}{dt'}=\beta'(1-\tau)-\frac\tau{2z}\frac{dz}{dt'}$. $\square$
# ````
#
# So what happens to a mode depends on two constants, $\eta'$ and $\beta'$, and on its start. A single $\tau$ for all
# modes is consistent only if they grow in step, because a target lags more behind a mode that grows faster.
#
# ```{prf:proposition} What a mode conserves
# :label: prop-integral
#
# For every course of the target, $\omega_j=e^{2\eta t}\big(s_j-p_j^2/\alpha_p\big)$ is constant. That is,
#
# $$
# s_j(t)=\frac{p_j(t)^2}{\alpha_p}+\omega_je^{-2\eta t},\qquad\omega_j=s_j(0)-\frac{p_j(0)^2}{\alpha_p} .
# $$ (eq-integral)
#
# With weight decay every mode approaches the *invariant parabola* $s_j=p_j^2/\alpha_p$ at the rate $2\eta$.
# *{cite:t}`tian2021understanding`, Eq. (14); the main text prints $\omega_j$ with the opposite sign, see
# [the errata](../errata.md).*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# The brackets of {eq}`eq-scalar-flow` cancel in
# $2w_j\dot w_j-\frac2{\alpha_p}p_j\dot p_j=-2\eta\big(s_j-\frac{p_j^2}{\alpha_p}\big)$, also where $w_j=0$. It is
# {prf:ref}`thm-balance`, read in the basis $u_j$. $\square$
# ````
#
# **Check.** Matrices against numbers: a BYOL network of $5\times8$ weights from an aligned start with
# $W_a(0)=0.1\,W(0)$, and five times three numbers. As controls, a predictor with the same eigenvalues and other
# eigenvectors; the sign as printed; and the rescaling with the clock left as it was.

# %%
generator.manual_seed(seed + 1)  # whatever the cells above have drawn
k, m, rates = 5, 8, {"alpha_p": 3.0, "eta": 0.04, "beta": 0.4}
times = torch.linspace(0, 30 if smoke else 60, 61, dtype=torch.float64)
U, V, turned = (torch.linalg.qr(normal(n, k)).Q for n in (k, m, k))
p0, w0 = torch.linspace(0.05, 0.45, k, dtype=torch.float64), torch.linspace(0.6, 0.2, k, dtype=torch.float64)
p, s, tau = predictor.mode_flow(p0, w0**2, 0.1, times, sigma2=0.09, **rates)  # eq-modes
W = U @ torch.diag(w0) @ V.T
for name, basis in (("", U), ("-turned", turned)):
    start = predictor.State(W, basis @ torch.diag(p0) @ basis.T, 0.1 * W)
    path = predictor.flow(start, *isotropic(m, 0.09), times, **rates)
    gaps = [path.Wp - U @ torch.diag_embed(p) @ U.T, path.W @ path.W.mT - U @ torch.diag_embed(s) @ U.T]
    gaps.append(path.Wa - U @ torch.diag_embed(tau * s.sqrt()) @ V.T)  # eq-aligned
    ledger.record("alignment.modes" + name, max(gap.abs().max() for gap in gaps))
for name, sign in (("", 1), ("-printed", -1)):
    omega = sign * predictor.integral_of_motion(p0, w0**2, 0.0, alpha_p=3.0)
    gap = s - p**2 / 3.0 - omega * torch.exp(-2 * 0.04 * times)[:, None]  # eq-integral
    ledger.record("alignment.integral" + name, gap.abs().max())
unit = 1.09
for name, moments in (("", times / unit), ("-clock", times)):
    law = {"alpha_p": 1.0, "eta": unit * 0.04, "beta": unit * 0.4, "sigma2": 0.0}
    q, z, _ = predictor.mode_flow(unit * p0, 3.0 * unit**2 * w0**2, 0.1, moments, **law)  # eq-rescaled
    ledger.record("alignment.rescaling" + name, max((q - unit * p).abs().max(), (z - 3.0 * unit**2 * s).abs().max()))

# %% [markdown]
# Matrices and numbers agree to {measured}`alignment.modes|.1e` {verdict}`alignment.modes`; with the predictor turned
# they differ by {measured}`alignment.modes-turned|.2f`. The conserved quantity holds to
# {measured}`alignment.integral|.1e` {verdict}`alignment.integral`, while the printed sign misses by
# {measured}`alignment.integral-printed|.2f`. The rescaled law gives the same course up to
# {measured}`alignment.rescaling|.1e` {verdict}`alignment.rescaling`.
#
# ## Without weight decay
#
# From here on $\tau$ is constant until the target lags again, and we drop the index of the mode. Three numbers decide
# everything: the *goal* $p_\circ=\tau/(1+\sigma^2)$, at which the brackets of {eq}`eq-modes` vanish; the start $p(0)$;
# and $\omega$, by how much the online network outweighs the predictor.
#
# ```{prf:proposition} Who collapses without weight decay
# :label: prop-no-decay
#
# Let $\eta=0$, $\tau>0$ constant and $s(0)>0$. The mode collapses, $s\to0$, if and only if
#
# $$
# \omega\le0\quad\text{and}\quad\Big(p(0)<0\quad\text{or}\quad p_\circ\le\sqrt{\alpha_p|\omega|}\,\Big) .
# $$ (eq-no-decay)
#
# Otherwise $p\to p_\circ$ and
#
# $$
# s\to s(0)+\frac{p_\circ^2-p(0)^2}{\alpha_p} .
# $$ (eq-end-without-decay)
#
# *That $\omega>0$ suffices is in {cite:t}`tian2021understanding`; the classification and the end are the companion's
# own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# By {eq}`eq-integral` the point $(p,s)$ stays on the parabola $s=p^2/\alpha_p+\omega$, and where $s>0$, $\dot p$ has
# the sign of $p_\circ-p$: $p$ moves towards $p_\circ$, monotonically, until it arrives there or $s$ vanishes. (Neither
# happens in finite time.)
#
# If $\omega>0$, then $s\ge\omega>0$ always, and $p\to p_\circ$. If $\omega\le0$, the parabola has $s>0$ only for
# $|p|>r:=\sqrt{\alpha_p|\omega|}$. From $p(0)<-r$, the goal $p_\circ>0$ lies beyond the end $-r$ of the branch, where
# $s=0$: collapse. From $p(0)>r$ there are two cases. If $p_\circ>r$, the goal is on the branch and is reached. If
# $p_\circ\le r$, then $p$ falls to $r$, where $s=0$: collapse. Since $s(0)>0$, $|p(0)|>r$, so these are all cases; and
# $p(0)<-r$ is the same as $p(0)<0$. At the goal, {eq}`eq-integral` with $\eta=0$ is {eq}`eq-end-without-decay`.
# $\square$
# ````
#
# Two roles of the predictor's learning rate can be read off, Observations 1 and 2 of
# {cite:t}`tian2021understanding`. In the plane of $p$ and $\alpha_ps$ nothing depends on
# $\alpha_p$, so **a faster predictor shrinks the basin of collapse** in proportion to $1/\alpha_p$. But by
# {eq}`eq-end-without-decay` it also shrinks what the online network gains, by the same factor: a very fast predictor
# reaches the goal before $W$ has moved.


# %%
def uniform(low, high, *shape):
    """Independent uniform numbers in double precision."""
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


n = 150 if smoke else 500
p0, alpha_p, sigma2, tau = (
    normal(n).sign() * uniform(0.3, 2, n),
    10 ** uniform(-1, 1, n),
    uniform(0, 1, n),
    uniform(0.4, 1, n),
)
s0, goal = uniform(0.02, 2, n) * p0**2 / alpha_p, tau / (1 + sigma2)
omega = s0 - p0**2 / alpha_p
edge = (alpha_p * omega.abs()).sqrt()  # where the parabola meets s = 0
clear = ((edge / p0).abs() > 0.3) & ((edge / goal - 1).abs() > 0.05)  # at the borders the flow takes for ever
p0, s0, tau, alpha_p, sigma2, goal, omega, edge = (x[clear] for x in (p0, s0, tau, alpha_p, sigma2, goal, omega, edge))
_, (s,), _ = predictor.mode_flow(p0, s0, tau, torch.tensor([1000.0]), alpha_p=alpha_p, sigma2=sigma2)
dies = (omega <= 0) & ((p0 < 0) | (goal <= edge))  # eq-no-decay
for name, expected in (("", dies), ("-sufficient", omega <= 0)):
    ledger.record("alignment.no-decay" + name, int(((s < 0.01 * s0) != expected).sum()), n=len(s))
for name, gain in (("", goal**2 - p0**2), ("-from-zero", goal**2)):
    end = torch.where(dies, 0.0, s0 + gain / alpha_p)  # eq-end-without-decay
    ledger.record("alignment.end-without-decay" + name, ((s - end).abs() / s0.maximum(end)).max(), n=len(s))

# %% [markdown]
# Of several hundred random modes {eq}`eq-no-decay` classifies {measured}`alignment.no-decay|.0f` wrongly
# {verdict}`alignment.no-decay`; taking $\omega\le0$ alone for collapse would get
# {measured}`alignment.no-decay-sufficient|.0f` wrong. The end {eq}`eq-end-without-decay` is met to
# {measured}`alignment.end-without-decay|.1e` {verdict}`alignment.end-without-decay`.
#
# ## With weight decay
#
# Weight decay forgets $\omega$, so all modes end on the invariant parabola, and there one number is left.
#
# ```{prf:proposition} Fixed points and the threshold
# :label: prop-fixed-points
#
# Let $\tau>0$ be constant and $\eta>0$. On the invariant parabola a mode obeys
#
# $$
# \dot p=p\,g(p),\qquad g(p)=p\,\big(\tau-(1+\sigma^2)p\big)-\eta,
# $$ (eq-parabola-flow)
#
# whatever $\alpha_p$ is. Besides zero it has the fixed points
#
# $$
# p_\pm=\frac{\tau\pm\sqrt{\tau^2-4\eta(1+\sigma^2)}}{2(1+\sigma^2)},
# $$ (eq-fixed-points)
#
# if and only if $\eta$ does not exceed the *threshold*
#
# $$
# \eta^*=\frac{\tau^2}{4(1+\sigma^2)} .
# $$ (eq-threshold)
#
# For $\eta<\eta^*$ a start with $p>p_-$ ends at $p_+$, and one with $p<p_-$ collapses; for $\eta>\eta^*$ all collapse.
# $p_-$ increases with $\eta$ and $\sigma^2$ and decreases with $\tau$, and $p_-\approx\eta/\tau$ for small $\eta$.
# *{cite:t}`tian2021understanding`, Eq. (16), Observations 4 and 5, and Fig. 4 (whose caption leaves out the factor
# $1+\sigma^2$ of {eq}`eq-cubic`).*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# Insert $\alpha_ps=p^2$ in {eq}`eq-modes` to get {eq}`eq-parabola-flow`. $g$ is a quadratic, with the roots
# {eq}`eq-fixed-points` where its discriminant $D=\tau^2-4\eta(1+\sigma^2)$ is not negative. Then
#
# $$
# \dot p=-(1+\sigma^2)\,p\,(p-p_-)(p-p_+),
# $$ (eq-cubic)
#
# with $0<p_-\le p_+$, since $p_-+p_+=\tau/(1+\sigma^2)$ and $p_-p_+=\eta/(1+\sigma^2)$ are positive. For $D>0$ the
# right side is positive for $p<0$, negative on $(0,p_-)$, positive on $(p_-,p_+)$ and negative beyond. On a line this
# decides where every start ends. For $D<0$, $g<0$ everywhere, and $p$ and $\dot p$ have opposite signs. Multiply
# $p_-$ above and below by $\tau+\sqrt D$:
#
# $$
# p_-=\frac{2\eta}{\tau+\sqrt{\tau^2-4\eta(1+\sigma^2)}} .
# $$ (eq-smaller-root)
#
# The numerator grows with $\eta$; the denominator falls with $\eta$ and $\sigma^2$, grows with $\tau$, and tends to
# $2\tau$ as $\eta\to0$. $\square$
# ````
#
# So weight decay is needed for $s$ to follow $p$, which knows the noise (Observation 3 of the paper); too much of it
# enlarges the basin of collapse; and above $\eta^*$ nothing survives. In the plane, the border is not at $p=p_-$:
#
# ```{prf:proposition} The border of collapse is a curve
# :label: prop-saddle
#
# Let $\tau>0$ be constant and $0<\eta<\eta^*$. All fixed points in the plane of $p$ and $s\ge0$ lie on the parabola. At
# those with $s>0$ the flow has the eigenvalues
#
# $$
# -2\eta\quad\text{towards the parabola,}\qquad\eta-(1+\sigma^2)p_\pm^2\quad\text{along it.}
# $$ (eq-saddle)
#
# The second is negative at $p_+$, a stable node, and positive at $p_-$, a saddle. The origin has $-\eta$ and $-2\eta$.
# Every mode with $s(0)>0$ ends at one of the three points, and the border between survival and collapse is the stable
# manifold of the saddle. In $s$ it is exactly proportional to $1/\alpha_p$. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# *Fixed points.* If $s\ne0$, $\dot s=0$ says $p\,(\tau-(1+\sigma^2)p)=\eta$, so $p\ne0$, and $\dot p=0$ becomes
# $\alpha_ps\,\eta/p=\eta p$. If $s=0$, $\dot p=-\eta p$ vanishes at the origin only.
#
# *Eigenvalues.* At such a point $\tau-(1+\sigma^2)p=\eta/p$ and $\tau p=\eta+(1+\sigma^2)p^2$. The derivatives of
# {eq}`eq-modes` by $p$ and $s$ are
#
# $$
# \begin{pmatrix}-(1+\sigma^2)p^2-\eta&\alpha_p\eta/p\\\frac{2p}{\alpha_p}\big(\eta-(1+\sigma^2)p^2\big)&0\end{pmatrix},
# $$ (eq-saddle-matrix)
#
# with the trace $-\eta-(1+\sigma^2)p^2$ and the determinant $-2\eta\big(\eta-(1+\sigma^2)p^2\big)$: sum and product of
# {eq}`eq-saddle`. The tangent $(1,2p/\alpha_p)$ of the parabola belongs to the second, as the first row shows:
# $-(1+\sigma^2)p^2-\eta+2\eta$. And $p_-^2<p_-p_+=\eta/(1+\sigma^2)<p_+^2$ gives the signs. At the origin the matrix is
# $\begin{pmatrix}-\eta&\alpha_p\tau\\0&-2\eta\end{pmatrix}$.
#
# *Every mode ends at a fixed point.* $\dot p\ge-\eta p$ for $p\le0$ and $\dot p\le-\eta p$ for $p\ge p_\circ$, so $p$
# is bounded, and by {eq}`eq-integral` $s$ is. The set of limit points of the orbit is connected, invariant and lies on
# the parabola. On this curve the flow moves one way between neighbouring fixed points, so there is neither a periodic
# orbit nor a cycle of orbits that connect fixed points, and by the theorem of Poincaré and Bendixson the set is a
# single fixed point. The basins of the two stable points are open; what lies between them tends to the saddle.
#
# *The scale.* $\alpha_ps$ obeys the law with $\alpha_p=1$ ({prf:ref}`prop-modes`). $\square$
# ````

# %%
settings = [(0.05, 1.0, 0.04), (0.1, 1.0, 0.04), (0.2, 1.0, 0.04), (0.05, 0.6, 0.25)] + [(0.01, 1.0, 0.04)] * (
    not smoke
)
eta, tau, sigma2 = torch.tensor(settings, dtype=torch.float64).T
saddle, useful = predictor.fixed_points(tau, eta, sigma2)  # eq-fixed-points
low, high, late = 0 * tau, tau / (1 + sigma2) / 2, torch.tensor([400.0 if smoke else 2000.0])
for _ in range(4):  # sixty starts on the parabola at a time: where do the survivors begin?
    p0 = low + (high - low) * torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]
    p, *_ = predictor.mode_flow(p0, p0**2, tau, late, eta=eta, sigma2=sigma2)
    alive = (p[0] > saddle).int().argmax(0, keepdim=True)
    low, high = p0.gather(0, alive - 1)[0], p0.gather(0, alive)[0]
for name, border in (("", saddle), ("-noiseless", predictor.fixed_points(tau, eta, 0.0).saddle)):
    ledger.record("alignment.fixed-points" + name, (high - border).abs().max(), n=len(settings))
ratio = torch.arange(0.805, 1.2, 0.01, dtype=torch.float64)
tau, sigma2 = (torch.tensor(x, dtype=torch.float64)[:, None] for x in ((1.0, 1.0, 0.6), (0.04, 1.0, 0.25)))
goal = tau / (1 + sigma2)
for name, threshold in (("", predictor.collapse_threshold(tau, sigma2)), ("-noiseless", tau**2 / 4)):
    p, *_ = predictor.mode_flow(goal, goal**2, tau, torch.tensor([1000.0]), eta=ratio * threshold, sigma2=sigma2)
    survivors = (p[0] > 0.1 * goal).sum(1)  # eq-threshold
    ledger.record("alignment.threshold" + name, (0.8 + 0.01 * survivors - 1).abs().max(), n=3)

# %%
eta, sigma2 = 0.1, 0.04
saddle, useful = predictor.fixed_points(1.0, eta, sigma2)
for name, lift in (("", 1.0), ("-off", 1.2)):
    gaps = []
    for point in (saddle, useful):

        def velocity(x):
            return torch.stack(predictor.mode_velocity(x[0], x[1], 1.0, alpha_p=3.0, eta=eta, sigma2=sigma2)[:2])

        J = torch.autograd.functional.jacobian(velocity, torch.stack([point, lift * point**2 / 3.0]))
        expected = torch.stack(predictor.stability(point, 1.0, eta, sigma2)).sort().values  # eq-saddle
        gaps.append((torch.linalg.eigvals(J).real.sort().values - expected).abs().max())
    ledger.record("alignment.saddle" + name, max(gaps), n=2)


def critical(survives, low, high):
    """Where survival begins between two starts: sixty of them at a time, evenly spread in the logarithm."""
    for _ in range(2 if smoke else 3):
        ladder = torch.linspace(0, 1, 60, dtype=torch.float64).reshape(-1, *[1] * low.ndim)
        tried = low * (high / low) ** ladder
        first = survives(tried).int().argmax(0, keepdim=True)
        low, high = tried.gather(0, (first - 1).clamp(min=0))[0], tried.gather(0, first)[0]
    return high


# %%
p0 = torch.tensor([-0.3, -0.1, 0.0, 0.05, 0.2, 0.6, 1.2, 1.4], dtype=torch.float64)
alpha_p = torch.tensor([1.0, 10.0], dtype=torch.float64)[:, None]


def survives(s0):
    p, *_ = predictor.mode_flow(p0, s0, 1.0, torch.tensor([300.0]), alpha_p=alpha_p, eta=eta, sigma2=sigma2)
    return p[0] > saddle


border = predictor.basin_boundary(p0, 1.0, eta, sigma2, alpha_p)  # prop-saddle
found = critical(survives, border / 30, border * 30)
slope = ((1 + sigma2) * saddle**2 - eta) * saddle / eta  # the eigenvector of -2 eta
for name, line in (("", border), ("-tangent", (saddle**2 + slope * (p0 - saddle)) / alpha_p)):
    ledger.record("alignment.basin" + name, (line / found - 1).abs().max(), n=found.numel())

edges: dict[str, list[float]] = {"": [], "-coupled": []}
for name, speed in itertools.product(edges, (1.0, 4.0, 10.0)):
    law = {"alpha_p": speed, "eta": eta, "eta_p": eta * (speed if name else 1)}

    def survives(s0, law=law):
        start = predictor.State(s0.sqrt()[..., None, None], 0 * s0[..., None, None])
        return predictor.flow(start, *isotropic(1, sigma2), [100.0], rtol=1e-8, **law).Wp[-1, :, :, 0, 0] > saddle

    edges[name].append(speed * critical(survives, torch.tensor([1e-4]).double(), torch.tensor([10.0]).double()).item())
for name, values in edges.items():
    ledger.record("alignment.basin-scaling" + name, max(values) / min(values) - 1, n=3)

# %% [markdown]
# On the parabola the survivors begin at $p_-$, to {measured}`alignment.fixed-points|.1e`
# {verdict}`alignment.fixed-points`. Starts at the goal survive up to the threshold and not beyond it, within
# {measured}`alignment.threshold|percent.1` {verdict}`alignment.threshold`. The eigenvalues {eq}`eq-saddle` agree with
# automatic differentiation to {measured}`alignment.saddle|.1e` {verdict}`alignment.saddle`. Eight critical starts on
# the curve, for two values of $\alpha_p$, agree with the flow to {measured}`alignment.basin|.1e`
# {verdict}`alignment.basin`. Times $\alpha_p$ they are equal to {measured}`alignment.basin-scaling|.1e`
# {verdict}`alignment.basin-scaling`, *if* the predictor's weight decay is $\eta$. In PyTorch, a parameter group with
# $\alpha_p$ times the learning rate and the same `weight_decay` decays $\alpha_p$ times as fast; then the product is
# not constant but rises by {measured}`alignment.basin-scaling-coupled|percent.0` from $\alpha_p=1$ to 10, and most of
# what a faster predictor gains is lost.

# %% mystnb={"figure": {"caption": "Which modes survive? Flow in the plane of $p$ and $s$ without, with weak and with too strong weight decay ($\\tau=\\alpha_p=1$, $\\sigma^2=0.04$). Shaded: starts that collapse. Dashed: the invariant parabola, or without decay the one with $\\omega=0$. Thin lines: where $\\dot p=0$ (blue) and $\\dot s=0$ (orange). Full dots: stable fixed points, open: the saddle, which nearly touches the origin; without decay a whole line is stable. After Fig. 3 of the paper; shading and nullclines are the companion's own.", "name": "fig-portraits"}, "image": {"alt": "Three phase portraits. Left, starts below the left branch of the parabola and some far right collapse, and all else flows to a vertical line. Middle, a slightly larger region collapses, the rest flows to one point. Right, everything flows to the origin."}}
sigma2, p = 0.04, torch.linspace(-0.6, 1.3, 191, dtype=torch.float64)
fig, panels = plt.subplots(1, 3, figsize=(7.2, 3.2), sharey=True)
grid_p, grid_s = np.meshgrid(np.linspace(-0.6, 1.3, 40), np.linspace(0, 1.2, 40))
for ax, eta in zip(panels, (0.0, 0.01, 1.0), strict=True):
    dp, ds, _ = predictor.mode_velocity(torch.from_numpy(grid_p), torch.from_numpy(grid_s), 1.0, eta=eta, sigma2=sigma2)
    lost = torch.full_like(p, 1.2) if eta == 1 else predictor.basin_boundary(p, 1.0, eta, sigma2)
    ax.fill_between(p, 0, lost.clamp(max=1.2), color="0.5", alpha=0.25, lw=0)
    ax.streamplot(grid_p, grid_s, dp.numpy(), ds.numpy(), color="0.45", density=0.55, linewidth=0.7, arrowsize=0.7)
    ax.plot(p, p**2, "--", color="black", lw=1)
    pull = 1 - (1 + sigma2) * p
    if eta:
        level = torch.where(p * pull > 0, eta * p / pull, torch.nan)  # where the predictor rests
        ax.plot(p, level.where(level < 1.5, torch.nan), color=COLORS[0], lw=1.2)
        ax.plot(0, 0, "o", color="black", ms=5, clip_on=False)
    if eta == 0.01:
        points = torch.stack(predictor.fixed_points(1.0, eta, sigma2))
        for point, fill in zip(points.tolist(), ("white", "black"), strict=True):
            ax.axvline(point, color=COLORS[1], lw=1)  # where the online network rests
            ax.plot(point, point**2, "o", color="black", mfc=fill, ms=5, zorder=3)
    elif eta == 0:
        ax.axvline(1 / (1 + sigma2), color="black", lw=2.5)
    ax.set(title=f"$\\eta={eta:g}$", xlabel="$p$", xlim=(-0.6, 1.3), ylim=(0, 1.2))
_ = panels[0].set(ylabel="$s$")

# %% [markdown]
# {numref}`fig-portraits` shows what a vertical border at $p_-$ would miss: modes with a small or even a negative $p$
# survive if $s$ is large enough, because $s$ pulls $p$ up before it decays.

# %% mystnb={"figure": {"caption": "How much weight decay can a mode bear? Fixed points of {eq}`eq-parabola-flow` over $\\eta$, for $\\tau=1$ and three noise levels: $p_+$ (full line) and the border of collapse $p_-$ (dashed) meet at the threshold $\\eta^*$ (open dot). Full dots: where modes end that start at $p=1.2\\,p_-$, just above the border.", "name": "fig-fixed-points"}, "image": {"alt": "Three curves like sideways parabolas over weight decay; the more noise, the smaller. Dots from simulations lie on the upper branches."}}
fig, ax = plt.subplots()
for sigma2, color in zip((0.0, 0.25, 1.0), COLORS, strict=False):
    top = float(predictor.collapse_threshold(1.0, sigma2))
    eta = top * torch.linspace(0, 1, 200, dtype=torch.float64) ** 0.5
    saddle, useful = predictor.fixed_points(1.0, eta, sigma2)
    ax.plot(eta, useful, color=color)
    ax.plot(eta, saddle, "--", color=color)
    ax.plot(top, float(useful[-1]), "o", color=color, mfc="white", ms=6)
    eta = top * torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    p0 = 1.2 * predictor.fixed_points(1.0, eta, sigma2).saddle
    end, *_ = predictor.mode_flow(p0, p0**2, 1.0, torch.tensor([2000.0]), eta=eta, sigma2=sigma2)
    ax.plot(eta, end[0], "o", color=color, ms=4)
    label_line(ax, top + 0.002, float(useful[-1]), f"$\\sigma^2={sigma2:g}$", color)
_ = ax.set(xlabel="weight decay $\\eta$", ylabel="$p$", xlim=(0, 0.29), ylim=(0, 1.05))
# %% [markdown]
# ## A target that lags
#
# BYOL's target is a moving average of the online network. What does it change? Let each mode have its $\tau_j(t)$
# again.
#
# ```{prf:proposition} The target in closed form
# :label: prop-target-ratio
#
# In every mode of {eq}`eq-modes`, as long as $s>0$,
#
# $$
# \tau(t)=\frac1{\sqrt{s(t)}}\Big[\tau(0)\sqrt{s(0)}\,e^{-\beta t}+\beta\int_0^t\sqrt{s(u)}\;e^{-\beta(t-u)}\,du\Big] .
# $$ (eq-target-ratio)
#
# On the invariant parabola, $p$ may stand for $\sqrt s$. *{cite:t}`tian2021understanding`, Eq. (15), on the parabola
# with $\tau(0)=0$; off it the companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# By {eq}`eq-modes`,
# $\frac d{dt}(\tau\sqrt s)=\sqrt s\,\big(\dot\tau+\tau\frac{\dot s}{2s}\big)=\beta\sqrt s-\beta\,\tau\sqrt s$, a linear
# equation for $\tau\sqrt s$. (It is the third equation of {eq}`eq-siamese-flow`.) On the parabola,
# $\sqrt{\alpha_ps}=|p|$, and where $s>0$, $p$ does not change sign. $\square$
# ````
#
# While a mode grows, the target remembers a smaller one: $\tau<1$. This lowers the goal $p_\circ=\tau/(1+\sigma^2)$,
# and that is the point. A mode that grows fast must wait for its target; meanwhile eigenvectors can align. In the
# common basis the matrix $\Xi$ of {prf:ref}`thm-alignment` has the eigenvalues
#
# $$
# \xi_j=(1+\sigma^2)\Big(\frac{\alpha_p}2s_j+p_j^2\Big)-\tau p_j+\tfrac32\eta
# =\tfrac12\big[\alpha_p(1+\sigma^2)s_j+\eta\big]-g(p_j),
# $$ (eq-alignment-rate)
#
# with $g$ from {eq}`eq-parabola-flow`. So {prf:ref}`thm-alignment` asks that growth be slow,
# $g(p_j)<\frac12[\alpha_p(1+\sigma^2)s_j+\eta]$ ({cite:t}`tian2021understanding`, Eq. (17)): a tension, since growth
# needs $g>0$. Larger $\alpha_p$, larger $\eta$ and smaller $\tau$ all relax it. (The first does so only off the
# parabola; on it $\alpha_ps=p^2$.) How far can one go without an end to growth?
#
# ```{prf:proposition} A window for weight decay
# :label: prop-window
#
# Let $\tau>0$ be constant. On the invariant parabola $\xi(p)>0$ for every $p$ if and only if
# $\eta>\tau^2/9(1+\sigma^2)$. So all modes on it satisfy the condition of {prf:ref}`thm-alignment` and yet have a
# useful fixed point if
#
# $$
# \frac19<\frac{\eta\,(1+\sigma^2)}{\tau^2}\le\frac14 .
# $$ (eq-window)
#
# At $p_+$ itself $\xi=\frac12[(1+\sigma^2)p_+^2+\eta]>0$ for every $\eta\le\eta^*$. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# With $\alpha_ps=p^2$, $\xi(p)=\frac32(1+\sigma^2)p^2-\tau p+\frac32\eta$, which is smallest at
# $p=\frac\tau{3(1+\sigma^2)}$, with the value $\frac32\eta-\frac{\tau^2}{6(1+\sigma^2)}$. The upper bound is
# {eq}`eq-threshold`. At $p_+$, $g=0$ in {eq}`eq-alignment-rate`. $\square$
# ````
#
# (There $C$ and $W_p$ commute already, as $C=W_p^2/\alpha_p$.) For the way there: with constant $\tau$, $\Xi$ is
# positive definite for *every* $C\succeq0$ and every symmetric $W_p$ if and only if
#
# $$
# \eta>\frac{\tau^2}{6(1+\sigma^2)} ,
# $$ (eq-all-matrices)
#
# since $\Xi-\frac{\alpha_p}2(1+\sigma^2)C=(1+\sigma^2)W_p^2-\tau W_p+\frac32\eta I$ has no eigenvalue below
# $\frac32\eta-\frac{\tau^2}{4(1+\sigma^2)}$, and has this one at $W_p=\frac\tau{2(1+\sigma^2)}I$, where $C=0$ leaves it
# to $\Xi$. So in $\frac16<\eta(1+\sigma^2)/\tau^2\le\frac14$ {prf:ref}`thm-alignment` applies to all matrices, and
# there still is a useful fixed point.
#
# ```{prf:proposition} What a lagging target changes, and what not
# :label: prop-ema
#
# Let $0<\eta<\frac1{4(1+\sigma^2)}$, $\beta>0$, and $p_\pm$ as in {eq}`eq-fixed-points` with $\tau=1$. On the invariant
# parabola with $p>0$ let $a=\tau p$, the target in units of $p$. Then
#
# $$
# \dot p=p\,\big(a-(1+\sigma^2)p^2-\eta\big),\qquad\dot a=\beta(p-a),
# $$ (eq-ema-plane)
#
# and:
#
# **(1) Fixed points.** They are those without lag, $(0,0)$ and $a=p=p_\pm$. For every $\beta$, $p_-$ is a saddle and
# $p_+$ stable. With $r=\sqrt{1-4\eta(1+\sigma^2)}$ and $b=2(1+\sigma^2)p_+^2+\beta$, the slower of the two rates at
# which $p_+$ is approached is
#
# $$
# \tfrac12\Big[b-\sqrt{b^2-4\beta rp_+}\Big]\approx\frac{\beta r}{1+r}\quad\text{for small }\beta .
# $$ (eq-ema-rate)
#
# **(2) A target that is a copy,** $\tau(0)=1$: the mode collapses if $p(0)<p_-$ and ends at $p_+$ if $p(0)>p_-$, as
# without lag.
#
# **(3) A smaller target,** $\tau(0)<1$: it collapses for every $p(0)\le p_-$, and for some $p(0)>p_-$ as well.
#
# **(4) Collapse.** There $\tau\to\frac\beta{\beta-\eta}>1$ if $\beta>\eta$; otherwise $\tau$ grows without bound.
#
# *That the lag slows training and enlarges the basin of collapse is in {cite:t}`tian2021understanding`, Observations 9
# and 10, for $\tau(0)=0$; the statements are the companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# $\dot p=p\,(p(\tau-(1+\sigma^2)p)-\eta)$ is the first line of {eq}`eq-ema-plane`; $a$ is $\tau\sqrt s$ up to the
# constant $\sqrt{\alpha_p}$, so the second is the equation in the proof of {prf:ref}`prop-target-ratio`.
#
# *Fixed points.* $\dot a=0$ says $a=p$, and then $\dot p=p\,g(p)$ with $\tau=1$. The derivatives at $a=p=p_\pm$ are
#
# $$
# \begin{pmatrix}-2(1+\sigma^2)p^2&p\\\beta&-\beta\end{pmatrix},\quad
# \text{with determinant }\beta p\,\big(2(1+\sigma^2)p-1\big)=\pm\beta rp,
# $$ (eq-ema-matrix)
#
# since $2(1+\sigma^2)p_\pm=1\pm r$. A negative determinant is a saddle; at $p_+$ the trace $-b$ is negative and the
# determinant positive. The eigenvalues are real, because the entries off the diagonal are positive, and the slower is
# {eq}`eq-ema-rate`. For small $\beta$ it is $\beta rp_+/b\approx\beta r/\big(2(1+\sigma^2)p_+\big)$.
#
# *Order.* In {eq}`eq-ema-plane` each variable pushes the other up: $\dot p$ increases with $a$, $\dot a$ with $p$. Then
# the flow preserves the order: a solution that starts below another, in $p$ and in $a$, stays below. For the
# differences $\delta p,\delta a$ of two solutions satisfy $\frac d{dt}\delta p=A(t)\,\delta p+p(t)\,\delta a$ and
# $\frac d{dt}\delta a=\beta\,\delta p-\beta\,\delta a$ with some $A(t)$, and with nonnegative entries $p(t),\beta$ off
# the diagonal the quadrant $\delta p,\delta a\ge0$ cannot be left. For the same reason (linearise) a solution with
# $\dot p\ge0$ and $\dot a\ge0$ at the start keeps these signs, and one with $\dot p,\dot a\le0$ keeps those: it moves
# monotonically, and if it is bounded, to a fixed point.
#
# *(2)* At $(p(0),p(0))$, $\dot a=0$ and $\dot p=p\,g(p)$ with $\tau=1$. For $p(0)<p_-$ this is negative: $p$ and $a$
# fall, to a fixed point below $p_-$, the origin. For $p_-<p(0)<p_+$ they rise, and stay below $(p_+,p_+)$ by order; for
# $p(0)>p_+$ they fall and stay above it.
#
# *(3)* If $p(0)<p_-$ and $a(0)<p(0)$, the solution stays below that from $(p(0),p(0))$, which collapses. If $p(0)=p_-$,
# then $\dot p=p_-(a-p_-)<0$ at the start, since $(1+\sigma^2)p_-^2+\eta=p_-$. So shortly after it both numbers are
# below some $q<p_-$, and the solution from $(q,q)$ collapses. The origin is stable (its eigenvalues are $-\eta$ and
# $-\beta$), so its basin is open, and some starts with $p(0)>p_-$ belong to it.
#
# *(4)* $\dot\tau=\beta(1-\tau)-\tau\,\dot p/p$ with $\dot p/p\to-\eta$, so in the limit
# $\dot\tau=\beta-(\beta-\eta)\tau$. $\square$
# ````
#
# The final values do not know the target. What it costs is time: for small $\beta$ the mode follows its target, and
# $\tau$ and $p$ approach their ends at the rate $\beta r/(1+r)$. As $\eta\to0$ this is $e^{-\beta t/2}$, twice as slow
# as the target's own memory $e^{-\beta t}$; with more weight decay it is slower still. At $e^{-\beta t/2}$, 95 % take
# the time $2\log20/\beta\approx6/\beta$, or $6/(1-\text{momentum})$ steps. And it may cost modes, if the target starts
# smaller than the online network; not if it starts as a copy.

# %%
eta, sigma2, beta = 0.04, 0.04, torch.tensor([0.4, 0.2, 0.1, 0.05, 0.02], dtype=torch.float64)
saddle, useful = predictor.fixed_points(1.0, eta, sigma2)
clock = torch.linspace(0, 40, 2001, dtype=torch.float64)
for name, lift in (("", 1.0), ("-off", 4.0)):
    gaps = []
    for rate, p0 in ((0.4, 0.3), (0.1, 0.5), (0.02, 0.9), (1.0, 0.1)):
        p, s, tau = predictor.mode_flow(p0, lift * p0**2, 0.0, clock, beta=rate, eta=eta, sigma2=sigma2)
        history = CubicSpline(clock, p)
        known = predictor.target_ratio(
            lambda t, history=history: torch.from_numpy(history(t)), clock[::50], rate
        )  # eq-target-ratio
        gaps.append((tau[::50] - known).abs().max())
    ledger.record("alignment.target-ratio" + name, max(gaps), n=4)

law, late = {"eta": eta, "sigma2": sigma2}, torch.tensor([3000.0])
for name, tau, rate in (("", 0.0, beta), ("-frozen", 0.8, 0.0)):
    end, *_ = predictor.mode_flow(0.5, 0.25, tau, late, beta=rate, **law)
    ledger.record("alignment.target-end" + name, (end - useful).abs().max(), n=end.numel())
for name, tau in (("", 1.0), ("-small", 0.0)):

    def survives(p0, tau=tau):
        p, *_ = predictor.mode_flow(p0, p0**2, tau, torch.tensor([600.0]), beta=beta, **law)
        return p[0] > saddle

    found = critical(survives, saddle.expand(5) / 2, 4 * saddle.expand(5))  # prop-ema
    ledger.record("alignment.target-basin" + name, (found / saddle - 1).abs().max(), n=5)
    print(f"critical p(0) over p_- from tau(0) = {tau}:", "  ".join(f"{x:.3f}" for x in (found / saddle).tolist()))

# %%
clock = torch.linspace(0, 1000, 10001, dtype=torch.float64)
p, *_ = predictor.mode_flow(0.5, 0.25, 0.0, clock, beta=beta, **law)
r, b = (1 - 4 * eta * (1 + sigma2)) ** 0.5, 2 * (1 + sigma2) * useful**2 + beta
slow = (b - (b**2 - 4 * beta * r * useful).sqrt()) / 2  # eq-ema-rate
gap, rates = (p - useful).abs(), []
for j, x in enumerate(beta.tolist()):
    first, last = (round(10 * periods / x) for periods in (15, 20))  # late, while the gap is still well above rounding
    rates.append((gap[first, j] / gap[last, j]).log() / (clock[last] - clock[first]))
for name, expected in (("", slow), ("-own", beta)):
    ledger.record("alignment.target-rate" + name, (torch.stack(rates) / expected - 1).abs().max(), n=5)
times = clock[(p >= 0.95 * useful).int().argmax(0)] * beta
for name, periods in (("", 6), ("-own", math.log(20))):
    ledger.record("alignment.target-time" + name, (times / periods).max(), n=5)
n = 1000
tau, sigma2, share = uniform(0.2, 1, n), uniform(0, 1, n), uniform(0, 0.25, n)
p = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * tau  # the goal is at most tau
xi = predictor.alignment_rate(p, p**2, tau, eta=share * tau**2 / (1 + sigma2), sigma2=sigma2).amin(0)
for name, border in (("", 1 / 9), ("-matrices", 1 / 6)):  # prop-window
    wrong = ((xi > 0) != (share > border)) & ((share / border - 1).abs() > 1e-4)
    ledger.record("alignment.window" + name, int(wrong.sum()), n=n)

# %%
n, k, tau, sigma2 = 2000, 5, 0.8, 0.25
Wp, root = uniform(0, 1, n, 1, 1) * symmetric_part(normal(n, k, k)), 10 ** uniform(-3, 0, n, 1, 1) * normal(n, k, k)
for name, part in (("", 1.01), ("-half", 0.5)):
    eta = part * tau**2 / (6 * (1 + sigma2))  # eq-all-matrices
    Xi = predictor.alignment_matrix(root @ root.mT, Wp, tau=tau, sigma2=sigma2, alpha_p=3.0, eta=eta)
    ledger.record("alignment.all-matrices" + name, torch.linalg.eigvalsh(Xi).min(), n=n)

# %% [markdown]
# The closed form agrees with the flow to {measured}`alignment.target-ratio|.1e` {verdict}`alignment.target-ratio`; off
# the parabola, with $p$ still in the place of $\sqrt s$, it is off by {measured}`alignment.target-ratio-off|.2f`. With
# five values of $\beta$ all modes end at $p_+$, to {measured}`alignment.target-end|.1e`
# {verdict}`alignment.target-end`. From a copy, the critical start is $p_-$ for all five
# {verdict}`alignment.target-basin` (to {measured}`alignment.target-basin|.1e`); from $\tau(0)=0$ it is up to
# {measured}`alignment.target-basin-small|percent.0` larger. The late rate is {eq}`eq-ema-rate`, within
# {measured}`alignment.target-rate|percent.2` {verdict}`alignment.target-rate`, and 95 % take at most
# {measured}`alignment.target-time|.2f` times $6/\beta$ {verdict}`alignment.target-time`. Random checks of
# {prf:ref}`prop-window` find no exception {verdict}`alignment.window`, and for random matrices one percent above
# {eq}`eq-all-matrices` the least eigenvalue of $\Xi$ is positive {verdict}`alignment.all-matrices`; at half of it
# {measured}`alignment.all-matrices-half|.3f`.
#
# **Decay against growth.** The paper draws these tensions for ten modes with random starts; here is the same,
# by the exact flow, with several draws and intervals.

# %%
runs, clock = 5 if smoke else 10, torch.linspace(0, 150, 301, dtype=torch.float64)
p0, s0 = uniform(0.05, 0.3, runs, 10), uniform(0.01, 0.1, runs, 10)
rows = {"decay": [(eta, 0.0, 1.0) for eta in (0.0, 0.04, 0.1, 0.2)]}
rows |= {name: [(0.04, beta, tau) for beta in (2.0, 0.4, 0.1)] for name, tau in (("target", 0.0), ("copied", 1.0))}
seen = {}
for name, settings in rows.items():
    eta, beta, tau = torch.tensor(settings, dtype=torch.float64).T[..., None, None]
    law = {"eta": eta, "sigma2": 0.0009}
    p, s, tau = predictor.mode_flow(p0, s0, tau, clock, beta=beta, **law)
    xi = predictor.alignment_rate(p, s, tau, **law).amin(-1)  # eq-alignment-rate
    seen[name] = xi, p.mean(-1)  # over times, settings and runs
trends = {"decay-condition": seen["decay"][0].amin(0), "decay-strength": seen["decay"][1][-1]}
trends |= {"target-condition": seen["target"][0].amin(0), "target-speed": seen["target"][1][40]}  # at time 20
for name, values in trends.items():
    found = [probe.mean_interval(row.tolist()) for row in values]
    ledger.record(f"alignment.{name}", [f.mean for f in found], interval=[(f.low, f.high) for f in found], n=runs)
for claim, name in (("", "target"), ("-copied", "copied")):
    least = seen[name][0].amin(0)
    gain = probe.paired_interval(least[2].tolist(), least[0].tolist())
    ledger.record("alignment.target-gain" + claim, gain.mean, interval=(gain.low, gain.high), n=runs)

# %% mystnb={"figure": {"caption": "Can one have growth and alignment? One draw of ten modes. Left: the least $\\xi_j$ of {eq}`eq-alignment-rate`, whose sign decides whether {prf:ref}`thm-alignment` applies. Right: the mean of $p_j$. Top, no lag: weight decay lifts $\\xi$ and lowers $p$ ({prf:ref}`prop-fixed-points`); $\\eta=0.2$ is in the window {eq}`eq-window`, but most modes start below $p_-$. Bottom, $\\eta=0.04$, target from zero: a slower target lifts $\\xi$ and delays $p$, whose end stays the same ({prf:ref}`prop-ema`). After Fig. 5 of the paper.", "name": "fig-decay-ema"}, "image": {"alt": "Four panels over time. Top: curves for four weight decays; larger decay raises the least eigenvalue above zero and lowers or kills the predictor values. Bottom: curves for three target rates; a slower target keeps the least eigenvalue nearer to zero and the predictor values rise later to the same height."}}
fig, panels = plt.subplots(2, 2, figsize=(7.2, 5))
rows = (("decay", "\\eta", (0, 0.04, 0.1, 0.2), 30), ("target", "\\beta", (2, 0.4, 0.1), 60))
for row, (name, letter, values, length) in zip(panels, rows, strict=True):
    for ax, curves, ylabel in zip(row, seen[name], ("least $\\xi_j$", "mean of $p_j$"), strict=True):
        ax.axhline(0, color="0.7", lw=0.8)
        for i, value in enumerate(values):
            ax.plot(clock, curves[:, i, 0], color=COLORS[i], label=f"${letter}={value:g}$")
        ax.set(xlim=(0, length), ylabel=ylabel)
    row[1].legend(fontsize=9, loc="center right" if name == "decay" else "lower right")
for ax in panels[1]:
    ax.set(xlabel="time of the flow")

# %% [markdown]
# Larger weight decay raises the least $\xi$ {verdict}`alignment.decay-condition` and lowers the predictor
# {verdict}`alignment.decay-strength`. A slower target raises the least $\xi$ {verdict}`alignment.target-condition` and
# delays the predictor {verdict}`alignment.target-speed`. The former depends on the start: from $\tau(0)=0$, as in the
# paper's analysis, going from $\beta=2$ to $\beta=0.1$ gains {measured}`alignment.target-gain|.3f`
# {verdict}`alignment.target-gain`; from a copy, as in BYOL, it gains
# {measured}`alignment.target-gain-copied|.3f`, for there the least $\xi$ is that of the start.
#
# ### Weight decay on the predictor only
#
# There is another way to relax the condition. Let the predictor decay at $\eta_p$ and the online network at $\eta_s$;
# in $\Xi$ this puts $\frac12(\eta_p+2\eta_s)$ in the place of $\frac32\eta$.
#
# ```{prf:proposition} Decay on the predictor only
# :label: prop-split-decay
#
# Let $\tau>0$ be constant. With two weight decays
#
# $$
# \frac d{dt}\Big(s-\frac{p^2}{\alpha_p}\Big)=-2\eta_s\Big(s-\frac{p^2}{\alpha_p}\Big)
# +\frac{2(\eta_p-\eta_s)}{\alpha_p}\,p^2,
# $$ (eq-split-decay)
#
# so for $\eta_p>\eta_s$ a mode is lifted above the parabola. If $\eta_s=0<\eta_p$, no mode with $s(0)>0$ collapses,
# from any $p(0)$: in the end $p\to p_\circ$ and
#
# $$
# \frac st\to\frac{2\eta_p}{\alpha_p}\,p_\circ^2 .
# $$ (eq-split-growth)
#
# *That $s$ exceeds $p^2/\alpha_p$, and that this helps alignment, is in {cite:t}`tian2021understanding`, Section 3.3;
# the rest is the companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# The brackets cancel as for {eq}`eq-integral`, and $-2\eta_ss+\frac2{\alpha_p}\eta_pp^2$ is the right side of
# {eq}`eq-split-decay`. Let $\eta_s=0$. Where $p<0$, $\dot p\ge\eta_p|p|$, so $|p|$ shrinks at least like
# $e^{-\eta_pt}$, and where $p>p_\circ$, $\dot p\le-\eta_pp$. So the time integral of $|p\,(\tau-(1+\sigma^2)p)|$ over
# all times outside of $[0,p_\circ]$ is finite. Since $\frac d{dt}\log s=2p\,(\tau-(1+\sigma^2)p)$, which is not
# negative inside, $s\ge s_{\min}>0$ for ever. Then $\dot p\ge\alpha_ps_{\min}\tau$ at $p=0$: $p$ becomes positive, and
# stays so, and below $p_\circ$ after some time. From then on $s$ does not fall, and $\dot p>0$ wherever
# $\eta_pp<\alpha_ps_{\min}(\tau-(1+\sigma^2)p)$, so $p$ stays above a positive number. By {eq}`eq-split-decay`
#
# $$
# s(t)=s(0)+\frac{p(t)^2-p(0)^2}{\alpha_p}+\frac{2\eta_p}{\alpha_p}\int_0^tp^2
# $$ (eq-split-integral)
#
# tends to infinity. Hence $p\to p_\circ$: the pull $\alpha_ps$ towards it beats every decay. Divide
# {eq}`eq-split-integral` by $t$. $\square$
# ````
#
# The embedding then grows for ever, which a loss on unit-length embeddings would not notice. In the paper's experiments
# (Tables 3 and 5) a symmetric predictor without a moving target fails with equal decays and works with decay on the
# predictor only.

# %%
starts = torch.tensor([-0.02, 0.01, 0.05, 0.1], dtype=torch.float64)[:, None, None]
for name, decay in (("", 0.0), ("-equal", 0.05)):
    start = predictor.State(torch.full_like(starts, 0.03), starts)
    law = {"alpha_p": 2.0, "eta": decay, "eta_p": 0.05}
    s = predictor.flow(start, *isotropic(1, 0.25), [300.0, 400.0], **law).W[..., 0, 0].square()
    growth = (s[1] - s[0]) / 100 / (0.05 * 0.8**2)  # eq-split-growth
    ledger.record("alignment.split-decay" + name, (growth - 1).abs().max(), n=4)

# %% [markdown]
# Four starts that collapse with equal decays all survive, and grow at the rate {eq}`eq-split-growth` within
# {measured}`alignment.split-decay|percent` {verdict}`alignment.split-decay`.
#
# ## Which features win?
#
# On isotropic data all directions are alike. On real data they are not, and the question of the whole book is which
# ones an encoder learns. A2 and A3 are off from here on; we take SimSiam, $W_a=W$, and an invertible $\Sigma_x$. What
# matters is by how much two views agree in a direction: the *view correlations* $\kappa_1\ge\dots\ge\kappa_m$ with
#
# $$
# \Gamma v_j=\kappa_j\Sigma_xv_j,\qquad v_i^\top\Sigma_xv_j=\delta_{ij} .
# $$ (eq-view-correlations)
#
# They are the eigenvalues of $\Gamma\Sigma_x^{-1}$, whose *left* eigenvectors are the $v_j^\top$, and those of the
# symmetric matrix $\Sigma_x^{-1/2}\Gamma\Sigma_x^{-1/2}$, whose eigenvectors are $\Sigma_x^{1/2}v_j$: the canonical
# correlations of two views. They lie in $[0,1]$, since $0\preceq\Gamma\preceq\Sigma_x$, and do not change if the inputs
# are rescaled by any invertible matrix. Variance does not count.
#
# ```{prf:example} Two augmentations
# :label: ex-scrambling
#
# *Additive noise* with covariance $\Sigma_{\rm aug}$ that commutes with $\Gamma$ has
# $\kappa_j=\gamma_j/(\gamma_j+\theta_j)$, where $\theta_j$ is the noise in the direction of $\gamma_j$: an increasing
# function of the signal-to-noise ratio $\gamma_j/\theta_j$. *Scrambling* replaces the part of an image in an
# $r$-dimensional subspace with orthonormal basis $U\in\R^{m\times r}$ by a random mixture of itself: with
# $P=I-UU^\top$ and a matrix $B\in\R^{r\times r}$ of independent standard normal numbers, drawn anew for each view,
# $x=(P+UBU^\top)\bar x$. With $\bar\Sigma=\E\,\bar x\bar x^\top$,
#
# $$
# \Gamma=P\bar\Sigma P,\qquad\Sigma_x=P\bar\Sigma P+\tr(U^\top\bar\Sigma U)\,UU^\top .
# $$ (eq-scrambling)
#
# Then $\Gamma\Sigma_x^{-1}=P$ (for invertible $\bar\Sigma$), whether or not $P$ commutes with $\bar\Sigma$: what is
# conserved has $\kappa=1$ however small it is, what is scrambled has $\kappa=0$ however large it is.
# *{cite:t}`tian2021understanding`, Appendix D; there $\Sigma_x$ is said to be $\bar\Sigma$, with which the conclusion
# needs $P$ and $\bar\Sigma$ to commute, see [the errata](../errata.md).*
# ```
#
# For $\E B=0$ gives $\Gamma$ and removes the mixed terms of $\Sigma_x$, and
# $\E\,(BSB^\top)_{ij}=\sum_{kl}S_{kl}\,\E B_{ik}B_{jl}=\delta_{ij}\tr S$ gives the last term. So on the range of $P$
# $\Sigma_x$ is $\Gamma$, and on that of $U$, where $\Gamma$ vanishes, a positive multiple of the identity: both blocks
# are invertible, and $P\Sigma_x=\Gamma$.
#
# ```{prf:proposition} Which modes win
# :label: prop-which-modes
#
# **(1) Fixed points.** Without weight decay, $W$ and $W_p$ rest if $W_pW=W\Gamma\Sigma_x^{-1}$, and only then if $W_p$
# is invertible. If moreover $W$ has rank $k$, its rows span the same space as $k$ of the vectors $v_j$, and $W_p$ has
# their $\kappa_j$ as eigenvalues.
#
# **(2) Columns.** Let $\Gamma$ and $\Sigma_x$ commute, with unit eigenvectors $e_i$ and eigenvalues $\gamma_i$,
# $\sigma_i$. Along the flow the columns $a_i=We_i$ obey
#
# $$
# \dot a_i=\big[\sigma_iW_p^\top(\kappa_iI-W_p)-\eta I\big]a_i,\qquad\kappa_i=\gamma_i/\sigma_i .
# $$ (eq-column-law)
#
# **(3) Modes.** In this case an aligned mode follows {eq}`eq-modes` with $\tau=1$, $s=w^2$, and $\gamma_i$ and
# $\sigma_i$ in the place of $1$ and $1+\sigma^2$ in the brackets. It survives up to $\eta=\gamma_i^2/4\sigma_i$, and
# then
#
# $$
# p_\pm^{(i)}=\frac{\gamma_i\pm\sqrt{\gamma_i^2-4\eta\sigma_i}}{2\sigma_i} .
# $$ (eq-mode-points)
#
# **(4) Competition.** Let $k$ aligned modes $S$ rest at $p_j=p_+^{(j)}>0$. To first order, a mode $i\notin S$ grows in
# the direction of mode $j$ if and only if its $p_\pm^{(i)}$ are real and $p_-^{(i)}<p_+^{(j)}<p_+^{(i)}$. So to first
# order no other mode grows against the $k$ modes with the largest $p_+$ (they may still mix among themselves,
# {prf:ref}`prop-mixing`). Without weight decay $p_+=\kappa$, and if $\kappa_k>\kappa_{k+1}$, every other set is
# unstable.
#
# *Fixed points and the aligned mode without decay: {cite:t}`tian2021understanding`, Appendix D. The rest is the
# companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# *(1)* With $W_a=W$ and $\eta=0$ the drive is $G=W\Gamma-W_pW\Sigma_x$. The flow rests if $G=0$; and $W_p^\top G=0$
# with an invertible $W_p$ says $G=0$. Then $\Sigma_x^{-1}\Gamma\,W^\top=W^\top W_p^\top$: the map $\Sigma_x^{-1}\Gamma$
# sends the row space of $W$ into itself, and in the basis of the rows its matrix is $W_p^\top$. By
# {eq}`eq-view-correlations` it is diagonal in the basis $v_j$, and so it is diagonalisable on every invariant subspace,
# with eigenvectors and eigenvalues of its own. (Within an eigenspace, choose the $v_j$ accordingly.)
#
# *(2)* $Ge_i=\gamma_iWe_i-\sigma_iW_pWe_i=\sigma_i(\kappa_iI-W_p)a_i$, and $\dot a_i=W_p^\top Ge_i-\eta a_i$.
#
# *(3)* Aligned means {eq}`eq-aligned` with the eigenvectors $e_j$ of the data. As $a_j=w_j$, the drive
# {eq}`eq-aligned-drive` has $(\gamma_j-\sigma_jp_j)w_j$ in the place of its bracket, and all that follows is the same:
# on the parabola $g_i(p)=p\,(\gamma_i-\sigma_ip)-\eta$.
#
# *(4)* At the fixed point $a_i=0$ for $i\notin S$ and $W_p=\sum_jp_ju_ju_j^\top$. To first order, a disturbance of
# $a_i$ obeys {eq}`eq-column-law` with this $W_p$, since what $W_p$ changes by is multiplied by $a_i$. In the direction
# $u_j$ its rate is $p_j(\gamma_i-\sigma_ip_j)-\eta=g_i(p_j)$, positive between the roots {eq}`eq-mode-points` of $g_i$
# and negative outside or if there are none. For $\eta=0$ the roots are $0$ and $\kappa_i$. A set other than the top $k$
# lacks an $i\le k$ and has a $j>k$, and $0<\kappa_j<\kappa_i$. $\square$
# ````
#
# {eq}`eq-column-law` also tells how the winners are found. From a small predictor $W_p\approx pI$ column $i$ grows at
# the rate $\gamma_ip$: at first variance does count. As the eigenvalues of $W_p$ rise, they pass one $\kappa_i$ after
# the other, and the columns that have been passed die out. With weight decay the order is that of $p_+$, which is
# $\kappa_i-\eta/\gamma_i$ for small $\eta$: a direction of little variance has to be the more reproducible.

# %%
n = 100 if smoke else 400
gamma, noise, eta = uniform(0.3, 2, n), 10 ** uniform(-1, 0.7, n), 10 ** uniform(-2.5, 0, n)
goal, late = gamma / (gamma + noise), torch.tensor([3000.0])
p, *_ = predictor.mode_flow(goal, gamma * goal**2, 1.0, late, eta=eta, sigma2=noise, gamma=gamma)
for name, signal in (("", gamma), ("-unit", 1.0)):
    threshold = predictor.collapse_threshold(1.0, noise, signal)
    wrong = ((p[0] > 0.1 * goal) != (eta < threshold)) & ((eta / threshold - 1).abs() > 0.03)  # prop-which-modes
    ledger.record("alignment.mode-threshold" + name, int(wrong.sum()), n=n)

P = torch.linalg.qr(normal(12, 12)).Q
Sigma_bar, (kept, U) = P @ torch.diag(uniform(0.2, 2, 12)) @ P.T, P.split((8, 4), dim=1)
errors: dict[str, list[float]] = {"": [], "-unchanged": []}
for _ in range(2 if smoke else 6):
    bar_x = normal(50_000, 12) @ torch.linalg.cholesky(Sigma_bar).T
    mixed = torch.einsum("nij,nj->ni", normal(50_000, 4, 4), bar_x @ U)
    x = bar_x @ kept @ kept.T + mixed @ U.T
    moment = x.T @ x / len(x)
    expected = kept @ kept.T @ Sigma_bar @ kept @ kept.T + (U.T @ Sigma_bar @ U).trace() * U @ U.T  # eq-scrambling
    for name, Sigma in (("", expected), ("-unchanged", Sigma_bar)):
        errors[name].append(float(frobenius(moment - Sigma) / frobenius(Sigma)))
for name, values in errors.items():
    found = probe.mean_interval(values)
    ledger.record("alignment.scrambling" + name, found.mean, interval=(found.low, found.high), n=found.n)


# %%
def coverage(W, score, k):
    """Share of the row space of W in the k coordinates with the highest score, system by system."""
    rows = torch.linalg.svd(W, full_matrices=False).Vh.square().sum(-2)
    return (rows.gather(-1, score.topk(k, dim=-1).indices).sum(-1) / k).tolist()


m, k, runs = 12, 4, 6
gamma, noise = uniform(0.3, 2, 4000, m), 10 ** uniform(-1, 0.7, 4000, m)
kappa = gamma / (gamma + noise)
D = gamma**2 - 4 * 0.04 * (gamma + noise)
useful = torch.where(D > 0, (gamma + D.clamp(min=0).sqrt()) / (2 * (gamma + noise)), 0.0)  # eq-mode-points
fifth = torch.stack([x.sort(1, descending=True).values.diff(dim=1)[:, k - 1] for x in (kappa, useful)])
same = (kappa.topk(k).indices.sort(1).values == useful.topk(k).indices.sort(1).values).all(1)
chosen = torch.nonzero((fifth < -0.02).all(0) & ~same)[:runs, 0]  # two rankings with a gap, and they disagree
gamma, noise, kappa, useful = (x[chosen] for x in (gamma, noise, kappa, useful))
start = predictor.State(0.2 * normal(runs, k, m), 0.3 * torch.eye(k).double() + 0.01 * normal(runs, k, k))
data_moments = torch.diag_embed(gamma), torch.diag_embed(noise)
for claim, eta, winner, loser, word in (
    ("alignment.which-modes", 0.0, kappa, gamma, "-variance"),
    ("alignment.which-modes-decay", 0.04, useful, kappa, "-correlation"),
):
    length = 8000 if smoke else 12000
    W = predictor.descend(start, *data_moments, 0.1, length, every=length, eta=eta).W[-1]
    for name, score in (("", winner), (word, loser)):
        found = probe.mean_interval(coverage(W, score, k))
        interval = (max(found.low, 0.0), min(found.high, 1.0))  # a share
        ledger.record(claim + name, min(found.mean, 1.0), interval=interval, n=runs)
# %% [markdown]
# The thresholds hold in all random cases {verdict}`alignment.mode-threshold`; with $\gamma_i=1$ in them
# {measured}`alignment.mode-threshold-unit|.0f` modes would be classified wrongly. The second moment after scrambling is
# {eq}`eq-scrambling` up to {measured}`alignment.scrambling|percent|value`, the error of the sample
# {verdict}`alignment.scrambling`; $\bar\Sigma$ is off by {measured}`alignment.scrambling-unchanged|percent.0|value`.
# Then the competition, from random starts that are not aligned, on data for which two rankings disagree. Without weight
# decay the top $\kappa$ win, to {measured}`alignment.which-modes|.6f|value` {verdict}`alignment.which-modes`, and the
# largest variances $\gamma_i$, which principal components of the mean views would take, have
# {measured}`alignment.which-modes-variance|percent.0` of the space. With it the largest $p_+$ win
# {verdict}`alignment.which-modes-decay`, and no longer the largest $\kappa$
# ({measured}`alignment.which-modes-decay-correlation|percent.0|value`).
#
# ### The same features as with negatives
#
# The loss of {ref}`ch-spectral` pushes different images apart, SimSiam does not. In the linear model they agree:
#
# ```{prf:corollary} SimSiam and the spectral contrastive loss
# :label: cor-spectral-link
#
# For a linear encoder the spectral contrastive loss {eq}`eq-loss` is
#
# $$
# \begin{aligned}
# -2\tr(W\Gamma W^\top)+\norm{W\Sigma_xW^\top}_F^2&=\norm{\mathcal T-A^\top A}_F^2-\norm{\mathcal T}_F^2,\\
# \mathcal T=\Sigma_x^{-1/2}\Gamma\,\Sigma_x^{-1/2}&,\qquad A=W\Sigma_x^{1/2} .
# \end{aligned}
# $$ (eq-spectral-linear)
#
# If $\kappa_k>\kappa_{k+1}$, its minimisers are
# $W=Q\,\diag(\sqrt{\kappa_1},\dots,\sqrt{\kappa_k})\,(v_1,\dots,v_k)^\top$ with an orthogonal $Q$. Their row space is
# that of the fixed point of SimSiam with the top $k$ view correlations, which {prf:ref}`prop-which-modes` singles out
# where $\Gamma$ and $\Sigma_x$ commute. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# $\E f(x)^\top f(x^+)=\tr(W\Gamma W^\top)$, and for independent views
# $\E\,(f(x)^\top f(x'))^2=\tr(W\Sigma_xW^\top W\Sigma_xW^\top)$. Expand the right side of {eq}`eq-spectral-linear`:
# $\tr(\mathcal TA^\top A)=\tr(A\mathcal TA^\top)=\tr(W\Gamma W^\top)$ and
# $\norm{A^\top A}_F=\norm{AA^\top}_F=\norm{W\Sigma_xW^\top}_F$. $\mathcal T$ is positive semidefinite with eigenvalues
# $\kappa_j$ and the unit eigenvectors $\Sigma_x^{1/2}v_j$. By Eckart and Young its best approximation of rank $k$ is
# $A^\top A=\sum_{j\le k}\kappa_j\Sigma_x^{1/2}v_jv_j^\top\Sigma_x^{1/2}$, so
# $A=Q\,\diag(\sqrt{\kappa_j})(v_1,\dots,v_k)^\top\Sigma_x^{1/2}$; multiply by $\Sigma_x^{-1/2}$. $\square$
# ````
#
# The predictor has taken over the work of the negatives. One can see how: gradient flow of {eq}`eq-spectral-linear`
# moves the columns, where $\Gamma$ and $\Sigma_x$ commute, by
#
# $$
# \dot a_i=4\sigma_i\big(\kappa_iI-W\Sigma_xW^\top\big)a_i,
# $$ (eq-contrast-columns)
#
# which is the bracket of {eq}`eq-column-law`, without the factor $W_p^\top$, with the second moment of the embedding,
# $W\Sigma_xW^\top$, in the place of $W_p$. Either
# matrix grows until its eigenvalues are the top $\kappa_j$, and nothing with a smaller $\kappa_i$ grows against it.
#
# When $\Gamma$ and $\Sigma_x$ do not commute, we have no proof that only the top $\kappa$ are stable, but we can count:
# for random pairs of matrices, each choice of $k$ of the $v_j$ as rows of $W$ gives a fixed point, and its Jacobian
# says whether it is stable. (It also depends on the lengths of the rows, {prf:ref}`prop-mixing`. We count at rows with
# $v_j^\top\Sigma_xv_j=1$, as in {eq}`eq-view-correlations`.)


# %%
def jacobian(W, Wp, Gamma, Sigma):
    """Derivative of the flow of SimSiam without weight decay, in all weights."""

    def velocity(weights):
        W, Wp = weights[: k * m].reshape(k, m), weights[k * m :].reshape(k, k)
        drive = W @ Gamma - Wp @ W @ Sigma
        return torch.cat([(Wp.mT @ drive).flatten(), (drive @ W.mT).flatten()])

    return torch.autograd.functional.jacobian(velocity, torch.cat([W.flatten(), Wp.flatten()]))


m, k, trials = 5, 2, 8
pairs = []
for _ in range(trials):
    (Q, R), rates = torch.linalg.qr(normal(2, m, m)).Q, 10 ** uniform(-1, 0.3, 2, m)
    pairs.append((Q @ torch.diag(rates[0]) @ Q.T, R @ torch.diag(rates[1]) @ R.T))
wrong = {"": 0, "-variance": 0}
for Gamma, noise in pairs:
    kappa, V = predictor.view_correlations(Gamma, noise)  # eq-view-correlations
    variance = (V * (Gamma @ V)).sum(0) / V.square().sum(0)
    best = {"": (0, 1), "-variance": tuple(sorted(variance.topk(k).indices.tolist()))}
    for S in itertools.combinations(range(m), k):
        rates = torch.linalg.eigvals(jacobian(V[:, S].T, torch.diag(kappa[list(S)]), Gamma, Gamma + noise)).real
        for name, top in best.items():
            wrong[name] += int((rates.max() < 1e-8) != (top == S))
for name, count in wrong.items():
    ledger.record("alignment.only-top-stable" + name, count, n=trials * math.comb(m, k))

# %%
gaps, residuals = {"": [], "-same-view": []}, {"": [], "-variance": []}
for Gamma, noise in pairs:
    Sigma, W = Gamma + noise, normal(k, m)
    values, Q = torch.linalg.eigh(Sigma)
    root, inverse = (Q @ torch.diag(values**power) @ Q.T for power in (0.5, -0.5))
    T, A = inverse @ Gamma @ inverse, W @ root
    right = (T - A.T @ A).square().sum() - T.square().sum()  # eq-spectral-linear
    for name, pair in (("", Gamma), ("-same-view", Sigma)):
        left = -2 * (W @ pair @ W.T).trace() + (W @ Sigma @ W.T).square().sum()
        gaps[name].append(float((left - right).abs() / right.abs()))
    V = predictor.view_correlations(Gamma, noise)[1]
    for name, basis in (("", V), ("-variance", torch.linalg.eigh(Gamma).eigenvectors)):
        image = basis[:, :k].T @ Gamma @ torch.linalg.inv(Sigma)
        Wp = image @ torch.linalg.pinv(basis[:, :k].T)  # the predictor that comes nearest to W_p W = image
        residuals[name].append(float((Wp @ basis[:, :k].T - image).norm() / image.norm()))
for claim, found in (("spectral-link", gaps), ("fixed-subspaces", residuals)):
    for name, values in found.items():
        ledger.record(f"alignment.{claim}{name}", max(values), n=trials)

# %% [markdown]
# Eigenvectors rest {verdict}`alignment.fixed-subspaces`, and of all choices, with rows of unit $\Sigma_x$-norm, only
# the top $\kappa$ is stable: the Jacobian disagrees with this in {measured}`alignment.only-top-stable|.0f` cases
# {verdict}`alignment.only-top-stable`, and with the largest variance in
# {measured}`alignment.only-top-stable-variance|.0f`. {eq}`eq-spectral-linear` holds to
# {measured}`alignment.spectral-link|.1e` {verdict}`alignment.spectral-link`.
#
# ### On real images
#
# Views of images under crops, flips and changes of brightness and contrast, centred and projected on their leading
# principal components. $\Gamma$ and $\Sigma_x$ are those of this finite population of views, and do not commute. We
# train two linear encoders with four dimensions from the same small random start, by gradient descent: SimSiam with a
# linear predictor, and the spectral contrastive loss. Where both should end is known before the training: for the
# contrastive loss by {prf:ref}`cor-spectral-link`, for SimSiam by the count above.

# %%
count, looks, m, k, runs = (1000, 4, 16, 4, 4) if smoke else (3000, 8, 16, 4, 5)
law = augment.Augmentation(area=(0.55, 1.0), flip=0.5, brightness=0.4, contrast=0.2)


def image_moments(run):
    """Gamma and Sigma_aug of the views of one set of images in their leading principal components, and those."""
    draw = torch.Generator().manual_seed(1000 * seed + run)
    chosen = images.images[torch.randperm(len(images), generator=draw)[:count]]
    x = torch.stack([law(chosen, draw).flatten(1).double() for _ in range(looks)])
    x = x - x.mean((0, 1))
    variance, basis = torch.linalg.eigh(x.flatten(0, 1).T @ x.flatten(0, 1) / (count * looks))
    basis = basis[:, -m:].flip(1)
    x = x @ basis * (m / variance[-m:].sum()).sqrt()  # a view has the mean square of a standard normal vector
    nu = x.mean(0)  # eq-view-moments, with the views at hand as all views of an image
    return nu.T @ nu / count, torch.einsum("vni,vnj->ij", x - nu, x - nu) / (count * looks), basis


image_sets = [image_moments(run) for run in track(range(runs), "views of images")]
Gamma, noise, basis = (torch.stack(part) for part in zip(*image_sets, strict=True))
known = [predictor.view_correlations(*pair) for pair in zip(Gamma, noise, strict=True)]
kappa, V = (torch.stack(part) for part in zip(*known, strict=True))
print("view correlations:", "  ".join(f"{x:.3f}" for x in kappa[0, :6].tolist()))

# %%
lr, length, every = 0.1 if smoke else 0.05, 6000, 10  # the digits have a smaller gap after the fourth
start = predictor.State(0.05 * normal(runs, k, m), 0.1 * torch.eye(k).double() + 0.01 * normal(runs, k, k))
siamese = predictor.descend(start, Gamma, noise, lr, length, every=every)


def contrast(penalty):
    """Gradient descent on -2 tr W Gamma W^T + |W penalty W^T|^2, a quarter of the gradient in each step."""
    W, kept = start.W, [start.W]
    for step in range(1, length + 1):
        W = W + 0.2 * lr * 4 * (W @ Gamma - W @ penalty @ W.mT @ W @ penalty)
        if step % every == 0:
            kept.append(W)
    return torch.stack(kept)


def overlap(W, top):
    """Mean squared cosine between the row space of W and the span of k columns, set by set."""
    rows, columns = torch.linalg.svd(W, full_matrices=False).Vh, torch.linalg.qr(top).Q
    return (rows @ columns).square().sum((-2, -1)) / k


top, Sigma = V[:, :, :k], Gamma + noise
spectral_path, plain_path = contrast(Sigma), contrast(torch.eye(m).double().expand_as(Sigma))
principal = {
    name: torch.linalg.eigh(A).eigenvectors[:, :, -k:] for name, A in (("views", Sigma), ("mean views", Gamma))
}
eigenvalues = torch.linalg.eigvals(siamese.Wp).real.sort(-1, descending=True).values
shares = {"simsiam": siamese.W[-1], "simsiam-components": principal["views"].mT}
shares |= {"spectral": spectral_path[-1], "spectral-plain": plain_path[-1]}

# %%
for name, W in shares.items():
    share = probe.mean_interval(overlap(W, top).clamp(max=1).tolist())
    interval = (max(share.low, 0.0), min(share.high, 1.0))
    ledger.record(f"alignment.image-{name}", share.mean, interval=interval, n=runs)
for name, expected in (("", kappa[:, :k]), ("-next", kappa[:, 1 : k + 1])):
    error = probe.mean_interval((eigenvalues[-1] - expected).abs().amax(1).tolist())
    interval = (max(error.low, 0.0), error.high)
    ledger.record("alignment.image-predictor" + name, error.mean, interval=interval, n=runs)

# %% mystnb={"figure": {"caption": "What does a linear SimSiam learn from real images? Left: share of the span of $v_1,\\dots,v_4$ that its row space (blue) and that of the spectral contrastive loss (orange) has, over training, one line for each set of images; dashed: what four principal components of the views, and of the mean views, have. Right: the eigenvalues of $W_p$ in one run, and dashed the $\\kappa_j$, which were known before the training. Below: the four filters that SimSiam found, and the $v_j$ as filters.", "name": "fig-linear-images"}, "image": {"alt": "Left, two bundles of curves rise to one, while the levels of principal components stay far below. Right, four eigenvalues of the predictor approach dashed levels. Below, two rows of four image filters look the same."}}
clock, side = lr * every * torch.arange(len(siamese.W)), images.images.shape[-1]
fig, ((left, right), below) = plt.subplots(2, 2, figsize=(7.2, 4.9), height_ratios=(2.2, 1))
for path, color, name, place in ((siamese.W, 0, "SimSiam", (90, 0.8)), (spectral_path, 1, "spectral", (1.5, 0.9))):
    left.plot(clock[1:], overlap(path, top)[1:], color=COLORS[color], lw=1, alpha=0.8)
    label_line(left, *place, name, COLORS[color])
for name, W in principal.items():
    level = float(overlap(W.mT, top).mean())
    left.axhline(level, color="0.45", lw=1, ls="--")
    label_line(left, 18, level - 0.05, f"PCA of {name}", "0.35")
for j in range(k):
    right.plot(clock[1:], eigenvalues[1:, 0, j], color=COLORS[j])
    right.plot(clock[[1, -1]], 2 * [float(kappa[0, j])], "--", color="black", lw=0.8)
    label_line(right, float(clock[-1]), float(kappa[0, j]), f"$\\kappa_{j + 1}$", COLORS[j])
left.set(xscale="log", xlabel="time of the flow", ylabel="share of the top four", ylim=(0, 1.1))
right.set(xscale="log", xlabel="time of the flow", ylabel="eigenvalues of $W_p$", ylim=(0, 1.1))
values, T = torch.linalg.eig(siamese.Wp[-1, 0])
learned = torch.linalg.solve(T.real, siamese.W[-1, 0])[values.real.argsort(descending=True)]  # rows parallel to v_j
learned = learned * (learned * top[0].T).sum(1, keepdim=True).sign()
for ax, filters, title in zip(
    below, (learned, top[0].T), ("filters that were learned", "$v_1,\\dots,v_4$"), strict=True
):
    pixels = (filters / filters.norm(dim=1, keepdim=True)) @ basis[0].T
    ax.imshow(pixels.reshape(k, side, side).permute(1, 0, 2).flatten(1), cmap="gray")
    _ = [ax.axvline(j * side - 0.5, color="white", lw=3) for j in range(1, k)]
    ax.set_axis_off()
    ax.set_title(title)

# %% [markdown]
# SimSiam ends in the span of $v_1,\dots,v_4$, of which it has {measured}`alignment.image-simsiam|.5f|value`
# {verdict}`alignment.image-simsiam`; four principal components of the views have
# {measured}`alignment.image-simsiam-components|.2f|value`. The predictor's eigenvalues are the four view correlations,
# to {measured}`alignment.image-predictor|.1e|value` {verdict}`alignment.image-predictor`. The loss with negatives finds
# the same space, {measured}`alignment.image-spectral|.5f|value` {verdict}`alignment.image-spectral`; if it penalises
# $WW^\top$ instead of $W\Sigma_xW^\top$, it finds the components of the mean views, with a share of
# {measured}`alignment.image-spectral-plain|.2f|value`. Two losses, one of which has never compared two different
# images, have learned the same features.
#
# ## With gradient noise
#
# All this was about expected gradients. Does it survive mini-batches? Isotropic data again, fresh normal inputs in
# small batches, plain stochastic gradient descent from a random start, for nine kinds of training, all in one loop:
# SimSiam, with a symmetrised predictor, with a moving target; as controls, without stop-gradient, without predictor,
# and with weight decay above the threshold; and the first three once more on data with a different noise in each
# direction. For on isotropic data all modes end at $p_+$, and there are no eigenvectors left to agree on.

# %%
kinds = ("SimSiam", "symmetric", "target", "no stop-gradient", "no predictor", "strong decay")
kinds += tuple(f"uneven {kind}" for kind in kinds[:3])
m, k, batch, lr, sigma2, eta, each = 16, 6, 32, 0.02, 0.25, 0.02, 3 if smoke else 6
length, runs = 2000 if smoke else 4000, len(kinds) * each
of = {name: torch.tensor([name in kind for kind in kinds]).repeat_interleave(each)[:, None, None] for name in kinds}
of["uneven"] = torch.arange(runs)[:, None, None] >= 6 * each
noise = torch.where(of["uneven"], torch.linspace(0.05, 3, m).double(), sigma2)  # of each direction
decay, trained = torch.where(of["strong decay"], 0.25, eta), ~of["no predictor"]
through = of["no stop-gradient"].double()


def sgd_step(W, Wp, Wa):
    """One step for all systems; the target is the online network unless the kind has its own."""
    x = normal(runs, batch, m)
    x1, x2 = (x + noise.sqrt() * normal(runs, batch, m) for _ in range(2))
    f, target = x1 @ W.mT, x2 @ Wa.mT
    error = (f @ Wp.mT - target) / batch
    dW, dWp = Wp.mT @ error.mT @ x1 - through * error.mT @ x2, error.mT @ f
    dWp = torch.where(of["symmetric"], (dWp + dWp.mT) / 2, dWp) + decay * Wp
    W = W - lr * (dW + decay * W)
    return W, Wp - lr * trained * dWp, torch.where(of["target"], Wa + 0.4 * lr * (W - Wa), W)


# %%
W, Wp = 0.12 * normal(runs, k, m), 0.3 * torch.eye(k).double() + 0.05 * normal(runs, k, k)
Wp = torch.where(of["symmetric"], (Wp + Wp.mT) / 2, Wp)
Wp = torch.where(trained, Wp, torch.eye(k).double())
before, Wa = traceless_commutator(W @ W.mT, Wp), W
for _ in track(range(length), "mini-batches"):
    W, Wp, Wa = sgd_step(W, Wp, Wa)
after, useful = traceless_commutator(W @ W.mT, Wp), predictor.fixed_points(1.0, eta, sigma2).useful
p, s = torch.linalg.eigvals(Wp).real.mean(1) / useful, W.square().sum((1, 2)) / k / useful**2
alive, uneven = slice(0, 3 * each), slice(6 * each, None)
place = {name: slice(i * each, (i + 1) * each) for i, name in enumerate(kinds)}
for claim, values in (
    ("predictor", p[alive]),
    ("predictor-strong-decay", p[place["strong decay"]]),
    ("embedding", s[alive]),
    ("embedding-no-predictor", s[place["no predictor"]]),
    ("commutator", after[uneven]),
    ("commutator-before", before[uneven]),
):
    found = probe.mean_interval(values.tolist())
    ledger.record(f"alignment.sgd-{claim}", found.mean, interval=(found.low, found.high), n=found.n)
print("traceless commutator on isotropic data:", f"{float(after[alive].mean()):.2f}")
print("s over theory without stop-gradient:", f"{float(s[place['no stop-gradient']].max()):.0e}")

# %% [markdown]
# The predictor's eigenvalues are at {measured}`alignment.sgd-predictor|.3f` of $p_+$
# {verdict}`alignment.sgd-predictor`. Where the noise differs from direction to direction it takes the eigenvectors of
# $C$, nearly: the traceless commutator falls from {measured}`alignment.sgd-commutator-before|.2f|value` to
# {measured}`alignment.sgd-commutator|.2f|value` {verdict}`alignment.sgd-commutator`. The embedding is larger than
# $p_+^2$ by a factor of {measured}`alignment.sgd-embedding|.2f` {verdict}`alignment.sgd-embedding`: gradient noise
# keeps shaking $W$, and the flow does not know it. All three controls collapse.
#
# ## A predictor that is set, not trained
#
# If training only aligns the predictor's eigenvectors with those of its inputs' second moment, and ties its eigenvalues
# to $p_j\propto\sqrt{s_j}$, then one can set both and not train the predictor at all.
#
# ```{prf:definition} DirectPred
# :label: def-direct-pred
#
# Keep a running second moment of the predictor's inputs, $\hat F\leftarrow\rho\hat F+(1-\rho)\,\E_{\rm batch}ff^\top$,
# over the embeddings $f$ of both views, not centred. With $\hat F=\hat U\diag(\hat s_j)\hat U^\top$ and a *boost*
# $\epsilon\ge0$, set after each step (or after every few, with gradient steps in between)
#
# $$
# W_p=\hat U\,\diag(p_j)\,\hat U^\top,\qquad p_j=\sqrt{\hat s_j/\hat s_{\max}}+\epsilon .
# $$ (eq-direct-pred)
#
# *{cite:t}`tian2021understanding`, Eqs. (18)–(19), as the authors' code has it, without its lower bound of $10^{-4}$
# for $p_j$.*
# ```
#
# The paper prints $p_j=\sqrt{\hat s_j}+\epsilon\max_i\hat s_i$. This is {eq}`eq-direct-pred` up to a factor only if
# $\hat s_{\max}=1$ (see [the errata](../errata.md)); the code's version does not depend on the scale of the embedding,
# which suits a loss on unit-length embeddings, and such a loss does not see a factor of $W_p$ either. The loss
# {eq}`eq-siamese-loss` does. In the model we therefore set $W_p=h(C)$ with a function $h$ of the eigenvalues as they
# are (real embeddings have $\hat F\approx(1+\sigma^2)C$ on isotropic data, which changes units).
#
# ```{prf:proposition} A boost abolishes the basin of collapse
# :label: prop-boost
#
# On isotropic data, with $\tau=1$ and $W_p=h(C)$ at all times, the eigenvectors of $C$ rest from every start, and
#
# $$
# \dot s=2s\,g(h(s)),\qquad g(p)=p\,\big(1-(1+\sigma^2)p\big)-\eta .
# $$ (eq-direct-modes)
#
# So the fixed points are where $h(s)=p_\pm$, and the threshold {eq}`eq-threshold` is the same for every $h$. Let
# $0<\eta<\eta^*$.
#
# **(1) Boost,** $h(s)=\sqrt s+\epsilon$. For $p_-<\epsilon<p_+$ every mode with $s(0)>0$ ends at $s=(p_+-\epsilon)^2$.
# For $\epsilon<p_-$ modes with $\sqrt{s(0)}<p_--\epsilon$ collapse, for $\epsilon>p_+$ all do.
#
# **(2) Offset,** $h(s)=\sqrt{\max(s-c,0)}$. Modes with $s(0)>c+p_-^2$ end at $s=c+p_+^2$ if this is positive, and
# collapse if not; those with $s(0)<c+p_-^2$ collapse. So $c>0$ kills modes, $-p_+^2<c<-p_-^2$ abolishes the basin of
# collapse, and $c\le-p_+^2$ kills all.
#
# *The companion's own; the rules are those of {cite:t}`tian2021understanding`, Tables 6 and 7.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# With $W_p=h(C)$ and $G=(I-(1+\sigma^2)W_p)W$ the flow of $W$ gives $\dot C=2\,C\,[W_p(I-(1+\sigma^2)W_p)-\eta I]$, a
# function of $C$. It is solved by $C=\sum_js_ju_ju_j^\top$ with resting $u_j$ and {eq}`eq-direct-modes`. $g>0$ exactly
# between $p_-$ and $p_+$. In both cases $h$ does not decrease. *(1)* $s$ grows while $p_-<\sqrt s+\epsilon<p_+$, which
# holds from $s=0$ on if $p_-<\epsilon<p_+$, and falls above. If $\epsilon<p_-$, it falls below $(p_--\epsilon)^2$; if
# $\epsilon>p_+$, everywhere. *(2)* The same with $h(s)=p_\pm$ at $s=c+p_\pm^2$. $\square$
# ````
#
# $p_-\approx\eta$ is small, so a small boost is enough, and a larger one only costs size: a rise and then a fall of the
# benefit with $\epsilon$, and the failure of offsets $c>0$, are what the paper's tables show, in shape, though not in
# scale: Table 6 rises up to $\epsilon=0.1$, far above $p_-$. Had the boost
# been $\epsilon s$, as the printed formula has it for a network with one mode, it would vanish where it is needed.
#
# ```{prf:proposition} Every power has the same threshold
# :label: prop-direct-set
#
# Let $h(s)=\ell s^\alpha$ with $\alpha,\ell>0$ (*DirectSet*; $\alpha=\frac12$ is DirectPred, $\alpha=1$ *DirectCopy*).
# For $\eta<\eta^*$ a mode survives if and only if $s(0)>(p_-/\ell)^{1/\alpha}$, and then ends at
# $(p_+/\ell)^{1/\alpha}$.
#
# Let $\Gamma=I$ and $\Sigma_{\rm aug}=\sigma^2(I-P)$ with an orthogonal projector $P$, $k=m$, $\ell=1$ and
# $W(0)=\sqrt{s(0)}\,O$ with an orthogonal $O$ and $s(0)>(p_-^{\rm clean})^{1/\alpha}$. Then for
#
# $$
# \frac1{4(1+\sigma^2)}<\eta<\frac14
# $$ (eq-direct-window)
#
# $W\to\sqrt{s_+}\,OP$ with $s_+=\big(\tfrac12(1+\sqrt{1-4\eta})\big)^{1/\alpha}$: weight decay makes the network a
# projector on what augmentation leaves alone. *The companion's own. That these rules learn a projector, with weight
# decay as the threshold, is what {cite:t}`wang2021demystifying` announce; we have read their abstract only.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# $h$ increases from zero, so $h(s)=p_\pm$ once each, and {eq}`eq-direct-modes` grows exactly between. For the second
# part the columns of $O$ are the $u_j$ and orthonormal eigenvectors of $P$ the $e_j$: write
# $O=\sum_j(Oe_j)e_j^\top$. The start is aligned, $W=\sum_jw_j(Oe_j)e_j^\top$, and stays so, each mode with its own
# noise, 0 or $\sigma^2$. By {eq}`eq-direct-window` the noisy ones are above their threshold; and the clean ones have
# $p_\pm=\frac12(1\pm\sqrt{1-4\eta})$. $\square$
# ````
#
# As $p_-<1$, the square root has the smallest basin of collapse of the powers from $\frac12$ up. DirectCopy needs no
# eigenvectors: in practice $W_p=\hat F/\norm{\hat F}+\epsilon I$.

# %%
eta, sigma2 = 0.05, 0.25
saddle, useful = (float(point) for point in predictor.fixed_points(1.0, eta, sigma2))


def settle(rule, s0, eta=eta, sigma2=sigma2):
    """Where modes with the predictor p = rule(s) end: the flow of log s to a late time."""

    def velocity(_, log_s):
        p = rule(np.exp(log_s))
        return 2 * (p * (1 - (1 + sigma2) * p) - eta)  # eq-direct-modes

    shape = np.broadcast_shapes(np.shape(s0), np.shape(rule(np.asarray(s0))))
    start = np.log(np.broadcast_to(s0, shape).astype(float))
    return np.exp(solve_ivp(velocity, (0, 1500), start, "LSODA", rtol=1e-9, atol=1e-9).y[:, -1])


boosts = np.array([0.5 * saddle, 0.95 * saddle, 1.05 * saddle, 0.1, 0.2, 0.5, 0.95 * useful, 1.05 * useful])
expected = predictor.boosted_end(torch.from_numpy(boosts), eta, sigma2).numpy()  # prop-boost
for name, boost in (("", lambda s: boosts), ("-printed", lambda s: boosts * s)):
    end = settle(lambda s, boost=boost: np.sqrt(s) + boost(s), 1e-8)
    ledger.record("alignment.boost" + name, abs(end - expected).max(), n=len(boosts))
offsets, starts = (x.ravel() for x in np.meshgrid([-0.05, -0.02, 0.05, 0.1], [1e-6, 0.02, 0.08, 0.11, 0.2, 0.5]))
end = settle(lambda s: np.sqrt(np.maximum(s - offsets, 0)), starts)
for name, c in (("", offsets), ("-sign", -offsets)):
    expected = np.where(starts > c + saddle**2, c + useful**2, 0.0)
    ledger.record("alignment.offset" + name, abs(end - expected).max(), n=len(starts))

# %%
m, frame = 6, torch.linalg.qr(normal(6, 6)).Q
P = torch.diag((torch.arange(m) < 3).double())
shift = torch.eye(m).double() + 1.0 * (torch.eye(m) - P)  # Sigma_x: half of the directions are noisy
for name, decay in (("", 0.18), ("-weak", 0.1)):  # the thresholds are 1/8 and 1/4
    gaps = []
    for power in (0.5, 1.0, 2.0):
        W = 0.9 * frame
        for _ in range(600 if smoke else 2000):
            s, U = torch.linalg.eigh(W @ W.T)
            Wp = (U * s.clamp(min=0) ** power) @ U.T
            W = W + 0.1 * (Wp @ (W - Wp @ W @ shift) - decay * W)
        s_plus = predictor.direct_set_points(power, decay, 0.0).useful
        gaps.append((W - s_plus.sqrt() * frame @ P).abs().max())  # prop-direct-set
    ledger.record("alignment.direct-set" + name, max(gaps), n=3)
powers = np.array([0.5, 1.0, 2.0])
saddles, ends = (x.numpy() for x in predictor.direct_set_points(torch.from_numpy(powers), eta, sigma2))
grid = np.logspace(-3, 0, 40)[:, None]
shape = np.broadcast_to(powers, (len(grid), 3)).ravel()
reached = settle(lambda s: s**shape, (grid + 0 * powers).ravel()).reshape(len(grid), 3)
for name, border in (("", saddles), ("-same", saddles[:1])):
    wrong = abs(reached - np.where(grid > border, ends, 0.0)).max()
    ledger.record("alignment.direct-powers" + name, wrong, n=grid.size * 3)

# %% mystnb={"figure": {"caption": "How much boost? Left: where a mode ends that starts at $s(0)=10^{-8}$, over the boost $\\epsilon$, $\\sigma^2=\\frac14$: nothing below $p_-$, then a jump, then less and less until $p_+$ ({prf:ref}`prop-boost`). Right: without boost, where it ends over where it starts, for three powers ({prf:ref}`prop-direct-set`), $\\eta=0.05$. Lines: theory; dots: the flow of one mode.", "name": "fig-boost"}, "image": {"alt": "Left, two curves jump from zero to a maximum at a small boost and fall to zero. Right, three step functions jump at starts that are larger for larger powers. Dots lie on the lines."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
fine = torch.cat([torch.linspace(0, 0.12, 241), torch.linspace(0.121, 0.85, 200)]).double()
coarse = np.concatenate([np.linspace(0.005, 0.155, 11), np.linspace(0.2, 0.84, 9)])
for decay, color in ((0.02, COLORS[0]), (0.1, COLORS[1])):
    left.plot(fine, predictor.boosted_end(fine, decay, sigma2), color=color, label=f"$\\eta={decay:g}$")
    left.plot(coarse, settle(lambda s: np.sqrt(s) + coarse, 1e-8, eta=decay), "o", color=color, ms=4)
left.set(xlabel="boost $\\epsilon$", ylabel="final $s$", ylim=(-0.03, 0.75))
left.legend()
for i, power in enumerate(("1/2", "1", "2")):
    right.semilogx([grid[0, 0], saddles[i], saddles[i], 1], [0, 0, ends[i], ends[i]], color=COLORS[i])
    right.semilogx(grid[::2, 0], reached[::2, i], "o", color=COLORS[i], ms=4)
    label_line(right, float(saddles[i]), float(ends[i]) + 0.05, f"$\\alpha={power}$", COLORS[i])
_ = right.set(xlabel="start $s(0)$", ylabel="final $s$", ylim=(-0.03, 1))

# %% [markdown]
# All ends are predicted: with a boost to {measured}`alignment.boost|.1e` {verdict}`alignment.boost`, with an offset to
# {measured}`alignment.offset|.1e` {verdict}`alignment.offset`, for three powers to
# {measured}`alignment.direct-powers|.1e` {verdict}`alignment.direct-powers`. With the boost as printed, tiny modes
# would stay lost: an error of {measured}`alignment.boost-printed|.2f`. In the window {eq}`eq-direct-window` a network
# of six dimensions becomes the projector on the clean half, to {measured}`alignment.direct-set|.1e`
# {verdict}`alignment.direct-set`; with weaker decay the noisy half stays, and the difference is
# {measured}`alignment.direct-set-weak|.2f`.

# %% [markdown]
# ## Networks
#
# From here on nothing is proved. The encoder is a perceptron with two hidden layers and batch norm, its projector has
# one more; the loss compares embeddings and predictions of *unit length*, as BYOL's does, so that the theory's fixed
# points $p_\pm$ do not apply; and views change images in ways that are not additive. What can be compared is
# qualitative: whether $W_p$ and $C$ come to share their eigenvectors, which variants collapse, and how many directions
# survive. $C=\E f(x)f(x)^\top$ is taken here, as in DirectPred, from single views of unseen images and is not centred.
# Images are averaged to $14\times14$ pixels. Every variant sees the same encoder weights, batches and views for a
# given seed, so that differences are paired.
#
# Accuracy is a weak witness at this scale: a ridge classifier on the features of an *untrained* encoder is already good.
# It is reported last. The first witness is the effective rank of $C$, the exponential of the entropy of its normalised
# eigenvalues; the second the *spread*, the mean standard deviation of the coordinates of embeddings of unit length,
# times $\sqrt k$, which is 0 when all images are one point, and 1 when they fill the sphere.

# %%
k_net, updates, seeds, longer = (16, 12, 2, 20) if smoke else (64, 300, 5, 800)


def small_images(some):
    """The same set at half the resolution; the digits as they are."""
    pool = torch.nn.functional.avg_pool2d(some.images.float(), 1 if smoke else 2)
    return dataclasses.replace(some, images=pool.round().to(torch.uint8))


images_small, unseen_small = small_images(images), small_images(unseen)
draw = torch.Generator().manual_seed(1000 * seed + 99)
index = torch.randperm(len(unseen_small), generator=draw)[: 200 if smoke else 500]
watched = alignment.SMALL(unseen_small.images[index].repeat(2, 1, 1, 1), draw).chunk(2)


def train_one(build, run, steps=updates, **changes):
    """One network; what was seen of its alignment, and the accuracy of a ridge classifier on its features."""
    recipe = alignment.small(images_small, build, k=k_net, steps=steps, **changes)
    model, watch = alignment.run(recipe, images_small, 1000 * seed + run, watched=watched, every=max(1, steps // 20))
    return model, watch, accuracy(model.encoder)


def accuracy(encoder):
    """Share of unseen images that a ridge classifier on the encoder's features puts in their class."""
    X, X_test = (probe.extract(encoder.features, some.images[:7000].float() / 255) for some in both)
    return probe.ridge(X, images.labels[:7000], X_test, unseen.labels[:7000], penalty=1e-3)


both = images_small, unseen_small

# %% [markdown]
# ### Do the eigenvectors align?
#
# Two runs a seed, with a linear predictor and a slow target (momentum 0.996): one as it comes, one whose predictor is
# made symmetric after every update, as in {prf:ref}`thm-alignment`.

# %%
pairs_of_runs = {
    name: [train_one(functools.partial(predictors.Trained, symmetric=symmetric), run, longer) for run in range(seeds)]
    for name, symmetric in (("regular", False), ("symmetric", True))
}
living = 10


def in_eigenbasis(model):
    """The predictor in the leading eigenvectors: its asymmetry there, and how diagonal it is beside random bases."""
    z = probe.extract(model.encoder, torch.cat(watched)).double()
    U = torch.linalg.eigh(z.T @ z).eigenvectors[:, -living:]
    P = U.T @ model.predictor.weight.detach().double() @ U
    turned = [Q.T @ P @ Q for Q in torch.linalg.qr(normal(50, living, living)).Q]
    off = [float((A - torch.diag(A.diagonal())).norm()) for A in (P, *turned)]
    return float((P - P.T).abs().sum() / P.abs().sum()), off[0] / float(np.mean(off[1:]))


def alone(claim, values):
    """Record the mean of runs."""
    found = probe.mean_interval(values)
    ledger.record(claim, found.mean, interval=(found.low, found.high), n=found.n)


# %%
before = [alignment.small(images_small, k=k_net).start(1000 * seed + run).eval() for run in range(seeds)]
for name, some in pairs_of_runs.items():
    for when, suffix in ((-1, ""), (0, "-start")):
        alone(f"alignment.net-{name}{suffix}", [float(watch.cosines[when, :living].mean()) for _, watch, _ in some])
    alone(f"alignment.net-diagonal-{name}", [in_eigenbasis(model)[1] for model, _, _ in some])
    alone(f"alignment.net-diagonal-{name}-start", [in_eigenbasis(model)[1] for model in before])
alone("alignment.net-asymmetry", [in_eigenbasis(model)[0] for model, _, _ in pairs_of_runs["regular"]])
alone("alignment.net-asymmetry-start", [in_eigenbasis(model)[0] for model in before])
for suffix, when in (("", -1), ("-start", 0)):
    alone(f"alignment.net-asymmetry-whole{suffix}", [float(w.asymmetry[when]) for _, w, _ in pairs_of_runs["regular"]])

# %% mystnb={"figure": {"caption": "Do the predictor and the embedding come to share eigenvectors? One seed; above the trained predictor as it comes, below kept symmetric. Left: eigenvalues $s_j$ of $C$. Middle: $u_j^\\top W_pu_j$. Right: the cosine between $u_j$ and $W_pu_j$. Every line is an eigenvector of $C$ (every second is shown), the leading ones dark.", "name": "fig-spectrum-growth"}, "image": {"alt": "Two rows of three panels. Eigenvalues of the embedding separate into a leading group and the rest; the predictor's values on the leading ones rise from zero; their cosines rise towards one, those of the others stay spread around zero."}}
fig, axes = plt.subplots(2, 3, sharex=True, sharey="col", figsize=(7.2, 4.4))
for row, (name, runs) in zip(axes, pairs_of_runs.items(), strict=True):
    watch = runs[0][1]
    for ax, curves in zip(row, (watch.spectrum, watch.predictor, watch.cosines), strict=True):
        for j in reversed(range(0, k_net, 2)):
            ax.plot(watch.steps, curves[:, j], color=plt.cm.viridis(0.95 * j / k_net), lw=1)
    row[0].set(yscale="log", ylabel=name)
for ax, title in zip(axes[0], ("$s_j$", "$u_j^\\top W_pu_j$", "cosine"), strict=True):
    ax.set_title(title)
_ = [ax.set(xlabel="updates") for ax in axes[1]]

# %% [markdown]
# On the ten leading eigenvectors of the embedding the mean cosine is
# {measured}`alignment.net-regular|.2f` {verdict}`alignment.net-regular` for the predictor as it comes and
# {measured}`alignment.net-symmetric|.2f` {verdict}`alignment.net-symmetric` for the symmetric one; before training it is
# about zero. Cosines are easily had, though: where $W_p$ is near a multiple of the identity, any basis has them. A
# stricter question is whether $W_p$ is more nearly diagonal in the eigenvectors than in random orthonormal bases of the
# *same* ten dimensions. Its part off the diagonal has {measured}`alignment.net-diagonal-regular|.2f`
# {verdict}`alignment.net-diagonal-regular` and {measured}`alignment.net-diagonal-symmetric|.2f`
# {verdict}`alignment.net-diagonal-symmetric` of the norm that it has there, before training
# {measured}`alignment.net-diagonal-regular-start|.2f|value`. In the same dimensions the trained predictor has become
# more symmetric, as {prf:ref}`prop-symmetric-fixed` suggests: $\sum|P-P^\top|/\sum|P|$ is
# {measured}`alignment.net-asymmetry|.2f` {verdict}`alignment.net-asymmetry`, at the start
# {measured}`alignment.net-asymmetry-start|.2f|value`. In all dimensions together it is still
# {measured}`alignment.net-asymmetry-whole|.2f` {verdict}`alignment.net-asymmetry-whole`, from
# {measured}`alignment.net-asymmetry-whole-start|.2f|value`, because nothing drives the predictor where the embedding has
# no extent ({numref}`fig-spectrum-growth`).
#
# ### A menagerie of predictors
#
# DirectPred has the boost 0.1 and keeps a share of 0.3 of $\hat F$ in an update; DirectCopy divides $\hat F$ by its
# largest eigenvalue, adds $0.3\,I$ and keeps a half; the optimal predictor has a ridge of a thousandth of the mean
# eigenvalue; two layers have $2k$ hidden units with batch norm. Collapse takes its time: the runs without predictor or
# without stop-gradient are as long as those of the section before, and are compared with them; the others are shorter.

# %%
direct = functools.partial(predictors.Direct, rule=functools.partial(predictor.direct_pred, epsilon=0.1), rho=0.3)
copied = functools.partial(predictors.Direct, rule=functools.partial(predictor.direct_copy, epsilon=0.3), rho=0.5)
linear, wide = predictors.Trained, functools.partial(predictors.Trained, hidden=2 * k_net)
menagerie = {
    "direct": ("DirectPred", direct),
    "copy": ("DirectCopy", copied),
    "linear": ("linear", linear),
    "linear-symmetric": ("linear, symmetric", functools.partial(linear, symmetric=True)),
    "wide": ("two layers", wide),
    "wide-symmetric": ("two layers, symmetric", functools.partial(wide, symmetric=True)),
    "optimal": ("optimal", predictors.Optimal),
    "none": ("no predictor", predictors.Identity),
}
slow = dict.fromkeys(menagerie, 0.996)
fast = {name: 0.0 for name in menagerie if name != "optimal"}
runs = {}
for targets, (name, (_, build)) in itertools.product((slow, fast), menagerie.items()):
    if name in targets:
        length = longer if name == "none" else updates
        momentum = targets[name]
        runs[name, momentum > 0] = [train_one(build, run, length, momentum=momentum) for run in range(seeds)]
runs["no-stop", False] = [train_one(linear, run, longer, momentum=0.0, stop_gradient=False) for run in range(seeds)]
untrained = [accuracy(model.encoder) for model in before]

# %%
rank = {key: [float(watch.rank[-1]) for _, watch, _ in values] for key, values in runs.items()}
spread = {key: [float(watch.spread[-1]) for _, watch, _ in values] for key, values in runs.items()}
correct = {key: [share for _, _, share in values] for key, values in runs.items()}


def paired(claim, a, b):
    """Record the mean difference of two lists of runs that share their seeds."""
    found = probe.paired_interval(a, b)
    ledger.record(claim, found.mean, interval=(found.low, found.high), n=found.n)


for slug, key in (("none", ("none", False)), ("no-stop", ("no-stop", False)), ("none-slow", ("none", True))):
    alone(f"alignment.net-spread-{slug}", spread[key])
for slug in ("both", "linear"):
    alone(f"alignment.net-spread-{slug}", [float(watch.spread[-1]) for _, watch, _ in pairs_of_runs["regular"]])
alone("alignment.net-rank-none", rank["none", False])
alone("alignment.net-rank-two", rank["linear", False])
for slug, name in (("direct", "direct"), ("symmetric", "linear-symmetric")):
    ratio = [a / b for a, b in zip(rank[name, True], rank["linear", True], strict=True)]
    alone(f"alignment.net-rank-{slug}", ratio)
paired("alignment.net-rank-optimal", rank["optimal", True], rank["linear", True])
paired("alignment.net-rank-direct-copy", rank["copy", True], rank["linear", True])
for slug, name, other in (("direct", "direct", "linear"), ("copy", "copy", "direct"), ("wide", "wide", "linear")):
    paired(f"alignment.net-accuracy-{slug}", correct[name, True], correct[other, True])
paired("alignment.net-accuracy-untrained", correct["linear", True], untrained)

# %% mystnb={"figure": {"caption": "Which predictor keeps how much? Effective rank of $C$, spread, and accuracy of a ridge classifier on the features, five seeds each; filled: slow target, open: the target is the online network. Dashed: untrained encoders. The two rows at the bottom were trained longer.", "name": "fig-menagerie"}, "image": {"alt": "Three dot plots with one row a variant. DirectPred, DirectCopy and two layers have a large effective rank with a slow target; without predictor or stop-gradient the spread is near zero; accuracies lie close together around that of untrained encoders."}}
fig, axes = plt.subplots(1, 3, sharey=True, figsize=(7.2, 4.4))
rows = [*menagerie, "no-stop"]
for ax, values, title in zip(axes, (rank, spread, correct), ("effective rank", "spread", "accuracy"), strict=True):
    for (name, is_slow), column in values.items():
        y = np.full(len(column), float(rows.index(name))) + (-0.15 if is_slow else 0.15)
        face = COLORS[0] if is_slow else "none"
        ax.plot(column, y, "o", ms=4, color=COLORS[0] if is_slow else COLORS[1], mfc=face)
    ax.set(title=title, ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="y", lw=0.3)
    ax.locator_params(axis="x", nbins=3)
axes[2].axvline(float(np.mean(untrained)), color="0.45", lw=1, ls="--")
_ = axes[0].set_yticks(range(len(rows)), [*(label for label, _ in menagerie.values()), "no stop-gradient"])

# %% [markdown]
# Without a predictor the spread falls to {measured}`alignment.net-spread-none|.3f`
# {verdict}`alignment.net-spread-none`, without the stop-gradient to {measured}`alignment.net-spread-no-stop|.3f`
# {verdict}`alignment.net-spread-no-stop`; with both, and a slow target, it is
# {measured}`alignment.net-spread-both|.2f|value`. That is what {prf:ref}`prop-no-predictor` and
# {prf:ref}`thm-stop-gradient` say of linear networks. The effective rank without predictor is
# {measured}`alignment.net-rank-none|.2f` {verdict}`alignment.net-rank-none`. A slow target delays that collapse; within
# these updates the spread is still {measured}`alignment.net-spread-none-slow|.2f` {verdict}`alignment.net-spread-none-slow`.
#
# DirectPred has {measured}`alignment.net-rank-direct|.1f` times the effective rank of the trained linear predictor
# {verdict}`alignment.net-rank-direct`, where symmetrising that one gives a factor of
# {measured}`alignment.net-rank-symmetric|.2f|value`. With the optimal predictor the rank differs from that of the
# trained one by {measured}`alignment.net-rank-optimal|.1f` {verdict}`alignment.net-rank-optimal`.
#
# Accuracies are close. In points of a hundred, DirectPred differs from the trained linear predictor by
# {measured}`alignment.net-accuracy-direct|percent.1` {verdict}`alignment.net-accuracy-direct`, DirectCopy from
# DirectPred by {measured}`alignment.net-accuracy-copy|percent.1` {verdict}`alignment.net-accuracy-copy`, two layers from
# one by {measured}`alignment.net-accuracy-wide|percent.1` {verdict}`alignment.net-accuracy-wide`, and the trained linear
# predictor from untrained encoders by {measured}`alignment.net-accuracy-untrained|percent.1`
# {verdict}`alignment.net-accuracy-untrained`.

# %% [markdown]
# ### Boost and frequency
#
# {prf:ref}`prop-boost` has two regimes. A boost just above $p_-$ frees the modes that would be trapped, and everything
# beyond that costs them strength: they end at $(p_+-\epsilon)^2$. How large is $p_-$ here? If the theory's scale
# carried over to the cosine loss, it would be close to $\eta/\tau$,
# and $\eta$ is the weight decay, $4\cdot10^{-4}$. So the rise is over before the smallest positive boost of the paper's
# Table 6, and what the theory leads us to expect, for all boosts that one would try, is the fall.

# %%
boosts, gaps_between = (0.0, 0.1, 0.3, 1.0, 3.0), (1, 2, 5)
sweep = {(0.1, 1): runs["direct", True]}
for boost, every in [(boost, 1) for boost in boosts if boost != 0.1] + [(0.1, every) for every in gaps_between[1:]]:
    rule = functools.partial(predictor.direct_pred, epsilon=boost)
    build = functools.partial(predictors.Direct, rule=rule, rho=0.3, every=every)
    sweep[boost, every] = [train_one(build, run) for run in range(seeds)]
for slug, keys in (
    ("boost", [(boost, 1) for boost in boosts[1:]]),
    ("frequency", [(0.1, every) for every in gaps_between]),
):
    found = [probe.mean_interval([float(watch.rank[-1]) for _, watch, _ in sweep[key]]) for key in keys]
    values, intervals = [x.mean for x in found], [(x.low, x.high) for x in found]
    ledger.record(f"alignment.net-{slug}", values, interval=intervals, n=seeds)
accuracies = {key: [share for _, _, share in values] for key, values in sweep.items()}
ranks = {key: [float(watch.rank[-1]) for _, watch, _ in values] for key, values in sweep.items()}
paired("alignment.net-rank-boost", ranks[0.1, 1], ranks[0.0, 1])
paired("alignment.net-accuracy-boost", accuracies[0.1, 1], accuracies[0.0, 1])
paired("alignment.net-accuracy-frequency", accuracies[0.1, 5], accuracies[0.1, 1])

# %% mystnb={"figure": {"caption": "What does the boost cost? Left: effective rank over the boost, five seeds, and over the number of updates from one setting of $W_p$ to the next (orange, at $\\epsilon=0.1$). Right: accuracy.", "name": "fig-epsilon"}, "image": {"alt": "Left, the effective rank falls steadily as the boost grows, and also as the predictor is set less often. Right, accuracies hardly move."}}
fig, axes = plt.subplots(1, 2, sharex=True, figsize=(7.2, 3.0))
for boost, every in sweep:
    place, color = max(boost, 0.03) * (1 + 0.25 * (every > 1)), COLORS[0] if every == 1 else COLORS[1]
    for ax, column in zip(axes, (ranks[boost, every], accuracies[boost, every]), strict=True):
        ax.plot([place] * len(column), column, "o", ms=4, color=color, alpha=0.7)
        if every > 1 and ax is axes[0]:
            label_line(ax, place * 1.1, float(np.mean(column)), f"every {every}", color)
for ax, title in zip(axes, ("effective rank", "accuracy"), strict=True):
    ax.set(xscale="log", xlabel="boost $\\epsilon$ (0 drawn at 0.03)", ylabel=title)

# %% [markdown]
# From no boost to 0.1 the effective rank changes by {measured}`alignment.net-rank-boost|.1f`
# {verdict}`alignment.net-rank-boost`, paired by seed; at boosts of 0.1, 0.3, 1 and 3 it is
# {measured}`alignment.net-boost|.1f` {verdict}`alignment.net-boost`. When $W_p$ is set every update, every second, and
# every fifth, and follows its gradient in between, it is {measured}`alignment.net-frequency|.1f`
# {verdict}`alignment.net-frequency`. In accuracy, a boost of 0.1 makes a difference of
# {measured}`alignment.net-accuracy-boost|percent.1` points {verdict}`alignment.net-accuracy-boost` and setting it every
# fifth time one of {measured}`alignment.net-accuracy-frequency|percent.1` {verdict}`alignment.net-accuracy-frequency`.
# The paper finds gains for both: for the boost after 100 epochs (Table 6), for every fifth update on STL-10 after 300 and
# 500 (Table 8).

# %% [markdown]
# ## What a symmetric predictor loses without a slow target
#
# The paper's theory assumes a symmetric predictor, and its experiments hold a surprise for that assumption. With a
# slow target, ResNets on STL-10 with a linear predictor do as well when it is kept symmetric as when it is not
# ({published}`alignment.table3-linear-ema-nobias-sym` against
# {published}`alignment.table3-linear-ema-nobias-regular`). Without one the symmetric predictor breaks down:
# {published}`alignment.table3-linear-noema-nobias-sym` against
# {published}`alignment.table3-linear-noema-nobias-regular`. The paper's account is that a slow target, or weight decay on
# the predictor alone, makes the condition of {prf:ref}`thm-alignment` easier to meet. But {prf:ref}`prop-scale-free`
# says that alignment holds under A1 to A3 without that condition, up to scale. So if a failing alignment is the cause,
# it comes from what that flow leaves out: noise, step length, nonlinearity, or data that are not isotropic. We look at
# the data.
#
# First, is anything to be seen at our scale? Take the effective rank of a network with a symmetric predictor minus that of
# the network with a free one, with and without a slow target; and, since DirectPred's predictor is symmetric by
# construction, DirectPred's rank without a slow target minus that with one.

# %%
for slug in ("wide", "wide-slow", "linear", "linear-slow"):
    name, is_slow = slug.removesuffix("-slow"), slug.endswith("-slow")
    paired(f"alignment.crash-{slug}", rank[name + "-symmetric", is_slow], rank[name, is_slow])
paired("alignment.crash-accuracy-wide", correct["wide-symmetric", False], correct["wide", False])
paired("alignment.crash-accuracy-linear", correct["linear-symmetric", False], correct["linear", False])
paired("alignment.crash-direct", rank["direct", False], rank["direct", True])
paired("alignment.crash-accuracy-direct", correct["direct", False], correct["direct", True])
paired("alignment.crash-direct-free", rank["linear", False], rank["linear", True])

# %% [markdown]
# With two layers the symmetric predictor changes the rank by {measured}`alignment.crash-wide|.1f`
# {verdict}`alignment.crash-wide` without a slow target, and by {measured}`alignment.crash-wide-slow|.1f|value` with one;
# with a linear predictor by {measured}`alignment.crash-linear|.1f` {verdict}`alignment.crash-linear` and
# {measured}`alignment.crash-linear-slow|.1f|value`. Taking the slow target from DirectPred changes its rank by
# {measured}`alignment.crash-direct|.1f` {verdict}`alignment.crash-direct`, taking it from a free linear predictor by
# {measured}`alignment.crash-direct-free|.1f|value`. In accuracy, the change in points is
# {measured}`alignment.crash-accuracy-wide|percent.1` {verdict}`alignment.crash-accuracy-wide` for symmetry without a slow
# target with two layers, {measured}`alignment.crash-accuracy-linear|percent.1` {verdict}`alignment.crash-accuracy-linear`
# with one, and {measured}`alignment.crash-accuracy-direct|percent.1` {verdict}`alignment.crash-accuracy-direct` for
# DirectPred. These networks do not collapse to a point. Where they lose something it is directions, and that is less
# than the paper's crash.
#
# Does it depend on the recipe? We repeat the comparison, symmetric against free linear predictor without a slow target,
# with one thing changed at a time: no batch norm, no batch norm and five hidden layers, the squared distance of the
# theory in place of the cosine (at a tenth of the learning rate), a learning rate three times as large, five times as many
# updates; and with the paper's remedies, a predictor that learns ten times faster, and weight decay on the predictor alone.


# %%
def changed(change, symmetric):
    """The small recipe with one thing changed."""
    keywords = {"faster": {"lr_ratio": 10.0}, "split": {"weight_decay": 4e-4}}.get(change, {})
    build = functools.partial(linear, symmetric=symmetric, **keywords)
    recipe = alignment.small(images_small, build, k=k_net, steps=updates * (5 if change == "long" else 1), momentum=0.0)
    rate, decay = recipe.options.lr, recipe.options.weight_decay
    other = {"split": (rate, 0.0), "rate": (3 * rate, decay), "distance": (rate / 10, decay)}.get(change, (rate, decay))
    options = dataclasses.replace(recipe.options, lr=other[0], weight_decay=other[1])
    recipe = dataclasses.replace(recipe, options=options, normalize=change != "distance")
    hidden = {"plain": (256, 128, 128), "deep": (256, 256, 256, 128, 128)}.get(change)
    if hidden is None:
        return recipe
    sizes = (images_small.images[0].numel(), *hidden, k_net)
    return dataclasses.replace(recipe, encoder=lambda generator: encoders.mlp(sizes, generator=generator))


# %%
search = {}
for change in ("plain", "deep", "distance", "rate", "long", "faster", "split"):
    for symmetric, run in itertools.product((True, False), range(2 if smoke else 3)):
        recipe = changed(change, symmetric)
        model, watch = alignment.run(recipe, images_small, 1000 * seed + run, watched=watched, every=updates)
        found = float(watch.rank[-1]), accuracy(model.encoder)
        search.setdefault((change, symmetric), []).append(found)
print("change     effective rank: symmetric   free    accuracy: symmetric   free")
for change in dict.fromkeys(name for name, _ in search):
    (one, right_one), (two, right_two) = (zip(*search[change, kind], strict=True) for kind in (True, False))
    print(f"{change:10} {np.mean(one):25.1f} {np.mean(two):6.1f} {np.mean(right_one):22.3f} {np.mean(right_two):6.3f}")
    paired(f"alignment.search-{change}", one, two)
    paired(f"alignment.search-accuracy-{change}", right_one, right_two)
for name in ("faster", "split"):
    rescued = [right for _, right in search[name, True]]
    paired(f"alignment.rescue-{name}", rescued, correct["linear-symmetric", False][: len(rescued)])

# %% [markdown]
# ```{list-table}
# :header-rows: 1
#
# * - what is changed
#   - rank, symmetric minus free
#   - accuracy in points
# * - no batch norm
#   - {measured}`alignment.search-plain|.1f` {verdict}`alignment.search-plain`
#   - {measured}`alignment.search-accuracy-plain|percent.1`
#     {verdict}`alignment.search-accuracy-plain`
# * - no batch norm, deeper
#   - {measured}`alignment.search-deep|.1f` {verdict}`alignment.search-deep`
#   - {measured}`alignment.search-accuracy-deep|percent.1`
#     {verdict}`alignment.search-accuracy-deep`
# * - squared distance
#   - {measured}`alignment.search-distance|.1f` {verdict}`alignment.search-distance`
#   - {measured}`alignment.search-accuracy-distance|percent.1`
#     {verdict}`alignment.search-accuracy-distance`
# * - learning rate times three
#   - {measured}`alignment.search-rate|.1f` {verdict}`alignment.search-rate`
#   - {measured}`alignment.search-accuracy-rate|percent.1`
#     {verdict}`alignment.search-accuracy-rate`
# * - five times as long
#   - {measured}`alignment.search-long|.1f` {verdict}`alignment.search-long`
#   - {measured}`alignment.search-accuracy-long|percent.1`
#     {verdict}`alignment.search-accuracy-long`
# * - predictor ten times faster
#   - {measured}`alignment.search-faster|.1f` {verdict}`alignment.search-faster`
#   - {measured}`alignment.search-accuracy-faster|percent.1`
#     {verdict}`alignment.search-accuracy-faster`
# * - decay on the predictor only
#   - {measured}`alignment.search-split|.1f` {verdict}`alignment.search-split`
#   - {measured}`alignment.search-accuracy-split|percent.1`
#     {verdict}`alignment.search-accuracy-split`
# ```
#
# Three seeds a row; each claim is that symmetry costs something, and the levels are printed above the table. The
# paper's remedies raise the accuracy with a symmetric predictor by {measured}`alignment.rescue-faster|percent.1` points
# {verdict}`alignment.rescue-faster` and {measured}`alignment.rescue-split|percent.1` {verdict}`alignment.rescue-split`.
#
# ### Two modes that mix
#
# Leave out the nonlinearities. Let the data be linear but not isotropic, with commuting $\Gamma$ and $\Sigma_x$ at
# first, and look at two learned modes at rest, $p_j=\kappa_j$. Do they stay apart when they are disturbed a little?
#
# ```{prf:proposition} Symmetry is a handicap at rest
# :label: prop-mixing
#
# Let $\eta=0$, $\Gamma=\diag(\gamma_1,\gamma_2)$, $\Sigma_x=\diag(\sigma_1,\sigma_2)$, $\kappa_i=\gamma_i/\sigma_i$ and
# $\kappa_1>\kappa_2>0$. At $W=W_a=\diag(w_1,w_2)$, $W_p=\diag(\kappa_1,\kappa_2)$ the flow rests, for all $w_1,w_2>0$.
# Disturb the entries off the diagonal a little. In the linearised flow:
#
# 1. If the predictor is free and $W_a=W$, they vanish or converge if
#    $\alpha_pw_1^2>\kappa_2(\kappa_1-\kappa_2)$, and grow if $\alpha_pw_1^2<\kappa_2(\kappa_1-\kappa_2)$.
# 2. If the predictor is kept symmetric and $W_a=W$, they vanish or converge if {eq}`eq-mixing` holds, and grow if its left
#    side is smaller than the right. That asks for more than twice as much of $w_1^2$ as 1 does.
# 3. With a slow target, $\dot W_a=\beta(W-W_a)$, and a symmetric predictor they converge or grow by the same inequality,
#    for every $\beta>0$; but where they grow, they do so no faster than at the rate
#    $\beta\,(\kappa_1-\kappa_2)/\kappa_2$.
#
# $$
# \frac{\alpha_p}2\big(\kappa_1w_1^2-\kappa_2w_2^2\big)>\kappa_1\kappa_2(\kappa_1-\kappa_2)
# $$ (eq-mixing)
#
# On the balance of {prf:ref}`thm-balance`, $\alpha_pw_j^2=\kappa_j^2$, both conditions hold. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# Let $W_{12}=x$, $W_{21}=y$ be small, likewise $a,b$ in $W_a$, and $\pi$ in both corners of a symmetric $W_p$. To first
# order the corners of $G=W_a\Gamma-W_pW\Sigma_x$ are
#
# $$
# u=G_{12}=\sigma_2(\kappa_2a-\kappa_1x-\pi w_2),\qquad v=G_{21}=\sigma_1(\kappa_1b-\kappa_2y-\pi w_1),
# $$ (eq-corners)
#
# and its diagonal is zero to first order in the corners. So by {eq}`eq-siamese-flow`, with the symmetric part taken of
# the predictor's equation,
#
# $$
# \dot x=\kappa_1u,\quad\dot y=\kappa_2v,\quad\dot\pi=\tfrac{\alpha_p}2(w_2u+w_1v),\quad\dot a=\beta(x-a),\quad
# \dot b=\beta(y-b).
# $$ (eq-corner-flow)
#
# *Part 2.* Put $a=x$, $b=y$. Then {eq}`eq-corners` differentiated is a closed system. With $D=\diag(\sigma_2,\sigma_1)$,
# $z=(u,v)^\top$ and $\tilde w=(w_2,w_1)^\top$ it reads
#
# $$
# \dot z=-D\,(S-\kappa_1\kappa_2I)\,z,\qquad S=\diag(\kappa_1^2,\kappa_2^2)+\tfrac{\alpha_p}2\tilde w\tilde w^\top .
# $$ (eq-corner-drive)
#
# $D(S-\kappa_1\kappa_2I)$ has the eigenvalues of the symmetric $D^{1/2}(S-\kappa_1\kappa_2I)D^{1/2}$. They are positive
# if $S-\kappa_1\kappa_2I$ is positive definite, and one is negative if its determinant is. Its upper left entry
# $\kappa_1(\kappa_1-\kappa_2)+\frac{\alpha_p}2w_2^2$ is positive, so the sign of the determinant decides. With
# $\Delta=\kappa_1-\kappa_2$,
#
# $$
# \begin{aligned}
# \det(S-\kappa_1\kappa_2I)&=\big(\kappa_1\Delta+\tfrac{\alpha_p}2w_2^2\big)
# \big(\tfrac{\alpha_p}2w_1^2-\kappa_2\Delta\big)-\tfrac{\alpha_p^2}4w_1^2w_2^2\\
# &=\Delta\Big[\tfrac{\alpha_p}2\big(\kappa_1w_1^2-\kappa_2w_2^2\big)-\kappa_1\kappa_2\Delta\Big].
# \end{aligned}
# $$ (eq-corner-determinant)
#
# Where it is positive, $z$ vanishes exponentially, and $x,y,\pi$, whose derivatives are multiples of $u$ and $v$,
# converge. {eq}`eq-mixing`, divided by $\frac{\kappa_1}2$, is
# $\alpha_pw_1^2>2\kappa_2\Delta+\alpha_p\frac{\kappa_2}{\kappa_1}w_2^2$.
#
# *Part 1.* A free predictor has two corners, with $\dot\pi_{12}=\alpha_pw_2u$ and $\dot\pi_{21}=\alpha_pw_1v$. So
# $\dot u=-\sigma_2(\kappa_1\Delta+\alpha_pw_2^2)\,u$ and $\dot v=\sigma_1(\kappa_2\Delta-\alpha_pw_1^2)\,v$.
#
# *Part 3.* With $c=x-a$ and $d=y-b$,
#
# $$
# \dot z=-D\big(Sz-\beta\,(\kappa_2c,\kappa_1d)^\top\big),\qquad\dot c=\kappa_1u-\beta c,\qquad
# \dot d=\kappa_2v-\beta d .
# $$ (eq-slow-corners)
#
# Let $\lambda$ be an eigenvalue. If $\lambda=-\beta$, it is not positive. Else $c=\kappa_1u/(\lambda+\beta)$ and
# $d=\kappa_2v/(\lambda+\beta)$, so $z\ne0$, and we may take $|z|=1$. The first equation becomes
# $\lambda D^{-1}z=-Sz+\frac{\beta\kappa_1\kappa_2}{\lambda+\beta}z$. Multiply by $(\lambda+\beta)\,\bar z^\top$, and write
# $\theta=\bar z^\top D^{-1}z>0$ and $\varsigma=\bar z^\top Sz>0$:
#
# $$
# \theta\lambda^2+(\beta\theta+\varsigma)\lambda+\beta\,(\varsigma-\kappa_1\kappa_2)=0 .
# $$ (eq-slow-eigenvalue)
#
# The coefficients are real, and the sum of the two roots is negative. If {eq}`eq-mixing` holds, $S-\kappa_1\kappa_2I$ is
# positive definite, $\varsigma>\kappa_1\kappa_2$, and both roots have a negative real part. If the left side of
# {eq}`eq-mixing` is smaller, consider the determinant of the four equations {eq}`eq-slow-corners`. It is $\beta^2$, that
# of the block of $(c,d)$, times that of its Schur complement, which is what remains of the first equation for
# $\beta c=\kappa_1u$, $\beta d=\kappa_2v$, and that is {eq}`eq-corner-drive`. So it is negative, and a real matrix of
# even size with a negative determinant has a positive eigenvalue. Finally, a $\lambda$ with positive real part is real,
# since complex roots of {eq}`eq-slow-eigenvalue` would have a negative one, and
#
# $$
# \lambda=\frac{\beta\,(\kappa_1\kappa_2-\varsigma)}{\theta\lambda+\beta\theta+\varsigma}
# <\beta\Big(\frac{\kappa_1\kappa_2}\varsigma-1\Big)\le\beta\Big(\frac{\kappa_1\kappa_2}{\kappa_2^2}-1\Big)
# =\beta\,\frac{\kappa_1-\kappa_2}{\kappa_2},
# $$ (eq-slow-rate)
#
# because $\varsigma\ge\kappa_2^2$.
#
# *On the balance*, part 1 asks for $\kappa_1^2>\kappa_2(\kappa_1-\kappa_2)$, and part 2 for
# $\kappa_1^3-\kappa_2^3>2\kappa_1\kappa_2(\kappa_1-\kappa_2)$, that is
# $\kappa_1^2+\kappa_1\kappa_2+\kappa_2^2>2\kappa_1\kappa_2$. Both are true. $\square$
# ````

# %%
trials = 150 if smoke else 300
wrong, kept = dict.fromkeys(("", "-free", "-slow", "-slow-free", "-regular", "-regular-symmetric"), 0), 0
speed = {"": [0.0], "-fast": [0.0]}
for _ in range(trials):
    kappa, size = uniform(0.1, 1, 2).sort(descending=True).values, uniform(0.5, 2, 2)
    lengths, alpha_p, beta = uniform(0.05, 1.2, 2), float(uniform(0.5, 4, 1)), float(uniform(0.01, 2, 1))
    pair, law = (torch.diag(kappa * size), torch.diag((1 - kappa) * size)), {"alpha_p": alpha_p, "symmetric": True}
    margin = {
        name: predictor.mixing_margin(kappa, lengths, alpha_p, symmetric=not name) for name in ("", "-free")
    }  # eq-mixing, and the condition of a free predictor
    if min(abs(value) for value in margin.values()) < 1e-3:
        continue
    rest, kept = predictor.resting_state(*pair, 2, lengths), kept + 1
    rate, free_rate = (predictor.escape_rate(rest, *pair, **law | {"symmetric": kind}) for kind in (True, False))
    follows = predictor.resting_state(*pair, 2, lengths, slow=True)
    slow_rate = predictor.escape_rate(follows, *pair, beta=beta, **law)
    for name, value in margin.items():
        wrong[name] += int((rate > 1e-9) != bool(value < 0))
        wrong["-slow" + name] += int((slow_rate > 1e-9) != bool(value < 0))
        wrong["-regular" + ("" if name else "-symmetric")] += int((free_rate > 1e-9) != bool(value < 0))
    for name, value in (("", slow_rate), ("-fast", rate)):
        speed[name].append(value * float(kappa[1] / (kappa[0] - kappa[1])) / beta)  # eq-slow-rate
for name, count in wrong.items():
    ledger.record("alignment.mixing" + name, count, n=kept)
for name, values in speed.items():
    ledger.record("alignment.slow-rate" + name, max(values), n=kept)

# %% [markdown]
# {eq}`eq-mixing` decides {measured}`alignment.mixing|.0f` of the random pairs wrongly {verdict}`alignment.mixing`,
# where the condition for free predictors would be wrong for {measured}`alignment.mixing-free|.0f`, and
# {measured}`alignment.mixing-slow|.0f` with a slow target {verdict}`alignment.mixing-slow`; the condition of part 1 decides
# {measured}`alignment.mixing-regular|.0f` wrongly for free predictors {verdict}`alignment.mixing-regular`. With a slow
# target the growth comes to {measured}`alignment.slow-rate|.2f` of the bound {eq}`eq-slow-rate` at most
# {verdict}`alignment.slow-rate`.
#
# A slow target, then, heals nothing, but it makes a disturbance grow on the slow clock of $\beta$ instead of the fast one
# of the gradients. And a balanced pair needs no healing. Only a start out of balance, with $w_1$ small beside $p_1$ or
# with $w_2$ large, does.
#
# ### Moments that do not commute
#
# With commuting moments any number of modes falls apart into pairs. When $\Gamma$ and $\Sigma_x$ do not commute, a
# symmetric predictor cannot, as a rule, be in balance and at rest. For at rest $W_p=U\diag(\kappa_1,\dots,\kappa_k)U^\top$ and
# $W=U\diag(d_1,\dots,d_k)(v_1,\dots,v_k)^\top$, with an orthogonal $U$ if the $\kappa_j$ are distinct. Then
# $C=W\Gamma W^\top$ commutes with $W_p$, since $v_i^\top\Gamma v_j=0$ for $i\ne j$. But the $v_j$ are orthogonal with
# respect to $\Sigma_x$, not in $\R^m$, so that $WW^\top$ does not commute with $W_p$, as $WW^\top=W_p^2/\alpha_p$
# would demand. A free predictor keeps the balance of {prf:ref}`thm-balance` all the way, and its $W_p$ is not symmetric in
# the end.
#
# Whether the symmetric rests are stable, {prf:ref}`prop-mixing` does not say, and we have no theorem for three or more
# modes. But the matrix of the linearised flow has eigenvalues. We draw random moments, take the state of rest with
# the leading $v_j$ and rows of $W$ of lengths $\kappa_j/\sqrt{\alpha_p}$, which are balanced as far as the diagonal of
# $WW^\top$ goes, and count how often a disturbance grows.

# %%
draws, unstable = 40 if smoke else 200, {}
for _ in range(draws):
    A, B = normal(2, 8, 8)
    mixed = A @ A.T / 8, 0.25 * B @ B.T / 8
    straight = tuple(torch.diag(torch.linalg.eigvalsh(part)) for part in mixed)
    for name, modes, moments, is_symmetric in (
        ("", 4, mixed, True),
        ("-free", 4, mixed, False),
        ("-pairs", 2, mixed, True),
        ("-long", 4, mixed, True),
        ("-commuting", 4, straight, True),
    ):
        lengths = predictor.view_correlations(*moments)[0][:modes] * (3 if name == "-long" else 1)
        rest = predictor.resting_state(*moments, modes, lengths)
        rate = predictor.escape_rate(rest, *moments, symmetric=is_symmetric)
        unstable.setdefault(name, []).append(rate > 1e-6)
unstable |= {"-more": unstable[""], "-mixed": unstable[""]}
for name, grows in unstable.items():
    low, high = binomtest(sum(grows), draws).proportion_ci(method="wilson")
    ledger.record("alignment.unstable" + name, float(np.mean(grows)), interval=(low, high), n=draws)

# %% [markdown]
# With four modes and a symmetric predictor, {measured}`alignment.unstable|percent` of the draws are unstable
# {verdict}`alignment.unstable`, with a free one {measured}`alignment.unstable-free|percent`; with two modes
# {measured}`alignment.unstable-pairs|percent` {verdict}`alignment.unstable-pairs`, and when the same eigenvalues belong
# to moments that commute {measured}`alignment.unstable-commuting|percent`
# {verdict}`alignment.unstable-commuting`. Rows three times as long do not mend it:
# {measured}`alignment.unstable-long|percent` {verdict}`alignment.unstable-long`. So this is mostly a
# matter of three or more modes that share directions, and of symmetry.
#
# ### On the moments of real images
#
# We take $\Gamma$ and $\Sigma_x$ of Fashion-MNIST from above, the state of rest with the first four $v_j$ and balanced
# lengths, and ask for the fastest growth of a small disturbance; then we follow the flow itself from a small start.

# %%
clock = torch.tensor([10.0, 30.0, 100.0] if smoke else [3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]).double()
laws = {"": (True, 0, 0), "-slow": (True, 0.133, 0), "-free": (False, 0, 0), "-commuting": (True, 0, 0)}
laws |= {"-decay": (True, 0, 0.01), "-weak": (True, 0, 4e-4)}  # symmetric or not, beta, eta
escape, courses = {name: [] for name in (*laws, "-long")}, {name: [] for name in laws}
for Gamma, noise, _ in track(image_sets, "flows on images"):
    kappa, V = predictor.view_correlations(Gamma, noise)
    size = torch.diag(1 / V.square().sum(0))  # of the inputs along v_j, if they were orthogonal
    straight = size * kappa, size * (1 - kappa)  # the same correlations in moments that commute
    W, Wp = 0.05 * normal(4, len(kappa)), 0.1 * torch.eye(4).double() + 0.02 * symmetric_part(normal(4, 4))
    long = predictor.resting_state(Gamma, noise, 4, 3 * kappa[:4])
    escape["-long"].append(predictor.escape_rate(long, Gamma, noise, symmetric=True))
    for name, (is_symmetric, beta, eta) in laws.items():
        moments = straight if name == "-commuting" else (Gamma, noise)
        rest = predictor.resting_state(*moments, 4, slow=beta > 0)
        if eta == 0:
            escape[name].append(predictor.escape_rate(rest, *moments, beta=beta, symmetric=is_symmetric))
        start = predictor.State(W, Wp, W.clone() if beta else None)
        path = predictor.flow(start, *moments, clock, beta=beta, eta=eta, symmetric=is_symmetric, rtol=1e-8)
        courses[name].append(torch.linalg.svdvals(path.W)[:, -1].tolist())

# %%
for name in ("", "-free", "-commuting"):
    alone(f"alignment.escape{name}", escape[name])
alone("alignment.escape-mixed", escape[""])
for name in ("-slow", "-long"):
    alone(f"alignment.escape{name}", [a / b for a, b in zip(escape[name], escape[""], strict=True)])
last = {name: [course[-1] for course in values] for name, values in courses.items()}
for name in ("-slow", "-free", "-commuting", "-decay"):
    paired(f"alignment.shrink{name}", last[""], last[name])
paired("alignment.shrink-weak", last["-weak"], last["-free"])

# %% mystnb={"figure": {"caption": "What does a symmetric predictor do without a slow target? Left: the smallest of the four singular values of $W$ in the exact flow of a linear network, on the moments of five sets of images (mean, and thin every set). Right: effective rank in networks with a predictor of two layers, five seeds, in the same colours.", "name": "fig-crash"}, "image": {"alt": "Left, over time on a logarithmic axis, all curves rise to about two thirds; that of the symmetric predictor without slow target and without decay then falls towards zero. Right, over updates, its effective rank stays far below that with a slow target, and below that of free predictors."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
hues = {
    "": COLORS[0],
    "-slow": COLORS[1],
    "-free": COLORS[2],
    "-commuting": COLORS[6],
    "-decay": COLORS[3],
    "-weak": COLORS[4],
}
for name, values in courses.items():
    for course in values:
        left.semilogx(clock, course, color=hues[name], lw=0.6, alpha=0.5)
    left.semilogx(clock, np.mean(values, 0), color=hues[name], lw=2)
labels = {"": "symmetric", "-slow": "symmetric, slow target", "-free": "free", "-commuting": "symmetric, commuting"}
labels |= {"-decay": "symmetric, $\\eta=0.01$", "-weak": "symmetric, $\\eta=0.0004$"}
for row, (name, label) in enumerate(labels.items()):
    label_line(left, float(clock[0]) * 1.1, 0.98 - 0.065 * row, label, hues[name])
for name, key in (("", ("wide-symmetric", False)), ("-slow", ("wide-symmetric", True)), ("-free", ("wide", False))):
    for _, watch, _ in runs[key]:
        right.plot(watch.steps, watch.rank, color=hues[name], lw=1, alpha=0.8)
left.set(xlabel="time of the flow", ylabel="smallest singular value of $W$", ylim=(0, 1.05), title="linear, exact")
_ = right.set(xlabel="updates", ylabel="effective rank", title="networks")

# %% [markdown]
# At rest, with a symmetric predictor and no slow target, a disturbance grows at the rate
# {measured}`alignment.escape|.3f` {verdict}`alignment.escape`; with a free one it does not
# ({measured}`alignment.escape-free|.0e|value`), and neither does it when the moments are made to commute
# ({measured}`alignment.escape-commuting|.0e|value` {verdict}`alignment.escape-commuting`). A slow target with
# $\beta=0.133$, which is a momentum of 0.996 at a learning rate of 0.03 (with the networks' heavy ball it would be a
# tenth of that), does not stop the growth but slows it to
# {measured}`alignment.escape-slow|percent.1` of the rate {verdict}`alignment.escape-slow`. Rows of $W$ that are three
# times as long slow it to {measured}`alignment.escape-long|percent` {verdict}`alignment.escape-long`.
#
# The flow itself bears this out ({numref}`fig-crash`, left). Without weight decay and without a slow target the symmetric
# network's modes mix, and the weakest fades. At a time of 3,000 the
# smallest singular value of $W$ differs by {measured}`alignment.shrink-slow|.2f` {verdict}`alignment.shrink-slow` from
# that with a slow target, by {measured}`alignment.shrink-free|.2f` {verdict}`alignment.shrink-free` from that with a free
# predictor, by {measured}`alignment.shrink-commuting|.2f` {verdict}`alignment.shrink-commuting` from that on commuting
# moments, and by {measured}`alignment.shrink-decay|.2f` {verdict}`alignment.shrink-decay` from that of the same network
# with a weight decay of 0.01 (negative is smaller). A weight decay of $4\cdot10^{-4}$, which is the paper's, is too weak to
# prevent it within that time: the difference from the free predictor is {measured}`alignment.shrink-weak|.2f`
# {verdict}`alignment.shrink-weak`.
#
# Without weight decay, then, and on moments that do not commute, a symmetric predictor loses in a linear network what a
# free one keeps. It needs no noise for that, no batch norm and no cosine. A slow target delays the loss and does not
# prevent it. A start out of balance can cause it on commuting moments, too ({prf:ref}`prop-mixing`).
#
# What this does not show: that the paper's crash is the same thing. The paper's networks fall by half in accuracy, ours
# to a smaller rank. Two remedies of the paper point the right way. Weight decay on the predictor alone raises
# $\alpha_pw^2$ over $p^2$ ({prf:ref}`prop-split-decay`), and so does a larger $\alpha_p$ while $\omega>0$ is not
# forgotten. On commuting moments that is what {eq}`eq-mixing` asks for; on those of images it slows the growth and does
# not end it. And DirectPred is symmetric *and* set: its loss without a slow target does not tell which of the two is to
# blame. *All of this section is the companion's own.*

# %% [markdown]
# ## At the paper's scale
#
# The `gpu` profile trains the networks behind the paper's Tables 1, 2, 3, 5, 6, 7 and 8: a ResNet-18
# {cite:p}`he2016deep` on the 105,000 unlabeled and training images of STL-10 {cite:p}`coates2011analysis`, for Table 8
# also on CIFAR-10 {cite:p}`krizhevsky2009learning`, and from the features of each a linear classifier. The 80 numbers
# of these tables are 72 networks, since some are printed twice. Each network is trained once, and the longer runs of
# Table 8 go on where the shorter ones ended, which at a constant rate is the same.
#
# What the authors' published configuration says is followed: encoder, projector and predictors, views, optimiser, rate,
# momentum, decay and batch, the target that starts from weights of its own, the rules that set $W_p$, and the linear
# evaluation. What differs: one run instead of five; batch norm sees both views of a batch at once, not each view for
# itself; batches are drawn with replacement; the forward pass is in bfloat16; a predictor that is set every $N$ updates
# is set after updates $N,2N,\dots$, theirs after updates $1,N+1,\dots$; and our accuracy is that after the *last* epoch
# of the linear evaluation, theirs the best of all epochs, judged by the test images.
#
# Four things the paper leaves open. The optimal predictor of Table 1 has our ridge and our moving average. The decay of
# the predictor in Table 5 acts as that of the other weights, through the rate. The offset $c$ of Table 7 is in units of
# the largest eigenvalue of $\hat F$, with a floor under the root, $p_j=\sqrt{\max(s_j/s_1-c,\,10^{-4})}$, both as in
# their code. And the predictor trained by gradient is symmetric in Table 8 and regular in Table 6, which fits the
# numbers printed there.
#
# This takes $6.3$ million updates and about $4\cdot10^{18}$ floating-point operations, counted and not measured: at
# $3\cdot10^{13}$ of them a second, a guess for a network this small with its views drawn on the same GPU, about 39
# hours. A run that is stopped goes on from its checkpoints.

# %% tags=["hide-input"]
if profile == "gpu":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    paper_sets = {name: alignment_tables.image_sets(name) for name in ("stl10", "cifar10")}
    plan = alignment_tables.grouped(alignment_tables.table_rows())
    alignments = {}
    for number, (row, slugs) in enumerate(plan.items(), start=1):
        pool, labelled, unseen_labelled = paper_sets[row.images]
        try:
            network, seen = alignment_tables.train(row, pool, seed, device)
            top1 = 100 * alignment_tables.evaluate(network, row, labelled, unseen_labelled, seed)
        except FloatingPointError as error:  # it diverged: no record, but the others are not lost
            print(f"{number} of {len(plan)}, {row.name}: {error}")
            continue
        print(f"{number} of {len(plan)}, {row.name}: {top1:.2f} %")
        for slug in slugs:
            ledger.record(f"alignment.{slug}", top1, n=1)
        if row in (alignment_tables.Row(), alignment_tables.Row(symmetric=True)):
            alignments["symmetric" if row.symmetric else "regular"] = seen

# %% [markdown]
# The alignment of two of the networks is recorded: those with a linear predictor without bias, regular and symmetric,
# and a slow target. A direction counts as living if its $s_j$ is at least a thousandth of the largest; of the others the
# cosine says nothing. Three more networks have ten epochs on CIFAR-10 without a slow target: one without predictor, one without
# stop-gradient, and, as the control of both, one with predictor and stop-gradient.

# %% tags=["hide-input"]
if profile == "gpu":
    of_living = {}
    for name, seen in alignments.items():
        living_then = seen.spectrum >= 1e-3 * seen.spectrum[:, :1]
        of_living[name] = [float(c[alive].mean()) for c, alive in zip(seen.cosines, living_then, strict=True)]
        print(f"{name}: {int(living_then[-1].sum())} directions live, mean cosine {of_living[name][-1]:.3f}")
    if len(of_living) == 2:
        ledger.record("alignment.resnet-cosines", min(curve[-1] for curve in of_living.values()), n=1)
        ledger.record("alignment.resnet-cosines-start", max(curve[0] for curve in of_living.values()), n=1)
    if "regular" in alignments:
        asymmetry = alignments["regular"].asymmetry
        ledger.record("alignment.resnet-asymmetry", float(asymmetry[-1]), n=1)
        ledger.record("alignment.resnet-asymmetry-start", float(asymmetry[0]), n=1)
    for row, slugs in alignment_tables.grouped(alignment_tables.collapse_rows()).items():
        _, seen = alignment_tables.train(row, paper_sets["cifar10"][0], seed, device)
        print(f"{row.name}: spread {float(seen.spread[-1]):.4f}")
        for slug in slugs:
            ledger.record(f"alignment.{slug}", float(seen.spread[-1]), n=1)
else:
    print("The networks of the paper's tables run in the gpu profile.")

# %% [markdown]
# ## Papers versus here
#
# Every claim of this chapter, with its locator, what counts as reproduced, what was measured, and the control that has
# to fail.
#
# ```{claims-table} alignment
# ```

# %% tags=["remove-cell"]
_ = ledger.close()

# %% [markdown]
# ## Exercises
#
# ````{admonition} Exercise: no potential
# :class: exercise
# :name: ex-no-potential
#
# Let $m=k=1$, $W_a=W$ and $\eta=0$, and write $w$, $p$, $\gamma$, $\varsigma$ for $W$, $W_p$, $\Gamma$, $\Sigma_x$. Show
# that {eq}`eq-siamese-flow` is not of the form $\dot p=-\alpha_p\,\partial_pV$, $\dot w=-\partial_wV$ for any function
# $V(p,w)$. What happens to the loss on the way from a small $w(0)>0$ and $0<p(0)<\gamma/\varsigma$ to the end?
#
# ```{dropdown} Solution
# :class-container: solution-box
#
# The flow is $\dot p=\alpha_pw^2(\gamma-p\varsigma)$, $\dot w=pw(\gamma-p\varsigma)$. A potential would need
# $\partial_w[w^2(\gamma-p\varsigma)]=\partial_p[pw(\gamma-p\varsigma)]$, but the left side is $2w(\gamma-p\varsigma)$,
# the right side $w(\gamma-2p\varsigma)$, and they differ by $w\gamma$. The loss is
# $\frac12w^2[(1+p^2)\varsigma-2p\gamma]$. Both weights grow until $p=\gamma/\varsigma$, where it is
# $\frac12w^2(\varsigma^2-\gamma^2)/\varsigma>0$ if $\varsigma>\gamma$. At the start it is of order $w(0)^2$, so on
# the way from a small start it has *risen*: the network leaves the collapsed minimum behind.
# ```
# ````
#
# ````{admonition} Exercise: the best ridge
# :class: exercise
# :name: ex-best-ridge
#
# Under A1 and A2, let the predictor be the minimiser of {prf:ref}`prop-optimal-predictor` with ridge $r$, and let $s$ be
# an eigenvalue of $C$. Find $\dot s/s$, the ridge for which it is largest, the predictor's eigenvalue there, and the
# weight decay from which on no ridge can keep the mode alive.
#
# ```{dropdown} Solution
# :class-container: solution-box
#
# $GW^\top=rW_p$ reads $\tau C-(1+\sigma^2)W_pC=rW_p$, so $W_p$ has the eigenvalue $p=\tau s/((1+\sigma^2)s+r)$, and by
# {eq}`eq-optimal-predictor`
#
# $$
# \frac{\dot s}s=\frac{2rp^2}s-2\eta=\frac{2\tau^2rs}{((1+\sigma^2)s+r)^2}-2\eta .
# $$ (eq-ridge-rate)
#
# By the inequality of the means $4(1+\sigma^2)s\,r\le((1+\sigma^2)s+r)^2$, with equality for $r=(1+\sigma^2)s$. There
# $p=\frac\tau{2(1+\sigma^2)}$, half of the optimum, and $\dot s/s=2\big(\frac{\tau^2}{4(1+\sigma^2)}-\eta\big)$. For
# $\eta>\frac{\tau^2}{4(1+\sigma^2)}$ the mode dies with every ridge. The same threshold comes back for predictors that
# are trained.
# ```
# ````
#
# ````{admonition} Exercise: reading a recipe
# :class: exercise
# :name: ex-recipe
#
# A BYOL run uses learning rate 0.05, target momentum 0.99 and no momentum of the optimiser, on isotropic data with
# $\sigma^2=\frac14$, and its target starts as a copy. What is $\beta$? How many steps does a mode need for 95 % once
# the target is what holds it back? How much weight decay kills every mode, and for which weight decays, at
# $\tau=1$, does {prf:ref}`thm-alignment` apply to all matrices? What is the smallest predictor value that survives on
# the parabola at $\eta=0.1$, and does a momentum of 0.999 change it?
#
# ```{dropdown} Solution
# :class-container: solution-box
#
# $\beta=(1-0.99)/0.05=0.2$; about $6/\beta=30$ units of time, which are $6/0.01=600$ steps. With $\tau=1$ the threshold
# is $\eta^*=\frac1{4\cdot1.25}=0.2$, and {eq}`eq-all-matrices` is $\eta>\frac1{6\cdot1.25}$: for
# $\frac2{15}<\eta\le\frac15$ it applies and a mode can live. At $\eta=0.1$, {eq}`eq-smaller-root` gives $p_-=\frac{0.2}{1+\sqrt{1-0.5}}\approx0.117$. From a copy the border does not depend on
# $\beta$ ({prf:ref}`prop-ema`); a momentum of 0.999 only makes it ten times as slow.
# ```
# ````
#
# ````{admonition} Exercise: when variance starts to count
# :class: exercise
# :name: ex-variance-counts
#
# Two directions compete for $k=1$: one has $\gamma_1=1$ and $\sigma_1=\frac32$, the other $\gamma_2=\frac12$ and
# $\sigma_2=\frac35$. Which one wins without weight decay? Show that with weight decay the first wins from
# $\eta=\frac5{54}$ on, although the second could still survive alone. Until when?
#
# ```{dropdown} Solution
# :class-container: solution-box
#
# $\kappa_1=\frac23<\kappa_2=\frac56$: the second. By {prf:ref}`prop-which-modes` the larger $p_+$ wins. Where both are
# equal to $p$, $p(\gamma_1-\sigma_1p)=\eta=p(\gamma_2-\sigma_2p)$, so
# $p=\frac{\gamma_1-\gamma_2}{\sigma_1-\sigma_2}=\frac59$ and $\eta=\frac59(1-\frac56)=\frac5{54}\approx0.093$. It is
# the larger root for both: $\gamma_i/2\sigma_i$, the middle of the two roots, is $\frac13$ and $\frac5{12}$, both below
# $\frac59$. As $\eta$ grows, $p_+$ falls at the rate $1/\sqrt{\gamma^2-4\eta\sigma}$, here 3/2 for the first and 6 for
# the second: it crosses from above to below. Alone it survives until $\gamma_2^2/4\sigma_2=\frac5{48}\approx0.104$.
# ```
# ````
#
# ## Further reading
#
# {cite:t}`tian2021understanding` for the experiments on STL-10 and ImageNet; {cite:t}`wang2021demystifying` for
# DirectSet and DirectCopy; {cite:t}`richemond2023edge` for predictors as nearly orthogonal maps;
# {cite:t}`bao2025feature` for what the normalisation in the cosine loss changes, which this chapter's theory leaves out;
# {cite:t}`halvagal2023` for another reading of the predictor, as one that equalises the rates of the modes.
#
# ```{stamp} 03_eigenspace_alignment
# ```
