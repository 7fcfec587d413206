"""What every back end has to do alike."""

import math

import pytest
import torch
from cases import Case, cases, examples
from hypothesis import given
from ways import (
    all_but_triton,
    assert_equal_to_pytorch,
    assert_far_apart_is_the_same,
    every_way,
    fused,
    fused_or_slowly,
    layouts,
    maps_and_gradient,
    only_triton,
    pytorchs,
    resize,
)


def check_maps_and_gradients(way, case: Case):
    logits, target = case.logits.to(way.device, way.dtype), case.target.long().to(way.device)
    weight = torch.ones(logits.shape[1]) if case.class_weight is None else case.class_weight
    weight = weight.to(way.device, way.dtype)

    correct, z = assert_equal_to_pytorch(way, logits, target, weight, case.align_corners, case.ignore_index)

    assert torch.equal(correct, (z.argmax(1) == target) & (target != case.ignore_index))


@all_but_triton
@given(case=cases())
@examples(100)
def test_maps_and_gradients_are_pytorchs(way, case: Case):
    check_maps_and_gradients(way, case)


@only_triton
@given(case=cases())
@examples(20)
def test_maps_and_gradients_of_triton_are_pytorchs(way, case: Case):
    check_maps_and_gradients(way, case)


SIZES = [
    ((8, 8), (32, 32)),
    ((7, 9), (21, 18)),
    ((5, 6), (23, 19)),
    ((9, 12), (10, 13)),
    ((33, 5), (122, 7)),
    ((12, 12), (4, 4)),
    ((13, 11), (5, 6)),
    ((6, 6), (6, 12)),
    ((1, 7), (9, 21)),
    ((7, 1), (5, 9)),
    ((1, 1), (4, 3)),
    ((5, 5), (1, 1)),
    ((9, 10), (9, 10)),
    ((3, 40), (96, 41)),
]


@fused_or_slowly
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('nodes', 'pixels'), SIZES)
@pytest.mark.parametrize('scale', [1.0, 60.0])
def test_logits_of_any_scale(way, nodes, pixels, align_corners, scale):
    logits, target, weight = way.problem(classes=6, nodes=nodes, pixels=pixels)

    assert_equal_to_pytorch(way, logits * scale, target, weight, align_corners)


@fused
@pytest.mark.parametrize('apart', [30, 100, 1000])
@pytest.mark.parametrize('pixels', [(16, 24), (15, 23)])
def test_neighbouring_nodes_whose_logits_are_far_apart(way, apart, pixels):
    """One class far above the others at each node, another one at the next: the shift is far off in between."""
    logits, target, weight = way.problem(nodes=(4, 6), pixels=pixels, dtype=torch.float32)
    winner = torch.randint(0, 5, (2, 1, 4, 6), generator=torch.Generator().manual_seed(4)).to(way.device)
    logits = 0.1 * logits + torch.full_like(logits, -float(apart)).scatter_(1, winner, 0.0)

    assert_equal_to_pytorch(way, logits.to(way.dtype), target, weight)


@fused
@pytest.mark.parametrize('classes', [2, 19])
@pytest.mark.parametrize(('nodes', 'pixels'), [((3, 9), (12, 36)), ((3, 9), (11, 33)), ((11, 9), (11, 9))])
def test_few_classes(way, classes, nodes, pixels):
    assert_equal_to_pytorch(way, *way.problem(classes=classes, nodes=nodes, pixels=pixels))


@fused_or_slowly
@pytest.mark.parametrize('classes', [150, 847])
@pytest.mark.parametrize(('nodes', 'pixels'), [((3, 9), (12, 36)), ((3, 9), (11, 33)), ((11, 9), (11, 9))])
def test_many_classes(way, classes, nodes, pixels):
    assert_equal_to_pytorch(way, *way.problem(classes=classes, nodes=nodes, pixels=pixels))


@fused
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(('nodes', 'pixels'), [((4, 5), (16, 20)), ((5, 6), (23, 19)), ((13, 15), (13, 15))])
def test_dtypes(way, dtype, nodes, pixels):
    logits, target, weight = way.problem(classes=19, nodes=nodes, pixels=pixels, dtype=dtype)

    nll, smooth, _ = way(logits, target, smoothing_weight=weight)

    assert nll.dtype == smooth.dtype == torch.float32
    precision = dict(float16=2e-3, bfloat16=2e-2, float32=2e-6)[str(dtype).removeprefix('torch.')]
    assert_equal_to_pytorch(way, logits, target, weight, rtol=precision)


@fused
@pytest.mark.parametrize('pixels', [(24, 28), (23, 25), (6, 7)])
def test_an_offset_of_all_logits_costs_no_digits(way, pixels):
    logits, target, weight = way.problem(classes=19, pixels=pixels, dtype=torch.float32)
    logits = (logits + 1e4 * torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(3)).to(way.device)).float()

    def theirs(z, target, smoothing_weight):
        return pytorchs(z, target, smoothing_weight, 255, align_corners=False)

    nll, smooth, _, gradient = maps_and_gradient(way, logits, target, weight)
    exact_nll, exact_smooth, _, exact_gradient = maps_and_gradient(theirs, logits.double(), target, weight)

    pairs = (nll, exact_nll), (smooth, exact_smooth), (gradient, exact_gradient)
    for found, expected in pairs:
        torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=3e-6 * float(expected.abs().max()))


@fused
@pytest.mark.parametrize('layout', ['channels_last', 'strided', 'expanded'])
@pytest.mark.parametrize(('nodes', 'pixels'), [((6, 7), (12, 14)), ((6, 7), (6, 7)), ((32, 128), (32, 128))])
def test_layouts_in_memory(way, layout, nodes, pixels):
    """Images of 4096 pixels are the smallest that are not merged into one."""
    logits, target, weight = way.problem(nodes=nodes, pixels=pixels)

    assert_equal_to_pytorch(way, layouts(logits)[layout], target[:1].expand_as(target), weight)


@fused
def test_gradients_of_stride_zero(way):
    logits, target, _ = way.problem()
    logits.requires_grad_()

    (summed,) = torch.autograd.grad(way(logits, target)[0].sum(), logits)
    (dense,) = torch.autograd.grad(way(logits, target)[0], logits, torch.ones_like(target))

    torch.testing.assert_close(summed, dense)


@every_way
def test_correct_means_the_lowest_class_at_a_tie(way):
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, :, 0, 2] = torch.tensor([0.0, 1.0, 1.0])

    _, _, correct = way(logits, torch.tensor([[[0, 1, 1]]]))

    assert correct.tolist() == [[[True, False, True]]]


@fused
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('nodes', 'pixels'), [((4, 9), (16, 36)), ((4, 9), (14, 31)), ((13, 15), (13, 15))])
def test_channels_that_are_equal_everywhere_tie_everywhere(way, dtype, nodes, pixels):
    logits, _, _ = way.problem(classes=40, nodes=nodes, pixels=pixels, dtype=dtype)
    logits = torch.cat([logits, logits], 1)  # 40 + c is c
    z = logits[:, :40].double() if nodes == pixels else resize(logits[:, :40].double(), pixels)
    (first, second), (winner, _) = (x.unbind(1) for x in z.topk(2, dim=1))
    winner[first - second < 1e-4] = 255  # too close to call between two different channels

    assert torch.equal(way(logits, winner)[2], winner != 255)
    assert not way(logits, torch.where(winner == 255, 255, winner + 40))[2].any()


@every_way
def test_correct_counts_as_mmseg_does(way):
    accuracy = pytest.importorskip('mmseg.models.losses', reason='mmseg is not installed').accuracy
    logits, target, _ = way.problem(classes=19, nodes=(8, 9), pixels=(32, 36), dtype=torch.float32)
    target = torch.where(
        torch.rand(target.shape, generator=torch.Generator().manual_seed(0)).to(way.device) < 0.5,
        resize(logits, (32, 36)).argmax(1),
        target,
    )
    target[:, :5] = 255

    _, _, correct = way(logits, target)

    theirs = accuracy(resize(logits, (32, 36)), target, ignore_index=255)
    torch.testing.assert_close(100 * correct.sum() / (target != 255).sum(), theirs[0])


@every_way
def test_nan_logits_are_never_correct(way):
    logits = torch.full((1, 3, 1, 1), math.nan)

    assert not way(logits, torch.zeros(1, 1, 1, dtype=torch.long))[2].any()


@every_way
@pytest.mark.parametrize('bad', [5, 254, -1, 10**9, -(10**9)])
@pytest.mark.parametrize('classes', [3, 5])
def test_a_bad_target_is_nan_and_never_an_index(way, bad, classes):
    logits = torch.randn(1, classes, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, bad], [255, 2]]])

    nll, smooth, correct = way(logits, target, smoothing_weight=torch.ones(classes))

    assert nll.isnan().tolist() == smooth.isnan().tolist() == [[[False, True], [False, False]]]
    assert nll[0, 1, 0] == smooth[0, 1, 0] == 0
    assert not correct[0, 0, 1]
    (gradient,) = torch.autograd.grad(nll[0, 0, 0], logits)
    assert gradient[:, :, 0, 1].eq(0).all()


@fused_or_slowly
@pytest.mark.parametrize('classes', [4, 9])
@pytest.mark.parametrize(('nodes', 'pixels'), [((6, 6), (24, 24)), ((6, 6), (21, 17)), ((16, 16), (16, 16))])
@pytest.mark.parametrize('poison', [math.nan, math.inf])
def test_a_poisoned_node_stays_where_it_is(way, classes, nodes, pixels, poison):
    """Pixels without it among their four neighbours keep their values, and so do gradients of nodes next to no such."""
    logits, target, weight = way.problem(classes=classes, nodes=nodes, pixels=pixels)
    poisoned = logits.clone()
    poisoned[0, 2, 2, 3] = poison
    touched = torch.zeros(1, 1, *nodes, dtype=torch.float64, device=way.device)
    touched[..., 2, 3] = 1
    touched = (touched if nodes == pixels else resize(touched, pixels))[0, 0] > 0

    clean, found = (maps_and_gradient(way, z, target, weight) for z in (logits, poisoned))

    assert torch.equal(found[0][0].isnan(), touched & (target[0] != 255))
    for a, b in zip(found[:2], clean[:2], strict=True):
        torch.testing.assert_close(a[0][~touched], b[0][~touched])
        torch.testing.assert_close(a[1], b[1])
    near = torch.zeros(nodes, dtype=torch.bool)
    near[1:4, 2:5] = True
    torch.testing.assert_close(found[3][0][:, ~near], clean[3][0][:, ~near])
    torch.testing.assert_close(found[3][1], clean[3][1])

    target[0][touched] = 255  # ignored, it contributes exactly nothing
    clean, found = (maps_and_gradient(way, z, target, weight) for z in (logits, poisoned))
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found, clean)


@fused
@pytest.mark.parametrize('classes', [4, 9])
@pytest.mark.parametrize('pixels', [(12, 16), (11, 13), (3, 4)])
def test_a_masked_class_is_finite(way, classes, pixels):
    logits, target, weight = way.problem(classes=classes, nodes=(3, 4), pixels=pixels)
    target[target == 1] = 0
    weight[1] = 0
    masked, almost = logits.clone(), logits.clone()
    masked[:, 1], almost[:, 1] = -math.inf, -1e4

    found, expected = (maps_and_gradient(way, z, target, weight) for z in (masked, almost))

    torch.testing.assert_close(found, expected)
    nll, _, _ = way(masked, torch.ones_like(target))
    assert (nll == math.inf).all()  # as F.cross_entropy of the masked class
    _, smooth, _ = way(masked, target, smoothing_weight=torch.ones(classes).double())
    assert (smooth[target != 255] == math.inf).all()


@fused
def test_very_large_logits_are_not_taken_for_masked_ones(way):
    logits = torch.tensor([[[[0.0]], [[-1e30]], [[1.0]], [[2.0]], [[3.0]]]])

    nll, _, _ = way(logits, torch.ones(1, 2, 2, dtype=torch.long))

    torch.testing.assert_close(nll.cpu(), torch.full((1, 2, 2), 1e30))


@fused
@pytest.mark.parametrize('classes', [2, 40])
@pytest.mark.parametrize('pixels', [(32, 48), (29, 48), (8, 12)])
def test_one_pixel_that_counts(way, classes, pixels):
    logits, target, weight = way.problem(classes=classes, nodes=(8, 12), pixels=pixels, ignored=1.0)
    target[1, 5, 9] = 1

    assert_equal_to_pytorch(way, logits, target, weight)


@fused
@pytest.mark.parametrize('pixels', [(4, 4), (8, 8)])
def test_offsets_beyond_32_bits(way, pixels):
    assert_far_apart_is_the_same(way, pixels)


@fused_or_slowly
@pytest.mark.parametrize('classes', [2, 19, 150])
@pytest.mark.parametrize('pixels', [(48, 36), (41, 33), (12, 9)])
def test_bit_equal_from_run_to_run(way, classes, pixels):
    logits, target, weight = way.problem(classes, nodes=(12, 9), pixels=pixels, dtype=torch.float32)

    first, second = (maps_and_gradient(way, logits, target, weight) for _ in range(2))

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
