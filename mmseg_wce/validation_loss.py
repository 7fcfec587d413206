"""The loss on the validation set, over all of its pixels at once."""

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
from mmseg.models.losses import CrossEntropyLoss, OhemCrossEntropy
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from mmseg_wce.arguments import Normalizer, check_sigmoid_weight, check_softmax_weight
from mmseg_wce.built_in_losses import built_in_class_weight, built_in_normalizer
from mmseg_wce.kernels import PixelMaps
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.pixel_batch import SigmoidBatch, SoftmaxBatch, smoothing_weight
from mmseg_wce.running_losses import RunningLoss, RunningSigmoidLoss, RunningSoftmaxLoss
from mmseg_wce.targets import name_sources, valid_pixels
from torch import Tensor, nn

__all__ = ['SUMS', 'LossTerm', 'RunningSums', 'ValidationLoss', 'loss_terms']

SUMS = 'validation_loss_sums'  # field of a sample: name, numerator and denominator of every term, or why not
_MOST_WARNINGS = 10  # in one validation
_PIXELS_AT_ONCE = 1 << 18  # the maps of some rows take a few megabytes

# Index of the loss on the logits that PIDNet and DDRNet predict from; the others are of branches of the training.
_OF_PREDICTED_LOGITS: dict[type, int] = {PIDHead: 1, DDRHead: 0}
_OTHER_BRANCHES = {EncHead: 'the loss of semantic encoding', DAHead: 'the losses of the position and channel branches'}
_KNOWN_LOSSES = tuple(head.loss_by_feat for head in (BaseDecodeHead, EncHead, DAHead, PIDHead, DDRHead))


@dataclass(frozen=True)
class LossTerm:
    """A cross-entropy of a decode head, as it adds up over images.

    Attributes:
        name: in the log.
        use_sigmoid: binary cross-entropy of every channel.
        loss_weight: factor of the loss.
        class_weight: (C,) float32, or one number with a sigmoid; None without.
        ignore_index: the label that does not count.
        label_smoothing: in [0, 1].
        normalize_by: what the mean divides by; None for a sum.
    """

    name: str
    use_sigmoid: bool
    loss_weight: float
    class_weight: Tensor | None
    ignore_index: int
    label_smoothing: float = 0.0
    normalize_by: Normalizer | None = 'class_weight'

    def check(self, num_channels: int) -> None:
        """Raise ValueError where the class weights do not fit the channels, or the denominator."""
        logits = torch.empty(0, num_channels)
        if self.use_sigmoid:
            check_sigmoid_weight(self.class_weight, logits, self.normalize_by or 'valid')
        else:
            check_softmax_weight(self.class_weight, logits)

    def start(self, label: Tensor, num_channels: int) -> RunningLoss:
        """Begin with an image.

        Args:
            label: (1, H, W), integer.
            num_channels: C.
        """
        if self.use_sigmoid:
            return RunningSigmoidLoss(label, num_channels)
        logits = torch.empty(1, num_channels)  # only the shape and dtype are read
        return RunningSoftmaxLoss(label, smoothing_weight(logits, self.class_weight, self.label_smoothing))

    def sums(self, running: RunningLoss, label: Tensor, num_channels: int) -> tuple[str, float, float | None]:
        """Return the name, numerator and denominator of the mean over the pixels of an image; None for a sum.

        Args:
            running: what :meth:`start` gave, after all channels.
            label: (1, H, W), integer, each a class or ignored.
            num_channels: C.
        """
        numerator = denominator = 0.0
        height, width = label.shape[1:]
        step = max(1, _PIXELS_AT_ONCE // max(width, 1))
        for first in range(0, height, step):
            rows = slice(first, first + step)
            sums = self._sums_of_rows(running.maps(rows), label[:, rows].long(), num_channels)
            numerator, denominator = numerator + sums[0], denominator + sums[1]
        return self.name, numerator, None if self.normalize_by is None else denominator

    def _sums_of_rows(self, maps: tuple[Tensor, Tensor], label: Tensor, num_channels: int) -> tuple[float, float]:
        ignored = label == self.ignore_index
        first, second = (one.masked_fill(ignored, 0) for one in maps)
        logits = first.new_zeros(()).expand(1, num_channels, *label.shape[1:])  # only the shape and dtype are read
        weight = None if self.class_weight is None else self.class_weight.to(label.device)
        inputs = logits, label, weight, self.ignore_index
        batch: SigmoidBatch | SoftmaxBatch
        if self.use_sigmoid:
            batch = SigmoidBatch(*inputs, maps=(first, second, ignored))
        else:
            batch = SoftmaxBatch(*inputs, label_smoothing=self.label_smoothing, maps=PixelMaps(first, second, ignored))
        numerator = self.loss_weight * batch.reduce('sum', 'valid').item()
        return numerator, 0.0 if self.normalize_by is None else batch.normalizer(self.normalize_by).item()


def loss_terms(head: Any) -> tuple[list[LossTerm], list[str]]:
    """Find the cross-entropies of a decode head that the logits it predicts from have.

    Args:
        head: a decode head of mmseg.

    Returns:
        The terms, and a line for each loss that is left out, which says why.
    """
    if isinstance(head, IterativeDecodeHead):  # K-Net: every stage has the losses of the first
        head = head.kernel_generate_head
    if getattr(type(head), 'loss_by_feat', None) not in _KNOWN_LOSSES:
        return [], [f'{type(head).__name__} computes its loss in a way of its own']
    losses = list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
    predicted = next((i for kind, i in _OF_PREDICTED_LOGITS.items() if isinstance(head, kind)), None)
    terms, left_out = [], []
    for i, loss in enumerate(losses):
        if predicted not in (None, i):
            left_out.append(f'{loss.loss_name} (loss_decode[{i}] is of a branch, or of labels, that only training has)')
        elif reason := _not_a_cross_entropy(loss, head.out_channels):
            left_out.append(f'{loss.loss_name} ({reason})')
        else:
            try:
                term = _term(loss, head)
                term.check(head.out_channels)
                terms.append(term)
            except (TypeError, ValueError) as error:  # class weights that mmseg does not check
                left_out.append(f'{loss.loss_name} ({error})')
    left_out += [what for kind, what in _OTHER_BRANCHES.items() if isinstance(head, kind)]
    return terms, left_out


def _not_a_cross_entropy(loss: nn.Module, num_channels: int) -> str:
    if type(loss) not in (WeightedCrossEntropyLoss, CrossEntropyLoss, OhemCrossEntropy):
        return f'a {type(loss).__name__}'
    if getattr(loss, 'use_mask', False):
        return f'a {type(loss).__name__} with use_mask'
    if num_channels == 1 and not getattr(loss, 'use_sigmoid', False):
        return f'a {type(loss).__name__} without use_sigmoid=True, and one channel is no softmax'
    return ''


def _term(loss: Any, head: Any) -> LossTerm:
    use_sigmoid = bool(getattr(loss, 'use_sigmoid', False))
    common: dict[str, Any] = dict(name=loss.loss_name, use_sigmoid=use_sigmoid, loss_weight=loss.loss_weight)
    if isinstance(loss, WeightedCrossEntropyLoss):
        ignored = head.ignore_index if loss.ignore_index is None else loss.ignore_index
        return LossTerm(
            **common,
            class_weight=loss.float32_class_weight(),
            ignore_index=ignored,
            label_smoothing=loss.label_smoothing,
            normalize_by=_normalizer(loss.reduction, loss.normalize_by),
        )
    weight = built_in_class_weight(loss)
    if isinstance(loss, OhemCrossEntropy):  # hard pixels are picked in training; here every pixel counts
        return LossTerm(**common, class_weight=weight, ignore_index=loss.ignore_label, normalize_by='valid')
    by = _normalizer(loss.reduction, built_in_normalizer(loss))
    return LossTerm(**common, class_weight=weight, ignore_index=head.ignore_index, normalize_by=by)


def _normalizer(reduction: str, normalize_by: Normalizer) -> Normalizer | None:
    """Translate the reduction: of 'none' mmengine takes the mean over everything."""
    return dict(mean=normalize_by, sum=None, none='all')[reduction]


class RunningSums:
    """Adds up what one image contributes to the loss on the validation set, while its channels come.

    Args:
        terms: of the loss.
        sample: of the image, perhaps with labels.
        size: (H, W) of the logits.
        num_channels: C.
    """

    def __init__(
        self, terms: Sequence[LossTerm], sample: SegDataSample, size: tuple[int, int], num_channels: int
    ) -> None:
        self._sample, self._num_channels = sample, num_channels
        self._label, self._why_not = _usable_label(sample, size, num_channels, terms)
        label = self._label
        self._losses = [] if label is None else [(term, term.start(label, num_channels)) for term in terms]

    def update(self, channels: Tensor, first: int) -> None:
        """Take further channels, (1, number of channels, H, W), of which the first has index ``first``."""
        for _, loss in self._losses:
            loss.update(channels, first)

    def finish(self) -> None:
        """Leave the sums in the sample, or why there are none; nothing without labels."""
        if self._label is not None:
            sums = [term.sums(loss, self._label, self._num_channels) for term, loss in self._losses]
            self._sample.set_field(sums, SUMS)
        elif self._why_not:
            self._sample.set_field(self._why_not, SUMS)


def _usable_label(
    sample: SegDataSample, size: tuple[int, int], num_channels: int, terms: Sequence[LossTerm]
) -> tuple[Tensor | None, str]:
    """Return the labels of an image, (1, H, W), or None and why they cannot be right; no reason without any."""
    if 'gt_sem_seg' not in sample:
        return None, ''
    label, file = sample.gt_sem_seg.data, str(sample.get('seg_map_path') or sample.get('img_path', 'an image'))
    if tuple(label.shape) not in (size, (1, *size)):
        return None, (
            f'{file} is left out: its labels are {tuple(label.shape)}, the prediction {size}. In a test pipeline '
            'LoadAnnotations has to come after Resize'
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
    """Logs the loss on the validation set as ``val/loss_ce``: that of all its pixels at once, not a mean over batches.

    ``val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='ValidationLoss')]``, and
    ``custom_hooks = [dict(type='FusedPredictHook')]``, which computes it beside the predictions.

    It is the cross-entropy of the last decode head, of the logits that the prediction is made from: those of the
    photo's size. Each loss has its ``loss_name`` after ``val/``, an ``OhemCrossEntropy`` ``val/loss_ohem``. The hook
    logs which losses of the head these are, and which are left out. Images whose labels are not of the photo's size, or
    hold one that cannot be right, are left out, with a warning. Where no pixel of any image counts the value is NaN;
    where no image has labels nothing is logged. Usable for ``save_best='val/loss_ce'`` with ``rule='less'``, and for
    early stopping.

    Args:
        **kwargs: of mmengine's ``BaseMetric``: ``collect_device``, ``prefix``, ``collect_dir``.

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
        """Learn from FusedPredictHook which losses it lets the model compute; called before every validation.

        Args:
            names: of the terms; none where there is no loss to compute.
        """
        self._names = list(dict.fromkeys(names))
        self._forget_earlier()

    @property
    def expected_keys(self) -> list[str]:
        """Keys of the losses in the log."""
        return [f'{self.prefix}/{name}' for name in self._names or ()]

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take of each image the sums, or the reason for which it is left out, or None where it has no labels."""
        self.results.extend(sample.get(SUMS) for sample in data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Divide once, and warn of what is left out: here, since only the first of several ranks writes a log."""
        found = [sums for sums in results if isinstance(sums, list)]
        left_out = [reason for reason in results if isinstance(reason, str)]
        self._warn_of(left_out)
        if self._names is None and not found and not left_out:
            _warn("there is nothing to log: add dict(type='FusedPredictHook') to custom_hooks, which computes it")
        metrics: dict[str, float] = {}
        for terms in zip(*found, strict=True):  # the same of every image
            names, numerators, denominators = zip(*terms, strict=True)
            denominator = 1.0 if None in denominators else sum(denominators)
            value = sum(numerators) / denominator if denominator > 0 else math.nan
            metrics[names[0]] = metrics.get(names[0], 0.0) + value
        if left_out and not found:
            metrics = dict.fromkeys(self._names or (), math.nan)
        self._forget_earlier()
        return metrics

    def _warn_of(self, left_out: Sequence[str]) -> None:
        """Warn of images that are left out, of each once in a training."""
        new = [reason for reason in dict.fromkeys(left_out) if reason not in self._warned]
        self._warned.update(new)
        for reason in new[:_MOST_WARNINGS]:
            _warn(reason)
        if len(left_out) > min(len(new), _MOST_WARNINGS):
            _warn(f'{len(left_out)} images are left out of this validation')

    def _forget_earlier(self) -> None:
        """Let mmengine log this value alone: of every loss it logs the mean of the last ten values."""
        history = MessageHub.get_current_instance().log_scalars
        for key in self.expected_keys:
            for mode in ('val', 'test'):
                history.pop(f'{mode}/{key}', None)
