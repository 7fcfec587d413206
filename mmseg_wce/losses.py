"""The loss as a module: the arguments of mmseg's ``CrossEntropyLoss`` and more, for mmseg and for plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmseg_wce.arguments import (
    Normalizer,
    Reduction,
    check_call,
    check_loss_options,
    check_sigmoid_weight,
    check_softmax_weight,
    resolve_normalizer,
)
from mmseg_wce.class_weights import ClassWeight, load_class_weight
from mmseg_wce.observed_pixels import ObservedPixels
from mmseg_wce.pixel_batch import PixelBatch, SigmoidBatch, SoftmaxBatch
from torch import Tensor, nn

__all__ = ['ObservedPixels', 'WeightedCrossEntropyLoss']


class WeightedCrossEntropyLoss(nn.Module):
    """Exact cross-entropy with class weights and ignored pixels. Drop-in replacement for mmseg's ``CrossEntropyLoss``.

    Formula, normalisers and input checks: :func:`mmseg_wce.functional.weighted_cross_entropy`, or with
    ``use_sigmoid=True`` :func:`mmseg_wce.functional.weighted_binary_cross_entropy`. The default mean equals
    ``torch.nn.CrossEntropyLoss(weight=class_weight, ignore_index=255)`` over the pixels that are not ignored, or with a
    sigmoid ``torch.nn.BCEWithLogitsLoss(pos_weight=class_weight.view(C, 1, 1))`` over their elements.

    Args:
        use_sigmoid: binary cross-entropy of every channel; one channel has the labels 0 and 1.
        use_mask: must be False; accepted so that changing ``type`` is enough.
        reduction: 'mean', 'sum' or 'none'.
        class_weight: one finite non-negative number per class: a list, an array, the path of a ``.npy``, ``.json``,
            ``.yaml`` or ``.pkl`` file, or ``dict(statistics='ade20k' or a file, scheme='median_frequency', ...)``
            (:func:`mmseg_wce.class_weights.class_weights`). With a sigmoid it is PyTorch's ``pos_weight``, and may be
            one number for all channels; with one channel, two numbers weight the labels 0 and 1. Stays float32 when the
            model is cast; not part of the state dict.
        loss_weight: factor of the loss.
        loss_name: key in the log; must start with ``loss_``, or mmengine does not add it to the total loss.
        avg_non_ignore: as in mmseg: True means ``normalize_by='class_weight'``; False means 'all' without class
            weights and 'class_weight' with them (mmseg's value for ignored pixels is then undefined). With a sigmoid
            True means 'valid' and False 'all'.
        normalize_by: denominator of the mean: 'class_weight' (default), 'valid' or 'all'. With a sigmoid 'valid' is
            the default (mmseg's is 'all'), and 'class_weight' needs one channel and two weights.
        label_smoothing: in [0, 1], as in :class:`torch.nn.CrossEntropyLoss`; 0 with a sigmoid.
        focal_gamma: exponent of the focal loss, as in :func:`mmseg_wce.functional.weighted_cross_entropy`; 0 for the
            cross-entropy. Not together with ``label_smoothing``.
        ignore_index: the ignored label; by default that of the decode head, or 255.
        sync_normalizer: in training on several ranks, divide by the denominator averaged over the ranks, so that the
            gradient averaged by DistributedDataParallel equals that of the whole batch on one device. Every loss call
            all-reduces one number, so every rank must call the loss, even without images or valid pixels. There is no
            all-reduce with ``avg_factor``, with reduction 'sum' or 'none', or without gradients.

    Attributes:
        threshold: probability above which one channel predicts label 1, for :attr:`ObservedPixels.correct`; 0.5 by
            default, LossMonitorHook sets it to the threshold of the head. The loss does not depend on it.
        observer: called with :class:`ObservedPixels` at the end of every training forward that records gradients, so
            not in those by which a sampler ranks pixels. None by default, and in copies and pickles.

    Raises:
        TypeError, ValueError: an argument is invalid; raised when the model is built.

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
    _class_weight_values: Tensor | None  # float32, on CPU; None if class_weight is None

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
        focal_gamma: float = 0.0,
        ignore_index: int | None = None,
        sync_normalizer: bool = True,
    ) -> None:
        check_loss_options(locals())  # all arguments by name
        super().__init__()
        self.use_sigmoid = use_sigmoid
        self.reduction = reduction
        self.loss_weight = loss_weight
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.ignore_index = ignore_index
        self.sync_normalizer = sync_normalizer
        self._loss_name = loss_name
        weights = None if class_weight is None else load_class_weight(class_weight, single=use_sigmoid)
        num_weights = 0 if weights is None else weights.numel()
        self.normalize_by = resolve_normalizer(normalize_by, avg_non_ignore, num_weights, use_sigmoid)
        self._class_weight_values = weights
        self.register_buffer('class_weight', None if weights is None else weights.clone(), persistent=False)

    def __getstate__(self) -> dict:
        """Return the state without the observer, which belongs to one run, not to copies (EMA makes one) or pickles."""
        return {name: value for name, value in vars(self).items() if name != 'observer'}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WeightedCrossEntropyLoss:
        """Move the class weights to the device of the module, but keep them float32; ``.half()`` would round them."""
        weights = self.class_weight
        if weights is not None and weights.dtype == torch.float32 and not weights.is_meta:
            self._class_weight_values = weights.detach().to('cpu', copy=True)
        super()._apply(fn, recurse)
        if self.class_weight is not None:
            assert self._class_weight_values is not None
            self.class_weight = self._class_weight_values.to(self.class_weight.device, copy=True)
        return self

    def float32_class_weight(self) -> Tensor | None:
        """Return the class weights in float32, even if FSDP has cast the buffer."""
        weights = self.class_weight
        if weights is None or weights.dtype == torch.float32:
            return weights
        assert self._class_weight_values is not None
        return self._class_weight_values.to(weights.device)

    def resolve_ignore_index(self, from_head: int | None) -> int | None:
        """Return the ignored label: that of the decode head or of the constructor, None if neither has one.

        Raises:
            ValueError: the head and the constructor have different values.
        """
        if from_head is None:
            return self.ignore_index
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
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            cls_score: logits (N, C, H, W) or (N, C, ...), any floating dtype; (N, C, h, w) is upsampled bilinearly.
            label: (N, H, W) or (N, ...), any integer dtype.
            weight: pixel weights, of the label's shape, as mmseg's samplers pass them; not in the denominator.
            avg_factor: replaces the denominator of the mean.
            reduction_override: replaces the ``reduction`` of the constructor.
            ignore_index: ``ignore_index`` passed by the decode head; None for that of the constructor.

        Returns:
            Scalar. For reduction 'none' the label's shape, or with a sigmoid and C >= 2 the shape of the upsampled
            logits. float32 (float64 for float64 logits).

        Raises:
            TypeError, ValueError: as :func:`mmseg_wce.functional.weighted_cross_entropy` or
                :func:`mmseg_wce.functional.weighted_binary_cross_entropy`; also if the head and the constructor have
                different ``ignore_index``.
        """
        reduction = reduction_override or self.reduction
        options = weight, reduction, self.normalize_by, avg_factor
        ignore_index, weight = check_call(cls_score, label, self.resolve_ignore_index(ignore_index), *options)
        batch = self.make_batch(cls_score, label.long(), ignore_index)
        self.start_normalizer(batch, reduction, avg_factor)
        return self.reduce(batch, reduction, weight, avg_factor)

    def make_batch(
        self, logits: Tensor, target: Tensor, ignore_index: int, align_corners: bool = False
    ) -> SoftmaxBatch | SigmoidBatch:
        """Create a batch from checked logits, (N, C, h, w) or (N, C, ...), and labels, int64.

        Raises:
            ValueError: the class weights do not fit the logits.
        """
        class_weight = self.float32_class_weight()
        common = logits, target, class_weight, ignore_index, align_corners, None, self.focal_gamma
        if self.use_sigmoid:
            check_sigmoid_weight(class_weight, logits, self.normalize_by)
            return SigmoidBatch(*common, threshold=self.threshold)
        check_softmax_weight(class_weight, logits)
        return SoftmaxBatch(*common, label_smoothing=self.label_smoothing)

    def start_normalizer(
        self, batch: PixelBatch, reduction: Reduction, avg_factor: float | Tensor | None = None
    ) -> None:
        """Start to average the denominator of the mean over the ranks, before the maps are computed."""
        if self.sync_normalizer and reduction == 'mean' and avg_factor is None:
            batch.start_normalizer(self.normalize_by)

    def reduce(
        self,
        batch: SoftmaxBatch | SigmoidBatch,
        reduction: Reduction,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch, given checked options, and pass its pixels to the observer."""
        loss = batch.reduce(reduction, self.normalize_by, weight, avg_factor)
        if self.observer is not None and self.training and torch.is_grad_enabled():
            self.observer(ObservedPixels.from_batch(batch, weight))
        return self.loss_weight * loss

    @property
    def loss_name(self) -> str:
        """Key of this loss in the log."""
        return self._loss_name

    def extra_repr(self) -> str:
        weights = self._class_weight_values
        summary = None if weights is None else f'{weights.numel()} in [{weights.min():.4g}, {weights.max():.4g}]'
        return (
            f'use_sigmoid={self.use_sigmoid}, class_weight={summary}, normalize_by={self.normalize_by!r}, '
            f'reduction={self.reduction!r}, label_smoothing={self.label_smoothing}, focal_gamma={self.focal_gamma}, '
            f'loss_weight={self.loss_weight}, ignore_index={self.ignore_index}'
        )
