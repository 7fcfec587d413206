import math

import pytest
import torch
from ways import NUMBA, assert_equal_to_pytorch, maps_and_gradient


@pytest.mark.parametrize('align_corners', [False, True])
def test_bands_that_share_rows_of_the_gradient(align_corners):
    """Large enough that the image is cut into bands, and that bands share rows of the gradient."""
    logits, target, weight = NUMBA.problem(classes=150, nodes=(70, 40), pixels=(280, 160), images=2)

    assert_equal_to_pytorch(NUMBA, logits, target, weight, align_corners)


@pytest.mark.parametrize(
    ('classes', 'nodes', 'pixels', 'align_corners'),
    [
        (150, (40, 32), (160, 128), False),
        (19, (40, 32), (150, 119), False),
        (19, (40, 32), (160, 128), True),
        (19, (64, 64), (64, 64), False),
        (2, (64, 64), (256, 256), False),
        (2, (128, 128), (128, 128), False),
    ],
)
def test_bit_equal_for_any_number_of_threads(classes, nodes, pixels, align_corners):
    logits, target, weight = NUMBA.problem(classes=classes, nodes=nodes, pixels=pixels, dtype=torch.float32)

    def sweep(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return maps_and_gradient(NUMBA, logits, target, weight, align_corners=align_corners)
        finally:
            torch.set_num_threads(before)

    first = sweep(2)
    for threads in (2, 1, 3):
        assert all(torch.equal(a, b) for a, b in zip(sweep(threads), first, strict=True))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('pixels', [(280, 160), (31, 17), (70, 40)])
def test_half_precision_is_float32_rounded_once(dtype, pixels):
    """Also in the rows that two bands share."""
    logits, target, _ = NUMBA.problem(classes=150, nodes=(70, 40), pixels=pixels, dtype=dtype)

    def gradient(z):
        return torch.autograd.grad(1000 * NUMBA(z.requires_grad_(), target)[0].mean(), z)[0]

    assert torch.equal(gradient(logits), gradient(logits.float()).to(dtype))


def test_denormal_logits_count_where_the_processor_is_set_to_flush_them():
    """Code that is loaded into the process may set it, if it was compiled with -ffast-math."""
    logits = torch.tensor([6e-5, 0.0]).half().view(1, 2, 1)
    if not torch.set_flush_denormal(True):
        pytest.skip('this processor flushes nothing')
    try:
        nll, _, _ = NUMBA(logits.repeat(1, 1, 100), torch.zeros(1, 100, dtype=torch.long))
    finally:
        torch.set_flush_denormal(False)

    torch.testing.assert_close(nll, torch.full((1, 100), math.log(2) - 3e-5), rtol=0, atol=2e-7)
