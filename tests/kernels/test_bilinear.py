import torch
import torch.nn.functional as F
from cases import examples
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.kernels.bilinear import at, expand, gather, grid, reduce, spread, to_pixels, to_slots

sizes = st.integers(1, 40)


@given(sizes, sizes, sizes, sizes, st.booleans())
@examples(300)
def test_interpolates_as_pytorch_and_its_transpose(h, w, height, width, align_corners):
    generator = torch.Generator().manual_seed(h * w)
    nodes = torch.randn(1, 3, h, w, generator=generator, dtype=torch.float64, requires_grad=True)
    pixels = torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64)
    expected = F.interpolate(nodes, size=(height, width), mode='bilinear', align_corners=align_corners)
    (transposed,) = torch.autograd.grad(expected, nodes, pixels)

    g = grid((h, w), (height, width), align_corners, torch.float64, torch.device('cpu'))
    rows = nodes.detach()[0].transpose(0, 1)  # (h, C, w)
    corners = torch.empty(h + 2, 2, 3, g.cells, dtype=torch.float64)  # the nodes outside repeat the edge
    spread(torch.cat([rows[:1], rows, rows[-1:]]), g, corners)
    found = torch.empty(3, height, width, dtype=torch.float64)
    gradient = torch.zeros_like(corners)
    for cell in range(h + 1):
        begin, end = g.starts[cell], g.starts[cell + 1]
        if begin == end:
            continue
        tile = torch.empty(end - begin, g.slots, 3, g.cells, dtype=torch.float64)
        expand(corners[cell : cell + 2], g, begin, end, tile)
        for c in range(3):
            to_pixels(tile[:, :, c : c + 1].contiguous(), g, found[c, begin:end])
            tile[:, :, c : c + 1] = to_slots(pixels[0, c, begin:end], g)
        reduce(tile, g, begin, end, gradient[cell : cell + 2])
    back = gather(gradient, g)
    back[1] += back[0]
    back[-2] += back[-1]

    torch.testing.assert_close(found, expected.detach()[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(back[1:-1].transpose(0, 1), transposed[0], rtol=1e-12, atol=1e-12)

    row, column = torch.tensor([0, height - 1, height // 2]), torch.tensor([width - 1, 0, width // 2])
    slot, cell = g.place[column] // g.cells, g.place[column] % g.cells
    torch.testing.assert_close(
        at(corners, g, 0, row, slot, cell), expected.detach()[0, :, row, column].t(), rtol=1e-12, atol=1e-13
    )


def test_several_rows_of_cells_at_once():
    g = grid((8, 9), (32, 27), False, torch.float64, torch.device('cpu'))
    corners = torch.randn(5, 2, 3, g.cells, dtype=torch.float64)
    begin, end = g.starts[2], g.starts[6]
    together = torch.empty(end - begin, g.slots, 3, g.cells, dtype=torch.float64)
    one_by_one = torch.empty_like(together)
    sums = torch.zeros_like(corners), torch.zeros_like(corners)

    expand(corners, g, begin, end, together)
    reduce(together, g, begin, end, sums[0])
    for i in range(4):
        a, b = g.starts[2 + i], g.starts[3 + i]
        expand(corners[i : i + 2], g, a, b, one_by_one[a - begin : b - begin])
        reduce(together[a - begin : b - begin], g, a, b, sums[1][i : i + 2])

    torch.testing.assert_close(together, one_by_one)
    torch.testing.assert_close(*sums)


def test_integer_scales_share_one_matrix():
    for scale in (2, 3, 4, 8):
        shared = grid((16, 40), (16 * scale, 40 * scale), False, torch.float32, torch.device('cpu'))
        assert shared.corner_weight is not None
        assert shared.slots == scale
    assert grid((16, 40), (59, 150), False, torch.float32, torch.device('cpu')).corner_weight is None
