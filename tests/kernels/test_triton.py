"""Test what only the back end 'triton' does: its tiles, its progressions, and its sums."""

import pytest
import torch
import torch.nn.functional as F
from mmseg_wce.kernels import pixel_maps
from ways import CUDA, Way, assert_equal_to_pytorch, assert_far_apart_is_the_same, layouts

triton = pytest.importorskip('mmseg_wce.kernels.triton', reason='the package triton is not installed')
from mmseg_wce.kernels.triton import tiles as choices  # noqa: E402

TRITON = Way('triton', 'cuda' if CUDA else 'cpu')
TILES = dict(
    default=triton.Tiles(),
    small=triton.Tiles(lanes=32, classes=3, loads=2, rows=2, pixels=64, programs=1000, sum_lanes=32, sum_rounds=2),
    wide=triton.Tiles(
        lanes=256,
        block_lanes=128,
        backward_lanes=64,
        classes=7,
        loads=16,
        rows=4,
        pixels=1024,
        programs=1,
        sum_rounds=1,
    ),
)


@pytest.mark.parametrize('tiles', list(TILES))
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
    ('nodes', 'pixels'), [((4, 18), (12, 54)), ((5, 7), (13, 41)), ((9, 8), (5, 4)), ((2, 1), (9, 5))]
)
def test_tiles_are_only_a_matter_of_speed(tiles, nodes, pixels, align_corners, monkeypatch):
    monkeypatch.setattr(triton, 'TILES', TILES[tiles])

    assert_equal_to_pytorch(TRITON, *TRITON.problem(18, nodes, pixels, images=1), align_corners)


@pytest.mark.parametrize('tiles', list(TILES))
def test_tiles_where_nothing_is_resized(tiles, monkeypatch):
    monkeypatch.setattr(triton, 'TILES', TILES[tiles])

    assert_equal_to_pytorch(TRITON, *TRITON.problem(21, (3, 45), (3, 45)))


@pytest.mark.parametrize('tiles', list(TILES))
@pytest.mark.parametrize('pixels', [(4, 4), (8, 8), (7, 9)])
def test_tiles_and_offsets_beyond_32_bits(tiles, pixels, monkeypatch):
    monkeypatch.setattr(triton, 'TILES', TILES[tiles])

    assert_far_apart_is_the_same(TRITON, pixels)


@pytest.mark.parametrize(
    ('scale', 'block'),
    [
        (2, (2, 2)),
        (3, (3, 3)),
        (4, (4, 4)),
        (5, (5, 1)),
        (6, (6, 2)),
        (7, (7, 1)),
        (8, (4, 4)),
        (12, (3, 4)),
        (14, (7, 2)),
        (16, (4, 4)),
        (32, (8, 2)),
    ],
)
@pytest.mark.parametrize('nodes', [(3, 5), (1, 40)])
def test_progressions_at_integer_scales(scale, block, nodes):
    pixels = nodes[0] * scale, nodes[1] * scale

    assert choices.block_shape(*nodes, *pixels, align_corners=False)[1:] == block
    assert_equal_to_pytorch(TRITON, *TRITON.problem(3, nodes, pixels, images=1))


@pytest.mark.parametrize(
    ('nodes', 'pixels', 'align_corners'),
    [((8, 8), (32, 32), True), ((8, 8), (32, 16), False), ((8, 8), (30, 30), False), ((8, 8), (4, 4), False)],
)
def test_other_resizes_take_the_kernels_for_any_scale(nodes, pixels, align_corners):
    assert choices.block_shape(*nodes, *pixels, align_corners) is None


@pytest.mark.parametrize('factor', [1, 5, 10])
@pytest.mark.parametrize('scale', [2, 4, 8, 14, 16])
def test_accuracy_of_progressions(scale, factor):
    """The loss is 1e-6 off at most, and a gradient 1e-6 of the largest one."""
    logits, target, _ = TRITON.problem(12, (4, 5), (4 * scale, 5 * scale), images=1)
    logits = (logits * factor).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    z = F.interpolate(exact, size=target.shape[1:], mode='bilinear')

    loss = TRITON(logits, target)[0].sum()
    true_loss = F.cross_entropy(z, target, ignore_index=255, reduction='sum')

    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-6, atol=0)
    (gradient,), (true_gradient,) = torch.autograd.grad(loss, logits), torch.autograd.grad(true_loss, exact)
    assert (gradient - true_gradient).abs().max() <= 1e-6 * true_gradient.abs().max()


@pytest.mark.parametrize('rise', [60.0, 90.0, 110.0, 250.0, 1000.0])
@pytest.mark.parametrize('scale', [4, 16])
def test_a_class_that_rises_steeply_from_far_below_the_others(rise, scale):
    """Its first exponential in a block underflows, or the block is computed in float64."""
    logits = torch.zeros(1, 2, 2, 3, device=TRITON.device)
    logits[0, 1, 0], logits[0, 0, :, 1] = -rise, -rise / 2
    target = torch.ones(1, 2 * scale, 3 * scale, dtype=torch.long, device=TRITON.device)

    assert_equal_to_pytorch(TRITON, logits, target, torch.ones(2, device=TRITON.device))


@pytest.mark.parametrize('label', [255, -5, 2**31 - 1, 2**33 + 7])
@pytest.mark.parametrize('pixels', [(16, 20), (15, 18)])
def test_labels_that_do_not_count_where_logits_are_steep(label, pixels):
    """They are no index of class weights, and their pixels get no gradient."""
    logits, _, weight = TRITON.problem(3, (4, 5), pixels, images=1)
    logits[0, 1, :, ::2] = -500.0
    target = torch.randint(0, 3, (1, *pixels), generator=torch.Generator().manual_seed(2)).to(TRITON.device)
    target[0, :, 3:9] = label
    logits.requires_grad_()

    sums = pixel_maps(logits, target, weight, ignore_index=255, backend='triton').sums
    (gradient,) = torch.autograd.grad(sums.loss, logits)

    exact, ignored = logits.detach().double().requires_grad_(), torch.where(target == label, 255, target)
    z = F.interpolate(exact, size=pixels, mode='bilinear')
    loss = F.cross_entropy(z, ignored, weight.double(), ignore_index=255, reduction='sum')
    (expected,) = torch.autograd.grad(loss, exact)
    torch.testing.assert_close(sums.loss.double(), loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-6, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(('most', 'channels', 'expected'), [(10, 150, 10), (10, 19, 10), (10, 21, 7), (10, 2, 2)])
def test_classes_of_a_program(most, channels, expected):
    assert choices.classes_at_once(channels, most) == expected


@pytest.mark.parametrize(
    ('height', 'per_band', 'expected'),
    [(128, 1584, 128), (128, 500, 43), (128, 900, 19), (128, 1, 8), (16, 1, 8), (3, 1, 3)],
)
def test_rows_of_a_band(height, per_band, expected):
    assert choices.band_rows(height, per_band, 1584, 8) == expected


@pytest.mark.parametrize(('pixels', 'expected'), [(1, 1), (2, 2), (4, 4), (5, 8), (7, 8), (9, 4), (30, 8)])
def test_rows_at_once(pixels, expected):
    assert choices.rows_at_once(pixels, 8) == expected


@pytest.mark.parametrize('nodes', [(5, 6), (20, 24)])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('smoothed', [False, True])
def test_sums_are_those_of_the_maps(nodes, weighted, smoothed):
    logits, target, weight = TRITON.problem(7, nodes, (20, 24))
    target[0, 3, 4:6] = 77
    valid = target < 7
    class_weight, smoothing = weight if weighted else None, weight if smoothed else None

    maps = pixel_maps(logits, target, class_weight, ignore_index=255, smoothing_weight=smoothing, backend='triton')

    label_weight = weight[target.where(valid, 0)] if weighted else torch.ones_like(maps.nll)
    sums = maps.sums
    torch.testing.assert_close(sums.loss, (label_weight * maps.nll)[valid].sum())
    torch.testing.assert_close(sums.smooth, maps.smooth[valid].sum())
    torch.testing.assert_close(sums.weight, label_weight[valid].sum())
    assert (sums.valid, sums.correct, sums.invalid) == (valid.sum(), maps.correct.sum(), 2)


@pytest.mark.parametrize('nodes', [(5, 6), (20, 24)])
def test_gradients_of_sums_are_those_of_the_maps(nodes):
    logits, target, weight = TRITON.problem(7, nodes, (20, 24))
    target[0, 3, 4:6] = 77
    logits.requires_grad_()
    label_weight = torch.where(target < 7, weight[target.where(target < 7, 0)], 0)

    maps = pixel_maps(logits, target, weight, ignore_index=255, smoothing_weight=weight, backend='triton')
    valid = target < 7
    (of_sums,) = torch.autograd.grad(3 * maps.sums.loss + 2 * maps.sums.smooth, logits, retain_graph=True)
    mixed = 3 * torch.where(valid, label_weight * maps.nll, 0) + 2 * torch.where(valid, maps.smooth, 0)
    (of_maps,) = torch.autograd.grad(mixed.sum(), logits)

    torch.testing.assert_close(of_sums, of_maps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('pixels', [(24, 28), (23, 25)])
def test_the_gradient_has_the_strides_of_the_logits(layout, pixels):
    logits, target, _ = TRITON.problem(nodes=(6, 7), pixels=pixels)
    logits = layouts(logits)[layout].requires_grad_()

    (gradient,) = torch.autograd.grad(TRITON(logits, target)[0].sum(), logits)

    assert gradient.stride() == logits.stride()


@pytest.mark.parametrize('bad', [(3, 7), (-1, 9), (300, 300), (2**40, -(2**40)), ()])
def test_invalid_labels_are_described_on_the_device(bad):
    target = torch.tensor([[0, 1, 255], [2, 2, 255]], device=TRITON.device).repeat(1, 700)
    positions = (17, 2503)
    for position, value in zip(positions, bad, strict=False):
        target.view(-1)[position] = value

    report = triton.describe_invalid_labels(target, torch.tensor(float(len(bad))).to(TRITON.device), 3, 255).tolist()

    *bins, ignored, first, value = report
    if not bad:
        assert first == target.numel()
        return
    assert (first, value) == (positions[0], bad[0])
    assert ignored == int((target == 255).sum())
    expected = [int((target < 0).sum()), *(int((target == i).sum()) for i in range(256)), int((target > 255).sum()), 0]
    assert bins == expected
