"""The maps of a binary cross-entropy, against PyTorch on upsampled logits."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from cases import BinaryCase, Recipe, binary_cases, examples, value_and_gradient
from fresh_process import WITHOUT_MMSEG
from hypothesis import given
from mmseg_wce.kernels import binary, pixel_bce
from torch.autograd import forward_ad
from ways import layouts, resize

operation = torch.ops.mmseg_wce.pixel_bce.default


def problem(channels=5, nodes=(6, 7), pixels=(20, 25), dtype=torch.float64, images=2, ignored=0.2):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, channels, *nodes, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(0, max(channels, 2), (images, *pixels), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    return logits, target


def pytorchs(z, one_hot, valid):
    """Sums over the label's own channel and over the others, of full-size logits."""
    loss = F.binary_cross_entropy_with_logits(z, one_hot.to(z.dtype), reduction='none')
    loss = torch.where(valid.unsqueeze(1), loss, 0)
    return torch.where(one_hot, loss, 0).sum(1), torch.where(one_hot, 0, loss).sum(1)


def sweep(maps, logits, upstream):
    logits = logits.detach().clone().requires_grad_()
    positive, negative = maps(logits)[:2]
    (gradient,) = torch.autograd.grad((positive * upstream[0] + negative * upstream[1]).sum(), logits)
    return positive.detach(), negative.detach(), gradient


@given(case=binary_cases())
@examples(100)
def test_maps_and_gradients_are_pytorchs(case: BinaryCase):
    upstream = torch.randn(2, *case.target.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = dict(ignore_index=case.ignore_index, align_corners=case.align_corners)

    found = sweep(lambda z: pixel_bce(z, case.target.long(), **options), case.logits, upstream)

    expected = sweep(lambda z: pytorchs(case.resized(z), case.one_hot(), case.valid), case.logits, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@given(case=binary_cases())
@examples(50)
def test_inside_torch_func_the_same_maps(case: BinaryCase):
    options = dict(ignore_index=case.ignore_index, align_corners=case.align_corners)
    target = case.target.long()

    def maps(z):
        return pixel_bce(z, target, **options)

    expected = maps(case.logits)
    _, gradient = torch.func.vjp(lambda z: maps(z)[:2], case.logits)

    for found, theirs in zip(torch.func.vmap(maps)(case.logits[None]), expected, strict=True):
        torch.testing.assert_close(found[0], theirs, rtol=1e-10, atol=1e-12)
    ones = torch.ones_like(expected[0])
    by_autograd = sweep(maps, case.logits, (ones, ones))[2]
    torch.testing.assert_close(gradient((ones, ones))[0], by_autograd, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('chunk_bytes', [1, 3000, 8000])
@pytest.mark.parametrize('channels', [1, 2, 3, 7])
@pytest.mark.parametrize('pixels', [(20, 25), (6, 7)])
def test_in_any_number_of_chunks(monkeypatch, channels, pixels, chunk_bytes):
    logits, target = problem(channels, pixels=pixels)
    upstream = torch.randn(2, *target.shape, dtype=torch.float64)
    expected = (
        *sweep(lambda z: pixel_bce(z, target, ignore_index=255), logits, upstream),
        pixel_bce(logits, target, ignore_index=255)[2],
    )

    monkeypatch.setattr(binary, '_CHUNK_BYTES', chunk_bytes)
    found = sweep(lambda z: pixel_bce(z, target, ignore_index=255), logits, upstream)

    torch.testing.assert_close(found, expected[:3], rtol=1e-12, atol=1e-12)
    assert torch.equal(pixel_bce(logits, target, ignore_index=255)[2], expected[3])


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'strided', 'expanded'])
@pytest.mark.parametrize('pixels', [(12, 14), (6, 7)])
@pytest.mark.parametrize('channels', [1, 6])
def test_registration(layout, pixels, channels):
    logits, target = problem(channels, pixels=pixels, dtype=torch.float32)
    logits = layouts(logits)[layout].detach().requires_grad_()

    torch.library.opcheck(operation, (logits, target, 255, 0.5, False, 0.0))
    torch.library.opcheck(operation, (logits[..., :6, :6], target[:, :6, :6].mT, 255, 0.3, True, 2.0))


def test_logits_are_left_as_they_are():
    """The sweeps get the user's own memory if float32 logits are not resized."""
    logits, target = problem(3, pixels=(6, 7), dtype=torch.float32)
    before = logits.clone()

    sweep(lambda z: pixel_bce(z, target, ignore_index=255), logits.requires_grad_(), torch.ones(2, 1))
    pixel_bce(logits, target, ignore_index=255)[0].sum().backward()

    assert torch.equal(logits.detach(), before)


def test_a_second_derivative_and_forward_mode_raise():
    logits, target = problem()
    gradient = torch.autograd.grad(
        pixel_bce(logits.requires_grad_(), target, ignore_index=255)[0].sum(), logits, create_graph=True
    )[0]

    with pytest.raises(RuntimeError, match='no autograd formula was registered'):
        torch.autograd.grad(gradient.pow(2).sum(), logits)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='pixel_bce has no forward-mode'):
        pixel_bce(forward_ad.make_dual(logits.detach(), torch.ones_like(logits)), target, ignore_index=255)


def test_second_derivatives_inside_torch_func():
    logits, target = problem(3, (2, 2), (4, 4), images=1)

    def ours(z):
        return sum(m.sum() for m in pixel_bce(z, target, ignore_index=255)[:2])

    def theirs(z):
        one_hot = torch.stack([target == c for c in range(3)], 1)
        return sum(m.sum() for m in pytorchs(resize(z, (4, 4)), one_hot, target != 255))

    expected = torch.autograd.functional.hessian(theirs, logits)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(torch.func.hessian(ours)(logits), expected)


@pytest.mark.parametrize(('channels', 'pixels'), [(1, (20, 25)), (5, (6, 7))])
def test_compiles_without_graph_breaks(channels, pixels):
    logits, target = problem(channels, pixels=pixels, dtype=torch.float32)

    def loss(z):
        positive, negative, correct = pixel_bce(z * 2, target, ignore_index=255)
        return (positive + 3 * negative).sum() + correct.sum()

    torch.testing.assert_close(
        value_and_gradient(torch.compile(loss, fullgraph=True), logits), value_and_gradient(loss, logits)
    )


def test_one_channel_is_correct_at_the_threshold():
    probability = torch.tensor([0.2, 0.31, 0.6, 0.2, 0.31, 0.6, 0.9])
    logits, target = probability.logit().view(1, 1, 1, 7), torch.tensor([[[0, 0, 0, 1, 1, 1, 255]]])

    for threshold in (0.3, 0.5):
        predicted = (logits.sigmoid() > threshold).squeeze(1).long()  # as mmseg predicts
        found = pixel_bce(logits, target, ignore_index=255, threshold=threshold)[2]
        assert torch.equal(found, (predicted == target) & (target != 255))


@given(case=binary_cases(dtypes=(torch.float32, torch.bfloat16)))
@examples(100)
def test_correct_is_the_arg_max(case: BinaryCase):
    if case.logits.shape[1] > 1:
        z = case.resized(case.logits.float())
        _, _, correct = pixel_bce(
            case.logits, case.target.long(), ignore_index=case.ignore_index, align_corners=case.align_corners
        )
        assert torch.equal(correct, (z.max(1)[1] == case.target) & case.valid)


def test_correct_means_the_lowest_class_at_a_tie(monkeypatch):
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, :, 0, 2] = torch.tensor([0.0, 1.0, 1.0])

    for chunk_bytes in (1, 10**6):
        monkeypatch.setattr(binary, '_CHUNK_BYTES', chunk_bytes)
        _, _, correct = pixel_bce(logits, torch.tensor([[[0, 1, 1]]]), ignore_index=255)
        assert correct.tolist() == [[[True, False, True]]]


@pytest.mark.parametrize('channels', [1, 2, 5])
def test_nan_is_never_correct(channels):
    for label in (0, 1):
        logits, target = torch.full((1, channels, 2, 2), math.nan), torch.full((1, 2, 2), label)
        assert not pixel_bce(logits, target, ignore_index=255)[2].any()


@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('pixels', [(6, 6), (24, 24), (21, 17)])
def test_ignored_pixels_contribute_exactly_nothing(poison, channels, pixels):
    logits, target = problem(channels, (6, 6), pixels)
    poisoned = logits.clone()
    poisoned[0, -1, 2, 3] = poison
    touched = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    touched[..., 2, 3] = 1
    target[0][(touched if pixels == (6, 6) else resize(touched, pixels))[0, 0] > 0] = 255
    upstream = torch.randn(2, *target.shape, dtype=torch.float64)
    clean, found = (sweep(lambda z: pixel_bce(z, target, ignore_index=255), z, upstream) for z in (logits, poisoned))

    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))
    assert (clean[2].abs() > 0).any()


@pytest.mark.parametrize('bad', [5, 254, -1, 10**9, -(10**9)])
@pytest.mark.parametrize('channels', [1, 2, 5])
def test_a_bad_target_counts_for_nothing_and_is_never_an_index(bad, channels):
    logits, target = torch.randn(1, channels, 2, 2, requires_grad=True), torch.tensor([[[0, bad], [255, 1]]])

    positive, negative, correct = pixel_bce(logits, target, ignore_index=255)
    (gradient,) = torch.autograd.grad((positive + negative).sum(), logits)

    assert positive[0, 0, 1] == negative[0, 0, 1] == 0
    assert not correct[0, 0, 1]
    assert gradient[:, :, 0, 1].eq(0).all()
    assert gradient[:, :, 1, 1].ne(0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('pixels', [(24, 24), (21, 17), (6, 6)])
def test_a_masked_class_is_finite_unless_it_is_the_label(dtype, pixels):
    logits, target = problem(4, (6, 6), pixels, dtype=dtype)
    target[target == 1] = 0
    masked, almost = logits.clone(), logits.clone()
    masked[:, 1], almost[:, 1] = -math.inf, -1e4

    def maps(z):
        return pixel_bce(z, target, ignore_index=255)

    torch.testing.assert_close(sweep(maps, masked, torch.ones(2, 1)), sweep(maps, almost, torch.ones(2, 1)))
    assert (pixel_bce(masked, torch.ones_like(target), ignore_index=255)[0] == math.inf).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('large', [1e4, 1e30])
def test_large_logits_keep_their_digits(dtype, large):
    large = min(large, 1e4) if dtype == torch.float16 else large
    logits = (torch.tensor([[[large, -large]]]).view(1, 1, 1, 2)).to(dtype)

    positive, negative, _ = pixel_bce(logits, torch.tensor([[[0, 1]]]), ignore_index=255)

    exact = logits.double().abs().flatten()
    torch.testing.assert_close(negative[0, 0, 0].double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(positive[0, 0, 1].double(), exact[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize('z', [-200.0, -41.0, -39.0, -20.1, 0.0, 20.1, 39.0, 41.0])
def test_small_losses_keep_their_digits_in_float64(z):
    """F.softplus is linear above 20 by default, which drops 2e-9."""
    logits = torch.full((1, 1, 1), z, dtype=torch.float64)

    positive, _, _ = pixel_bce(logits, torch.ones(1, 1, dtype=torch.int64), ignore_index=255)

    exact = math.log1p(math.exp(-z)) if z > -200 else -z
    assert positive.item() == pytest.approx(exact, rel=1e-15, abs=0)


@pytest.mark.parametrize(('shape', 'channels'), [((0, 4, 4), 3), ((2, 0, 4), 3), ((0, 4, 4), 1), ((2, 0, 4), 1)])
def test_empty_targets(shape, channels):
    logits = torch.randn(shape[0], channels, 2, 2, requires_grad=True)

    maps = pixel_bce(logits, torch.zeros(shape, dtype=torch.long), ignore_index=255)
    (gradient,) = torch.autograd.grad(maps[0].sum() + maps[1].sum(), logits)

    assert all(m.shape == shape for m in maps)
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ('logits', 'target'), [((1, 5, 7, 9), (2, 20, 30)), ((2, 5, 7), (2, 14)), ((2, 0, 7, 9), (2, 7, 9)), ((5,), ())]
)
def test_shapes_that_do_not_fit(logits, target):
    with pytest.raises(ValueError, match=r'\(.*\) and target \('):
        pixel_bce(torch.zeros(logits), torch.zeros(target, dtype=torch.long), ignore_index=255)


def test_a_target_that_is_not_int64():
    with pytest.raises(TypeError, match=r'int64, got torch.int32: convert it with target.long\(\)'):
        pixel_bce(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int32), ignore_index=255)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('nodes', 'pixels'), [((6, 7), (24, 28)), ((6, 7), (5, 20)), ((1, 1), (4, 4))])
def test_transposed_interpolation_by_matrices(nodes, pixels, align_corners):
    """Run on CPU the code for CUDA with deterministic algorithms."""
    gradient, shape = torch.randn(2, 3, *pixels, dtype=torch.float64), torch.Size((2, 3, *nodes))
    z = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(
        F.interpolate(z, size=pixels, mode='bilinear', align_corners=align_corners), z, gradient
    )

    torch.testing.assert_close(binary._downsample_by_matrices(gradient, shape, align_corners), expected)


MEMORY = """
import json, torch
from pathlib import Path
from mmseg_wce.kernels import pixel_bce

def status(key):
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6

def step(channels, nodes, pixels):
    torch.manual_seed(0)
    logits = torch.randn(1, channels, nodes, nodes, requires_grad=True)
    target = torch.randint(0, channels, (1, pixels, pixels))
    before = status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # resets the high-water mark
    positive, negative, _ = pixel_bce(logits, target, ignore_index=255)
    (positive.sum() + negative.sum()).backward()
    return status('VmHWM') - before

step(4, 8, 32)
# the least: pages that the system had taken away meanwhile come back during a step
print(json.dumps([min(step(150, 128, 512) for _ in range(3))]))
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_neither_sweep_holds_full_size_logits():
    """A process of its own, whose peak is not that of other tests. Full-size logits are 157 MB, the gradient 10 MB."""
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', WITHOUT_MMSEG + MEMORY], capture_output=True, text=True, check=True
    )

    (extra,) = json.loads(process.stdout.splitlines()[-1])
    print(f'{extra:.0f} MB')
    assert extra < 75


def test_a_recipe_prints_what_makes_it_again():
    case = Recipe(classes=1, size=(2, 3), target_size=(2, 3), special_weight=(1, 2.0), one_weight=True).binary_case()
    printed = []
    case._repr_pretty_(type('Printer', (), dict(text=staticmethod(printed.append))), False)

    again = eval(printed[0])
    assert torch.equal(again.logits, case.logits)
    assert torch.equal(again.class_weight, case.class_weight)
    assert case.class_weight.shape == (1,)
