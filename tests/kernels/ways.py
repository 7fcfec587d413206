"""The back ends under test, and PyTorch's answer."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmseg_wce.kernels import pixel_nll
from mmseg_wce.kernels.backends import has_triton

CUDA = torch.cuda.is_available()
if has_triton() and not CUDA:
    import triton.language as tl
    from mmseg_wce.kernels import triton
    from triton.runtime import interpreter

    # The interpreter is slow per program and operation; an operation on some thousand numbers costs as much as on one.
    triton.TILES = triton.Tiles(
        lanes=1024, block_lanes=1024, rows=4, backward_lanes=1024, programs=1 << 30, band=1, sum_rounds=1
    )
    if isinstance(triton.add_up, interpreter.InterpretedFunction):
        # Half of its time is spent on patching triton.language at every call from a kernel: once is enough.
        interpreter._patch_lang(tl.zeros.fn)
        # A GPU rounds once.
        interpreter.InterpreterBuilder.create_fma = lambda self, x, y, z: interpreter.TensorHandle(
            (x.data.astype(np.float64) * y.data + z.data).astype(x.data.dtype), x.dtype.scalar
        )
        interpreter.InterpretedFunction.__call__ = lambda self, *args, **options: self.rewrite()(*args, **options)


@dataclass(frozen=True)
class Way:
    """A back end somewhere. Triton's runs on a GPU where there is one, elsewhere in its interpreter (conftest.py)."""

    backend: str
    device: str

    @property
    def dtype(self) -> torch.dtype:
        """The finest it takes."""
        return torch.float32 if self.backend in ('cpu', 'triton') else torch.float64

    def problem(self, classes=5, nodes=(6, 7), pixels=(20, 25), dtype=None, images=2, ignored=0.2):
        generator = torch.Generator().manual_seed(0)
        dtype = dtype or self.dtype
        logits = torch.randn(images, classes, *nodes, generator=generator, dtype=torch.float64).to(dtype)
        target = torch.randint(0, classes, (images, *pixels), generator=generator)
        target[torch.rand(target.shape, generator=generator) < ignored] = 255
        weight = torch.rand(classes, generator=generator).to(torch.promote_types(dtype, torch.float32))
        return logits.to(self.device), target.to(self.device), weight.to(self.device)

    def __call__(self, logits, target, **options):
        options = {'ignore_index': 255, **options}
        if options.get('smoothing_weight') is not None:
            options['smoothing_weight'] = options['smoothing_weight'].to(self.device)
        return pixel_nll(logits.to(self.device), target.to(self.device), backend=self.backend, **options)


def _ways(*names, slow_without_gpu=()):
    found = [(name, 'cuda' if CUDA and name == 'triton' else 'cpu') for name in names]
    found += [(name, 'cuda') for name in names if CUDA and name not in ('cpu', 'triton')]
    without = pytest.mark.skipif(not has_triton(), reason='the package triton is not installed')

    def marks(way: tuple[str, str]) -> list:
        slow = [pytest.mark.slow] if way[0] in slow_without_gpu and not CUDA else []
        return [*slow, without] if way[0] == 'triton' else slow

    return pytest.mark.parametrize('way', [pytest.param(Way(*w), id='-'.join(w), marks=marks(w)) for w in found])


NUMBA, SLABS = Way('cpu', 'cpu'), Way('slabs', 'cpu')
fused, every_way = _ways('cpu', 'slabs', 'triton'), _ways('cpu', 'slabs', 'triton', 'reference')
all_but_triton, only_triton = _ways('cpu', 'slabs', 'reference'), _ways('triton')
# Triton's interpreter takes half a minute for what the others do in a second
every_way_or_slowly = _ways('cpu', 'slabs', 'triton', 'reference', slow_without_gpu=('triton',))
fused_or_slowly = _ways('cpu', 'slabs', 'triton', slow_without_gpu=('triton',))


def resize(logits, size, align_corners=False):
    return F.interpolate(logits, size=size, mode='bilinear', align_corners=align_corners)


def pytorchs(logits, target, weight, ignore_index, align_corners):
    """Plain and smoothed losses of F.interpolate and F.cross_entropy, and the logits in between."""
    z = logits if logits.shape[2:] == target.shape[1:] else resize(logits, target.shape[1:], align_corners)
    plain = F.cross_entropy(z, target, ignore_index=ignore_index, reduction='none')
    # PyTorch gives the smoothing term alone at label_smoothing=1, divided by C
    smoothed = logits.shape[1] * F.cross_entropy(
        z, target, weight.to(z.dtype), ignore_index=ignore_index, reduction='none', label_smoothing=1.0
    )
    return plain, smoothed, z.detach()


def assert_equal_to_pytorch(way, logits, target, weight, align_corners=False, ignore_index=255, rtol=None):
    """Both maps and the gradient of a random mix of them, against PyTorch in float64.

    The error is at most that of PyTorch itself in the precision of the back end, and ``rtol`` of the largest value.
    """
    rtol = rtol or {torch.float64: 1e-12, torch.float32: 2e-6}[way.dtype]
    generator = torch.Generator().manual_seed(1)
    of_nll, of_smooth = (torch.randn(target.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    of_nll, of_smooth = of_nll.to(target.device), of_smooth.to(target.device)

    def sweep(function, z):
        z = z.detach().clone().requires_grad_()
        nll, smooth, third = function(z)
        ((nll * of_nll).sum() + (smooth * of_smooth).sum()).backward()
        return (nll.detach().double(), smooth.detach().double(), z.grad.double()), third

    def theirs(z):
        return pytorchs(z, target, weight, ignore_index, align_corners)

    options = dict(ignore_index=ignore_index, smoothing_weight=weight, align_corners=align_corners)
    ours, correct = sweep(lambda z: way(z, target, **options), logits)
    exact, z = sweep(theirs, logits.double())
    rounded, _ = sweep(theirs, logits.to(torch.promote_types(logits.dtype, torch.float32)))
    for found, expected, eager in zip(ours, exact, rounded, strict=True):
        theirs_off = float((eager - expected).abs().max()) if way.dtype == torch.float32 else 0.0
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * largest + theirs_off)
    return correct, z


def maps_and_gradient(way, logits, target, weight=None, **options):
    """Both maps, the correct pixels, and the gradient of the sum of both maps."""
    z = logits.detach().requires_grad_()
    nll, smooth, correct = way(z, target, smoothing_weight=weight, **options)
    return nll.detach(), smooth.detach(), correct, torch.autograd.grad((nll + smooth).sum(), z)[0]


def assert_far_apart_is_the_same(way, pixels):
    """Logits whose classes lie so far apart in memory that 32 bits do not reach them. What is between stays unused."""
    far = 2**30 + 8
    memory = torch.empty(2 * far + 16, dtype=torch.bfloat16, device=way.device)
    logits = memory.as_strided((1, 3, 4, 4), (0, far, 4, 1))
    compact, target, weight = way.problem(classes=3, nodes=(4, 4), pixels=pixels, images=1, dtype=torch.bfloat16)
    logits.copy_(compact)

    found, expected = (maps_and_gradient(way, z, target, weight) for z in (logits, compact))

    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def layouts(logits):
    return dict(
        contiguous=logits,
        channels_last=logits.to(memory_format=torch.channels_last),
        strided=torch.stack([logits, logits], -1)[..., 0],
        expanded=logits[:1].expand_as(logits),
    )
