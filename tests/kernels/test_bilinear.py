import torch
import torch.nn.functional as F
from cases import examples
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.kernels.bilinear import cells_and_fractions

sizes = st.integers(1, 60)


@given(sizes, sizes, st.booleans())
@examples(300)
def test_pixels_lie_where_interpolate_puts_them(inputs, outputs, align_corners):
    x = torch.randn(1, 1, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.interpolate(x, size=outputs, mode='linear', align_corners=align_corners)[0, 0]

    cell, fraction = cells_and_fractions(inputs, outputs, align_corners)

    left, right = x[0, 0, (cell - 1).clamp(min=0)], x[0, 0, cell.clamp(max=inputs - 1)]
    torch.testing.assert_close(left * (1 - fraction) + right * fraction, expected, rtol=1e-12, atol=1e-13)
