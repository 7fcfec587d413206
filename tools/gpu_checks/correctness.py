"""Compare loss and gradient with float64 plain PyTorch: F.interpolate and F.cross_entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmseg_wce.functional import weighted_cross_entropy
from mmseg_wce.kernels.backends import chosen_backend
from torch import Tensor

from gpu_checks.results import CheckRun, Outcome

IGNORED = 255
LOSS_TOLERANCE = 1e-5  # relative; float32 sums, whatever the logits are
_FLOAT32_GRADIENT = 2e-5  # of the largest gradient
_FAR_APART_GRADIENT = 1e-4  # an exponent of 100 has an error of 100 float32 epsilon
FALLBACK = 'MMSEG_WCE_BACKEND=slabs; if that passes, the Triton kernels are at fault: an empty TRITON_CACHE_DIR, then '
FALLBACK += 'another Triton version (3.3 or later)'

Problem = tuple[Tensor, Tensor, Tensor]


def make_problem(
    device: str,
    classes: int,
    small: tuple[int, int],
    large: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    factor: float = 1.0,
) -> Problem:
    """Return random logits (2, C, h, w), labels (2, H, W), a fifth of them ignored, and class weights (C,).

    Args:
        device: of the tensors.
        classes: C.
        small: size of the logits.
        large: size of the labels.
        dtype: of the logits.
        seed: of the random numbers, which are the same on every device.
        factor: standard deviation of the logits.

    Returns:
        logits, target, class_weight.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = factor * torch.randn(2, classes, *small, generator=generator)
    target = torch.randint(0, classes, (2, *large), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORED
    weight = torch.rand(classes, generator=generator) + 0.1
    return logits.to(device, dtype), target.to(device), weight.to(device)


def exact_logits(logits: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """Return full-size float64 logits. F.interpolate without its 0 * -inf: -inf is where -inf has a weight."""
    if logits.shape[2:] == size:
        return logits.double()

    def resize(x: Tensor) -> Tensor:
        return F.interpolate(x, size=size, mode='bilinear', align_corners=align_corners)

    masked = logits.detach() == -math.inf
    z = resize(torch.where(masked, 0, logits.double()))
    return torch.where(resize(masked.double()) > 0, -math.inf, z)


def exact_loss(logits: Tensor, target: Tensor, weight: Tensor | None, align_corners: bool, **options: Any) -> Tensor:
    """Return the loss of plain PyTorch in float64."""
    z = exact_logits(logits, target.shape[1:], align_corners)
    weight = None if weight is None else weight.double()
    return F.cross_entropy(z, target, weight, ignore_index=IGNORED, **options)


def compare(
    problem: tuple[Tensor, Tensor, Tensor | None],
    tolerances: tuple[float, float],
    align_corners: bool = False,
    **options: Any,
) -> Outcome:
    """Compare loss and gradient of the mean with float64.

    Args:
        problem: logits, labels and class weights or None.
        tolerances: of the loss, relative, and of the gradient, as a share of the largest.
        align_corners: option of the upsampling.
        options: further options of the loss.

    Returns:
        Both errors, whether they are small enough, and raw figures.
    """
    logits, target, weight = problem
    scale = int((target != IGNORED).sum())  # a gradient of the usual size, far from the smallest half-precision numbers
    ours, exact = logits.detach().requires_grad_(), logits.detach().double().requires_grad_()
    loss = weighted_cross_entropy(ours, target, weight, align_corners=align_corners, **options)
    (gradient,) = torch.autograd.grad(loss * scale, ours)
    true_loss = exact_loss(exact, target, weight, align_corners, **options)
    (true_gradient,) = torch.autograd.grad(true_loss * scale, exact)
    loss, true_loss = loss.detach(), true_loss.detach()
    loss_error = float((loss - true_loss).abs() / true_loss.abs())
    gradient_error = float((gradient.double() - true_gradient).abs().max() / true_gradient.abs().max())
    passed = loss_error <= tolerances[0] and gradient_error <= tolerances[1]  # False for NaN
    raw = dict(loss=float(loss), exact_loss=float(true_loss), loss_error=loss_error, gradient_error=gradient_error)
    raw |= dict(loss_tolerance=tolerances[0], gradient_tolerance=tolerances[1])
    return errors_text(loss_error, gradient_error), passed, raw


def errors_text(loss: float, gradient: float) -> str:
    """Return both errors or both tolerances in one form."""
    return f'loss {loss:.1e}, gradient {gradient:.1e}'


def tolerances_for(dtype: torch.dtype) -> tuple[float, float]:
    """Return the largest errors allowed, of loss and gradient: those of float32 sums, and of rounding to ``dtype``."""
    if dtype == torch.float64:
        return 1e-12, 1e-12
    return LOSS_TOLERANCE, _FLOAT32_GRADIENT + (0 if dtype == torch.float32 else torch.finfo(dtype).eps)


def resizing(run: CheckRun, dtype_name: str) -> None:
    """Check every way to resize, for one dtype, with class weights and ignored pixels."""
    dtype = getattr(torch, dtype_name)
    h, w = small = (24, 40) if run.device == 'cuda' else (6, 10)
    sizes = {f'scale {scale}': (scale * h, scale * w) for scale in (2, 4, 8, 14, 16, 3)}
    sizes |= {'scale 2.55': (round(2.55 * h), round(2.55 * w)), 'align_corners': (4 * h, 4 * w)}
    sizes |= {'align_corners, downscale': (h // 2, w // 3), 'same size': small, 'downscale': (h // 2 - 1, w // 2 - 3)}
    tolerances = tolerances_for(dtype)
    for title, large in sizes.items():
        problem, align_corners = make_problem(run.device, 19, small, large, dtype), title.startswith('align_corners')
        run.attempt(
            f'{dtype_name}, {title}',
            errors_text(*tolerances),
            lambda problem=problem, align_corners=align_corners: compare(problem, tolerances, align_corners),
            FALLBACK,
        )


def options_and_values(run: CheckRun, prefix: str = '') -> None:
    """Check options of the loss, numbers of classes, memory formats and unusual logits, in float32."""
    device = run.device
    small = (24, 40) if device == 'cuda' else (6, 10)
    large = (4 * small[0], 4 * small[1])

    def check(title: str, problem: tuple[Tensor, Tensor, Tensor | None], gradient: float = 0, **options: Any) -> None:
        usual = tolerances_for(problem[0].dtype)
        tolerances = usual[0], gradient or usual[1]
        run.attempt(
            f'{prefix}{title}', errors_text(*tolerances), lambda: compare(problem, tolerances, **options), FALLBACK
        )

    logits, target, weight = make_problem(device, 19, small, large)
    check('no class weights', (logits, target, None))
    check('label smoothing', (logits, target, None), label_smoothing=0.1)
    check('label smoothing and class weights', (logits, target, weight), label_smoothing=0.1)
    check('same size, label smoothing', make_problem(device, 19, large, large), label_smoothing=0.1)
    for classes in (2, 150):
        check(f'{classes} classes', make_problem(device, classes, small, large))
    if device == 'cuda':
        check('150 classes, 128 to 512', make_problem(device, 150, (128, 128), (512, 512)), label_smoothing=0.1)
    check('channels_last', (logits.to(memory_format=torch.channels_last), target, weight))
    check('one image ignored', (logits, torch.cat([torch.full_like(target[:1], IGNORED), target[1:]]), weight))
    if chosen_backend(None, logits.device, logits.dtype, 19 * target.numel()) != 'reference':
        # it interpolates as PyTorch does, which loses digits here
        check('logits + 10000', (logits + 1e4, target, weight))
    check('logits far apart', make_problem(device, 19, small, large, factor=40.0), _FAR_APART_GRADIENT)
    check('float64 logits', (logits.double(), target, weight))
    target = torch.where(target == 1, 0, target)  # no label is the class that is masked
    masked = logits.clone()
    masked[:, 1] = -math.inf
    check('a class at -inf', (masked, target, weight))
    masked = logits.clone()
    masked[:, 1, ::3, ::2] = -math.inf
    check('a class at -inf in places', (masked, target, weight))
    run.attempt(f'{prefix}a NaN', 'NaN only where it reaches', lambda: nan_reaches(logits, target, weight), FALLBACK)
    run.attempt(f'{prefix}all ignored', 'loss 0, gradient 0', lambda: all_ignored(logits, target, weight), FALLBACK)


def nan_reaches(logits: Tensor, target: Tensor, weight: Tensor) -> Outcome:
    """Check that a NaN reaches the pixels around it that are not ignored, and no other pixel or gradient."""
    logits = logits.clone()
    logits[0, 2, 3, 4] = math.nan
    ours, exact = logits.requires_grad_(), logits.detach().double().requires_grad_()
    losses = weighted_cross_entropy(ours, target, weight, reduction='none')
    true_losses = torch.where(target == IGNORED, 0, exact_loss(exact, target, weight, False, reduction='none'))
    finite = true_losses.isfinite()
    (gradient,) = torch.autograd.grad(losses[finite].sum(), ours)
    (true_gradient,) = torch.autograd.grad(true_losses[finite].sum(), exact)
    losses, true_losses = losses.detach(), true_losses.detach()
    elsewhere = torch.ones_like(gradient[:, 0], dtype=torch.bool)
    elsewhere[0, 2:5, 3:6] = False  # logits that share a pixel with the NaN
    apart = elsewhere.unsqueeze(1).expand_as(gradient)
    difference = (gradient.double() - true_gradient)[apart].abs().max() / true_gradient[apart].abs().max()
    loss_error = (losses.double() - true_losses)[finite].abs().max() / true_losses[finite].max()
    wrong = int((losses.isnan() != ~finite).sum())
    passed = wrong == 0 and float(difference) <= _FLOAT32_GRADIENT and float(loss_error) <= LOSS_TOLERANCE
    found = f'{int((~finite).sum())} pixels, {wrong} wrong; {errors_text(float(loss_error), float(difference))}'
    return found, passed, dict(pixels=int((~finite).sum()), wrong=wrong, gradient_error=float(difference))


def all_ignored(logits: Tensor, target: Tensor, weight: Tensor) -> Outcome:
    """Check that the loss of nothing is 0, with zero gradient."""
    logits = logits.detach().requires_grad_()
    loss = weighted_cross_entropy(logits, torch.full_like(target, IGNORED), weight)
    (gradient,) = torch.autograd.grad(loss, logits)
    largest = float(gradient.abs().max())
    return f'loss {loss.item():g}, gradient {largest:g}', loss.item() == 0 and largest == 0, {}
