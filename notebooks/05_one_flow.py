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
# (ch-one-flow)=
# # One flow
#
# Four chapters, four theorems, a dozen losses. Here they are written on one variable, the weighted features $F$, and
# descended on one graph. In this chapter you see that all but two of them move $F$ by the *same* equation: messages
# along the graph, multiplied by a gain, less a brake. The gain says how fast a direction is learned and whether a wrong
# one is ever given up; the brake says where growth ends; and what is feared as collapse is a gain that starts at zero, or
# a brake that always wins. The exceptions are InfoNCE and VICReg with its hinge, and we say what is left for them. At the end all of them start from
# the same small features on the same graph of real images.
#
# What papers prove stands in {ref}`ch-spectral`, {ref}`ch-stepwise`, {ref}`ch-alignment` and {ref}`ch-messages`, with
# locators. *The statements of this chapter are the companion's own.* Nothing in them is deep; new is only
# that they stand side by side.
#
# **Prerequisites.** The flow of {prf:ref}`thm-flow`; mode laws as in {prf:ref}`thm-aligned`; a predictor and a
# stop-gradient as in {prf:ref}`def-siamese`. Letters are those of [the notation page](../notation.md), and of this
# chapter only: the gain $\Psi$ with eigenvalues $\psi_j$, the brake $\mathcal B$ with eigenvalues $b_j$, and $s_j$ for
# the singular values of $F$ (not of $W$, and not their squares). As in {ref}`ch-alignment`, $\beta$ is the rate at which
# a target follows and $\eta$ weight decay; $\alpha$ is a step size, $\ell$ the weight of VICReg's invariance term, and
# $r$ a number of stages.
#
# ```{cost-card} 05_one_flow
# ```

# %% tags=["parameters"]
profile = "cpu"  # "smoke": seconds, bundled digits; "cpu" and "gpu": 1,000 images of Fashion-MNIST
seed = 0

# %% tags=["hide-input"]
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr

from companion import ledger
from companion.lab import data, graphs, intervals
from companion.ledger.figures import COLORS
from companion.theory import examples, one_flow, one_flow_losses, predictor, spectra
from companion.theory.graph import PositivePairGraph

ledger.figures.house_style()
ledger.begin("05_one_flow", claims="one_flow", profile=profile, seed=seed)
generator = torch.Generator().manual_seed(seed)
smoke = profile == "smoke"
unseen = data.load("digits" if smoke else "fashion-mnist", "test")


def normal(*shape):
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# %% [markdown]
# ## Every loss as a function of the features
#
# The graph is that of {prf:ref}`def-positive-pair-graph`; there is no network. $F\in\R^{N\times k}$ itself moves
# (*unconstrained features*), and the flow is minus the gradient with respect to $F$. Everything that a loss asks of a
# pair of views is one of three matrices: $\E f(x)f(x)^\top=F^\top F$ for one view, $\E f(x)f(x^+)^\top=F^\top\bar AF$
# for a positive pair, because $\E f(x)f(x^+)^\top=\sum_{x,x'}A_{xx'}f(x)f(x')^\top=U^\top AU$ and $F=D^{1/2}U$; and
# $F^\top\bar AT$ for a view and a target $t$ with the weighted matrix $T$. So
#
# $$
# \begin{aligned}
# \mathcal L_{\rm spectral}&=\norm{\bar A-FF^\top}_F^2,\\
# \mathcal L_{\rm BT}&=\norm{C-I_k}_F^2,\qquad C=F^\top\bar AF,\\
# \mathcal L_{\rm VICReg}&=2\ell\tr F^\top LF+\norm{F^\top F-I_k}_F^2,\\
# \mathcal L_{\rm align}&=\tr F^\top LF=\tfrac12\E\norm{f(x)-f(x^+)}^2,\\
# \mathcal L_{\rm NCE}&=-\tfrac1\tau\tr F^\top\bar AF\\
# &\quad+\sum_xp_x\log\sum_{x'}p_{x'}e^{f(x)^\top f(x')/\tau},\\
# \mathcal L_{\rm siam}&=\tfrac12\tr W^\top F^\top FW-\tr W^\top F^\top\bar AT\\
# &\quad+\tfrac12\tr T^\top T .
# \end{aligned}
# $$ (eq-of-losses)
#
# The first is {prf:ref}`thm-loss-factorisation`; the second is {eq}`eq-bt-loss` without a linear encoder and with the weight
# $\lambda_{BT}=1$ on its off-diagonal entries; the third is the
# spectral form of VICReg from {prf:ref}`prop-vicreg-modes`, where $2\ell\tr F^\top LF=\ell\,\E\norm{f(x)-f(x^+)}^2$; the
# fifth is InfoNCE with all views as contrasts. The last is $\frac12\E\norm{W^\top f(x)-t(x^+)}^2$ with a linear predictor
# $W\in\R^{k\times k}$ that acts on rows from the right: $F\mapsto FW$. Its target is held fixed (*stop-gradient*). It
# serves six of the rows below: $T=F$ and $W$ trained (SimSiam; BYOL with a target that follows at once), $T$ slow
# ($\dot T=\beta(F-T)$), $W$ set to $(F^\top F)^{1/2}$ (DirectPred without boost and without the division by its largest
# eigenvalue) or to $F^\top F$ (DirectCopy), $W$ the
# optimal predictor, and, with $W=I$ and $T$ the mean of $r$ past stages, multi-stage alignment
# ({prf:ref}`prop-multi-stage`).
#
# ## Why aligned features stay aligned
#
# ```{prf:definition} Aligned features
# :label: def-of-aligned
#
# $F$ is *aligned* if its left singular vectors are eigenvectors of $\bar A$: with distinct indices $i_1,\dots,i_k$ and an
# orthonormal basis $q_1,\dots,q_k$ of $\R^k$,
#
# $$
# \begin{aligned}
# F&=\sum_{j\le k}s_j\,v_{i_j}q_j^\top,\\
# T&=\sum_{j\le k}a_j\,v_{i_j}q_j^\top,\qquad W=\sum_{j\le k}p_j\,q_jq_j^\top ,
# \end{aligned}
# $$ (eq-of-aligned)
#
# where the second and third are asked of targets and predictors, if there are any.
# ```
#
# Earlier chapters found, loss by loss, that such starts stay aligned. There is one reason for all of them.
#
# ```{prf:theorem} Symmetry
# :label: thm-of-symmetry
#
# Let $k\le N$, and let the velocities of a state $(F,T,W)$ be locally Lipschitz functions of the state, on an open
# invariant set (all states; $\rank F=k$ for the optimal predictor), that also depend on $\bar A$, such that for all
# orthogonal $R\in\R^{N\times N}$ and $Q\in\R^{k\times k}$ the state $(RFQ,\,RTQ,\,Q^\top WQ)$ on the graph
# $R\bar AR^\top$ has the velocities $(R\dot FQ,\,R\dot TQ,\,Q^\top\dot WQ)$. Then:
#
# 1. from an aligned start the state stays aligned, with the same $v_{i_j}$ and $q_j$;
# 2. if $F$ is the whole state and its velocity is continuously differentiable, near $s_j=0$ included, then
#    $\dot s_j=s_j\,g_j$ with a continuous $g_j$, a function of $s_1^2,\dots,s_k^2$, of the eigenvalues
#    $\gamma_{i_1},\dots,\gamma_{i_k}$ and of the remaining eigenvalues of $\bar A$ as a set: a mode of size zero stays
#    there, and grows no faster than exponentially near it;
# 3. aligned or not, an eigenvector that is absent stays absent: $v^\top F=0$ and $v^\top T=0$ imply $v^\top\dot F=0$ and
#    $v^\top\dot T=0$.
#
# Past stages are further parts like $T$, and for a recursion 1 and 3 hold step by step, by induction.
#
# The flow of a differentiable loss has this symmetry if $\mathcal L(R\bar AR^\top,RFQ)=\mathcal L(\bar A,F)$, and so have
# all losses of {eq}`eq-of-losses` except $\mathcal L_{\rm NCE}$. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# *1.* Write $v_j$ for $v_{i_j}$, and let $R_j=I-2v_jv_j^\top$ and $H_j=I-2q_jq_j^\top$ be reflections. $R_j$ commutes
# with $\bar A$, so the graph $R_j\bar AR_j^\top$ is the same graph. An aligned state is its own image for every $j$,
# $R_jFH_j=F$, $R_jTH_j=T$ and $H_jWH_j=W$, so the velocities are their own images as well:
#
# $$
# \dot F=R_j\dot FH_j,\quad\dot T=R_j\dot TH_j,\quad\dot W=H_j\dot WH_j .
# $$ (eq-of-reflected)
#
# Take any eigenvector $v$ of an orthonormal eigenbasis that contains the $v_j$, and look at $v^\top\dot Fq_l$. If
# $v=v_m$ with $m\ne l$, {eq}`eq-of-reflected` with $j=m$ turns its sign, so it is zero. If $v$ is none of the $v_j$, the
# same with $j=l$. What is left is $\dot F=\sum_jc_jv_jq_j^\top$; likewise $\dot T$, and $q_i^\top\dot Wq_l=0$ for
# $i\ne l$ by $j=i$. So velocities at aligned states lie in the linear space of aligned states with these vectors. Solve
# the equation inside that space; by uniqueness it is the solution.
#
# *2.* Let $s_j$ be of either sign. $H_j$ alone sends $s_j$ to $-s_j$ and leaves the other $s_i$. With $R=I$ and $Q=H_j$,
# the velocity at
# $(\dots,-s_j,\dots)$ is $\dot FH_j$: so $\dot s_j$ is odd in $s_j$, and even in every other $s_i$. An odd continuously
# differentiable function is $s_jg_j$ with an even continuous $g_j$. That it depends on the eigenvalues only, and not on
# the vectors, follows by rotating a whole orthonormal eigenbasis, the $v_j$ first and the others in any order, and the
# $q_j$ to unit vectors.
#
# *3.* With $R=I-2vv^\top$ and $Q=I$ the state is its own image, so $\dot F=R\dot F$, and $v^\top\dot F=-v^\top\dot F$;
# the same for $\dot T$.
#
# *Losses.* Differentiate $\mathcal L(R\bar AR^\top,RFQ)=\mathcal L(\bar A,F)$ with respect to $F$ to see that the gradient
# at $(R\bar AR^\top,RFQ)$ is $R\nabla\mathcal LQ$; with targets and predictors held fixed, the same for partial
# gradients. In {eq}`eq-of-losses` all but the fifth are made of $F^\top F$, $F^\top\bar AF$, $F^\top\bar AT$ and
# $T^\top T$ (the first by $\norm{\bar A-FF^\top}_F^2=\norm{\bar A}_F^2-2\tr F^\top\bar AF+\norm{F^\top F}_F^2$), which
# $R$ does not change, and which $Q$ conjugates. The set predictors $(F^\top F)^{1/2}$, $F^\top F$ and
# $(F^\top F)^{-1}F^\top\bar AF$ are conjugated by $Q$ as $W$ has to be. $\square$
# ````
#
# InfoNCE takes the exponential of every similarity by itself. It is left as it is by permutations of views of equal
# probability and by $-I$, but in general not by the reflection in an eigenvector (twin views are an exception). So the
# proof does not apply to it, and the check below shows that the conclusion fails; {prf:ref}`prop-of-infonce` says how
# far one gets. Symmetry alone does not uncouple the modes from each other
# either. A DirectPred that divides by the largest eigenvalue, as in {prf:ref}`def-direct-pred`, has it, and there every
# mode's velocity depends on the largest mode.
#
# ## One form
#
# ```{prf:proposition} Gain and brake
# :label: prop-of-form
#
# The flows of the losses {eq}`eq-of-losses`, InfoNCE excepted, are
#
# $$
# \dot F=\bar AT\,\Psi-F\,\mathcal B
# $$ (eq-of-form)
#
# with $k\times k$ matrices $\Psi$ (*gain*) and $\mathcal B$ (*brake*), and $T=F$ in all but the slow-target and the
# multi-stage rows:
#
# | loss | gain $\Psi$ | brake $\mathcal B$ | on a mode: $\psi$, $b$ |
# |---|---|---|---|
# | spectral | $4I$ | $4F^\top F$ | $4$, $4s^2$ |
# | Barlow Twins | $4(I-C)$ | $0$ | $4(1-\gamma s^2)$, $0$ |
# | VICReg, spectral form | $4\ell I$ | $4(\ell-1)I+4F^\top F$ | $4\ell$, $4(\ell-1)+4s^2$ |
# | alignment only | $2I$ | $2I$ | $2$, $2$ |
# | predictor $W$, target $T$ | $W^\top$ | $WW^\top$ | $p$, $p^2$ |
# | $r$ stages, per step $\alpha$ | $I$ | $I$ | $1$, $1$ |
#
# A trained predictor moves by $\dot W=F^\top\bar AT-F^\top FW$, on a mode $\dot p=s(\gamma a-ps)$. The optimal
# predictor has $p=\gamma$ where $T=F$. Weight decay $\eta$ on $F$ adds $\eta I$ to the brake. *The companion's own
# collection.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# *Spectral:* {eq}`eq-flow`. *Barlow Twins:* $d\mathcal L=2\langle C-I,dC\rangle$ with
# $dC=dF^\top\bar AF+F^\top\bar AdF$, and $C-I$ is symmetric, so $\nabla\mathcal L=4\bar AF(C-I)$. *VICReg:* the gradients
# of the two terms are $4\ell LF=4\ell F-4\ell\bar AF$ and $4F(F^\top F-I)$. *Alignment:* $\nabla\mathcal L=2F-2\bar AF$.
# *Predictor:* with $T$ held fixed,
#
# $$
# \begin{aligned}
# \nabla_F\mathcal L_{\rm siam}&=FWW^\top-\bar ATW^\top,\\
# \nabla_W\mathcal L_{\rm siam}&=F^\top FW-F^\top\bar AT .
# \end{aligned}
# $$ (eq-of-siamese)
#
# *Stages:* the same with $W=I$ and $T=\frac1r\sum_{i<r}F^{t-i}$, so $F^{t+1}=F^t+\alpha(\bar AT-F^t)$. On aligned states
# $F^\top F$ and $C$ have the eigenvalues $s_j^2$ and $\gamma_js_j^2$ on $q_j$. *Optimal predictor:*
# $(F^\top F)^{-1}F^\top\bar AF$ has the eigenvalue $\gamma_js_j^2/s_j^2$. $\square$
# ````
#
# That contrastive losses, predictors and whitening have gradients of one form, a pull and a push, is what
# {cite:t}`tao2022exploring` announce (we have read the abstract); the laws of the modes on the graph, the ends and the
# stability below we have not found in a paper.
#
# One graph convolution per step, and then a mixing of the $k$ coordinates that no view sees: this is the
# message-passing picture of {prf:ref}`thm-contrastive-step` for every loss, with the negatives inside $\mathcal B$.
#
# ```{prf:theorem} The law of a mode
# :label: thm-of-modes
#
# Under {eq}`eq-of-form` with $\Psi$ and $\mathcal B$ as in {prf:ref}`prop-of-form`, an aligned start stays aligned, no
# mode feels another, and where $T=F$
#
# $$
# \dot s_j=s_j\,\big(\gamma_j\psi_j-b_j\big) .
# $$ (eq-of-mode)
#
# So a size $s_j>0$ stands still if and only if $\gamma_j\psi_j=b_j$. For a predictor that is trained this is rest only if
# $p_j$ stands still as well, that is $p_j=\gamma_j$: at $p_j=0$ the size stands still for a moment, while
# $\dot p_j=\gamma_js_j^2$. *The companion's own.*
# ```
#
# *Proof.* Insert {eq}`eq-of-aligned` into {eq}`eq-of-form`: $\bar Av_{i_j}=\gamma_jv_{i_j}$, and $\Psi$ and $\mathcal B$
# are diagonal in the $q_j$ with entries that depend on $\gamma_j$, $s_j$, $p_j$ and $a_j$ only. With $T=F$ the coefficient
# of $v_{i_j}q_j^\top$ is {eq}`eq-of-mode`; otherwise it is $\gamma_ja_j\psi_j-s_jb_j$. $\square$
#
# *Attraction* $\gamma\psi$ carries the eigenvalue, because a message along the graph multiplies a mode by $\gamma$. The
# *brake* multiplies features that have not been sent anywhere; what it knows of the graph it knows through the features
# or through a predictor (the optimal one has $b=\gamma^2$), and Barlow Twins has none and limits its gain instead. The
# losses share the form and differ in the two numbers $\psi$ and $b$.
#
# **Check.** Below, the left side is automatic differentiation of {eq}`eq-of-losses` and knows no eigenvector; the right
# side is the law, put back into matrices. Every row has a control in which one thing is wrong: another loss, half the
# speed, a gradient that runs through the target, or a target that is a copy.

# %%
line, rows, k = examples.line_graph(30, 24, width=0.1), one_flow.laws(), 3
Abar, p, (gamma, V, _) = line.normalized, line.degree, line.eigenpairs(line.n)
exact = ("spectral", "barlow", "vicreg", "trained", "slow", "set", "copied", "optimal", "alignment", "stages")
Q, s = torch.linalg.qr(normal(k, k)).Q, torch.tensor([0.7, 0.5, 0.3], dtype=torch.float64)


def broken(name, state):
    """The features' velocity under a flow that differs from the row's in one respect."""
    F, others = state[0], {"spectral": "barlow", "barlow": "spectral", "vicreg": "spectral", "slow": "trained"}
    if name in others:
        return rows[others[name]].flow(state[:2] if name == "slow" else state, Abar, p)[0]
    if name == "alignment":
        return rows["stages"].flow((F, F), Abar, p)[0]  # with a stop-gradient: half the speed
    W = {"trained": state[-1], "set": one_flow_losses.gram_power(F, 0.5), "copied": F.T @ F, "stages": torch.eye(k)}
    W = W[name].double() if name in W else one_flow_losses.least_loss_predictor(F, Abar)
    return one_flow_losses.descend(lambda G: one_flow_losses.siamese_loss(G, W, G, Abar), F)[0]  # through the target


for name in exact:
    law, g, modes = rows[name], gamma[1 : 1 + k], V[:, 1 : 1 + k]
    parts = tuple(s * (1 + 0.2 * i) for i in range(len(law.parts)))  # predictor and target out of balance, too
    state = one_flow.aligned_state(law, parts, modes, Q)
    expected = one_flow.aligned_state(law, law.mode(g, *parts), modes, Q)  # eq-of-mode
    found = law.flow(state, Abar, p)
    gap = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    ledger.record(f"one_flow.law-{name}", gap)
    ledger.record(f"one_flow.law-{name}-broken", (broken(name, state) - expected[0]).abs().max())

# %% [markdown]
# All ten rows hold to rounding, while the controls miss, that of the spectral row by
# {measured}`one_flow.law-spectral-broken|.2f`, that of the slow target by {measured}`one_flow.law-slow-broken|.2f`. The
# verdicts stand in the table at the end of the chapter, one a row: {verdict}`one_flow.law-spectral`
# {verdict}`one_flow.law-barlow` {verdict}`one_flow.law-vicreg` {verdict}`one_flow.law-trained`
# {verdict}`one_flow.law-slow` {verdict}`one_flow.law-set` {verdict}`one_flow.law-copied`
# {verdict}`one_flow.law-optimal` {verdict}`one_flow.law-alignment` {verdict}`one_flow.law-stages`.
#
# ### The exception
#
# ```{prf:proposition} InfoNCE to leading orders
# :label: prop-of-infonce
#
# Let $\gamma_2<1$, and $F=\sum_js_jv_{i_j}q_j^\top$ with all $i_j\ge2$: centred features. The flow of
# $\mathcal L_{\rm NCE}$ is
#
# $$
# \dot F=\frac2\tau\,\bar AF-\frac2{\tau^2}\,FF^\top F+O(\norm F^5),
# $$ (eq-of-infonce)
#
# that is, gain $\frac2\tau I$ and brake $\frac2{\tau^2}F^\top F$ up to the fifth order. The constant mode is neutral:
# $F=s\,v_1q^\top$ is at rest for every $s$. *The companion's own; the double of the spectral loss at high temperature
# is {prf:ref}`prop-high-temperature`, and with a linear encoder {prf:ref}`prop-infonce-modes`.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# For a fixed anchor $x$ the number $z=f(x)^\top f(x')/\tau$, $x'\sim p$, has $\E z=0$ because the features are centred, so
# $\log\E e^z=\frac12\E z^2+\frac16\E z^3+O(\norm F^8)$, with $\E z^2=f(x)^\top\Sigma f(x)/\tau^2$ and $\Sigma=F^\top F$.
# Averaging over $x$, $\mathcal L_{\rm NCE}=-\frac1\tau\tr F^\top\bar AF+\frac1{2\tau^2}\norm\Sigma_F^2+O(\norm F^6)$ *on
# centred features*. The gradient also has directions out of them: for $F+\epsilon v_1y^\top$ the raw features are
# $f+\epsilon y$, and $\log\E e^{z}$ gains $\epsilon\tau^{-1}\E_x\big(y^\top\E_{x'}[f(x')e^{z-\log\E e^z}]+f(x)^\top y\big)$,
# up to $O(\epsilon^2)$. The last term vanishes, and so does the first up to the first order in $z$:
# $\E_xy^\top\Sigma f(x)/\tau=0$. The second order in $z$ leaves $O(\norm F^5)$. Differentiate the three terms.
#
# *The constant.* If $f(x)=sq$ for all $x$, all similarities are equal, the estimated graph is $pp^\top$, and by
# {prf:ref}`thm-contrastive-step` $\dot F=\frac2\tau(\bar A-\sqrt p\sqrt p^\top)s\,v_1q^\top=0$. $\square$
# ````
#
# Two further rows of the literature are in reach of the same words. InfoNCE on the unit sphere with weight $\mu$ on its
# negatives grows near collapse at $\frac2\tau\big(\mu-(1-\gamma)\big)$ ({prf:ref}`thm-collapse-threshold`), the rate of
# {eq}`eq-of-infonce` at $\mu=1$. And VICReg with its hinge grows as {prf:ref}`prop-vicreg-modes` says, but coordinate by
# coordinate, and has no law of a mode.

# %%
law, g, modes = rows["infonce"], gamma[1 : 1 + k], V[:, 1 : 1 + k]
scales, errors = np.array([0.01, 0.014, 0.02, 0.028]), {"": [], "-brakeless": []}
for scale in scales:
    (found,) = law.flow((modes * (scale * s) @ Q.T,), Abar, p)
    for name, speed in (("", law.mode(g, scale * s)[0]), ("-brakeless", 2 * g * scale * s)):  # eq-of-infonce
        errors[name].append(float((found - modes * speed @ Q.T).norm()))
for name, values in errors.items():
    ledger.record("one_flow.law-infonce" + name, np.polyfit(np.log(scales), np.log(values), 1)[0])
constant = (torch.outer(V[:, 0], Q[:, 0]) * 0.5,)
ledger.record("one_flow.constant", law.flow(constant, Abar, p)[0].abs().max())
ledger.record("one_flow.constant-spectral", rows["spectral"].flow(constant, Abar, p)[0].abs().max())


# %%
def written(name, state, transposed=False):
    """The velocity with target, gain and brake as the proposition writes them; optionally the gain transposed."""
    F, eye = state[0], torch.eye(k, dtype=torch.float64)
    G, C, ell = F.T @ F, F.T @ Abar @ F, 1.25
    T = state[2] if name == "slow" else sum(state) / len(state) if name == "stages" else F
    plain = {"spectral": (4 * eye, 4 * G), "barlow": (4 * (eye - C), 0 * eye), "stages": (eye, eye)}
    plain |= {"vicreg": (4 * ell * eye, 4 * (ell - 1) * eye + 4 * G), "alignment": (2 * eye, 2 * eye)}
    W = {"set": one_flow_losses.gram_power(F, 0.5), "copied": G, "optimal": torch.linalg.lstsq(F, Abar @ F).solution}
    W = W[name] if name in W else state[min(1, len(state) - 1)]
    gain, brake = plain[name] if name in plain else (W.T, W @ W.T)
    return Abar @ T @ (gain.T if transposed else gain) - F @ brake


# %%
forms, transposes, outside, missing = {}, {}, {}, {}
for name in (*exact, "infonce"):
    law, blind = rows[name], V[:, 4]
    state = tuple(normal(line.n, k) if letter == "F" else normal(k, k) for letter in law.parts)  # nothing aligned
    if name in exact:
        velocity = law.flow(state, Abar, p)[0]
        forms[name], transposes[name] = (float((velocity - written(name, state, x)).abs().max()) for x in (False, True))
    if name in ("spectral", "infonce"):
        outside[name] = one_flow.off_form(law, state, Abar, p)
    F = state[0] - torch.outer(blind, blind @ state[0])  # thm-of-symmetry, part 3
    moved = law.flow(one_flow.balanced_state(law, F), Abar, p)[0]
    missing[name] = float((blind @ moved).norm() / moved.norm())
ledger.record("one_flow.form", max(forms.values()), n=len(exact))  # eq-of-form
ledger.record("one_flow.form-transposed", min(transposes[name] for name in ("trained", "slow")), n=2)
ledger.record("one_flow.form-infonce", outside["infonce"])
ledger.record("one_flow.form-infonce-spectral", outside["spectral"])
ledger.record("one_flow.absent", max(missing[row] for row in exact), n=len(exact))
ledger.record("one_flow.absent-infonce", missing["infonce"])

# %% [markdown]
# What {eq}`eq-of-infonce` leaves out is of order {measured}`one_flow.law-infonce|.2f` {verdict}`one_flow.law-infonce`; the
# growth alone, of order {measured}`one_flow.law-infonce-brakeless|.2f`. The constant rests
# {verdict}`one_flow.constant`. For random features, random predictors and random targets, all ten velocities are
# {eq}`eq-of-form` with the matrices of {prf:ref}`prop-of-form` {verdict}`one_flow.form`; with a gain $W$ for $W^\top$ they
# are {measured}`one_flow.form-transposed|.1f` away. They bring in no absent eigenvector {verdict}`one_flow.absent`. Of
# InfoNCE's velocity {measured}`one_flow.form-infonce|percent` lies outside the columns of $\bar AF$ and $F$
# {verdict}`one_flow.form-infonce`, so no gain and no brake give it.
#
# (sec-of-table)=
# ## One table
#
# Read a row from left to right: what is descended; the law of one mode, where $\gamma$ is its eigenvalue and $s$ the
# singular
# value of $F$; the growth $\dot s/s$ at small $s$, and the end; who comes first, and what stands between the features
# and collapse. The cells are held against the records of `companion.theory.one_flow.laws` by a test, and the records
# against the losses by the checks of this chapter.
#
# ```{list-table}
# :header-rows: 1
# :widths: 24 30 20 26
# :class: laws
#
# * - loss
#   - law of one mode
#   - growth; end
#   - order; what keeps it from collapse
# * - **Spectral contrastive**
#
#     $\norm{\bar A-FF^\top}_F^2$
#   - $\dot s=4s(\gamma-s^2)$
#
#     {prf:ref}`prop-of-form`; from any start {prf:ref}`thm-flow`
#
#     closed: {eq}`eq-contrastive-mode`
#   - $4\gamma$
#
#     $s^2=\gamma$
#   - large $\gamma$ first
#
#     negatives: $FF^\top$ pushes back
# * - **Barlow Twins**
#
#     $\norm{F^\top\bar AF-I}_F^2$
#   - $\dot s=4\gamma s(1-\gamma s^2)$
#
#     {prf:ref}`prop-of-form`; {prf:ref}`thm-aligned`
#
#     closed: {eq}`eq-contrastive-mode`
#   - $4\gamma$
#
#     $s^2=1/\gamma\ (\gamma>0)$
#   - large $\gamma$ first
#
#     whitening, as the gain's only limit
# * - **VICReg, spectral form**
#
#     $2\ell\tr F^\top LF+\norm{F^\top F-I}_F^2$
#   - $\dot s=4s(\kappa-s^2),\ \kappa=1-\ell(1-\gamma)$
#
#     {prf:ref}`prop-of-form`; {prf:ref}`prop-vicreg-modes`
#
#     closed: {eq}`eq-contrastive-mode`
#   - $4\kappa$
#
#     $s^2=\max(\kappa,0)$
#   - large $\gamma$ first
#
#     whitening, where $\gamma>1-1/\ell$
# * - **InfoNCE**
#
#     $-\tfrac1\tau\tr F^\top\bar AF+\E_x\log Q_x$
#   - $\dot s=\tfrac2\tau s(\gamma-s^2/\tau)+O(\norm F^5)$
#
#     {prf:ref}`prop-of-infonce`; no closed law
#
#     closed: none
#   - $\tfrac2\tau\gamma\ (\gamma_j,\ j\ge2)$
#
#     not known; the two orders alone: $s^2=\tau\gamma$
#   - large $\gamma$ first while small; the constant rests
#
#     negatives: the softmax graph pushes back
# * - **BYOL and SimSiam**
#
#     $\tfrac12\E\norm{W^\top f(x)-\operatorname{sg}f(x^+)}^2$
#   - $\dot s=sp(\gamma-p),\ \dot p=s^2(\gamma-p)$
#
#     {prf:ref}`prop-of-form`; in balance {prf:ref}`prop-of-predictor-curve`; {prf:ref}`prop-modes`
#
#     closed: {eq}`eq-of-omega`, in balance
#   - $\gamma s$
#
#     $s=\gamma\text{ in balance}$
#   - large $\gamma$ first
#
#     a predictor that falls short
# * - **BYOL, slow target**
#
#     $\tfrac12\E\norm{W^\top f(x)-\operatorname{sg}t(x^+)}^2$
#   - $\dot s/p=\dot p/s=\gamma a-ps,\ \dot a=\beta(s-a)$
#
#     {prf:ref}`prop-of-form`
#
#     closed: none
#   - $\gamma a$
#
#     $s=\gamma\text{ in balance}$
#   - large $\gamma$ first
#
#     a predictor that falls short
# * - **DirectPred**
#
#     the same, $W=(F^\top F)^{1/2}$ set
#   - $\dot s=s^2(\gamma-s)$
#
#     {prf:ref}`prop-of-form`; {prf:ref}`prop-of-predictor-curve`
#
#     closed: {eq}`eq-of-omega`
#   - $\gamma s$
#
#     $s=\gamma$
#   - large $\gamma$ first
#
#     a predictor that falls short
# * - **DirectCopy**
#
#     the same, $W=F^\top F$ set
#   - $\dot s=s^3(\gamma-s^2)$
#
#     {prf:ref}`prop-of-form`; {prf:ref}`prop-of-predictor-curve`
#
#     closed: {eq}`eq-of-omega`
#   - $\gamma s^2$
#
#     $s^2=\gamma$
#   - large $\gamma$ first
#
#     a predictor that falls short
# * - **Optimal predictor**
#
#     the same, $W=(F^\top F)^{-1}F^\top\bar AF$ set
#   - $\dot s=0$
#
#     {prf:ref}`prop-of-form`; {prf:ref}`prop-gram-conserved`
#
#     closed: constant
#   - $0$
#
#     $s=s(0)$
#   - none: only directions turn
#
#     the Gram matrix rests
# * - **Alignment only**
#
#     $\tr F^\top LF$
#   - $\dot s=-2(1-\gamma)s$
#
#     {prf:ref}`prop-of-form`; {prf:ref}`thm-oversmoothing`
#
#     closed: exponential
#   - $-2(1-\gamma)$
#
#     $s=0\ (\gamma<1)$
#   - small $\gamma$ forgotten first
#
#     nothing
# * - **Multi-stage**
#
#     $\tfrac12\E\norm{f(x)-\operatorname{sg}z}^2$
#   - $s^{t+1}=(1-\alpha)s^t+\tfrac{\alpha\gamma}r\textstyle\sum_{i<r}s^{t-i}$
#
#     {prf:ref}`prop-of-form`; {prf:ref}`prop-multi-stage`
#
#     closed: stage recursion
#   - $\tfrac1\alpha\log\zeta$
#
#     $s=0\ (\gamma<1)$
#   - small $\gamma$ forgotten first
#
#     nothing
# ```
#
# $Q_x=\sum_{x'}p_{x'}e^{f(x)^\top f(x')/\tau}$; $\operatorname{sg}$ holds its argument fixed; $a$ is the size of a
# target's mode.
# $\zeta$ is the largest root of the stage polynomial, $\kappa$ the drive of {prf:ref}`prop-vicreg-modes`, $z$ the mean of
# past stages. Rates are for equal learning rates of features and predictor, without weight decay and without boost, and,
# for a trained predictor, *in balance*, $p(0)=s(0)$ (with a slow target also $a(0)=s(0)$). Since $s\dot s=p\dot p$, the
# difference $s^2-p^2$ is conserved, and out of balance a mode with $p>0$ and a target that follows at once ends at
# $p=\gamma$, $s^2=\gamma^2+s(0)^2-p(0)^2$, or at zero if that is not positive; a predictor that starts at a fixed
# $0<p(0)<\gamma$ makes zero repelling, at the rate $p(0)(\gamma-p(0))$, and one with $p(0)>\gamma$ attracting.
# Closed forms of the first three rows are {eq}`eq-contrastive-mode` with
# $(\gamma,1)$, $(\gamma,\gamma)$ and $(\kappa,1)$ for its $(\gamma,\sigma)$. The predictors' is new here.
#
# ```{prf:proposition} A predictor in balance
# :label: prop-of-predictor-curve
#
# 1. Let $\dot F=\bar AFW^\top-FWW^\top$ and $\dot W=F^\top\bar AF-F^\top FW$. Then $F^\top F-WW^\top$ is conserved. If
#    $F(0)$ has rank $k$ and $W(0)=(F(0)^\top F(0))^{1/2}$, then $W=(F^\top F)^{1/2}$ at all times: aligned or not, the
#    trained predictor *is* DirectPred.
# 2. Let $p=s^{2\nu}$ with $\nu>0$ ($\nu=\frac12$: DirectPred, and the trained predictor in balance; $\nu=1$: DirectCopy) and
#    $\dot s=s\,p\,(\gamma-p)$, $0<p(0)<\gamma$. Then, with Wright's omega function, the solution of $\omega+\log\omega=z$,
#
# $$
# \begin{aligned}
# p(t)&=\frac\gamma{1+\omega\big(y_0+\log y_0-2\nu\gamma^2t\big)},\\
# y_0&=\frac\gamma{p(0)}-1 .
# \end{aligned}
# $$ (eq-of-omega)
#
# *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# *1.* $F^\top\dot F=(F^\top\bar AF-F^\top FW)W^\top=\dot WW^\top$, so
# $\frac d{dt}F^\top F=\dot WW^\top+W\dot W^\top=\frac d{dt}WW^\top$; this is {prf:ref}`thm-balance`. Now solve
# $\dot F=\bar AFW-FW^2$ with $W=(F^\top F)^{1/2}$ in it. As long as $F$ has rank $k$, write $F=OW$ with orthonormal columns
# $O$, and let $\tilde W$ solve $\dot{\tilde W}=F^\top\bar AF-W^3$, $\tilde W(0)=W(0)$. It is symmetric. And
# $\frac d{dt}W^2=\frac d{dt}F^\top F=MW+WM$ with $M=F^\top\bar AF-W^3$. The equation $\dot WW+W\dot W=MW+WM$ has one
# solution only, $\dot W=M$, because $W$ is positive definite; hence $\tilde W=W$, and $(F,W)$ solves both equations of the
# trained predictor. By uniqueness it is their solution. The rank is kept:
# $\frac d{dt}\log\det W=\tr W^{-1}\dot W=\tr O^\top\bar AO\,W-\tr W^2$ is bounded on bounded intervals. And
# $\frac d{dt}\norm F^2=2\tr F^\top\bar AFW-2\tr W^4\le2\tr W^3-2\tr W^4$, which is negative for large $\norm W$, so all
# exist for ever.
#
# *2.* $\dot p=2\nu p^2(\gamma-p)$. With $y=\gamma/p-1>0$, $\dot y=-\gamma\dot p/p^2=-2\nu\gamma^2\,y/(1+y)$, so
# $(1+\frac1y)\dot y=-2\nu\gamma^2$ and $y+\log y=y_0+\log y_0-2\nu\gamma^2t$. $\square$
# ````
#
# Part 1 needs unconstrained features, for which the second moment of all views is the identity in the units of $F$. In
# {ref}`ch-alignment`, on moments of images that do not commute, symmetry and balance went apart.

# %%
late = {"trained": 60.0, "slow": 60.0, "set": 60.0, "copied": 60.0}
mixed = (V[:, :k] + 0.5 * V[:, k : 2 * k]) / math.sqrt(1.25)  # orthonormal columns that are no eigenvectors


def closed(name, start, times):
    """The size of each mode: the row's closed form, or for the slow target the modes of the chapter on predictors."""
    if name != "slow":
        return rows[name].curve(gamma[:k], start, times[:, None])
    g = gamma[:k]
    moved = predictor.mode_flow(start, g * start**2, 1.0, times, beta=0.5, sigma2=(1 - g).clamp(min=0), gamma=g)
    return (moved[1] / g).sqrt()


for name in exact:
    times = torch.linspace(0, late.get(name, 3.0), 7, dtype=torch.float64)
    size = closed(name, s, times)[:, None, :]
    for control, modes in (("", V[:, :k]), ("-misaligned", mixed)):
        start = one_flow.balanced_state(rows[name], modes * s @ Q.T)
        path = one_flow.integrate(rows[name], start, Abar, p, times, rtol=1e-11)
        ledger.record(f"one_flow.curve-{name}{control}", (path - modes * size @ Q.T).abs().max())

# %%
F = 0.3 * normal(line.n, k)
times, W = torch.tensor([0.0, 1.0, 5.0, 40.0]).double(), one_flow_losses.gram_power(F, 0.5)
direct = one_flow.integrate(rows["set"], (F,), Abar, p, times)
strengths, axes = torch.linalg.eigh(W)
strengths[-1] *= -1
for control, predictor_start in (
    ("", W),
    ("-indefinite", axes * strengths @ axes.T),
):  # both are roots of the Gram matrix
    path = one_flow.integrate(rows["trained"], (F, predictor_start), Abar, p, times)
    ledger.record("one_flow.trained-is-set" + control, (path - direct).abs().max())

# %% [markdown]
# Nine closed forms against an adaptive solver on whole matrices, and the slow target against the three numbers a mode of
# {prf:ref}`prop-modes`: {verdict}`one_flow.curve-spectral` {verdict}`one_flow.curve-barlow`
# {verdict}`one_flow.curve-vicreg` {verdict}`one_flow.curve-trained` {verdict}`one_flow.curve-slow`
# {verdict}`one_flow.curve-set` {verdict}`one_flow.curve-copied` {verdict}`one_flow.curve-optimal`
# {verdict}`one_flow.curve-alignment` {verdict}`one_flow.curve-stages`. If the start is not aligned, they fail by
# {measured}`one_flow.curve-spectral-misaligned|.2f` for the spectral loss. From a start that is not aligned the trained
# predictor follows DirectPred to {measured}`one_flow.trained-is-set|.0e` {verdict}`one_flow.trained-is-set`; from a
# root of $F^\top F$ that has one eigenvalue negative, symmetric and balanced as well, it is
# {measured}`one_flow.trained-is-set-indefinite|.2f` away.
#
# The ends are at rest and attract: every mode below is started at half and at one and a half times its end.

# %%
others = {"spectral": "barlow", "barlow": "spectral", "vicreg": "spectral", "copied": "set", "optimal": "set"}
until = {
    "spectral": 10.0,
    "barlow": 10.0,
    "vicreg": 10.0,
    "optimal": 10.0,
    "alignment": 120.0,
    "stages": 400.0,
    "slow": 120.0,
}
for name in exact:
    law, g = rows[name], gamma[:k]
    end = law.ends(g, s)
    wrong = rows[others.get(name, "copied" if name in late else "optimal")].ends(g, s)  # the end of another loss
    gaps = {"": 0.0, "-other": 0.0}
    for factor in (0.5, 1.5):
        size = s if name == "optimal" else torch.where(end > 0, factor * end, s)
        start = one_flow.balanced_state(law, V[:, :k] * size @ Q.T)
        last = one_flow.integrate(law, start, Abar, p, torch.tensor([0.0, until.get(name, 60.0)]).double(), rtol=1e-8)[
            -1
        ]
        found = (V[:, :k].T @ last @ Q).diagonal()
        end = law.ends(g, size)
        for control, goal in (("", end), ("-other", wrong)):
            gaps[control] = max(gaps[control], float((found - goal).abs().max()))
    for control, gap in gaps.items():
        ledger.record(f"one_flow.end-{name}{control}", gap, n=2)

# %% [markdown]
# {verdict}`one_flow.end-spectral` {verdict}`one_flow.end-barlow` {verdict}`one_flow.end-vicreg`
# {verdict}`one_flow.end-trained` {verdict}`one_flow.end-slow` {verdict}`one_flow.end-set`
# {verdict}`one_flow.end-copied` {verdict}`one_flow.end-optimal` {verdict}`one_flow.end-alignment`
# {verdict}`one_flow.end-stages`
#
# ## Three kinds of collapse
#
# What a loss does near $F=0$ decides whether it needs care, and how long it keeps you waiting.
#
# ```{prf:theorem} Waiting times
# :label: thm-of-waiting
#
# Let $\dot s=s\,g(s)$ with continuous $g$. In the first two cases below, let $s_\infty>0$ be an end with $g>0$ on
# $(0,s_\infty)$, and $t_{1/2}$ the time from $s_0$ to $s_\infty/2$. As $s_0\to0$:
#
# 1. *repelling:* if $g(s)=\rho+O(s^m)$ with $\rho>0$ and $m>0$, then $t_{1/2}=\frac1\rho\log\frac1{s_0}+O(1)$;
# 2. *neutral:* if $g(s)=\gamma s^m(1+O(s^m))$ with $m>0$, then $t_{1/2}=\frac1{m\gamma s_0^m}+O(\log\frac1{s_0})$;
# 3. *attracting:* if $g(0)<0$, the mode dies from every small start.
#
# In the first two cases the rise from a tenth to nine tenths of the end takes a time that does not depend on $s_0$, so
# steps get sharp, relative to the wait. Two modes from equal starts wait in the proportion
#
# $$
# \frac{t_i}{t_j}\to\frac{\gamma_j}{\gamma_i}
# $$ (eq-of-waiting)
#
# for every loss of the table that grows, InfoNCE as far as its leading orders reach, except VICReg, where $\kappa$ takes
# the place of $\gamma$, and the slow target, of which we do not say. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# $t_{1/2}=\int_{s_0}^{s_\infty/2}\frac{ds}{s\,g(s)}$. *1.* $\frac1{sg(s)}-\frac1{s\rho}=O(s^{m-1})$ is integrable at zero.
# *2.* $\frac1{sg(s)}=\frac1{\gamma s^{m+1}}\big(1+O(s^m)\big)=\frac1{\gamma s^{m+1}}+O(\frac1s)$; integrate. *3.* $s$
# decays as long as $g(s)<0$, hence for ever. The rise is the same integral between two fixed sizes. In the table
# $\rho\propto\gamma$ for the spectral loss, Barlow Twins and InfoNCE (to its leading orders), and $m=1$ or $2$ with the
# factor $\gamma$ for trained and set predictors. $\square$
# ````
#
# So negatives *repel* collapse, and whitening does where $\kappa>0$ (VICReg) or $\gamma>0$ (Barlow Twins): exponential
# growth, waits that hardly depend on the start. A predictor *that has to grow with the features* is *neutral*: a start
# of half the size waits twice as long
# with DirectPred, four times with DirectCopy. Alignment alone *attracts*. Weight decay $\eta$ shifts $g$ by $-\eta$: it
# takes from repelling losses the modes with $\rho\le\eta$ and lets the others live, somewhat smaller; but of a neutral
# collapse it makes an attracting one, which is why {ref}`ch-alignment` had to speak of basins ({prf:ref}`prop-direct-set`),
# and why boosts are added ({prf:ref}`prop-boost`).

# %% mystnb={"figure": {"caption": "How long does a mode wait? Half time times eigenvalue over the size of the start, by quadrature of each law, for $\\gamma=0.9$ (full) and $\\gamma=0.5$ (dashed). Negatives and whitening wait for a logarithm of the start, predictors for a power of it ({prf:ref}`thm-of-waiting`). For all but VICReg, the two eigenvalues approach one line as the start shrinks: who is learned first is the same.", "name": "fig-of-waiting"}, "image": {"alt": "On doubly logarithmic axes, three curves rise slowly towards small starts, a straight line of slope minus one above them, and one of slope minus two above that."}}
starts = np.logspace(-5, -1.2, 14)
fig, ax = plt.subplots(figsize=(7.2, 3.8))
shown = {
    "spectral": "spectral, Barlow Twins,\nVICReg",
    "barlow": "",
    "vicreg": "",
    "set": "DirectPred",
    "copied": "DirectCopy",
}
for color, (name, label) in zip(COLORS, shown.items(), strict=False):
    for g, style in ((0.9, "-"), (0.5, "--")):
        waits = [g * one_flow.half_time(rows[name], g, s0) for s0 in starts]
        ax.loglog(starts, waits, style, color=color, lw=1.8 if g == 0.9 else 1.2)
    place = {"textcoords": "offset points", "ha": "right", "va": "center"}
    ax.annotate(label, (starts[0], waits[0]), (-5, 0), color=color, **place)
ax.set(xlabel="start $s_0$", ylabel="$\\gamma\\,t_{1/2}$", xlim=(1e-7, 0.1))

tiny = np.logspace(-6, -5, 4)
for name, row in (("wait-set", "set"), ("wait-copied", "copied")):
    for control, one in (("", row), ("-spectral", "spectral")):
        waits = [one_flow.half_time(rows[one], 0.5, s0) for s0 in tiny]
        ledger.record(f"one_flow.{name}{control}", -np.polyfit(np.log(tiny), np.log(waits), 1)[0])
ratios = {
    name: 0.9 * one_flow.half_time(rows[name], 0.9, 1e-60) / (0.5 * one_flow.half_time(rows[name], 0.5, 1e-60))
    for name in ("spectral", "barlow", "trained", "copied", "vicreg")
}
ledger.record("one_flow.wait-ratio-vicreg", abs(ratios.pop("vicreg") - 1))
ledger.record("one_flow.wait-ratio", max(abs(ratio - 1) for ratio in ratios.values()), n=len(ratios))

# %% [markdown]
# The wait of DirectPred grows like the power {measured}`one_flow.wait-set|.3f` of $1/s_0$ {verdict}`one_flow.wait-set`,
# that of DirectCopy like the power {measured}`one_flow.wait-copied|.3f` {verdict}`one_flow.wait-copied`; the spectral
# loss has {measured}`one_flow.wait-set-spectral|.2f` there, the slope of a logarithm. From $s_0=10^{-60}$ the waits of two
# modes are in the proportion {eq}`eq-of-waiting` to {measured}`one_flow.wait-ratio|percent.1`
# {verdict}`one_flow.wait-ratio`; with VICReg they are not ({measured}`one_flow.wait-ratio-vicreg|percent`).
#
# ## Directions and sizes
#
# Starts are not aligned in practice. What then? The form {eq}`eq-of-form` answers half of the question at once.
#
# ```{prf:theorem} The same path of subspaces
# :label: thm-of-span
#
# Let $\dot F=c\,\bar AF-F\,\mathcal B(t)$ with a number $c>0$ and any continuous $\mathcal B(t)\in\R^{k\times k}$, and let
# $F(0)$ have rank $k$. Then the column space of $F(t)$ is that of $e^{ct\bar A}F(0)$. If $V_k^\top F(0)$ is invertible, the
# largest angle $\theta$ between it and the span of $v_1,\dots,v_k$ obeys
#
# $$
# \tan\theta(t)\le\tan\theta(0)\,e^{-c(\gamma_k-\gamma_{k+1})t} .
# $$ (eq-of-span)
#
# So the spectral loss ($c=4$), VICReg in its spectral form ($4\ell$), alignment alone ($2$) and stop-gradient without
# predictor
# ($1$) take the *same* path of subspaces from the same start, each with its own clock. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# Let $Z$ solve $\dot Z=-Z\mathcal B$, $Z(0)=I$; it is invertible. $e^{ct\bar A}F(0)Z$ has the derivative
# $c\bar Ae^{ct\bar A}F(0)Z-e^{ct\bar A}F(0)Z\mathcal B$ and the start $F(0)$, so it is $F(t)$, and $Z$ does not change the
# column space. The bound is that of {eq}`eq-leak-decay`: in the eigenbasis the space is the range of
# $\binom{I}{Y(t)}$ with $Y(t)=e^{ct\Lambda_>}Y(0)e^{-ct\Lambda_k}$, and $\tan\theta=\norm{Y}$. $\square$
# ````
#
# For $r$ stages, from equal ones, $F^t=\varphi_t(\bar A)F(0)$ with the polynomial $\varphi_t$ of the recursion from $1$.
# Its coefficients are not negative for $0<\alpha\le1$, so it increases with $\gamma\ge0$, and if $V_k^\top F(0)$ is
# invertible and $\gamma_k>0$, $\tan\theta(t)\le\tan\theta(0)\,\varphi_t(\gamma_{k+1})/\varphi_t(\gamma_k)$.
#
# This is the power method. Alignment alone finds the leading eigenspace as well as the spectral loss does; it only
# lets go of every size but the constant's on the way, until nothing is left that a float could show. *Collapse is about sizes, not about directions.*
#
# Where the gain is not a number but a matrix, the path is another. Its end depends on the gain that is left there.
#
# ```{prf:theorem} Who ends in the leading eigenspace
# :label: thm-of-leak
#
# Let $F^\star=\sum_js_jv_{i_j}q_j^\top$ with all $s_j>0$ (and $W^\star$, if there is a predictor) be an aligned rest of
# {eq}`eq-of-form` with $T=F$, where $\Psi$, $\mathcal B$ and, unless $W$ is set, $\dot W$ are differentiable functions of
# $F^\top F$, $F^\top\bar AF$ and $W$. Let $v$ be
# another eigenvector, with eigenvalue $\gamma_v$. A small disturbance $v\,y^\top$ of $F^\star$ obeys, to first order,
# $\dot y=(\gamma_v\Psi^\star-\mathcal B^\star)^\top y$, and in the coordinate $q_j$ it grows at the rate
#
# $$
# \psi_j^\star\,(\gamma_v-\gamma_j) .
# $$ (eq-of-leak)
#
# So if all $\psi_j^\star>0$, such disturbances die out to first order when the $v_{i_j}$ are leading eigenvectors,
# $\gamma_v<\gamma_j$ for all others, and one of them grows to first order if some $\gamma_v>\gamma_j$. Where the gain has
# fallen to zero, to first order they neither grow nor fade. *The companion's own.*
# ```
#
# ````{dropdown} Proof
# :class-container: proof-box
#
# $v$ is orthogonal to all $v_{i_j}$, and so is $\bar Av$. Hence $F^\top F$ and $F^\top\bar AF$ change by
# $O(\norm y^2)$, and
# so do $\Psi$, $\mathcal B$ and $\dot W$: to first order the predictor stays. What is left is
# $v\dot y^\top=\bar Avy^\top\Psi^\star-vy^\top\mathcal B^\star$. In the direction $q_j$ the rate is
# $\gamma_v\psi_j^\star-b_j^\star$, and $b_j^\star=\gamma_j\psi_j^\star$ because the mode is at rest with $s_j>0$. $\square$
# ````
#
# With a slow target, on $(vy^\top,va^\top)$: $\dot y=\gamma_vp\,a-p^2y$, $\dot a=\beta(y-a)$ has the trace
# $-(p^2+\beta)$ and the determinant $\beta p(p-\gamma_v)$, with $p=\gamma_j$ at rest: the same threshold, another rate.
#
# The gains at the end are $4$ (spectral), $4\ell$ (VICReg), $\gamma_j$ (every predictor: $p_j=\gamma_j$ there), and $0$ for
# Barlow Twins: $C=I$. That is the leak of {eq}`eq-leak`. Barlow Twins stops pulling when the job is done; the others pull
# for ever, against a brake of equal strength, and so go on correcting.
#
# The theorem also warns the numerical analyst. A start without $v_1$ never finds it in exact arithmetic, but rounding
# brings it in, and {eq}`eq-of-leak` is the rate at which it takes over.

# %%
F, clock = 0.3 * normal(line.n, k), 2.0
spans = {}
for name, c in (("spectral", 4.0), ("vicreg", 5.0), ("alignment", 2.0), ("barlow", 4.0)):
    times = torch.tensor([0.0, clock / c], dtype=torch.float64)  # equal clocks, thm-of-span
    spans[name] = one_flow.integrate(rows[name], (F,), Abar, p, times, rtol=1e-12)[-1]
power = torch.matrix_exp(clock * Abar) @ F
angle = {name: float(spectra.principal_angles(end, power).max().sin()) for name, end in spans.items()}
ledger.record("one_flow.same-path-barlow", angle.pop("barlow"))
ledger.record("one_flow.same-path", max(angle.values()), n=len(angle))

leaks = {"": {}, "-first": {}}
for name in ("spectral", "barlow", "vicreg", "trained", "set", "copied", "optimal"):
    law, g, modes = rows[name], gamma[1 : 1 + k], V[:, 1 : 1 + k]
    end = law.ends(g, s)
    state = one_flow.aligned_state(law, (end,) * len(law.parts), modes, Q)
    for i in (0, 1 + k, 3 + k):
        found = [one_flow.leak_rate(law, state, Abar, p, V[:, i], Q[:, j]) for j in range(k)]
        for control, size in (("", end), ("-first", 0.1 * end)):  # the gain of the end, eq-of-leak, or of a small start
            expected = law.gain(g, size) * (gamma[i] - g)
            gap = float((torch.tensor(found, dtype=torch.float64) - expected).abs().max())
            leaks[control][name] = max(leaks[control].get(name, 0.0), gap)
ledger.record("one_flow.leak", max(leaks[""].values()), n=7)
limited = ("barlow", "trained", "set", "copied")  # their gain changes with the size
ledger.record("one_flow.leak-first", min(leaks["-first"][name] for name in limited), n=len(limited))

# %% [markdown]
# Three losses, one path: the largest angle between them and the power method is
# {measured}`one_flow.same-path|.0e|value` {verdict}`one_flow.same-path`; Barlow Twins at the same clock is
# {measured}`one_flow.same-path-barlow|.2f` away. The rates {eq}`eq-of-leak` hold for seven rows, wrong and right
# eigenvectors, to {measured}`one_flow.leak|.0e|value` {verdict}`one_flow.leak`.
#
# ## All of them on one graph of real images
#
# The graph is that of {ref}`ch-spectral`'s first experiment, with fewer vertices: an image turns into itself or a
# near neighbour, and $\bar A$ is known exactly. First an aligned start, $s_j(0)=0.05$ on five eigenvectors far enough
# apart for
# the steps to be told from each other. In exact arithmetic the flow does not leave their span
# ({prf:ref}`thm-of-symmetry`), and we run it there, since in $10^2$ to $10^3$ units of time rounding would not stay;
# the velocity
# is automatic differentiation of the whole nonlinear loss. InfoNCE runs on the whole graph.

# %%
vertices, chosen = (300, [0, 4, 9, 14, 19]) if smoke else (1000, [0, 4, 9, 19, 39])
population = unseen.subset(torch.randperm(len(unseen), generator=generator)[:vertices])
images = PositivePairGraph.from_augmentation(graphs.neighbour_law(population.flat(), 8 if smoke else 15))
Abar, p = torch.from_numpy(images.normalized.toarray()), images.degree
gamma, V = (x.flip(-1) for x in torch.linalg.eigh(Abar))
picked, s0 = gamma[chosen], torch.full((5,), 0.05, dtype=torch.float64)
print("gamma:", "  ".join(f"{i + 1}: {float(gamma[i]):.3f}" for i in chosen))
learners = ("spectral", "barlow", "vicreg", "infonce", "trained", "slow", "set", "copied")
Q = torch.linalg.qr(normal(5, 5)).Q
units, courses = {}, {}
for name, law in rows.items():
    if name in ("optimal", "alignment", "stages"):
        units[name] = {"optimal": 10.0, "alignment": 5.0, "stages": 10.0}[name]
    else:
        units[name] = one_flow.half_time(rows["trained" if name == "slow" else name], float(picked[1]), 0.05)
    times = torch.linspace(0, 3.6 if name in learners else 1.0, 145, dtype=torch.float64) * units[name]
    if law.step:
        times = torch.unique((times / law.step).round() * law.step)
    if name == "infonce":
        path = one_flow.integrate(law, (V[:, chosen] * s0 @ Q.T,), Abar, p, times, rtol=1e-4, method="RK45")
        path = V[:, chosen].T @ path
    else:  # in the span of the chosen eigenvectors
        path = one_flow.integrate(law, one_flow.balanced_state(law, torch.diag(s0) @ Q.T), picked, p[:5], times)
    courses[name] = times, (path @ Q).diagonal(dim1=1, dim2=2)

# %% mystnb={"figure": {"caption": "How does each loss learn the same graph? Singular values $s_j$ of the features over time from one aligned start, $s_j(0)=0.05$, on five eigenvectors of the real-image graph (colours). Full: the flow of the whole loss. Dashed: the closed form of {ref}`the table <sec-of-table>`, nothing fitted (InfoNCE: leading orders; slow target: none). Time is in units of the half time of the second mode shown, with a slow target in those of BYOL; for the last three losses as written.", "name": "fig-of-all"}, "image": {"alt": "Eleven small panels. In eight of them S-shaped curves rise one after the other in the same order, sharpest with DirectCopy; with InfoNCE the constant stays flat. With the optimal predictor nothing moves; with alignment and stages all curves but one decay."}}
fig, axes = plt.subplots(4, 3, figsize=(7.2, 8.6))
for ax, (name, law) in zip(axes.flat, rows.items(), strict=False):
    times, sizes = courses[name]
    clock = times / units[name] if name in learners else times
    for j, color in enumerate(COLORS[:5]):
        ax.plot(clock, sizes[:, j], color=color, lw=2.6, alpha=0.55)
        if law.curve is not None and not (name == "infonce" and j == 0):
            ax.plot(clock, law.curve(picked[j], s0[j], times), "--", color="black", lw=0.9)
    ax.set_title(law.name.replace(", spectral form", "").replace("BYOL and SimSiam", "BYOL, SimSiam"), fontsize=10)
    ax.set_ylim(bottom=0)
for ax in axes[:, 0]:
    ax.set_ylabel("$s_j$")
for ax in axes[-1]:
    ax.set_xlabel("time")
axes[-1, -1].axis("off")
for j, color in enumerate(COLORS[:5]):
    label = f"$\\gamma_{{{chosen[j] + 1}}}={float(picked[j]):.2f}$"
    axes[-1, -1].text(0.1, 0.92 - 0.17 * j, label, color=color, transform=axes[-1, -1].transAxes, va="top")


# %%
def passing(level, sizes, times, never=None):
    """When a size passes a level; never is an error unless a value for it is given, not the last time."""
    if sizes.max() < level and never is not None:
        return never
    if sizes.max() < level:
        raise ValueError(f"passing: the size ends at {sizes.max():.3f}, below {level:.3f}; give the run more time")
    return np.interp(level, np.maximum.accumulate(sizes), times)


# %%
gaps, orders = {}, {}
for name, (times, sizes) in courses.items():
    law = rows[name]
    if law.curve is not None:
        first = 1 if name == "infonce" else 0  # the constant is neutral under InfoNCE
        gaps[name] = float((sizes - law.curve(picked, s0, times[:, None]))[:, first:].abs().max())
    if name in learners:
        half = law.ends(picked, s0) / 2
        found = range(int(name == "infonce"), 5)
        orders[name] = [passing(float(half[j]), sizes[:, j].numpy(), times.numpy()) for j in found]
ledger.record("one_flow.image-curve-infonce", gaps.pop("infonce"))
ledger.record("one_flow.image-curve", max(gaps.values()), n=len(gaps))
for name, reached in orders.items():
    ledger.record(f"one_flow.image-order-{name}", reached)
times, sizes = courses["infonce"]
early = (sizes[:, 1] > 0.06) & (sizes[:, 1] < 0.15)
growth = np.polyfit(times[early].numpy(), sizes[early, 1].log().numpy(), 1)[0] / float(rows["infonce"].rate(picked[1]))
ledger.record("one_flow.image-infonce-growth", growth)
ends = sizes[-1, 1:] / rows["infonce"].ends(picked, s0)[1:]
ledger.record("one_flow.image-infonce-end", (ends - 1).abs().max())

# %% [markdown]
# In {numref}`fig-of-all` nine rows follow their closed forms to {measured}`one_flow.image-curve|.0e`
# {verdict}`one_flow.image-curve`. Learning goes by the eigenvalue in each of the eight that learn
# {verdict}`one_flow.image-order-spectral` {verdict}`one_flow.image-order-barlow`
# {verdict}`one_flow.image-order-vicreg` {verdict}`one_flow.image-order-infonce`
# {verdict}`one_flow.image-order-trained` {verdict}`one_flow.image-order-slow` {verdict}`one_flow.image-order-set`
# {verdict}`one_flow.image-order-copied`.
#
# InfoNCE is another matter, as it has to be. While small, its second mode grows at
# {measured}`one_flow.image-infonce-growth|.2f` of the predicted rate {verdict}`one_flow.image-infonce-growth`; but at
# the end of the run sizes are off by up to
# {measured}`one_flow.image-infonce-end|percent` from $\sqrt{\tau\gamma}$ {verdict}`one_flow.image-infonce-end`, and
# features
# have left the span of the start.
#
# ### From a generic start
#
# Now $F(0)$ is Gaussian noise of norm about $0.05$ per coordinate, in all eigenvectors at once. We take $k$ where the
# spectrum has its
# largest gap (between the fourth and the seventeenth eigenvalue), and ask three things: which subspace is found, how
# many dimensions it has, and in which order they came.


# %%
def infonce_flow(state, normalized, degree):
    return (one_flow_losses.info_nce_velocity(state[0], normalized, degree, 1.0),)


gaps = gamma[3:16] - gamma[4:17]
k, gap = 4 + int(gaps.argmax()), float(gaps.max())
print(f"k = {k}, gap {float(gamma[k - 1]):.3f} - {float(gamma[k]):.3f}")
gains = {"spectral": 4.0, "barlow": 4.0, "vicreg": 5.0, "trained": float(gamma[k - 1]), "optimal": float(gamma[k - 1])}
gains |= {"stages": float((rows["stages"].rate(gamma[k - 1]) - rows["stages"].rate(gamma[k])) / gap)}
gains |= {"alignment": 2.0, "infonce": 2.0}
horizon = {name: 16 / (gain * gap) for name, gain in gains.items()}  # e^-16, by eq-of-span and eq-of-leak
horizon["trained"] += 60
# later, rows at gamma = 0 underflow, and a tolerance of zero has no scale
horizon["alignment"] = min(horizon["alignment"], 340.0)
by_formula = {"infonce": replace(rows["infonce"], flow=infonce_flow)}  # the same velocity, with no graph
ordered = ("spectral", "barlow", "vicreg", "infonce", "trained")


def tangent(F, first):
    """The tangent of the largest angle to the eigenvectors up to the gap; rows are scaled, for sizes down to 1e-12."""
    inside, outside = F[first:k], F[k:]
    scale = inside.norm(dim=1)
    return float(torch.linalg.matrix_norm(torch.linalg.solve(inside / scale[:, None], outside, left=False) / scale, 2))


# %%
seen, beside = {name: {"clock": [], "angle": [], "rank": [], "time": []} for name in horizon}, []
for _ in range(3 if smoke else 4):
    noise = 0.05 / math.sqrt(vertices) * normal(vertices, k)
    for name, record in seen.items():
        law, first = (rows | by_formula)[name], int(name == "infonce")  # InfoNCE: v_2, ..., v_k by k - 1 coordinates
        columns = k - first
        times = torch.cat([torch.zeros(1), torch.logspace(-2.5, 0, 40 if smoke else 100)]).double() * horizon[name]
        if law.step:
            times = torch.unique((times / law.step).round() * law.step)
        rtol, method = (1e-3, "RK23") if first else (1e-6, "RK45")
        atol = 0.0 if name == "alignment" else None  # sizes fade to 1e-30
        # InfoNCE needs the views themselves; the constant is neutral alone and to leading orders; it still drifts in
        start, matrix = (V @ noise[:, :columns], Abar) if first else (noise, gamma)
        path = one_flow.integrate(law, one_flow.balanced_state(law, start), matrix, p, times, rtol, method, atol)
        path = V.T @ path if first else path
        record["clock"].append(times * gains[name] * gap)
        record["angle"].append(np.arctan([tangent(F, first) for F in path]))
        record["rank"].append([spectra.effective_rank(F) / columns for F in path])
        if name in ordered:
            size, never = (
                path.norm(dim=2)[:, first:k].T.numpy(),
                math.inf if first else None,
            )  # under InfoNCE some wait on
            record["time"].append([passing(0.3, row, times, never) for row in size])
        if first:  # the control: the spectral loss on the same space, in the same number of units of its clock
            plain, times = noise[:, :columns].clone(), times * (gains[name] / gains["spectral"])
            plain[0] = 0.0
            path = one_flow.integrate(rows["spectral"], (plain,), gamma, p, times, 1e-6, "RK45")
            beside.append(float(np.rad2deg(np.arctan(tangent(path[-1], first)))))

# %%
for name, record in seen.items():
    found = intervals.mean_interval([np.rad2deg(run[-1]) for run in record["angle"]])
    ledger.record(f"one_flow.image-angle-{name}", found.mean, interval=(found.low, found.high), n=found.n)
    found = intervals.mean_interval([run[-1] for run in record["rank"]])
    ledger.record(f"one_flow.image-rank-{name}", found.mean, interval=(found.low, found.high), n=found.n)
found = intervals.mean_interval(beside)
ledger.record("one_flow.image-angle-infonce-spectral", found.mean, interval=(found.low, found.high), n=found.n)
for name in ordered:
    found = [float(spearmanr(passed, range(len(passed))).statistic) for passed in seen[name]["time"]]
    found = intervals.mean_interval(found)
    ledger.record(f"one_flow.image-rank-order-{name}", found.mean, interval=(found.low, found.high), n=found.n)

# %% mystnb={"figure": {"caption": "Which subspace, and how much of it? Left: tangent of the largest angle between the features' span and the leading eigenspace, from random starts of equal law; time times gain times gap, so that {eq}`eq-of-span` and {eq}`eq-of-leak` are a slope of minus one (dotted). Gains: 4 for the spectral loss and Barlow Twins, 5 for VICReg, 2 for alignment and InfoNCE, for two stages at $\\alpha=\\frac12$ the difference of the two rates over the gap, $\\gamma_k$ for predictors. For InfoNCE the space is that of $v_2,\\dots,v_k$, with $k-1$ coordinates. Right: effective rank over the number of coordinates in the same runs.", "name": "fig-of-random"}, "image": {"alt": "Left, on a logarithmic axis, six families of curves fall in parallel straight lines, with BYOL falling after a wait; Barlow Twins and InfoNCE stay flat. Right, the effective rank of alignment and of multi-stage falls to a small share, that of all others ends near one."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 4.0))
hues = dict(zip(seen, (*COLORS, "#000000"), strict=True))
for name, record in seen.items():
    for run, (clock, angle) in enumerate(zip(record["clock"], record["angle"], strict=True)):
        thick = name == "spectral"  # others lie on it
        style = {"color": hues[name], "lw": 3.0 if thick else 1.0, "alpha": 0.4 if thick else 0.8}
        left.semilogy(clock[1:], np.tan(angle[1:]), **style)
        label = rows[name].name.split(",")[0].replace("contrastive", "") if run == 0 else None
        right.semilogx(clock[1:], record["rank"][run][1:], **style, label=label)
left.plot([4, 14], [20, 20 * math.exp(-10)], ":", color="black", lw=1.5)
left.set(xlabel="time × gain × gap", ylabel="tangent of the largest angle", xlim=(0, 17), ylim=(1e-5, 300))
right.set(xlabel="time × gain × gap", ylabel="effective rank / coordinates", ylim=(0, 1.05), xlim=(0.02, 17))
_ = fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)

# %% mystnb={"figure": {"caption": "In which order? Time at which the features' part along each leading eigenvector passes 0.3, over the mean of these times, against $1/\\gamma_j$ over its mean, from random starts; mean over starts, one dot an eigenvector. Line: the waiting law {eq}`eq-of-waiting`. The start decides part of the order, the eigenvalue the rest.", "name": "fig-of-order"}, "image": {"alt": "Dots of five colours scatter around a rising diagonal line."}}
fig, ax = plt.subplots(figsize=(7.2, 3.4))
law_of_waiting = (1 / gamma[:k]) / (1 / gamma[:k]).mean()
ax.plot(law_of_waiting, law_of_waiting, color="black", lw=1)
for name in ordered:
    passed = np.ma.masked_invalid(seen[name]["time"])
    passed = (passed / passed.mean(1, keepdims=True)).mean(0)
    expected = (1 / gamma[int(name == "infonce") : k]) / (1 / gamma[int(name == "infonce") : k]).mean()
    ax.plot(expected, passed, "o", color=hues[name], ms=4, label=rows[name].name.split(",")[0])
ax.set(xlabel="$1/\\gamma_j$ over its mean", ylabel="time at 0.3 over its mean")
_ = ax.legend(fontsize=9)

# %% [markdown]
# The spectral loss, VICReg, BYOL and the optimal predictor end in the leading eigenspace with all its dimensions: angles
# of {measured}`one_flow.image-angle-spectral|.0e|value` {verdict}`one_flow.image-angle-spectral`,
# {measured}`one_flow.image-angle-vicreg|.0e|value` {verdict}`one_flow.image-angle-vicreg`,
# {measured}`one_flow.image-angle-trained|.0e|value` {verdict}`one_flow.image-angle-trained` and
# {measured}`one_flow.image-angle-optimal|.0e|value` degrees {verdict}`one_flow.image-angle-optimal`, and effective ranks of
# {measured}`one_flow.image-rank-spectral|percent` {verdict}`one_flow.image-rank-spectral`,
# {measured}`one_flow.image-rank-vicreg|percent` {verdict}`one_flow.image-rank-vicreg`,
# {measured}`one_flow.image-rank-trained|percent` {verdict}`one_flow.image-rank-trained` and
# {measured}`one_flow.image-rank-optimal|percent` of $k$ {verdict}`one_flow.image-rank-optimal`. Alignment and
# multi-stage end
# in the *same* space, {measured}`one_flow.image-angle-alignment|.0e|value` {verdict}`one_flow.image-angle-alignment` and
# {measured}`one_flow.image-angle-stages|.0e|value` degrees away {verdict}`one_flow.image-angle-stages`, with
# {measured}`one_flow.image-rank-alignment|percent` {verdict}`one_flow.image-rank-alignment` and
# {measured}`one_flow.image-rank-stages|percent` of the dimensions left {verdict}`one_flow.image-rank-stages`, and falling.
# Barlow Twins keeps all dimensions {verdict}`one_flow.image-rank-barlow` and its leak of
# {measured}`one_flow.image-angle-barlow|.0f|value` degrees {verdict}`one_flow.image-angle-barlow`. InfoNCE keeps
# {measured}`one_flow.image-rank-infonce|percent` of the dimensions (we had expected nine tenths and more)
# {verdict}`one_flow.image-rank-infonce`, and with $k-1$ coordinates it has not found the space of $v_2,\dots,v_k$ by the
# end of the same clock: its worst direction is {measured}`one_flow.image-angle-infonce|.0f|value` degrees off
# {verdict}`one_flow.image-angle-infonce`, that of the spectral loss, from the same start without the constant,
# {measured}`one_flow.image-angle-infonce-spectral|.0e|value`.
#
# Order: call an eigenvector learned when $\norm{v_j^\top F}$ passes 0.3 ({numref}`fig-of-order`); under InfoNCE some do
# not within the run, and count as last. The rank correlation of
# these times with the eigenvalues' order is
# {measured}`one_flow.image-rank-order-spectral|.2f` {verdict}`one_flow.image-rank-order-spectral` for the spectral loss,
# {measured}`one_flow.image-rank-order-barlow|.2f` {verdict}`one_flow.image-rank-order-barlow` for Barlow Twins,
# {measured}`one_flow.image-rank-order-vicreg|.2f` {verdict}`one_flow.image-rank-order-vicreg` for VICReg,
# {measured}`one_flow.image-rank-order-infonce|.2f` {verdict}`one_flow.image-rank-order-infonce` for InfoNCE, and
# {measured}`one_flow.image-rank-order-trained|.2f` {verdict}`one_flow.image-rank-order-trained` for BYOL.
#
# ## What is shared, what differs, what is open
#
# **Shared.** Messages along one graph, and hence $\gamma$ in every attraction. Aligned features stay aligned, absent
# eigenvectors
# stay absent. Where a mode grows in balance, waiting times in the proportion of $1/\gamma$ (VICReg: $1/\kappa$; slow
# target: not known). The leading eigenspace as the only stable one among rests with all sizes positive, wherever a gain
# is left. None of this needs negatives, and none of it is news to whoever has seen the power method.
#
# **What differs.** Where the brake comes from: from other views ($FF^\top$, the softmax graph), from the features'
# own second
# moment (whitening), or from a predictor squared. Whether zero repels (negatives; whitening where $\kappa>0$ or
# $\gamma>0$), is neutral, or attracts. How much gain is left at
# the end. And the ends themselves: $s^2=\gamma$ for negatives, $1/\gamma$ for whitening of pairs, which makes weak
# directions
# the largest, $\gamma^2$ for DirectPred and a predictor in balance, $\gamma$ for DirectCopy.
#
# **Not covered.** *Barlow Twins with $\lambda_{BT}\ne1$*, which $Q$ does not leave as it is. *InfoNCE* beyond its leading orders: no symmetry, no closed law; where it ends depends on all
# similarities
# ({prf:ref}`prop-reachable`). *Unit length*, which couples all modes. *Networks:* a kernel multiplies the
# velocity from the left, $\dot U=\Theta\,\cdot$, and the eigenvectors are then those of the kernel's own contrastive form
# ({ref}`ch-stepwise`), fixed only as long as the kernel is. *Noise* of mini-batches and finite steps: everything here
# is the
# flow of the population.
#
# **Open**, as far as we know, and met in the chapters before:
#
# * A law for InfoNCE that holds past the first plateau, on graphs with some symmetry at least.
# * Barlow Twins from a generic start of finite size: its leak is known to leading order only ({eq}`eq-leak`).
# * A slow target: no closed form, and with a target that lags differently behind each mode no theorem on alignment.
# * Predictors and moments that do not commute: {ref}`ch-alignment` measured that a symmetric one loses modes there, and has
#   no theorem for three or more. In this chapter's variable the two always commute, so it cannot help.
# * Whether networks at the scale of practice have gains and brakes that one could measure during training. Nothing here
#   shows that they have.
#
# ## Claims
#
# ```{claims-table} one_flow
# ```

# %% tags=["remove-cell"]
_ = ledger.close()

# %% [markdown]
# ## Exercises
#
# ````{admonition} Exercise: weight decay is a threshold
# :class: exercise
# :name: ex-of-decay
#
# Add weight decay, $\dot F=\dots-\eta F$, to the spectral loss, to Barlow Twins and to DirectPred. Where do aligned
# modes end,
# which ones are never learned from a small start, and which start has to be exceeded?
#
# ```{dropdown} Solution
# :class-container: solution-box
#
# The brake becomes $b+\eta$. *Spectral:* $\dot s=4s(\gamma-\frac\eta4-s^2)$: the ends are those of eigenvalues softly
# thresholded, $s^2=\max(\gamma-\frac\eta4,0)$, and modes with $\gamma\le\frac\eta4$ are not learned. *Barlow Twins:*
# $\gamma\psi=\eta$ gives $\gamma s^2=1-\frac\eta{4\gamma}$, with the same threshold. *DirectPred:*
# $\dot s=s\,(\gamma s-s^2-\eta)$ vanishes at $s_\pm=\frac12(\gamma\pm\sqrt{\gamma^2-4\eta})$: for $\eta>\gamma^2/4$
# nothing survives, below it what starts above $s_-$. A small start always dies.
# ```
# ````
#
# ````{admonition} Exercise: two hops
# :class: exercise
# :name: ex-of-two-hops
#
# Descend $\norm{\bar A^2-FF^\top}_F^2$, the spectral loss whose positive pairs are two steps apart on the graph. Is
# it of the form
# {eq}`eq-of-form`? Does {prf:ref}`thm-of-symmetry` apply? Find law, end and half times, and compare the staircase with
# that of the spectral loss.
#
# ```{dropdown} Solution
# :class-container: solution-box
#
# $\dot F=4\bar A^2F-4FF^\top F$ has two convolutions per step, so it is not of the form for $\bar A$; it is for
# $\bar A^2$, which is the normalised adjacency of another graph. The symmetry holds. $\dot s=4s(\gamma^2-s^2)$, the end is
# $s=\gamma$, as with a predictor, but zero repels at the rate $4\gamma^2$: waits in the proportion
# $\gamma_j^2/\gamma_i^2$, steps farther apart than with the spectral loss, the same eigenspace.
# ```
# ````
#
# ````{admonition} Exercise: how long does a boost shorten the wait?
# :class: exercise
# :name: ex-of-boost
#
# Set $W=(F^\top F)^{1/2}+\epsilon I$ with a small boost $\epsilon$. What kind of collapse is it now, how long is the
# wait from
# $s_0\ll\epsilon$, and where does the mode end? What is the gain at the end, and what does {prf:ref}`thm-of-leak` say?
#
# ```{dropdown} Solution
# :class-container: solution-box
#
# $p=s+\epsilon$ and $\dot s=s\,p\,(\gamma-p)$. At $s=0$ the rate is $\rho=\epsilon(\gamma-\epsilon)>0$ for
# $\epsilon<\gamma$:
# repelling, and the wait is $\frac1\rho\log\frac1{s_0}$ up to a constant instead of $\frac1{\gamma s_0}$. The end is
# $p=\gamma$, $s=\gamma-\epsilon$. The gain there is $p=\gamma$ as without boost, so the leading eigenspace is as
# stable as before, and since $\rho$ increases with $\gamma$ the order stays. The price: modes with $\gamma\le\epsilon$
# are never learned.
# ```
# ````
#
# ## Further reading
#
# {cite:t}`karkada2025closed` solve word embeddings and matrix factorisation losses in closed form from the same
# expansion; {cite:t}`halvagal2023` read the predictor in another way, as one that equalises the rates of the modes;
# {cite:t}`richemond2023edge` read the
# predictor as a map close to a rotation; {cite:t}`wang2023message` is where the message-passing picture comes from.
#
# ```{stamp} 05_one_flow
# ```
