"""Check the arguments of the losses: those of a call on logits, and those that a module is built with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal

import torch
from mmseg_wce.kernels import check_shapes
from torch import Tensor

__all__ = [
    'DEFAULT_IGNORE_INDEX',
    'NORMALIZERS',
    'REDUCTIONS',
    'Normalizer',
    'Reduction',
    'broadcast_pixel_weight',
    'check_call',
    'check_focal_gamma',
    'check_logits_and_target',
    'check_loss_options',
    'check_sigmoid_weight',
    'check_smoothing',
    'check_softmax_weight',
    'resolve_ignore_index',
    'resolve_normalizer',
]

Reduction = Literal['mean', 'sum', 'none']
Normalizer = Literal['class_weight', 'valid', 'all']
REDUCTIONS: tuple[Reduction, ...] = ('mean', 'sum', 'none')
NORMALIZERS: tuple[Normalizer, ...] = ('class_weight', 'valid', 'all')

DEFAULT_IGNORE_INDEX = 255
_OPTION_TYPES: dict[str, Any] = dict(
    use_sigmoid=bool,
    avg_non_ignore=bool | None,
    loss_weight=Real,
    label_smoothing=Real,
    focal_gamma=Real,
    loss_name=str,
    ignore_index=Integral | None,
)
_LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_logits_and_target(logits: Tensor, target: Tensor) -> None:
    """Raise TypeError or ValueError unless types, shapes, dtypes and devices fit; does not read values.

    Args:
        logits: (N, C, h, w), (N, C, ...) or (N, C), floating point.
        target: (N, H, W), (N, ...) or (N,), any integer dtype.
    """
    for name, value in (('logits', logits), ('target', target)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor, got {type(value).__name__}')
    inputs = f'logits {tuple(logits.shape)} {logits.dtype}, target {tuple(target.shape)} {target.dtype}'
    if logits.dtype not in _LOGITS_DTYPES:
        raise TypeError(f'logits must be float16, bfloat16, float32 or float64: got {inputs}')
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        advice = _one_hot_advice(logits, target) or _dtype_advice(logits, target)
        raise TypeError(f'target must hold class indices in an integer dtype, not {target.dtype}: got {inputs}{advice}')
    if logits.device != target.device:
        raise ValueError(f'logits are on {logits.device}, target is on {target.device}: got {inputs}')
    if logits.dim() < 2:
        raise ValueError(f'logits must be (N, C) or (N, C, ...): got {inputs}')
    if target.dim() != logits.dim() - 1:
        advice = _dimension_advice(logits, target)
        raise ValueError(f'target must be (N, ...) for logits (N, C, ...), one dimension less: got {inputs}{advice}')
    if target.shape[0] != logits.shape[0]:
        raise ValueError(f'logits and target differ in batch size: got {inputs}')
    check_shapes(logits, target)


def _dimension_advice(logits: Tensor, target: Tensor) -> str:
    """Explain the likely cause of a target with one dimension too many."""
    if advice := _one_hot_advice(logits, target):
        return advice
    if target.dim() != 4:
        return ''
    for dim in (1, -1):
        if target.shape[dim] == 1:
            return f'. Remove the channel dimension: target.squeeze({dim})'
    if target.shape[-1] in (3, 4) or target.shape[1] in (3, 4):
        return (
            '. The labels have colour channels: they were read from RGB masks, or from palette PNGs that the reader '
            '(such as OpenCV) converted to RGB. Store the class index in a single-channel PNG'
        )
    return ''


def _one_hot_advice(logits: Tensor, target: Tensor) -> str:
    """Recognise one-hot labels by their shape, or by their values if they could be colours."""
    if logits.dim() < 2 or target.dim() != logits.dim():
        return ''
    for dim in (1, -1):
        size = target.shape[dim]
        if size == max(logits.shape[1], 2) and (size not in (3, 4) or _is_one_hot(target, dim)):
            return f'. The labels are one-hot: take their class indices, target.argmax({dim})'
    return ''


def _dtype_advice(logits: Tensor, target: Tensor) -> str:
    """Say how to convert labels of another dtype to class indices."""
    if target.is_complex():
        return ''
    has_channel = target.dim() == logits.dim() and target.dim() > 1 and target.shape[1] == 1
    return f'. If all values are whole numbers or bools, convert them: target{".squeeze(1)" * has_channel}.long()'


def _is_one_hot(target: Tensor, dim: int) -> bool:
    if torch.compiler.is_compiling() or target.is_meta or target.is_complex():  # values cannot be read
        return False
    return bool(((target == 0) | (target == 1)).all() and (target.sum(dim) == 1).all())


def resolve_ignore_index(ignore_index: int | None, num_classes: int) -> int:
    """Return the ignored label; warn once if the default is a class.

    Args:
        ignore_index: None for 255.
        num_classes: C.

    Returns:
        The ignored label.
    """
    if ignore_index is not None:
        return ignore_index
    if num_classes > DEFAULT_IGNORE_INDEX and not torch.compiler.is_compiling():
        _warn_class_is_ignored(num_classes)
    return DEFAULT_IGNORE_INDEX


@lru_cache
def _warn_class_is_ignored(num_classes: int) -> None:
    default = DEFAULT_IGNORE_INDEX
    warnings.warn(
        f'class {default} of {num_classes} is ignored, because it is the default ignore_index: set ignore_index to a '
        f'label that is not a class, such as -1, or to {default} to ignore that class',
        stacklevel=5,
    )


def check_softmax_weight(class_weight: Tensor | None, logits: Tensor) -> None:
    """Raise TypeError or ValueError unless the logits have two channels or more, and ``class_weight`` one per channel.

    Args:
        class_weight: (C,), floating point, or None.
        logits: (N, C, ...), C >= 2.
    """
    num_channels = logits.shape[1]
    if num_channels < 2:
        raise ValueError(
            f'a softmax over {num_channels} channel(s) is constant and has no gradient: got logits '
            f'{tuple(logits.shape)}. For a binary task use two channels (out_channels=2), or one channel with '
            'use_sigmoid=True in the loss (functional.weighted_binary_cross_entropy)'
        )
    _check_class_weight_tensor(class_weight, logits)
    if class_weight is not None and class_weight.shape != (num_channels,):
        raise ValueError(
            f'class_weight must hold one weight for each of the {num_channels} channels of logits '
            f'{tuple(logits.shape)}: got shape {tuple(class_weight.shape)}'
        )


def check_sigmoid_weight(class_weight: Tensor | None, logits: Tensor, normalize_by: Normalizer = 'valid') -> None:
    """Raise TypeError or ValueError unless the class weights fit the channels of the logits and the denominator.

    Args:
        class_weight: one number, (C,), or (2,) for one channel, floating point; or None.
        logits: (N, C, ...), C >= 1.
        normalize_by: denominator of the mean: 'class_weight' needs one channel and two weights.
    """
    _check_class_weight_tensor(class_weight, logits)
    num_weights, num_channels = 0 if class_weight is None else class_weight.numel(), logits.shape[1]
    if class_weight is not None and class_weight.shape not in ((), (1,), (max(num_channels, 2),)):
        if num_channels == 1:
            allowed = 'one number (label 1) or two (labels 0 and 1)'
        else:
            allowed = f'one number for all channels, or one for each of the {num_channels} channels,'
        raise ValueError(
            f'class_weight must hold {allowed} for logits {tuple(logits.shape)}: got shape {tuple(class_weight.shape)}'
        )
    if normalize_by == 'class_weight' and (num_channels > 1 or num_weights != 2):
        raise ValueError(
            "normalize_by='class_weight' of a binary cross-entropy needs one channel and two class weights, for labels "
            f"0 and 1: got {num_weights} for logits {tuple(logits.shape)}. Use 'valid' or 'all'"
        )


def _check_class_weight_tensor(class_weight: Tensor | None, logits: Tensor) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Tensor):
        raise TypeError(f'class_weight must be a tensor, got {type(class_weight).__name__}')
    if not class_weight.is_floating_point():
        raise TypeError(f'class_weight must be a floating-point tensor, got {class_weight.dtype}')
    if class_weight.device != logits.device:
        raise ValueError(f'class_weight is on {class_weight.device}, logits are on {logits.device}')


def check_smoothing(label_smoothing: float) -> None:
    """Raise TypeError or ValueError unless ``label_smoothing`` is a number in [0, 1]."""
    if not isinstance(label_smoothing, (int, float, torch.SymFloat)):
        raise TypeError(f'label_smoothing must be a number, got {label_smoothing!r}')
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f'label_smoothing must be between 0 and 1, got {label_smoothing}')


def check_focal_gamma(focal_gamma: float, label_smoothing: float = 0.0) -> None:
    """Raise TypeError or ValueError unless the exponent of the focal loss is valid.

    Args:
        focal_gamma: a finite number of at least 0.
        label_smoothing: must be 0 if focal_gamma is not.
    """
    if isinstance(focal_gamma, bool) or not isinstance(focal_gamma, (int, float, Real, torch.SymFloat)):
        raise TypeError(f'focal_gamma must be a number, got {focal_gamma!r}')
    if not 0.0 <= focal_gamma < torch.inf:
        raise ValueError(f'focal_gamma must be finite and not negative, got {focal_gamma}')
    if focal_gamma > 0 and label_smoothing > 0:
        raise ValueError(
            f'focal_gamma={focal_gamma} and label_smoothing={label_smoothing}: the focal loss is defined without '
            'smoothing. Leave out one of the two'
        )


def check_call(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    pixel_weight: Tensor | None = None,
    reduction: str = 'mean',
    normalize_by: str = 'valid',
    avg_factor: float | Tensor | None = None,
) -> tuple[int, Tensor | None]:
    """Check the arguments that all losses have in common.

    Args:
        logits: (N, C, h, w), (N, C, ...) or (N, C), floating point.
        target: (N, H, W), (N, ...) or (N,), any integer dtype.
        ignore_index: an integer, or None for 255.
        pixel_weight: same number of dimensions as the target, each of the same size or 1; or None.
        reduction: one of ``REDUCTIONS``.
        normalize_by: one of ``NORMALIZERS``.
        avg_factor: a finite non-negative number, a tensor of one element (whose value is not read), or None.

    Returns:
        The ignored label, and the pixel weights expanded to the shape of the target.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """
    check_logits_and_target(logits, target)
    ignore_index = resolve_ignore_index(ignore_index, logits.shape[1])
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be one of {REDUCTIONS}, got {reduction!r}')
    if normalize_by not in NORMALIZERS:
        raise ValueError(f'normalize_by must be one of {NORMALIZERS}, got {normalize_by!r}')
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, Integral, torch.SymInt)):
        raise TypeError(f'ignore_index must be an int, got {ignore_index!r}')
    if avg_factor is not None and reduction == 'sum':
        raise ValueError("avg_factor can not be used with reduction='sum'")
    if isinstance(avg_factor, Tensor):
        if avg_factor.numel() != 1:
            raise ValueError(f'avg_factor must be one number, got a tensor of shape {tuple(avg_factor.shape)}')
    elif avg_factor is not None and not 0 <= avg_factor < torch.inf:
        raise ValueError(f'avg_factor must be finite and not negative, got {avg_factor}')
    return ignore_index, None if pixel_weight is None else broadcast_pixel_weight(pixel_weight, target)


def broadcast_pixel_weight(pixel_weight: Tensor, target: Tensor) -> Tensor:
    """Return the pixel weights expanded to the shape of the target.

    Args:
        pixel_weight: same number of dimensions as the target, each of the same size or 1.
        target: (N, ...).

    Returns:
        (N, ...), a view.

    Raises:
        TypeError: ``pixel_weight`` is not a real tensor.
        ValueError: its shape or device does not fit.
    """
    if not isinstance(pixel_weight, Tensor):
        raise TypeError(f'pixel_weight must be a tensor, got {type(pixel_weight).__name__}')
    if pixel_weight.device != target.device:
        raise ValueError(f'pixel_weight is on {pixel_weight.device}, target is on {target.device}')
    fits = pixel_weight.dim() == target.dim() and all(
        p in (1, t) for p, t in zip(pixel_weight.shape, target.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f'pixel_weight must have the shape of the target {tuple(target.shape)}, got {tuple(pixel_weight.shape)}'
        )
    if pixel_weight.is_complex():
        raise TypeError(f'pixel_weight must be real, got {pixel_weight.dtype}')
    return pixel_weight.expand(target.shape)


def check_loss_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for an invalid argument of the loss; ``options`` maps names to values."""
    for name, expected in _OPTION_TYPES.items():
        value = options[name]
        if not isinstance(value, expected) or (
            isinstance(value, bool) and name not in ('use_sigmoid', 'avg_non_ignore')
        ):
            raise TypeError(f'WeightedCrossEntropyLoss: {name} may not be {value!r}')
    reduction, loss_weight, label_smoothing = (options[k] for k in ('reduction', 'loss_weight', 'label_smoothing'))
    for condition, message in (
        (reduction in REDUCTIONS, f'reduction must be one of {REDUCTIONS}, got {reduction!r}'),
        (0.0 <= label_smoothing <= 1.0, f'label_smoothing must be between 0 and 1, got {label_smoothing}'),
        (math.isfinite(loss_weight), f'loss_weight must be finite, got {loss_weight}'),
        (
            options['loss_name'].startswith('loss_'),
            f"loss_name={options['loss_name']!r} must start with 'loss_', or mmengine does not add it to the total "
            'loss',
        ),
        (
            not options['use_mask'],
            "use_mask=True is a loss on masks, not on pixels: use mmseg's type='CrossEntropyLoss' for it",
        ),
        (
            not (options['use_sigmoid'] and label_smoothing > 0),
            f'label_smoothing={label_smoothing} is defined for a softmax, not for use_sigmoid=True, where every '
            'channel is a separate binary task: remove one of the two',
        ),
    ):
        if not condition:
            raise ValueError(f'WeightedCrossEntropyLoss: {message}')
    check_focal_gamma(options['focal_gamma'], label_smoothing)


def resolve_normalizer(
    normalize_by: Normalizer | None, avg_non_ignore: bool | None, num_weights: int, use_sigmoid: bool
) -> Normalizer:
    """Translate mmseg's ``avg_non_ignore`` into ``normalize_by``.

    Args:
        normalize_by: argument of the loss, or None.
        avg_non_ignore: argument of the loss, or None.
        num_weights: number of class weights; 0 without.
        use_sigmoid: argument of the loss.

    Returns:
        One of ``NORMALIZERS``.

    Raises:
        ValueError: ``normalize_by`` is unknown, contradicts ``avg_non_ignore``, or with a sigmoid needs two weights.
    """
    if normalize_by is not None and normalize_by not in NORMALIZERS:
        raise ValueError(f'normalize_by must be one of {NORMALIZERS}, got {normalize_by!r}')
    if use_sigmoid and normalize_by == 'class_weight' and num_weights != 2:
        raise ValueError(
            "WeightedCrossEntropyLoss: normalize_by='class_weight' with use_sigmoid=True needs one channel and two "
            f"class weights, for labels 0 and 1: got {num_weights}. Use 'valid' or 'all'"
        )
    default: Normalizer = 'valid' if use_sigmoid else 'class_weight'
    if avg_non_ignore is None:
        return normalize_by or default
    weighted = num_weights > 0 and not use_sigmoid
    implied = default if avg_non_ignore or weighted else 'all'
    if normalize_by not in (None, implied):
        case = 'with use_sigmoid=True' if use_sigmoid else f'{"with" if weighted else "without"} class_weight'
        raise ValueError(
            f'avg_non_ignore={avg_non_ignore} {case} means normalize_by={implied!r}, which contradicts '
            f'normalize_by={normalize_by!r}: give one of the two'
        )
    if weighted and not avg_non_ignore and normalize_by is None:
        _warn_once(
            'WeightedCrossEntropyLoss: avg_non_ignore=False with class_weight divides by the class weights of the '
            'pixels that are not ignored, as avg_non_ignore=True does; mmseg defines no other value for label 255'
        )
    return implied


@lru_cache  # every head of a model has a loss
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
