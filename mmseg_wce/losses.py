"""The loss that mmseg configs name: arguments of mmseg's ``CrossEntropyLoss``, mathematics of :mod:`functional`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from mmseg.registry import MODELS
from mmseg_wce.class_weights import ClassWeight, load_class_weight
from mmseg_wce.functional import (
    NORMALIZERS,
    REDUCTIONS,
    Normalizer,
    Pixels,
    Reduction,
    check_inputs,
    normalizer,
    smoothing_weight,
    weighted_cross_entropy,
)
from mmseg_wce.kernels import pixel_nll
from torch import Tensor, nn

__all__ = ['ObservedPixels', 'WeightedCrossEntropyLoss']

_DEFAULT_IGNORE_INDEX = 255


def _resolve_normalizer(normalize_by: Normalizer | None, avg_non_ignore: bool | None, weighted: bool) -> Normalizer:
    """mmseg's ``avg_non_ignore`` in terms of ``normalize_by``; an error where both are given and disagree."""
    if normalize_by is not None and normalize_by not in NORMALIZERS:
        raise ValueError(f'normalize_by must be one of {NORMALIZERS}, got {normalize_by!r}')
    if avg_non_ignore is None:
        return normalize_by or 'class_weight'
    meant: Normalizer = 'class_weight' if avg_non_ignore or weighted else 'all'
    if normalize_by not in (None, meant):
        raise ValueError(
            f'avg_non_ignore={avg_non_ignore} {"with" if weighted else "without"} class_weight means '
            f'normalize_by={meant!r}, which contradicts normalize_by={normalize_by!r}: give one of the two'
        )
    if weighted and not avg_non_ignore and normalize_by is None:
        _warn_once(
            'WeightedCrossEntropyLoss: avg_non_ignore=False with class_weight divides by the class weights of the '
            'pixels that are not ignored, as avg_non_ignore=True does; mmseg defines no other value for label 255'
        )
    return meant


@lru_cache
def _warn_once(message: str) -> None:
    """A model has a loss in every head."""
    print_log(message, logger='current', level=logging.WARNING)


def _gradients_are_averaged(logits: Tensor) -> bool:
    trains = torch.is_grad_enabled() and logits.requires_grad
    return trains and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _MeanOfRanks:
    """The mean of a number over all ranks, which travels while something else is computed."""

    def __init__(self, number: Tensor) -> None:
        self._number = number
        self._travelling = dist.all_reduce(number, async_op=True)

    def wait(self) -> Tensor:
        self._travelling.wait()
        return self._number / dist.get_world_size()


def _check_options(
    reduction: str,
    loss_weight: float,
    loss_name: str,
    avg_non_ignore: bool | None,
    label_smoothing: float,
    ignore_index: int | None,
) -> None:
    for name, value, kind in (
        ('loss_weight', loss_weight, Real),
        ('label_smoothing', label_smoothing, Real),
        ('loss_name', loss_name, str),
        ('avg_non_ignore', avg_non_ignore, bool | None),
        ('ignore_index', ignore_index, Integral | None),
    ):
        if not isinstance(value, kind) or (isinstance(value, bool) and name != 'avg_non_ignore'):
            raise TypeError(f'WeightedCrossEntropyLoss: {name} may not be {value!r}')
    for condition, message in (
        (reduction in REDUCTIONS, f'reduction must be one of {REDUCTIONS}, got {reduction!r}'),
        (math.isfinite(loss_weight), f'loss_weight must be finite, got {loss_weight}'),
        (0.0 <= label_smoothing <= 1.0, f'label_smoothing must be between 0 and 1, got {label_smoothing}'),
        (
            loss_name.startswith('loss_'),
            f"loss_name={loss_name!r} has to start with 'loss_', or mmengine does not add it to the total loss",
        ),
    ):
        if not condition:
            raise ValueError(f'WeightedCrossEntropyLoss: {message}')


@dataclass(frozen=True)
class ObservedPixels:
    """What an observer of :class:`WeightedCrossEntropyLoss` is shown of a call. No gradient flows; not to be changed.

    Attributes:
        label: (N, ...), any integer dtype.
        nll: (N, ...), negative log-likelihood without any weight or smoothing; 0 where ignored.
        correct: (N, ...), bool: the label has the greatest logit; False where ignored.
        pixel_weight: broadcastable to (N, ...), or None.
        class_weight: (C,) float32, or None.
        num_classes: C.
        ignore_index: the label that does not count.

    Example:
        >>> import torch
        >>> from mmseg_wce.losses import WeightedCrossEntropyLoss
        >>> loss = WeightedCrossEntropyLoss()
        >>> loss.observer = lambda pixels: print(pixels.label.tolist(), pixels.correct.tolist())
        >>> logits = torch.tensor([[2.0, 0.0]]).expand(3, 2).requires_grad_()
        >>> _ = loss(logits, torch.tensor([0, 1, 255]))
        [0, 1, 255] [True, False, False]
    """

    label: Tensor
    nll: Tensor
    correct: Tensor
    pixel_weight: Tensor | None
    class_weight: Tensor | None
    num_classes: int
    ignore_index: int


@MODELS.register_module()
class WeightedCrossEntropyLoss(nn.Module):
    """Softmax cross-entropy that is exact with class weights and ignored pixels. Drop-in for ``CrossEntropyLoss``.

    Formula, normalisers and input checks: :func:`mmseg_wce.functional.weighted_cross_entropy`. By default the mean is
    PyTorch's, as ``torch.nn.CrossEntropyLoss(weight=class_weight, ignore_index=255)`` computes it.

    Args:
        use_sigmoid: must be False; accepted so that changing ``type`` is enough.
        use_mask: must be False; likewise.
        reduction: 'mean', 'sum' or 'none'.
        class_weight: one finite non-negative number per class: a list, an array, the path of a ``.npy``, ``.json``,
            ``.yaml`` or ``.pkl`` file, or ``dict(statistics='ade20k' or a file, scheme='median_frequency', ...)``
            (:func:`mmseg_wce.class_weights.class_weights`). Kept in float32 whatever the model is cast to; not part of
            the state dict.
        loss_weight: factor of the loss.
        loss_name: key in the log; has to start with ``loss_``, or mmengine does not add it to the total loss.
        avg_non_ignore: as in mmseg: True means ``normalize_by='class_weight'``; False means 'all' without class
            weights, and with them 'class_weight' (mmseg has no defined value for ignored pixels there).
        normalize_by: 'class_weight' (default), 'valid' or 'all': what the mean divides by.
        label_smoothing: in [0, 1], as in :class:`torch.nn.CrossEntropyLoss`.
        ignore_index: the label that does not count; by default what the decode head says, or 255.
        sync_normalizer: in training on several ranks, divide by the mean over the ranks of their denominators, so that
            the gradient averaged by DistributedDataParallel is that of the whole batch on one device. Sends one number
            for each loss call, which every rank has to make, also one without a pixel that counts or without an image;
            nothing with ``avg_factor``, reduction 'sum' or 'none', or without gradients.

    Attributes:
        observer: called with :class:`ObservedPixels` at the end of every training forward that records gradients (a
            sampler ranks pixels by others that do not). None by default, and in copies and pickles.

    Raises:
        TypeError, ValueError: an argument that cannot be meant, when the model is built.

    Example:
        >>> import torch
        >>> from mmseg_wce.losses import WeightedCrossEntropyLoss
        >>> loss = WeightedCrossEntropyLoss(class_weight=[1.0, 3.0])
        >>> logits, label = torch.tensor([[2.0, 0.0]]).expand(3, 2), torch.tensor([0, 1, 255])
        >>> print(f'{loss(logits, label):.4f}')  # (1 * 0.1269 + 3 * 2.1269) / (1 + 3)
        1.6269
    """

    observer: Callable[[ObservedPixels], None] | None = None
    class_weight: Tensor | None
    _class_weight_values: Tensor | None  # in float32, on CPU; there where class_weight is

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: Reduction = 'mean',
        class_weight: ClassWeight | None = None,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ce',
        avg_non_ignore: bool | None = None,
        *,
        normalize_by: Normalizer | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        sync_normalizer: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (('use_sigmoid', use_sigmoid), ('use_mask', use_mask)):
            if value:
                raise ValueError(
                    f"WeightedCrossEntropyLoss: {name}=True is another loss: use mmseg's type='CrossEntropyLoss' for it"
                )
        _check_options(reduction, loss_weight, loss_name, avg_non_ignore, label_smoothing, ignore_index)
        weights = None if class_weight is None else load_class_weight(class_weight)
        self._class_weight_values = weights
        self.register_buffer('class_weight', None if weights is None else weights.clone(), persistent=False)
        self.normalize_by = _resolve_normalizer(normalize_by, avg_non_ignore, weights is not None)
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.sync_normalizer = sync_normalizer
        self._loss_name = loss_name

    def __getstate__(self) -> dict:
        """An observer belongs to one run: a copy (EMA makes one) or a pickled model would drag it along."""
        return {name: value for name, value in vars(self).items() if name != 'observer'}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WeightedCrossEntropyLoss:
        """Follow the module to its device, but keep float32: ``.half()`` would round the weights."""
        weights = self.class_weight
        if weights is not None and weights.dtype == torch.float32 and not weights.is_meta:
            self._class_weight_values = weights.detach().to('cpu', copy=True)
        super()._apply(fn, recurse)
        if self.class_weight is not None:
            assert self._class_weight_values is not None
            self.class_weight = self._class_weight_values.to(self.class_weight.device, copy=True)
        return self

    def _float32_class_weight(self) -> Tensor | None:
        """Wrappers that shard a model cast its buffers without asking the module."""
        weights = self.class_weight
        if weights is None or weights.dtype == torch.float32:
            return weights
        assert self._class_weight_values is not None
        return self._class_weight_values.to(weights.device)

    def _resolve_ignore_index(self, from_head: int | None) -> int:
        if from_head is None:
            return _DEFAULT_IGNORE_INDEX if self.ignore_index is None else self.ignore_index
        if self.ignore_index not in (None, from_head):
            raise ValueError(
                f'WeightedCrossEntropyLoss was built with ignore_index={self.ignore_index}, but the decode head '
                f'passes ignore_index={from_head}: make them equal, or leave it out of the loss'
            )
        return from_head

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: Reduction | None = None,
        ignore_index: int | None = None,
        *,
        pixels: Pixels | Callable[[], Pixels] | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            cls_score: logits (N, C, H, W) or (N, C, ...), any floating dtype; (N, C, h, w) is upsampled bilinearly.
            label: (N, H, W) or (N, ...), any integer dtype.
            weight: per-pixel weight of the label's shape, as mmseg's samplers pass it; enters the numerator only.
            avg_factor: replaces the denominator of the mean.
            reduction_override: instead of the constructor's ``reduction``.
            ignore_index: what the decode head says; None for the constructor's.
            pixels: what :func:`mmseg_wce.kernels.pixel_nll` gives, with :meth:`smoothing_weight`, where somebody else
                computes it; a function of nothing is called once the ranks' denominators are under way.

        Returns:
            Scalar, or the label's shape for reduction 'none', in float32 (float64 for float64 logits).

        Raises:
            TypeError, ValueError: as :func:`mmseg_wce.functional.weighted_cross_entropy`; also where the head and the
                constructor name different labels to ignore.
        """
        reduction, class_weight = reduction_override or self.reduction, self._float32_class_weight()
        ignore_index = self._resolve_ignore_index(ignore_index)
        of_ranks = None
        if reduction == 'mean' and avg_factor is None and self.sync_normalizer and _gradients_are_averaged(cls_score):
            denominator = normalizer(
                cls_score, label, class_weight, ignore_index=ignore_index, normalize_by=self.normalize_by
            )
            of_ranks = _MeanOfRanks(denominator)
        if callable(pixels):
            pixels = pixels()
        observer = self.observer if self.training and torch.is_grad_enabled() else None
        if observer is not None and pixels is None:  # the maps that weighted_cross_entropy would make
            check_inputs(cls_score, label, class_weight)
            smoothing = self.smoothing_weight(cls_score)
            pixels = pixel_nll(cls_score, label.long(), ignore_index=ignore_index, smoothing_weight=smoothing)
        loss = weighted_cross_entropy(
            cls_score,
            label,
            class_weight,
            ignore_index=ignore_index,
            label_smoothing=self.label_smoothing,
            pixel_weight=weight,
            reduction=reduction if of_ranks is None else 'sum',
            normalize_by=self.normalize_by,
            avg_factor=avg_factor,
            pixels=pixels,
        )
        if of_ranks is not None:
            denominator = of_ranks.wait()
            loss = loss / torch.where(denominator == 0, torch.inf, denominator)
        if observer is not None and pixels is not None:
            nll, correct = pixels[0].detach(), pixels[2]
            shown = label, nll, correct, weight, class_weight, cls_score.shape[1], ignore_index
            with torch.no_grad():
                observer(ObservedPixels(*shown))
        return self.loss_weight * loss

    def smoothing_weight(self, cls_score: Tensor) -> Tensor | None:
        """Weights (C,) of the smoothing term for these logits; None without label smoothing."""
        return smoothing_weight(cls_score, self._float32_class_weight(), self.label_smoothing)

    @property
    def loss_name(self) -> str:
        """Key of this loss in the log."""
        return self._loss_name

    def extra_repr(self) -> str:
        weights = self._class_weight_values
        shown = None if weights is None else f'{weights.numel()} in [{weights.min():.4g}, {weights.max():.4g}]'
        return (
            f'class_weight={shown}, normalize_by={self.normalize_by!r}, reduction={self.reduction!r}, '
            f'label_smoothing={self.label_smoothing}, loss_weight={self.loss_weight}, ignore_index={self.ignore_index}'
        )
