"""Loss over all pixels of the validation set."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub, print_log
from mmseg.models.decode_heads import DAHead, DDRHead, EncHead, IterativeDecodeHead, PIDHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import OhemCrossEntropy
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from mmseg_wce.arguments import Normalizer, check_sigmoid_weight, check_softmax_weight
from mmseg_wce.built_in_losses import built_in_class_weight, built_in_normalizer, unsupported_reason
from mmseg_wce.kernels import PixelMaps
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.model_walk import losses_of
from mmseg_wce.pixel_batch import SigmoidBatch, SoftmaxBatch, smoothing_weight
from mmseg_wce.running_losses import RunningLoss, RunningSigmoidLoss, RunningSoftmaxLoss
from mmseg_wce.targets import name_sources, valid_pixels
from torch import Tensor

__all__ = ['SUMS', 'LossTerm', 'RunningSums', 'ValidationLoss', 'loss_terms']

SUMS = 'validation_loss_sums'  # field of a sample: (name, numerator, denominator) of every term, or a reason
_MAX_WARNINGS = 10  # per validation
_MAX_PIXELS = 1 << 18  # rows are processed in chunks whose maps take a few megabytes

# Index of the loss on the logits that PIDNet and DDRNet predict from; the other losses are of training branches.
_PREDICTION_LOSS_INDEX: dict[type, int] = {PIDHead: 1, DDRHead: 0}
_BRANCH_LOSSES = {EncHead: 'the loss of semantic encoding', DAHead: 'the losses of the position and channel branches'}
_KNOWN_LOSSES = tuple(head.loss_by_feat for head in (BaseDecodeHead, EncHead, DAHead, PIDHead, DDRHead))


@dataclass(frozen=True)
class LossTerm:
    """A cross-entropy of a decode head that can be summed over images.

    Attributes:
        name: name in the log.
        use_sigmoid: binary cross-entropy of every channel.
        loss_weight: factor of the loss.
        class_weight: (C,) float32, or one number with a sigmoid; None without.
        ignore_index: the ignored label.
        label_smoothing: in [0, 1].
        normalize_by: denominator of the mean; None for a sum.
        focal_gamma: exponent of the focal loss, 0 for the cross-entropy.
    """

    name: str
    use_sigmoid: bool
    loss_weight: float
    class_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    normalize_by: Normalizer | None
    focal_gamma: float = 0.0

    def check(self, num_channels: int) -> None:
        """Raise ValueError unless the class weights fit the channels and the denominator."""
        logits = torch.empty(0, num_channels)
        if self.use_sigmoid:
            check_sigmoid_weight(self.class_weight, logits, self.normalize_by or 'valid')
        else:
            check_softmax_weight(self.class_weight, logits)

    def start(self, label: Tensor, num_channels: int) -> RunningLoss:
        """Start the running loss of an image with these labels, (1, H, W)."""
        if self.use_sigmoid:
            return RunningSigmoidLoss(label, num_channels, self.focal_gamma)
        logits = torch.empty(1, num_channels)  # only the shape and dtype are read
        return RunningSoftmaxLoss(label, smoothing_weight(logits, self.class_weight, self.label_smoothing))

    def sums(self, running: RunningLoss, label: Tensor, num_channels: int) -> tuple[str, float, float | None]:
        """Return name, numerator and denominator of the mean over an image; the denominator is None for a sum."""
        numerator = denominator = 0.0
        height, width = label.shape[1:]
        step = max(1, _MAX_PIXELS // max(width, 1))
        for first in range(0, height, step):
            rows = slice(first, first + step)
            sums = self._sum_rows(running.maps(rows), label[:, rows].long(), num_channels)
            numerator, denominator = numerator + sums[0], denominator + sums[1]
        return self.name, numerator, None if self.normalize_by is None else denominator

    def _sum_rows(self, maps: tuple[Tensor, Tensor], label: Tensor, num_channels: int) -> tuple[float, float]:
        ignored = label == self.ignore_index
        first, second = (x.masked_fill(ignored, 0) for x in maps)
        logits = first.new_zeros(()).expand(1, num_channels, *label.shape[1:])  # only the shape and dtype are read
        weight = None if self.class_weight is None else self.class_weight.to(label.device)
        inputs = logits, label, weight, self.ignore_index, False
        batch: SigmoidBatch | SoftmaxBatch
        if self.use_sigmoid:
            batch = SigmoidBatch(*inputs, (first, second, ignored), self.focal_gamma)
        else:
            batch = SoftmaxBatch(*inputs, PixelMaps(first, second, ignored), self.focal_gamma, self.label_smoothing)
        numerator = self.loss_weight * batch.reduce('sum', 'valid').item()
        return numerator, 0.0 if self.normalize_by is None else batch.normalizer(self.normalize_by).item()


def loss_terms(head: Any) -> tuple[list[LossTerm], list[str]]:
    """Find the cross-entropies of a decode head on the logits that it predicts from.

    Args:
        head: decode head of mmseg.

    Returns:
        The terms, and a line for each loss that is left out, with the reason.
    """
    if isinstance(head, IterativeDecodeHead):  # K-Net: every stage has the losses of the first
        head = head.kernel_generate_head
    if getattr(type(head), 'loss_by_feat', None) not in _KNOWN_LOSSES:
        return [], [f'{type(head).__name__} overrides loss_by_feat']
    index = next((i for kind, i in _PREDICTION_LOSS_INDEX.items() if isinstance(head, kind)), None)
    terms, left_out = [], []
    for i, loss in enumerate(losses_of(head)):
        if index not in (None, i):
            left_out.append(f'{loss.loss_name} (loss_decode[{i}] needs a branch or labels that exist only in training)')
        elif reason := unsupported_reason(loss, head.out_channels):
            left_out.append(f'{loss.loss_name} ({reason})')
        else:
            try:
                term = _make_term(loss, head)
                term.check(head.out_channels)
                terms.append(term)
            except (TypeError, ValueError) as error:  # invalid class weights, which mmseg does not check
                left_out.append(f'{loss.loss_name} ({error})')
    left_out += [losses for kind, losses in _BRANCH_LOSSES.items() if isinstance(head, kind)]
    return terms, left_out


def _make_term(loss: Any, head: Any) -> LossTerm:
    """Describe a loss by its current attributes; hard pixels are selected in training, validation uses all pixels."""
    ignore_index, normalize_by = head.ignore_index, 'valid'
    if isinstance(loss, WeightedCrossEntropyLoss):
        class_weight, normalize_by = loss.float32_class_weight(), loss.normalize_by
        ignore_index = head.ignore_index if loss.ignore_index is None else loss.ignore_index
    elif isinstance(loss, OhemCrossEntropy):
        class_weight, ignore_index = built_in_class_weight(loss), loss.ignore_label
    else:
        class_weight, normalize_by = built_in_class_weight(loss), built_in_normalizer(loss)
    by_reduction: dict[str, Any] = dict(mean=normalize_by, sum=None, none='all')  # mmengine averages all of 'none'
    return LossTerm(
        name=loss.loss_name,
        use_sigmoid=bool(getattr(loss, 'use_sigmoid', False)),
        loss_weight=loss.loss_weight,
        class_weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=getattr(loss, 'label_smoothing', 0.0),
        normalize_by=by_reduction[getattr(loss, 'reduction', 'mean')],
        focal_gamma=getattr(loss, 'focal_gamma', 0.0),
    )


class RunningSums:
    """Loss sums of one image, updated as the channels of its logits are resized.

    Args:
        terms: loss terms.
        sample: sample of the image, with or without labels.
        size: (H, W) of the logits.
        num_channels: C.
    """

    def __init__(
        self, terms: Sequence[LossTerm], sample: SegDataSample, size: tuple[int, int], num_channels: int
    ) -> None:
        self._sample, self._num_channels = sample, num_channels
        self._label, self._skip_reason = _check_label(sample, size, num_channels, terms)
        label = self._label
        self._losses = [] if label is None else [(term, term.start(label, num_channels)) for term in terms]

    def update(self, channels: Tensor, first: int) -> None:
        """Add channels, (1, number of channels, H, W), of which the first has index ``first``."""
        for _, loss in self._losses:
            loss.update(channels, first)

    def finish(self) -> None:
        """Store the sums in the sample, or the reason why there are none; nothing without labels."""
        if self._label is not None:
            sums = [term.sums(loss, self._label, self._num_channels) for term, loss in self._losses]
            self._sample.set_field(sums, SUMS)
        elif self._skip_reason:
            self._sample.set_field(self._skip_reason, SUMS)


def _check_label(
    sample: SegDataSample, size: tuple[int, int], num_channels: int, terms: Sequence[LossTerm]
) -> tuple[Tensor | None, str]:
    """Return the labels of an image, (1, H, W), or None and the reason why they are invalid; no reason if absent."""
    if 'gt_sem_seg' not in sample:
        return None, ''
    label, file = sample.gt_sem_seg.data, str(sample.get('seg_map_path') or sample.get('img_path', 'an image'))
    if tuple(label.shape) not in (size, (1, *size)):
        return None, (
            f'{file} is left out: its labels are {tuple(label.shape)}, the prediction {size}. In a test pipeline '
            'LoadAnnotations must come after Resize'
        )
    if label.is_floating_point() or label.dtype == torch.bool:
        return None, f'{file} is left out: its labels are {label.dtype}, not integers'
    label, on_cpu = label.reshape(1, *size), label.reshape(1, *size).long().cpu()
    name_sources([file])
    try:
        for ignore_index in {term.ignore_index for term in terms}:
            valid_pixels(on_cpu, max(num_channels, 2), ignore_index)
    except ValueError as error:
        return None, f'{file} is left out: {error}'
    finally:
        name_sources([])
    return label, ''


def _warn(message: str) -> None:
    print_log(f'ValidationLoss: {message}', logger='current', level=logging.WARNING)


@METRICS.register_module()
class ValidationLoss(BaseMetric):
    """Metric that logs the loss over all pixels of the validation set as ``val/loss_ce``; not a mean over batches.

    ``val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='ValidationLoss')]``, and
    ``custom_hooks = [dict(type='FusedPredictHook')]``, which computes it along with the predictions.

    It is the cross-entropy of the last decode head, on the logits resized to the original image, from which the
    prediction is made. Each loss is logged as its ``loss_name`` after ``val/``, an ``OhemCrossEntropy`` as
    ``val/loss_ohem``. The hook logs which losses of the head are included, and which are left out. Images whose labels
    differ in size from the original image, or have an invalid value, are left out with a warning. If all pixels are
    ignored the value is NaN; if no image has labels nothing is logged. Usable for ``save_best='val/loss_ce'`` with
    ``rule='less'``, and for early stopping.

    Args:
        **kwargs: arguments of mmengine's ``BaseMetric``: ``collect_device``, ``prefix``, ``collect_dir``.

    Example:
        >>> from mmseg_wce.validation_loss import ValidationLoss
        >>> metric = ValidationLoss()
        >>> metric.process({}, [dict(validation_loss_sums=[('loss_ce', *sums)]) for sums in ((3.0, 2.0), (0.5, 5.0))])
        >>> metric.evaluate(size=2)
        {'val/loss_ce': 0.5}
    """

    default_prefix = 'val'

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._names: list[str] | None = None
        self._warned: set[str] = set()

    def expect(self, names: Sequence[str]) -> None:
        """Set the names of the losses that the model computes; FusedPredictHook calls it before every validation."""
        self._names = list(dict.fromkeys(names))
        # mmengine would log the mean of the last ten values of a loss
        history = MessageHub.get_current_instance().log_scalars
        for key in self.expected_keys:
            for mode in ('val', 'test'):
                history.pop(f'{mode}/{key}', None)

    @property
    def expected_keys(self) -> list[str]:
        """Keys of the losses in the log."""
        return [f'{self.prefix}/{name}' for name in self._names or ()]

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Collect for each image its sums, the reason why it is left out, or None if it has no labels."""
        self.results.extend(sample.get(SUMS) for sample in data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Divide the sums, and warn about images that are left out; here, because only rank 0 writes a log."""
        image_sums = [sums for sums in results if isinstance(sums, list)]
        left_out = [reason for reason in results if isinstance(reason, str)]
        self._warn_left_out(left_out)
        if self._names is None and not image_sums and not left_out:
            _warn("there is nothing to log: add dict(type='FusedPredictHook') to custom_hooks, which computes it")
        metrics: dict[str, float] = {}
        for terms in zip(*image_sums, strict=True):  # every image has the same terms
            names, numerators, denominators = zip(*terms, strict=True)
            denominator = 1.0 if None in denominators else sum(denominators)
            value = sum(numerators) / denominator if denominator > 0 else math.nan
            metrics[names[0]] = metrics.get(names[0], 0.0) + value
        if left_out and not image_sums:
            metrics = dict.fromkeys(self._names or (), math.nan)
        return metrics

    def _warn_left_out(self, left_out: Sequence[str]) -> None:
        """Warn about images that are left out, once for each image in a training."""
        new = [reason for reason in dict.fromkeys(left_out) if reason not in self._warned]
        self._warned.update(new)
        for reason in new[:_MAX_WARNINGS]:
            _warn(reason)
        if len(left_out) > min(len(new), _MAX_WARNINGS):
            _warn(f'{len(left_out)} images are left out of this validation')
