"""The loss that mmseg configs name: arguments of mmseg's ``CrossEntropyLoss``, mathematics of :mod:`functional`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from mmseg.registry import MODELS
from mmseg_wce.arguments import resolve_ignore_index
from mmseg_wce.binary import summed_binary_loss, weights_of_labels
from mmseg_wce.class_weights import ClassWeight, load_class_weight
from mmseg_wce.functional import (
    Normalizer,
    Pixels,
    Reduction,
    binary_normalizer,
    check_binary_inputs,
    check_inputs,
    normalizer,
    smoothing_weight,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
)
from mmseg_wce.kernels import pixel_bce, pixel_maps
from mmseg_wce.loss_options import check_loss_options, resolve_binary_normalizer, resolve_normalizer
from torch import Tensor, nn

__all__ = ['ObservedPixels', 'WeightedCrossEntropyLoss']


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


@dataclass(frozen=True)
class ObservedPixels:
    """What an observer of :class:`WeightedCrossEntropyLoss` is shown of a call. No gradient flows; not to be changed.

    With ``use_sigmoid=True`` one channel is shown as two classes. Of more channels, where a class weight belongs to the
    label's channel and not to the pixel, ``nll`` is the weighted loss, summed over the channels.

    Attributes:
        label: (N, ...), any integer dtype.
        nll: (N, ...), negative log-likelihood without any weight or smoothing; 0 where ignored.
        correct: (N, ...), bool: the label has the greatest logit, or of one channel, the probability of label 1 is
            above the threshold and the label is 1, or neither; False where ignored.
        pixel_weight: broadcastable to (N, ...), or None.
        class_weight: (C,) float32, (2,) for one channel; None without weights, and with a sigmoid for C >= 2.
        num_classes: C, or 2 for one channel.
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


def _observed(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None,
    pixels: Pixels,
    pixel_weight: Tensor | None,
    ignore_index: int,
) -> ObservedPixels:
    nll, _, correct = pixels[:3]
    return ObservedPixels(label, nll.detach(), correct, pixel_weight, class_weight, logits.shape[1], ignore_index)


def _observed_binary(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None,
    pixels: Pixels,
    pixel_weight: Tensor | None,
    ignore_index: int,
) -> ObservedPixels:
    positive, negative, correct = (x.detach() for x in pixels[:3])
    num_channels = logits.shape[1]
    weights = weights_of_labels(class_weight, num_channels)
    if num_channels == 1:
        return ObservedPixels(label, positive + negative, correct, pixel_weight, weights, 2, ignore_index)
    label_weight = None if weights is None else weights[label.long().clamp(0, num_channels - 1)]
    loss = summed_binary_loss(positive, negative, label_weight, num_channels)
    return ObservedPixels(label, loss, correct, pixel_weight, None, num_channels, ignore_index)


@MODELS.register_module()
class WeightedCrossEntropyLoss(nn.Module):
    """Cross-entropy that is exact with class weights and ignored pixels. Drop-in for mmseg's ``CrossEntropyLoss``.

    Formula, normalisers and input checks: :func:`mmseg_wce.functional.weighted_cross_entropy`, or with
    ``use_sigmoid=True`` :func:`mmseg_wce.functional.weighted_binary_cross_entropy`. By default the mean is PyTorch's
    over the pixels that are not ignored, as ``torch.nn.CrossEntropyLoss(weight=class_weight, ignore_index=255)``
    computes it, or ``torch.nn.BCEWithLogitsLoss(pos_weight=class_weight.view(C, 1, 1))`` of their elements.

    Args:
        use_sigmoid: binary cross-entropy of every channel; one channel has the labels 0 and 1.
        use_mask: must be False; accepted so that changing ``type`` is enough.
        reduction: 'mean', 'sum' or 'none'.
        class_weight: one finite non-negative number per class: a list, an array, the path of a ``.npy``, ``.json``,
            ``.yaml`` or ``.pkl`` file, or ``dict(statistics='ade20k' or a file, scheme='median_frequency', ...)``
            (:func:`mmseg_wce.class_weights.class_weights`). With a sigmoid it is PyTorch's ``pos_weight``, and may be
            one number, for all channels; for one channel two numbers weight the labels 0 and 1. Kept in float32
            whatever the model is cast to; not part of the state dict.
        loss_weight: factor of the loss.
        loss_name: key in the log; has to start with ``loss_``, or mmengine does not add it to the total loss.
        avg_non_ignore: as in mmseg: True means ``normalize_by='class_weight'``; False means 'all' without class
            weights, and with them 'class_weight' (mmseg has no defined value for ignored pixels there). With a sigmoid
            True means 'valid' and False 'all'.
        normalize_by: what the mean divides by: 'class_weight' (default), 'valid' or 'all'. With a sigmoid 'valid' is
            the default (mmseg's is 'all'), and 'class_weight' needs one channel and two weights.
        label_smoothing: in [0, 1], as in :class:`torch.nn.CrossEntropyLoss`; 0 with a sigmoid.
        ignore_index: the label that does not count; by default what the decode head says, or 255.
        sync_normalizer: in training on several ranks, divide by the mean over the ranks of their denominators, so that
            the gradient averaged by DistributedDataParallel is that of the whole batch on one device. Sends one number
            for each loss call, which every rank has to make, also one without a pixel that counts or without an image;
            nothing with ``avg_factor``, reduction 'sum' or 'none', or without gradients.

    Attributes:
        threshold: of the probability above which one channel predicts label 1, as the observer is told; 0.5 unless
            somebody sets it, as LossMonitorHook does to that of the head. The loss does not depend on it.
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
        >>> loss = WeightedCrossEntropyLoss(use_sigmoid=True, class_weight=3.0)
        >>> print(f'{loss(logits[:, :1], label):.4f}')  # (2.1269 + 3 * 0.1269) / 2
        1.2539
    """

    observer: Callable[[ObservedPixels], None] | None = None
    threshold: float = 0.5
    class_weight: Tensor | None
    _class_weight_values: Tensor | None  # in float32, on CPU; there where class_weight is

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: Reduction = 'mean',
        class_weight: ClassWeight | float | None = None,
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
        check_loss_options(
            dict(
                use_sigmoid=use_sigmoid,
                use_mask=use_mask,
                reduction=reduction,
                loss_weight=loss_weight,
                loss_name=loss_name,
                avg_non_ignore=avg_non_ignore,
                label_smoothing=label_smoothing,
                ignore_index=ignore_index,
            )
        )
        weights = None if class_weight is None else load_class_weight(class_weight, single=use_sigmoid)
        if use_sigmoid:
            number = 0 if weights is None else weights.numel()
            self.normalize_by = resolve_binary_normalizer(normalize_by, avg_non_ignore, number)
        else:
            self.normalize_by = resolve_normalizer(normalize_by, avg_non_ignore, weights is not None)
        self._class_weight_values = weights
        self.register_buffer('class_weight', None if weights is None else weights.clone(), persistent=False)
        self.use_sigmoid = use_sigmoid
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

    def float32_class_weight(self) -> Tensor | None:
        """Return the class weights in float32, even if a wrapper that shards the model has cast the buffer."""
        weights = self.class_weight
        if weights is None or weights.dtype == torch.float32:
            return weights
        assert self._class_weight_values is not None
        return self._class_weight_values.to(weights.device)

    def _resolve_ignore_index(self, from_head: int | None, num_classes: int = 0) -> int:
        if from_head is None:
            return resolve_ignore_index(self.ignore_index, num_classes)
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
            pixels: what :func:`mmseg_wce.kernels.pixel_nll` gives, with :meth:`smoothing_weight`, or with a sigmoid
                :func:`mmseg_wce.kernels.pixel_bce`, where somebody else computes it; or a callable, evaluated after the
                all-reduce of the denominator has started.

        Returns:
            Scalar, or what reduction 'none' gives: the label's shape, with a sigmoid and C >= 2 that of the upsampled
            logits. float32 (float64 for float64 logits).

        Raises:
            TypeError, ValueError: as :func:`mmseg_wce.functional.weighted_cross_entropy` or
                :func:`mmseg_wce.functional.weighted_binary_cross_entropy`; also where the head and the constructor name
                different labels to ignore.
        """
        reduction, class_weight = reduction_override or self.reduction, self.float32_class_weight()
        ignore_index = self._resolve_ignore_index(ignore_index, cls_score.shape[1])
        inputs = cls_score, label, class_weight
        options: dict[str, Any] = dict(ignore_index=ignore_index, normalize_by=self.normalize_by)
        of_ranks = None
        if reduction == 'mean' and avg_factor is None and self.sync_normalizer and _gradients_are_averaged(cls_score):
            of_ranks = _MeanOfRanks((binary_normalizer if self.use_sigmoid else normalizer)(*inputs, **options))
        if callable(pixels):
            pixels = pixels()
        observer = self.observer if self.training and torch.is_grad_enabled() else None
        if observer is not None and pixels is None:  # the maps that the loss would make
            pixels = self._maps(*inputs, ignore_index)
        options.update(
            pixel_weight=weight,
            reduction=reduction if of_ranks is None else 'sum',
            avg_factor=avg_factor,
            pixels=pixels,
        )
        if self.use_sigmoid:
            loss = weighted_binary_cross_entropy(*inputs, **options)
        else:
            loss = weighted_cross_entropy(*inputs, label_smoothing=self.label_smoothing, **options)
        if of_ranks is not None:
            denominator = of_ranks.wait()
            loss = loss / torch.where(denominator == 0, torch.inf, denominator)
        if observer is not None and pixels is not None:
            with torch.no_grad():
                shown = _observed_binary if self.use_sigmoid else _observed
                observer(shown(*inputs, pixels, weight, ignore_index))
        return self.loss_weight * loss

    def _maps(self, cls_score: Tensor, label: Tensor, class_weight: Tensor | None, ignore_index: int) -> Pixels:
        if self.use_sigmoid:
            check_binary_inputs(cls_score, label, class_weight)
            return pixel_bce(cls_score, label.long(), ignore_index=ignore_index, threshold=self.threshold)
        check_inputs(cls_score, label, class_weight)
        smoothing = self.smoothing_weight(cls_score)
        return pixel_maps(cls_score, label.long(), class_weight, ignore_index=ignore_index, smoothing_weight=smoothing)

    def smoothing_weight(self, cls_score: Tensor) -> Tensor | None:
        """Weights (C,) of the smoothing term for these logits; None without label smoothing."""
        return smoothing_weight(cls_score, self.float32_class_weight(), self.label_smoothing)

    @property
    def loss_name(self) -> str:
        """Key of this loss in the log."""
        return self._loss_name

    def extra_repr(self) -> str:
        weights = self._class_weight_values
        shown = None if weights is None else f'{weights.numel()} in [{weights.min():.4g}, {weights.max():.4g}]'
        return (
            f'use_sigmoid={self.use_sigmoid}, class_weight={shown}, normalize_by={self.normalize_by!r}, '
            f'reduction={self.reduction!r}, '
            f'label_smoothing={self.label_smoothing}, loss_weight={self.loss_weight}, ignore_index={self.ignore_index}'
        )
