"""The focal loss of a negative log-likelihood, against the formula in plain PyTorch."""

import pytest
import torch
from mmseg_wce.kernels.focal import focal_loss, focal_slope

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
