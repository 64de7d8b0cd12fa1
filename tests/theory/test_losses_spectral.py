"""Witnesses: finite differences, the formula of all pairs under autograd, a count of products; all orders and modes."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from companion.theory.losses import spectral_contrastive


def batch(n: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.randn(2, n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return z[0], z[1]


def formula(z1, z2, mu=1.0):
    """All pairs, the diagonal masked."""
    n = len(z1)
    products = (z1 @ z2.T).masked_fill(torch.eye(n, dtype=torch.bool), 0)
    return -2 / n * (z1 * z2).sum() + mu * products.square().sum() / (n * (n - 1))


# torch's own formulas for derivatives forwards are compiled by a function that it calls deprecated
FORWARD = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


@FORWARD
@pytest.mark.parametrize("form", ["gram", "pairs"])
@pytest.mark.parametrize("mu", [0.0, 1.0, 2.5])
def test_first_and_second_derivatives_are_those_of_finite_differences(form, mu):
    z = tuple(view.requires_grad_() for view in batch(5, 3))

    def loss(z1, z2):
        return spectral_contrastive(z1, z2, mu, form=form)

    assert torch.autograd.gradcheck(loss, z, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, z)


@FORWARD
@pytest.mark.parametrize("form", ["gram", "pairs"])
def test_function_transforms_agree_with_the_formula(form):
    z1, z2 = batch(6, 3)
    t1, t2 = batch(6, 3, seed=1)

    def loss(z1, z2):
        return spectral_contrastive(z1, z2, 2.0, form=form)

    def reference(z1, z2):
        return formula(z1, z2, 2.0)

    for transform in (grad, jacfwd, hessian, lambda f: jacfwd(grad(f)), lambda f: grad(lambda a, b: f(a * a, b))):
        assert torch.allclose(transform(loss)(z1, z2), transform(reference)(z1, z2), rtol=0, atol=1e-13)
    for found, expected in zip(*(jvp(f, (z1, z2), (t1, t2)) for f in (loss, reference)), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-13)
    many = torch.stack([z1, z2, t1]), torch.stack([z2, t1, t2])
    assert torch.allclose(vmap(grad(loss))(*many), vmap(grad(reference))(*many), rtol=0, atol=1e-13)
    assert torch.allclose(
        vmap(loss, (None, 0))(z1, many[1]), vmap(reference, (None, 0))(z1, many[1]), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(("n", "k"), [(256, 8), (300, 200), (64, 8), (40, 90)])
def test_auto_has_value_and_gradient_of_the_formula(n, k):
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        z = tuple(view.requires_grad_() for view in batch(n, k, dtype=dtype))
        exact = tuple(view.detach().double().requires_grad_() for view in z)
        loss, expected = spectral_contrastive(*z, mu=3.0), formula(*exact, mu=3.0)
        assert loss.dtype == dtype
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=rtol)
        for found, right in zip(torch.autograd.grad(loss, z), torch.autograd.grad(expected, exact), strict=True):
            assert torch.allclose(found.double(), right, rtol=0, atol=rtol * float(right.abs().max()))


def test_a_constant_view_gets_no_gradient_and_takes_no_product():
    z1, z2 = batch(300, 4)
    z1.requires_grad_()
    spectral_contrastive(z1, z2).backward()
    expected = grad(formula)(z1.detach(), z2)
    assert torch.allclose(z1.grad, expected, rtol=0, atol=1e-13)
    assert z2.grad is None


class Products(TorchDispatchMode):
    """Counts matrix products and the operations in them."""

    calls, operations = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            a, b = args
            self.calls, self.operations = self.calls + 1, self.operations + 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n", "k", "calls", "operations"), [(300, 8, 4, 8 * 300 * 64), (300, 250, 3, 6 * 300**2 * 250)]
)
def test_loss_and_gradient_take_as_many_products_as_they_say(n, k, calls, operations):
    z = tuple(view.requires_grad_() for view in batch(n, k))
    with Products() as counted:
        spectral_contrastive(*z).backward()
    assert (counted.calls, counted.operations) == (calls, operations)
