import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from cases import value_and_gradient
from mmseg_wce.functional import weighted_cross_entropy
from mmseg_wce.kernels import backends, pixel_maps, pixel_nll
from mmseg_wce.kernels.backends import ENVIRONMENT_VARIABLE, chosen_backend, has_triton
from torch.autograd import forward_ad
from ways import NUMBA, SLABS, every_way, fused, fused_or_slowly, layouts

operation = torch.ops.mmseg_wce.pixel_nll.default


@fused_or_slowly
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'strided', 'expanded'])
@pytest.mark.parametrize('pixels', [(12, 14), (6, 7)])
@pytest.mark.parametrize('smoothing', [False, True])
def test_registration(way, layout, pixels, smoothing):
    logits, target, weight = way.problem(classes=6, pixels=pixels, dtype=torch.float32)
    logits = layouts(logits)[layout].detach().requires_grad_()

    torch.library.opcheck(operation, (logits, target, 255, weight if smoothing else None, weight, False, way.backend))


@fused
def test_registration_with_a_transposed_target(way):
    logits, target, _ = way.problem(pixels=(14, 12), dtype=torch.float32)

    for compiled in (False, True):
        function = torch.compile(way, fullgraph=True) if compiled else way
        found, expected = (function(logits, y) for y in (target.mT, target.mT.contiguous()))
        torch.testing.assert_close(found, expected)
    torch.library.opcheck(operation, (logits, target.mT, 255, None, None, False, way.backend))


@every_way
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
def test_shapes_that_do_not_fit(way, logits, target, weight):
    with pytest.raises(ValueError, match=r'\(.*\) and target \(') as caught:
        way(
            torch.zeros(logits),
            torch.zeros(target, dtype=torch.long),
            smoothing_weight=None if weight is None else torch.ones(weight),
        )

    assert str(logits) in str(caught.value)


@every_way
@pytest.mark.parametrize('shape', [(1,), (2,), (2000,), (3, 1), ()])
def test_class_weights_of_another_number_of_classes(way, shape):
    with pytest.raises(ValueError, match=r'class_weight .* must have one weight per class'):
        pixel_maps(
            torch.zeros(1, 3, 4, 4, device=way.device),
            torch.zeros(1, 8, 8, dtype=torch.long, device=way.device),
            torch.ones(shape, device=way.device),
            ignore_index=255,
            backend=way.backend,
        )


@every_way
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.float32])
def test_a_target_that_is_not_int64(way, dtype):
    logits, target, _ = way.problem()

    with pytest.raises(TypeError, match=r'target must be int64, got torch\..*target.long()'):
        way(logits, target.to(dtype))


@fused
def test_a_second_derivative_raises(way):
    logits, target, _ = way.problem()
    logits.requires_grad_()
    nll, _, _ = way(logits, target)

    (gradient,) = torch.autograd.grad(nll.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='no autograd formula was registered'):
        torch.autograd.grad(gradient.pow(2).sum(), logits)


@fused
def test_forward_mode_raises(way):
    logits, target, _ = way.problem()

    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='forward-mode'):
        way(forward_ad.make_dual(logits, torch.ones_like(logits)), target)


def test_second_derivatives_of_the_reference_and_inside_torch_func():
    logits, target, _ = SLABS.problem(classes=3, nodes=(2, 2), pixels=(4, 4), images=1)

    def loss(z, backend):
        return pixel_nll(z, target, ignore_index=255, backend=backend)[0].sum()

    expected = torch.autograd.functional.hessian(lambda z: loss(z, 'reference'), logits)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(torch.func.hessian(lambda z: loss(z, None))(logits), expected)


@fused
@pytest.mark.parametrize(('smoothing', 'pixels'), [(True, (20, 25)), (False, (6, 7))])
def test_compiles_without_graph_breaks(way, smoothing, pixels):
    logits, target, weight = way.problem(pixels=pixels, dtype=torch.float32)

    def loss(z):
        nll, smooth, correct = way(z * 2, target, smoothing_weight=weight if smoothing else None)
        return (nll + smooth).sum() + correct.sum()

    torch.compiler.reset()  # the same code object is compiled for every way: there is a limit
    torch.testing.assert_close(
        value_and_gradient(torch.compile(loss, fullgraph=True), logits), value_and_gradient(loss, logits)
    )


@fused
def test_inference_mode_and_no_grad(way):
    logits, target, weight = way.problem()
    expected = way(logits, target, smoothing_weight=weight)

    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            found = way(logits.clone(), target.clone(), smoothing_weight=weight)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_choice_of_the_back_end(monkeypatch):
    logits, target, _ = SLABS.problem(classes=6, dtype=torch.float32)
    used = []
    monkeypatch.setattr('mmseg_wce.kernels.op._forward', lambda *a: used.append(a[-1]) or operation(*a))

    def chosen(**options) -> list[str]:
        used.clear()
        pixel_nll(logits, target, ignore_index=255, **options)
        return list(used)

    assert chosen() == chosen(backend='cpu') == ['cpu']
    assert chosen(backend='reference') == []
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'reference')
    assert chosen() == []
    assert chosen(backend='slabs') == ['slabs']
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'cuda')
    with pytest.raises(ValueError, match=rf"{ENVIRONMENT_VARIABLE} must be one of .*'slabs'.*got 'cuda'"):
        chosen()
    with pytest.raises(ValueError, match=r"backend must be one of .*got 'fast'"):
        chosen(backend='fast')


def test_the_old_name_strips_works_and_warns():
    logits, target, _ = NUMBA.problem()

    with pytest.warns(DeprecationWarning, match="backend='strips' is now called 'cpu'"):
        found = pixel_nll(logits, target, ignore_index=255, backend='strips')

    assert all(torch.equal(a, b) for a, b in zip(found, NUMBA(logits, target), strict=True))
    assert chosen_backend('strips', torch.device('cuda'), torch.float32) == 'slabs'


def test_the_cpu_back_end_says_what_it_cannot_take_and_leaves_float64_to_slabs():
    with pytest.raises(ValueError, match=r"backend='cpu' needs logits on the CPU, got cuda: use 'slabs'"):
        chosen_backend('cpu', torch.device('cuda'), torch.float32)

    assert chosen_backend('cpu', torch.device('cpu'), torch.float64) == 'slabs'


def test_small_inputs_go_to_the_reference_instead_of_slabs():
    small = torch.device('cpu'), torch.float64, 1000

    assert chosen_backend(None, *small) == 'reference'
    assert chosen_backend(None, torch.device('cpu'), torch.float32, 1000) == 'cpu'
    assert chosen_backend('slabs', *small) == 'slabs'


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_defaults_for_new_tensors_change_nothing(smoothing):
    """Neither the dtype nor the device that PyTorch gives to tensors which are made without saying which."""
    logits, target, _ = NUMBA.problem()
    options = dict(ignore_index=255, label_smoothing=smoothing)
    expected = weighted_cross_entropy(logits, target, **options)
    try:
        torch.set_default_dtype(torch.float64)
        torch.testing.assert_close(weighted_cross_entropy(logits, target, **options), expected)
    finally:
        torch.set_default_dtype(torch.float32)

    with torch.device('meta'):
        found = weighted_cross_entropy(logits, target, **options)

    torch.testing.assert_close(found, expected)


@every_way
def test_counts_of_correct_and_valid_pixels(way):
    logits, target, _ = way.problem(pixels=(6, 7))

    found = pixel_maps(logits, target, ignore_index=255, backend=way.backend).count_pixels(target, 255)

    assert [int(x) for x in found] == [int((logits.argmax(1) == target).sum()), int((target != 255).sum())]


@pytest.mark.parametrize('smoothing', [False, True])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('pixels', [(20, 25), (6, 7), (3, 5)])
def test_sums_are_those_of_the_maps(weighted, smoothing, pixels):
    logits, target, weight = NUMBA.problem(classes=7, pixels=pixels)
    target[0, 0, 0], target[0, 0, 1] = 7, -3  # invalid
    class_weight = torch.linspace(0, 3, 7) if weighted else None
    z = [logits.clone().requires_grad_() for _ in range(2)]
    options = dict(ignore_index=255, smoothing_weight=weight if smoothing else None)

    found = pixel_maps(z[0], target, class_weight, **options).sums
    nll, smooth, correct = pixel_nll(z[1], target, **options)

    valid = (target >= 0) & (target < 7)
    label_weight = torch.where(valid, (torch.ones(7) if class_weight is None else class_weight)[target.clamp(0, 6)], 0)
    expected = (torch.where(valid, label_weight * nll, 0), torch.where(valid, smooth, 0), label_weight, valid, correct)
    expected = [*(x.float().sum() for x in expected[:3]), *(x.sum() for x in expected[3:])]
    torch.testing.assert_close(list(found), [*expected, torch.tensor(2)])
    gradients = [
        torch.autograd.grad(0.3 * a + 0.2 * b, x)[0]
        for (a, b), x in zip([(found.loss, found.smooth), expected[:2]], z, strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_pixels_are_counted_exactly_beyond_what_float32_counts():
    pixels = (1, 4097, 4097)
    assert torch.tensor(4097**2).float().long() != 4097**2

    sums = pixel_maps(torch.zeros(1, 1, *pixels[1:]), torch.zeros(pixels, dtype=torch.long), ignore_index=255).sums

    assert sums.valid == sums.correct == 4097**2


@pytest.mark.parametrize(
    ('device', 'dtype', 'works', 'expected'),
    [
        ('cpu', torch.float32, True, 'cpu'),
        ('cuda', torch.float32, True, 'triton'),
        ('cuda', torch.bfloat16, True, 'triton'),
        ('cuda', torch.float16, False, 'slabs'),
        ('cuda', torch.float64, True, 'slabs'),
        ('mps', torch.float32, True, 'slabs'),
        ('meta', torch.float32, True, 'reference'),
    ],
)
def test_back_end_of_a_device_and_dtype(device, dtype, works, expected, monkeypatch):
    monkeypatch.setattr('mmseg_wce.kernels.backends.can_use_triton', lambda index: works)

    assert chosen_backend(None, torch.device(device), dtype) == expected


def test_triton_says_what_it_cannot_take(monkeypatch):
    def choose(dtype=torch.float32, device='cuda'):
        return chosen_backend('triton', torch.device(device), dtype)

    monkeypatch.setenv('TRITON_INTERPRET', '0')
    monkeypatch.setattr('mmseg_wce.kernels.backends.has_triton', lambda: True)
    assert choose() == 'triton'
    with pytest.raises(ValueError, match=r"backend='triton' takes float32, float16 and bfloat16.*got torch.float64"):
        choose(torch.float64)
    with pytest.raises(ValueError, match=r"backend='triton' needs logits on a CUDA device, got cpu: use 'slabs'"):
        choose(device='cpu')
    monkeypatch.setattr('mmseg_wce.kernels.backends.has_triton', lambda: False)
    with pytest.raises(ValueError, match='pip install triton'):
        choose()


@pytest.mark.parametrize(('version', 'expected'), [('3.2.1', False), ('3.3.0', True), ('3.10.0+git1', True)])
def test_a_triton_that_is_old_or_broken_is_none(version, expected, monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setitem(sys.modules, 'triton', SimpleNamespace(__version__=version))
    assert has_triton.__wrapped__() is expected

    monkeypatch.setitem(sys.modules, 'triton', None)  # its import fails
    assert not has_triton.__wrapped__()


@pytest.fixture
def a_gpu_and_triton(monkeypatch):
    """A GPU that is new enough, with a Triton whose kernels do nothing."""
    kernels = SimpleNamespace(run_smallest_kernel=lambda device: None)
    monkeypatch.setitem(sys.modules, 'mmseg_wce.kernels.triton', kernels)
    monkeypatch.setattr(backends, 'has_triton', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    monkeypatch.setattr(backends, '_verdicts', {})
    return kernels


def test_triton_is_the_default_where_it_works(a_gpu_and_triton, caplog):
    assert chosen_backend(None, torch.device('cuda', 0), torch.float32) == 'triton'
    assert not caplog.records


def test_an_old_gpu_takes_another_back_end_and_says_so_once(a_gpu_and_triton, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))

    chosen = [chosen_backend(None, torch.device('cuda', 1), torch.float32) for _ in range(3)]

    assert chosen == ['slabs'] * 3
    (record,) = caplog.records
    assert 'slower back end on cuda:1' in record.getMessage()
    assert 'compute capability is below 8.0' in record.getMessage()


def test_a_triton_that_cannot_compile_is_not_taken(a_gpu_and_triton, caplog):
    def fail(device):
        raise RuntimeError('Failed to find C compiler\nand more')

    a_gpu_and_triton.run_smallest_kernel = fail

    assert chosen_backend(None, torch.device('cuda', 0), torch.float32) == 'slabs'
    assert 'Failed to find C compiler' in caplog.text
    assert 'and more' not in caplog.text


def test_a_triton_that_was_rejected_is_not_taken_during_a_capture(a_gpu_and_triton, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    assert chosen_backend(None, torch.device('cuda', 0), torch.float32) == 'slabs'

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)

    assert chosen_backend(None, torch.device('cuda', 0), torch.float32) == 'slabs'
    assert chosen_backend(None, torch.device('cuda', 1), torch.float32) == 'triton'  # unknown, and cannot be tried now


def test_memory_that_is_used_up_says_nothing_about_triton(a_gpu_and_triton):
    def fail(device):
        raise torch.cuda.OutOfMemoryError

    a_gpu_and_triton.run_smallest_kernel = fail

    with pytest.raises(torch.cuda.OutOfMemoryError):
        chosen_backend(None, torch.device('cuda', 0), torch.float32)
    assert not backends._verdicts


def test_compiled_code_knows_whether_triton_works(a_gpu_and_triton):
    @torch.compile(fullgraph=True, backend='eager')
    def add(x):
        return x + (1 if backends.can_use_triton(0) else 2)

    assert add(torch.zeros(())) == 1


@every_way
@pytest.mark.parametrize(('shape', 'smoothing'), itertools.product([(0, 4, 4), (2, 0, 4)], [False, True]))
def test_empty_targets(way, shape, smoothing):
    logits = torch.randn(shape[0], 5, 2, 2, requires_grad=True)
    weight = torch.ones(5) if smoothing else None

    maps = way(logits, torch.zeros(shape, dtype=torch.long), smoothing_weight=weight)
    (gradient,) = torch.autograd.grad(maps[0].sum() + maps[1].sum(), logits)

    assert all(m.shape == shape for m in maps)
    assert (gradient == 0).all()
