"""The focal loss of a negative log-likelihood, against the formula in plain PyTorch."""

from importlib import import_module

import pytest
import torch
from mmseg_wce.kernels.focal import focal_loss, focal_slope, focal_sum

GAMMAS = [0.25, 0.5, 1.0, 2.0, 5.0]


def plain(nll, gamma):
    return (1 - torch.exp(-nll)) ** gamma * nll


@pytest.mark.parametrize('gamma', GAMMAS)
def test_value_and_slope(gamma):
    nll = torch.linspace(1e-3, 40, 999, dtype=torch.float64).requires_grad_()

    (slope,) = torch.autograd.grad(focal_loss(nll, gamma).sum(), nll)

    (expected,) = torch.autograd.grad(plain(nll, gamma).sum(), nll)
    torch.testing.assert_close(focal_loss(nll, gamma), plain(nll, gamma), rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(focal_slope(nll, gamma), expected, rtol=1e-10, atol=0)


def test_gamma_0_is_the_same_tensor():
    nll = torch.rand(3)

    assert focal_loss(nll, 0.0) is nll
    assert torch.equal(focal_slope(nll, 0.0), torch.ones(3))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('gamma', GAMMAS)
def test_limits(gamma, dtype):
    tiny = torch.finfo(dtype).tiny
    nll = torch.tensor([-1e-7, 0.0, tiny, 1e-20, 90.0, 1e4, torch.inf], dtype=dtype, requires_grad=True)

    loss = focal_loss(nll, gamma)
    (slope,) = torch.autograd.grad(loss.sum(), nll)

    assert loss[:2].tolist() == [0, 0]
    assert slope[:2].tolist() == [0, 0]
    # next to 0 the loss is nll^(1 + gamma)
    torch.testing.assert_close(loss[3], torch.tensor(1e-20, dtype=dtype) ** (1 + gamma), rtol=1e-5, atol=0)
    assert slope[2:4].isfinite().all()
    assert (slope[2:4] < 1e-4).all()
    # far from 0 it is nll
    torch.testing.assert_close(loss[4:], nll[4:].detach())
    torch.testing.assert_close(slope[4:], torch.ones(3, dtype=dtype))
    assert focal_slope(nll, gamma)[2:].isfinite().all()


def test_nan_is_not_hidden():
    nll = torch.tensor([torch.nan, 1.0])

    assert focal_loss(nll, 2.0).isnan().tolist() == [True, False]
    assert focal_slope(nll, 2.0).isnan().tolist() == [True, False]


@pytest.fixture
def pixels():
    """Losses, labels and weights of some pixels: many sizes of losses, ignored and invalid labels."""
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(3, 50, 90, generator=generator) * 5
    nll[0, 0] = torch.tensor([-1e-7, 0.0, 1e-30, 1e-9, 1e-4, 1e-2, 0.2, 0.26, 30.0]).repeat(10)
    target = torch.randint(0, 7, nll.shape, generator=generator)
    target[1, 3:9], target[2, 0, :5] = 255, 77
    nll[1, 4], nll[2, 0, :5] = torch.nan, torch.nan
    return nll, target, torch.linspace(0, 2, 7)


@pytest.mark.parametrize('gamma', GAMMAS)
@pytest.mark.parametrize('backend', ['cpu', 'triton'])
def test_sum(pixels, gamma, backend):
    pytest.importorskip(dict(cpu='numba', triton='triton')[backend])
    nll, target, weight = pixels
    valid = (target >= 0) & (target < 7)
    expected_nll = torch.where(valid, nll, 1).double().requires_grad_()
    factor = torch.where(valid, weight[target.where(valid, 0)], 0).double()
    expected = (factor * focal_loss(expected_nll, gamma)).sum()
    (gradient,) = torch.autograd.grad(expected, expected_nll)
    module = import_module(f'mmseg_wce.kernels.{backend}')

    total, slope = module.focal_sum(nll, target, 255, 7, weight, gamma)

    torch.testing.assert_close(total.double(), expected.detach(), rtol=1e-6, atol=0)
    # at gamma below 1 the slope goes to 0 so steeply that losses of 1e-30 still have one
    torch.testing.assert_close(slope.double(), gradient, rtol=2e-5, atol=2e-6)
    assert (slope[~valid] == 0).all()


def test_sum_and_its_derivative(pixels):
    pytest.importorskip('numba')
    nll, target, weight = pixels
    nll = nll.where(nll.isfinite(), 0.5).requires_grad_()
    valid = (target >= 0) & (target < 7)
    expected = torch.where(valid, weight[target.where(valid, 0)] * focal_loss(nll, 2.0), 0).sum()

    found = focal_sum(nll, target, 255, 7, weight, 2.0)

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(3 * found, nll, create_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * expected, nll)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match=r'does not require grad|no autograd formula|not implement'):
        torch.autograd.grad(gradient.sum(), nll)
    unweighted = focal_sum(nll, target, 255, 7, None, 2.0)
    torch.testing.assert_close(unweighted, (valid * focal_loss(nll, 2.0)).sum(), rtol=1e-6, atol=0)


def test_sum_keeps_nan_and_infinity(pixels):
    pytest.importorskip('numba')
    _, target, weight = pixels
    target = target.clamp(max=6)
    nll = torch.ones_like(target, dtype=torch.float32)
    for value in (torch.inf, torch.nan):
        nll[0, 0, 0], target[0, 0, 0] = value, 3
        nll.requires_grad_()
        total = focal_sum(nll, target, 255, 7, weight, 1.5)
        (gradient,) = torch.autograd.grad(total, nll)
        nll = nll.detach()
        torch.testing.assert_close(total, torch.tensor(value), equal_nan=True)
        assert gradient[0, 0, 1:].isfinite().all()
        assert gradient[0, 0, 0].isnan() == (value != torch.inf)


@pytest.mark.parametrize('weighted', [False, True])
def test_registration(pixels, weighted):
    pytest.importorskip('numba')
    nll, target, weight = pixels
    nll = nll.where(nll.isfinite(), 0.5).requires_grad_()

    torch.library.opcheck(
        torch.ops.mmseg_wce.focal_sum.default, (nll, target, 255, 7, weight if weighted else None, 2.0)
    )
