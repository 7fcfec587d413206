"""More than 2^31 elements: of full-size logits that are never built, and of logits as they come."""

import pytest
import torch
import torch.nn.functional as F
from mmseg_wce.kernels.backends import has_triton
from ways import CUDA, NUMBA, Way, resize

pytestmark = pytest.mark.slow
# Triton's interpreter would take hours
on_cpu_and_gpu = pytest.mark.parametrize(
    'way',
    [
        pytest.param(NUMBA, id='numba-cpu'),
        pytest.param(
            Way('triton', 'cuda'),
            id='triton-cuda',
            marks=pytest.mark.skipif(not (CUDA and has_triton()), reason='needs a GPU and the package triton'),
        ),
    ],
)


@on_cpu_and_gpu
def test_upsampled_to_more_than_32_bits_count(way):
    """2.5e9 logits. The last rows in PyTorch, in float64: in any order of the axes some of them lie past 2^31."""
    classes, nodes, pixels, band, reach = 150, 8, 4096, 128, 768  # so many rows of pixels see the last row of nodes
    assert classes * pixels * pixels > 2**31
    logits, target, weight = way.problem(classes, (nodes, nodes), (pixels, pixels), torch.float32, images=1)
    upstream = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).to(way.device)
    logits.requires_grad_()

    nll, smooth, correct = way(logits, target, smoothing_weight=weight)
    (gradient,) = torch.autograd.grad((nll + smooth).mul(upstream).sum(), logits)

    exact = logits.detach().double().requires_grad_()
    for begin in range(pixels - reach, pixels, band):
        rows = slice(begin, begin + band)
        y, of_band = target[:, rows], upstream[:, rows]
        log_p = resize(resize(exact, (pixels, nodes))[:, :, rows], (band, pixels)).log_softmax(1)
        plain = F.nll_loss(log_p, y, ignore_index=255, reduction='none')
        smoothed = torch.where(y == 255, 0, -torch.einsum('c,nchw->nhw', weight.double(), log_p))
        ((plain + smoothed) * of_band).sum().backward()
        expected = plain.detach(), smoothed.detach()
        torch.testing.assert_close(nll[:, rows].detach().double(), expected[0], rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(smooth[:, rows].detach().double(), expected[1], rtol=2e-6, atol=2e-6)
        label = y.where(y != 255, 0).unsqueeze(1)
        rival = log_p.detach().scatter_(1, label, -torch.inf).amax(1)
        lead = torch.where(y == 255, -1, -expected[0] - rival)
        assert torch.equal(correct[:, rows][lead.abs() > 1e-5], (lead > 0)[lead.abs() > 1e-5])
    last, expected = gradient[:, :, -1].double(), exact.grad[:, :, -1]
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@on_cpu_and_gpu
def test_logits_of_more_than_32_bits_count(way):
    """2.2e9 of bfloat16, and a gradient as large: 9 GB. In PyTorch some pixels, whose last classes lie past 2^31."""
    classes, height, width, number = 512, 2048, 2064, 4096
    assert (classes - 3) * height * width > 2**31
    generator = torch.Generator(way.device).manual_seed(0)
    bits = torch.empty(1, classes, height, width, dtype=torch.int16, device=way.device)
    logits = bits.random_(0x3F80, 0x4080, generator=generator).view(torch.bfloat16)  # 1 to 4
    target = torch.randint(0, classes, (1, height, width), generator=generator, device=way.device)
    target[torch.rand(target.shape, generator=generator, device=way.device) < 0.1] = 255
    logits.requires_grad_()

    nll, _, correct = way(logits, target)
    (gradient,) = torch.autograd.grad(nll.sum(), logits)

    size = height * width
    for begin in (0, size // 2, size - number):
        columns = slice(begin, begin + number)
        z = logits.detach().flatten(2)[:, :, columns].float().requires_grad_()
        y = target.flatten(1)[:, columns]
        expected = F.cross_entropy(z, y, ignore_index=255, reduction='none')
        (exact,) = torch.autograd.grad(expected.sum(), z)
        torch.testing.assert_close(nll.flatten(1)[:, columns].detach(), expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            gradient.flatten(2)[:, :, columns].float(), exact, rtol=0.501 * torch.finfo(torch.bfloat16).eps, atol=1e-7
        )
        assert torch.equal(correct.flatten(1)[:, columns], (z.argmax(1) == y) & (y != 255))
