import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg_wce.kernels import pixel_nll
from mmseg_wce.kernels.op import BACKENDS, ENVIRONMENT_VARIABLE, _chosen
from torch.autograd import forward_ad

backends = pytest.mark.parametrize('backend', BACKENDS)


def resize(logits, size, align_corners=False):
    return F.interpolate(logits, size=size, mode='bilinear', align_corners=align_corners)


def problem(classes=5, nodes=(6, 7), pixels=(20, 25), dtype=torch.float64, images=2, ignored=0.2):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, *nodes, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(0, classes, (images, *pixels), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    weight = torch.rand(classes, generator=generator).to(torch.promote_types(dtype, torch.float32))
    return logits, target, weight


def assert_equal_to_pytorch(logits, target, weight, align_corners=False, ignore_index=255, backend=None, rtol=1e-12):
    """Both maps and the gradient of a random mix of them, against F.interpolate and F.cross_entropy in float64."""
    generator = torch.Generator().manual_seed(1)
    of_nll, of_smooth = (torch.randn(target.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    options = dict(ignore_index=ignore_index, smoothing_weight=weight, align_corners=align_corners, backend=backend)
    ours = logits.detach().clone().requires_grad_()
    nll, smooth, correct = pixel_nll(ours, target, **options)
    ((nll * of_nll).sum() + (smooth * of_smooth).sum()).backward()

    exact = logits.detach().double().requires_grad_()
    z = exact if exact.shape[2:] == target.shape[1:] else resize(exact, target.shape[1:], align_corners)
    plain = F.cross_entropy(z, target, ignore_index=ignore_index, reduction='none')
    # PyTorch gives the smoothing term alone at label_smoothing=1, divided by C
    smoothed = logits.shape[1] * F.cross_entropy(
        z, target, weight.double(), ignore_index=ignore_index, reduction='none', label_smoothing=1.0
    )
    ((plain * of_nll).sum() + (smoothed * of_smooth).sum()).backward()

    for a, b in ((nll, plain), (smooth, smoothed), (ours.grad, exact.grad)):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol * max(1.0, float(b.detach().abs().max())))
    return correct, z.detach()


@backends
@given(case=cases(), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_maps_and_gradients_are_pytorchs(backend, case: Case, seed):
    weight = torch.ones(case.logits.shape[1]) if case.class_weight is None else case.class_weight
    target = case.target.long()

    correct, z = assert_equal_to_pytorch(
        case.logits, target, weight.double(), case.align_corners, case.ignore_index, backend
    )

    assert torch.equal(correct, (z.argmax(1) == target) & case.valid)


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


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('nodes', 'pixels'), SIZES)
@pytest.mark.parametrize('scale', [1.0, 60.0])
def test_any_scale(nodes, pixels, align_corners, scale):
    logits, target, weight = problem(classes=6, nodes=nodes, pixels=pixels)

    assert_equal_to_pytorch(logits * scale, target, weight, align_corners)


@pytest.mark.parametrize('classes', [2, 19, 150, 171, 847])
@pytest.mark.parametrize('pixels', [(44, 36), (41, 33), (11, 9)])
def test_any_number_of_classes(classes, pixels):
    assert_equal_to_pytorch(*problem(classes=classes, nodes=(11, 9), pixels=pixels))


@pytest.mark.parametrize('align_corners', [False, True])
def test_more_bands_than_one(align_corners):
    """Large enough that the strips are cut into bands, and that bands share rows of the gradient."""
    logits, target, weight = problem(classes=150, nodes=(70, 40), pixels=(280, 160), images=2)

    assert_equal_to_pytorch(logits, target, weight, align_corners)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(('nodes', 'pixels'), [((8, 8), (32, 32)), ((5, 6), (23, 19)), ((40, 40), (40, 40))])
def test_dtypes(dtype, nodes, pixels):
    logits, target, weight = problem(classes=19, nodes=nodes, pixels=pixels, dtype=dtype)

    nll, smooth, _ = pixel_nll(logits, target, ignore_index=255, smoothing_weight=weight)

    assert nll.dtype == smooth.dtype == torch.float32
    precision = dict(float16=2e-3, bfloat16=2e-2, float32=2e-6)[str(dtype).removeprefix('torch.')]
    assert_equal_to_pytorch(logits, target, weight, rtol=precision)


@pytest.mark.parametrize(('nodes', 'pixels'), [((3, 4), (6, 8)), ((3, 4), (7, 5)), ((3, 4), (3, 4))])
@pytest.mark.parametrize('align_corners', [False, True])
def test_gradcheck(nodes, pixels, align_corners):
    logits, target, weight = problem(classes=3, nodes=nodes, pixels=pixels)
    target[0] = 255

    def loss(z):
        return pixel_nll(z, target, ignore_index=255, smoothing_weight=weight, align_corners=align_corners)[:2]

    torch.autograd.gradcheck(loss, logits.requires_grad_(), fast_mode=False)


def layouts(logits):
    return dict(
        contiguous=logits,
        channels_last=logits.to(memory_format=torch.channels_last),
        strided=torch.stack([logits, logits], -1)[..., 0],
        expanded=logits[:1].expand_as(logits),
    )


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'strided', 'expanded'])
@pytest.mark.parametrize('pixels', [(12, 14), (6, 7)])
@pytest.mark.parametrize('smoothing', [False, True])
def test_registration(layout, pixels, smoothing):
    logits, target, weight = problem(classes=6, pixels=pixels, dtype=torch.float32)
    logits = layouts(logits)[layout].detach().requires_grad_()

    arguments = (logits, target, 255, weight if smoothing else None, False)
    torch.library.opcheck(torch.ops.mmseg_wce.pixel_nll.default, arguments)


def test_registration_with_a_transposed_target():
    logits, target, _ = problem(pixels=(14, 12), dtype=torch.float32)

    for compiled in (False, True):
        function = torch.compile(pixel_nll, fullgraph=True) if compiled else pixel_nll
        found = function(logits, target.transpose(1, 2), ignore_index=255)
        expected = pixel_nll(logits, target.transpose(1, 2).contiguous(), ignore_index=255)
        torch.testing.assert_close(found, expected)
    torch.library.opcheck(torch.ops.mmseg_wce.pixel_nll.default, (logits, target.transpose(1, 2), 255, None, False))


@backends
@pytest.mark.parametrize(
    ('logits', 'target', 'weight'),
    [
        ((1, 5, 7, 9), (2, 20, 30), None),
        ((1, 5, 7, 9), (2, 7, 9), None),
        ((2, 5, 7, 9), (1, 7, 9), None),
        ((1, 5, 80, 90), (2, 80, 90), None),
        ((1, 5, 0, 9), (1, 7, 9), None),
        ((2, 5, 7), (2, 14), None),
        ((2, 5, 7, 9), (2, 63), None),
        ((2, 0, 7, 9), (2, 7, 9), None),
        ((5,), (), None),
        ((2, 5, 7, 9), (2, 7, 9), (4,)),
    ],
)
def test_shapes_that_do_not_fit(backend, logits, target, weight):
    with pytest.raises(ValueError, match=r'\(.*\) and target \(') as caught:
        pixel_nll(
            torch.zeros(logits),
            torch.zeros(target, dtype=torch.long),
            ignore_index=255,
            smoothing_weight=None if weight is None else torch.ones(weight),
            backend=backend,
        )

    assert str(logits) in str(caught.value)


@pytest.mark.parametrize('layout', ['channels_last', 'strided', 'expanded'])
@pytest.mark.parametrize('pixels', [(12, 14), (6, 7), (64, 80)])
def test_layouts_in_memory(layout, pixels):
    logits, target, weight = problem(pixels=pixels, nodes=(6, 7) if pixels[0] < 64 else pixels)

    assert_equal_to_pytorch(layouts(logits)[layout], target[:1].expand_as(target), weight)


def test_gradients_of_stride_zero():
    logits, target, _ = problem()
    logits.requires_grad_()

    (summed,) = torch.autograd.grad(pixel_nll(logits, target, ignore_index=255)[0].sum(), logits)
    (dense,) = torch.autograd.grad(pixel_nll(logits, target, ignore_index=255)[0], logits, torch.ones(target.shape))

    torch.testing.assert_close(summed, dense)


def test_a_second_derivative_raises():
    logits, target, _ = problem()
    logits.requires_grad_()
    nll, _, _ = pixel_nll(logits, target, ignore_index=255)

    (gradient,) = torch.autograd.grad(nll.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='no autograd formula was registered'):
        torch.autograd.grad(gradient.pow(2).sum(), logits)


def test_forward_mode_raises():
    logits, target, _ = problem()

    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='forward-mode'):
        pixel_nll(forward_ad.make_dual(logits, torch.ones_like(logits)), target, ignore_index=255)


def test_second_derivatives_of_the_reference_and_inside_torch_func():
    logits, target, _ = problem(classes=3, nodes=(2, 2), pixels=(4, 4), images=1)

    def loss(z, backend):
        return pixel_nll(z, target, ignore_index=255, backend=backend)[0].sum()

    expected = torch.autograd.functional.hessian(lambda z: loss(z, 'reference'), logits)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(torch.func.hessian(lambda z: loss(z, None))(logits), expected)


@pytest.mark.parametrize('smoothing', [False, True])
@pytest.mark.parametrize('pixels', [(20, 25), (6, 7)])
def test_compiles_whole(smoothing, pixels):
    logits, target, weight = problem(pixels=pixels, dtype=torch.float32)

    def loss(z):
        nll, smooth, correct = pixel_nll(
            z * 2, target, ignore_index=255, smoothing_weight=weight if smoothing else None
        )
        return (nll + smooth).sum() + correct.sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        z = logits.clone().requires_grad_()
        value = function(z)
        value.backward()
        results.append((value.detach(), z.grad))
    torch.testing.assert_close(*results)


def test_inference_mode_and_no_grad():
    logits, target, weight = problem()
    expected = pixel_nll(logits, target, ignore_index=255, smoothing_weight=weight)

    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            found = pixel_nll(logits.clone(), target.clone(), ignore_index=255, smoothing_weight=weight)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_choice_of_the_back_end(monkeypatch):
    logits, target, _ = problem(classes=6)
    operation = torch.ops.mmseg_wce.pixel_nll.default
    used = []
    monkeypatch.setattr('mmseg_wce.kernels.op._forward', lambda *a: used.append('op') or operation(*a))

    def chosen(**options) -> list[str]:
        used.clear()
        pixel_nll(logits, target, ignore_index=255, **options)
        return list(used)

    assert chosen() == chosen(backend='strips') == ['op']
    assert _chosen(None, torch.device('cuda')) == 'reference'
    assert chosen(backend='reference') == []
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'reference')
    assert chosen() == []
    assert chosen(backend='strips') == ['op']
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'cuda')
    with pytest.raises(ValueError, match=rf"{ENVIRONMENT_VARIABLE} must be one of .*'strips'.*got 'cuda'"):
        chosen()
    with pytest.raises(ValueError, match=r"backend must be one of .*got 'fast'"):
        chosen(backend='fast')


@backends
def test_correct_means_the_lowest_class_at_a_tie(backend):
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, :, 0, 2] = torch.tensor([0.0, 1.0, 1.0])

    _, _, correct = pixel_nll(logits, torch.tensor([[[0, 1, 1]]]), ignore_index=255, backend=backend)

    assert correct.tolist() == [[[True, False, True]]]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('nodes', 'pixels'), [((8, 9), (32, 36)), ((8, 9), (30, 31)), ((40, 41), (40, 41))])
def test_channels_that_are_equal_everywhere_tie_everywhere(dtype, nodes, pixels):
    logits, _, _ = problem(classes=40, nodes=nodes, pixels=pixels, dtype=dtype)
    logits = torch.cat([logits, logits], 1)  # 40 + c is c
    z = logits[:, :40].double() if nodes == pixels else resize(logits[:, :40].double(), pixels)
    (first, second), (winner, _) = (x.unbind(1) for x in z.topk(2, dim=1))
    winner[first - second < 1e-4] = 255  # too close to call between two different channels

    assert torch.equal(pixel_nll(logits, winner, ignore_index=255)[2], winner != 255)
    assert not pixel_nll(logits, torch.where(winner == 255, 255, winner + 40), ignore_index=255)[2].any()


@backends
def test_correct_counts_as_mmseg_does(backend):
    accuracy = pytest.importorskip('mmseg.models.losses', reason='mmseg is not installed').accuracy
    logits, target, _ = problem(classes=19, nodes=(32, 32), pixels=(128, 128), dtype=torch.float32)
    target = torch.where(
        torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5,
        resize(logits, (128, 128)).argmax(1),
        target,
    )
    target[:, :10] = 255

    _, _, correct = pixel_nll(logits, target, ignore_index=255, backend=backend)

    theirs = accuracy(resize(logits, (128, 128)), target, ignore_index=255)
    torch.testing.assert_close(100 * correct.sum() / (target != 255).sum(), theirs[0])


@backends
def test_nan_logits_are_never_correct(backend):
    logits = torch.full((1, 3, 1, 1), math.nan)

    assert not pixel_nll(logits, torch.zeros(1, 1, 1, dtype=torch.long), ignore_index=255, backend=backend)[2].any()


@backends
@pytest.mark.parametrize('bad', [5, 254, -1, 10**9, -(10**9)])
@pytest.mark.parametrize('classes', [3, 5])
def test_a_bad_target_is_nan_and_never_an_index(bad, classes, backend):
    logits = torch.randn(1, classes, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, bad], [255, 2]]])

    nll, smooth, correct = pixel_nll(
        logits, target, ignore_index=255, smoothing_weight=torch.ones(classes), backend=backend
    )

    assert nll.isnan().tolist() == smooth.isnan().tolist() == [[[False, True], [False, False]]]
    assert nll[0, 1, 0] == smooth[0, 1, 0] == 0
    assert not correct[0, 0, 1]
    (gradient,) = torch.autograd.grad(nll[0, 0, 0], logits)
    assert gradient[:, :, 0, 1].eq(0).all()


@pytest.mark.parametrize('classes', [4, 9])
@pytest.mark.parametrize(('nodes', 'pixels'), [((6, 6), (24, 24)), ((6, 6), (21, 17)), ((16, 16), (16, 16))])
@pytest.mark.parametrize('poison', [math.nan, math.inf])
def test_a_poisoned_node_stays_where_it_is(classes, nodes, pixels, poison):
    """Pixels without it among their four neighbours keep their values, and so do gradients of nodes next to no such."""
    logits, target, weight = problem(classes=classes, nodes=nodes, pixels=pixels)
    poisoned = logits.clone()
    poisoned[0, 2, 2, 3] = poison
    touched = torch.zeros(1, 1, *nodes, dtype=torch.float64)
    touched[..., 2, 3] = 1
    touched = (touched if nodes == pixels else resize(touched, pixels))[0, 0] > 0

    def sweep(z, only):
        z = z.clone().requires_grad_()
        nll, smooth, _ = pixel_nll(z, only, ignore_index=255, smoothing_weight=weight)
        (gradient,) = torch.autograd.grad((nll + smooth).sum(), z)
        return nll.detach(), smooth.detach(), gradient

    clean, found = sweep(logits, target), sweep(poisoned, target)
    assert torch.equal(found[0][0].isnan(), touched & (target[0] != 255))
    for a, b in zip(found[:2], clean[:2], strict=True):
        torch.testing.assert_close(a[0][~touched], b[0][~touched])
        torch.testing.assert_close(a[1], b[1])
    near = torch.zeros(nodes, dtype=torch.bool)
    near[1:4, 2:5] = True
    torch.testing.assert_close(found[2][0][:, ~near], clean[2][0][:, ~near])
    torch.testing.assert_close(found[2][1], clean[2][1])

    target[0][touched] = 255  # ignored, it contributes exactly nothing
    clean, found = sweep(logits, target), sweep(poisoned, target)
    assert all(x.isfinite().all() for x in found)
    torch.testing.assert_close(found, clean)


@pytest.mark.parametrize('classes', [4, 9])
@pytest.mark.parametrize('pixels', [(24, 24), (21, 17), (6, 6)])
def test_a_masked_class_is_finite(classes, pixels):
    logits, target, weight = problem(classes=classes, nodes=(6, 6), pixels=pixels)
    target[target == 1] = 0
    weight[1] = 0
    masked, almost = logits.clone(), logits.clone()
    masked[:, 1], almost[:, 1] = -math.inf, -1e4

    def sweep(z):
        z = z.requires_grad_()
        nll, smooth, _ = pixel_nll(z, target, ignore_index=255, smoothing_weight=weight)
        return nll, smooth, *torch.autograd.grad((nll + smooth).sum(), z)

    torch.testing.assert_close(sweep(masked), sweep(almost))

    nll, _, _ = pixel_nll(masked, torch.ones_like(target), ignore_index=255)
    assert (nll == math.inf).all()  # as F.cross_entropy of the masked class
    _, smooth, _ = pixel_nll(masked, target, ignore_index=255, smoothing_weight=torch.ones(classes).double())
    assert (smooth[target != 255] == math.inf).all()


def test_very_large_logits_are_not_taken_for_masked_ones():
    logits = torch.tensor([[[[0.0]], [[-1e30]], [[1.0]], [[2.0]], [[3.0]]]])

    nll, _, _ = pixel_nll(logits, torch.ones(1, 2, 2, dtype=torch.long), ignore_index=255)

    torch.testing.assert_close(nll, torch.full((1, 2, 2), 1e30))


@pytest.mark.parametrize('classes', [2, 150])
@pytest.mark.parametrize('pixels', [(64, 64), (59, 64), (16, 16)])
def test_one_pixel_that_counts(classes, pixels):
    logits, target, weight = problem(classes=classes, nodes=(16, 16), pixels=pixels, ignored=1.0)
    target[1, 7, 9] = 1

    assert_equal_to_pytorch(logits, target, weight)


def test_offsets_beyond_32_bits():
    """Stride-0 logits of more than 2^31 numbers: what the last columns get is what the first ones get."""
    classes, width = 1 << 10, (1 << 21) + 5
    logits = torch.linspace(-1, 1, classes).view(1, classes, 1, 1).expand(1, classes, 1, width)
    target = torch.full((1, 1, width), 7)

    nll, _, correct = pixel_nll(logits, target, ignore_index=255)

    assert logits.numel() > 2**31
    expected = F.cross_entropy(logits[..., 0, :1], target[:, 0, :1])
    torch.testing.assert_close(nll, expected.expand(1, 1, width))
    assert not correct.any()


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
def test_bit_equal_from_run_to_run_and_for_any_number_of_threads(classes, nodes, pixels, align_corners):
    logits, target, weight = problem(classes=classes, nodes=nodes, pixels=pixels, dtype=torch.float32)

    def sweep(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            z = logits.clone().requires_grad_()
            nll, smooth, correct = pixel_nll(
                z, target, ignore_index=255, smoothing_weight=weight, align_corners=align_corners
            )
            (gradient,) = torch.autograd.grad((nll + smooth).sum(), z)
            return nll, smooth, correct, gradient
        finally:
            torch.set_num_threads(before)

    first = sweep(2)
    for threads in (2, 1, 3):
        assert all(torch.equal(a, b) for a, b in zip(sweep(threads), first, strict=True))


@pytest.mark.parametrize(('shape', 'smoothing'), itertools.product([(0, 4, 4), (2, 0, 4)], [False, True]))
def test_empty_targets(shape, smoothing):
    logits = torch.randn(shape[0], 5, 2, 2, requires_grad=True)
    weight = torch.ones(5) if smoothing else None

    maps = pixel_nll(logits, torch.zeros(shape, dtype=torch.long), ignore_index=255, smoothing_weight=weight)
    (gradient,) = torch.autograd.grad(maps[0].sum() + maps[1].sum(), logits)

    assert all(m.shape == shape for m in maps)
    assert (gradient == 0).all()
