"""Replacements for mmseg's prediction methods that work on low-resolution logits, a few channels at a time.

Each function replaces a method of one model. Called from anywhere but :func:`predict`, it does what that method does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads.deferred_logits import DeferredLogits, SlidingWindows
from mmseg_wce.model_walk import main_head
from mmseg_wce.rebalanced_argmax import RebalancedArgmax, RebalancedClasses
from mmseg_wce.upsampling import RunningArgmax
from mmseg_wce.validation_loss import SUMS, LossTerm, RunningSums
from torch import Tensor

__all__ = ['REBALANCED', 'Rebalancing', 'predict', 'predict_by_feat', 'slide_inference']

_MAX_KEPT = 1 << 24  # numbers of full-size logits that are kept for a second pass: 64 MB in float32
REBALANCED = 'rebalanced_classes'  # field of a sample: RebalancedClasses of (H, W)


class Rebalancing(NamedTuple):
    """Offsets to predict with, (T, channels), linear in tau below row ``unchanged``, which is all 0, and above it."""

    offsets: Tensor
    unchanged: int

    @property
    def knots(self) -> list[int]:
        """Rows between which offsets are linear in tau."""
        return sorted({0, self.unchanged, len(self.offsets) - 1})


class _ImageMetas(list):
    """Image metas of a batch, as mmseg passes them; this type asks for low-resolution logits."""


def predict(
    model: Any,
    inputs: Tensor,
    data_samples: list[SegDataSample] | None = None,
    *,
    keep_logits: bool = False,
    terms: Sequence[LossTerm] = (),
    rebalancing: Rebalancing | None = None,
) -> list[SegDataSample]:
    """Predict as ``EncoderDecoder.predict``.

    Args:
        model: ``EncoderDecoder`` with :func:`slide_inference`, whose head has :func:`predict_by_feat`.
        inputs: images, (N, 3, H, W).
        data_samples: one per image, with its size before resizing, padding and flipping.
        keep_logits: also build full-size logits, and keep them in the samples.
        terms: losses to sum over the images whose samples have labels.
        rebalancing: offsets; the classes predicted with these are stored in the samples, as ``rebalanced_classes``.

    Returns:
        ``data_samples``, or new samples without them, with ``pred_sem_seg``.
    """
    if data_samples is None:
        shape = inputs.shape[2:]
        metas = [dict(ori_shape=shape, img_shape=shape, pad_shape=shape, padding_size=[0, 0, 0, 0])] * len(inputs)
        samples = [SegDataSample() for _ in metas]
    else:
        samples, metas = data_samples, [sample.metainfo for sample in data_samples]
    logits = model.inference(inputs, _ImageMetas(metas))
    if isinstance(logits, Tensor):  # the fused head has been replaced
        return model.postprocess_result(logits, data_samples)
    with torch.set_grad_enabled(torch.is_grad_enabled() and keep_logits):
        options = model, keep_logits, terms, rebalancing
        images = [
            _ImagePrediction(sample, None if data_samples is None else meta, logits, *options)
            for sample, meta in zip(samples, metas, strict=True)
        ]
        numbers = logits.num_channels * sum(math.prod(image.size) for image in images)
        are_kept = rebalancing is not None and numbers <= _MAX_KEPT
        groups: Iterable[tuple[_ImagePrediction, Tensor, int]] = _resized_groups(logits, images)
        if are_kept:
            groups = list(groups)
        for image, channels, first in groups:
            image.update(channels, first)
        if rebalancing is not None:
            for image, channels, first in groups if are_kept else _resized_groups(logits, images):
                image.refine(channels, first)
        for image in images:
            image.finish()
    return samples


def _resized_groups(
    logits: DeferredLogits | SlidingWindows, images: Sequence[_ImagePrediction]
) -> Iterator[tuple[_ImagePrediction, Tensor, int]]:
    """Yield groups of channels of each image at its original size, with the index of the first channel."""
    for channels in logits.slices([image.size for image in images]):
        batch = logits.read(channels)
        for i, image in enumerate(images):
            yield image, image.resize(batch[i : i + 1]), channels.start


def predict_by_feat(head: Any, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor | DeferredLogits:
    """Resize logits as ``BaseDecodeHead.predict_by_feat``; when called by :func:`predict`, defer the resize.

    Args:
        head: decode head.
        seg_logits: (N, C, h, w).
        batch_img_metas: metas of the images.

    Returns:
        (N, C, H, W), or when called by :func:`predict` the deferred logits.
    """
    if not isinstance(batch_img_metas, _ImageMetas):
        return type(head).predict_by_feat(head, seg_logits, batch_img_metas)
    meta = batch_img_metas[0]
    is_window = isinstance(meta['img_shape'], torch.Size)
    height, width = meta['img_shape' if is_window or 'pad_shape' not in meta else 'pad_shape'][:2]
    return DeferredLogits(seg_logits, (height, width), head.align_corners)


def slide_inference(model: Any, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor | SlidingWindows:
    """Average overlapping windows as ``EncoderDecoder.slide_inference``; when called by :func:`predict`, defer it.

    Args:
        model: ``EncoderDecoder``.
        inputs: images, (N, 3, H, W).
        batch_img_metas: metas of the images.

    Returns:
        (N, C, H, W), or when called by :func:`predict` the windows.

    Raises:
        AssertionError: the windows leave pixels out.
    """
    if not isinstance(batch_img_metas, _ImageMetas):
        return type(model).slide_inference(model, inputs, batch_img_metas)
    (stride_y, stride_x), (crop_height, crop_width) = model.test_cfg.stride, model.test_cfg.crop_size
    tops = _window_starts(inputs.shape[2], crop_height, stride_y)
    lefts = _window_starts(inputs.shape[3], crop_width, stride_x)
    windows = SlidingWindows(inputs, len(tops) * len(lefts))
    for top, left in product(tops, lefts):
        window = inputs[:, :, top : top + crop_height, left : left + crop_width]
        batch_img_metas[0]['img_shape'] = window.shape[2:]
        windows.add(model.encode_decode(window, batch_img_metas), top, left)
    if (windows.count == 0).any():
        raise AssertionError(
            f'test_cfg: windows of crop_size={(crop_height, crop_width)} at stride={(stride_y, stride_x)} leave pixels '
            'out: set a stride that is at most crop_size'
        )
    return windows


def _window_starts(length: int, crop: int, stride: int) -> list[int]:
    number = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride + crop, length) - crop, 0) for i in range(number)]


class _SampleWithoutLogits(SegDataSample):
    """A sample whose ``seg_logits`` raise an error that says how to keep them."""

    def _get_logits(self) -> PixelData:
        if '_seg_logits' not in self:
            raise AttributeError(
                "predicted without full-size logits, so there are no seg_logits: dict(type='FusedPredictHook', "
                'keep_logits=True) in a config, or fuse_predict(model, keep_logits=True), keeps them'
            )
        return self._seg_logits

    seg_logits = SegDataSample.seg_logits.getter(_get_logits)


class _ImagePrediction:
    """Running prediction of one image."""

    def __init__(
        self,
        sample: SegDataSample,
        meta: Mapping[str, Any] | None,
        logits: DeferredLogits | SlidingWindows,
        model: Any,
        keep_logits: bool,
        terms: Sequence[LossTerm],
        rebalancing: Rebalancing | None,
    ) -> None:
        self._sample, self._meta, self._num_channels = sample, meta, logits.num_channels
        head: Any = main_head(model)
        self._align_corners = model.align_corners
        self._threshold: Any = head.threshold if logits.num_channels == 1 else None  # K-Net's head has none
        self._argmax, self._keep_logits = RunningArgmax(), keep_logits
        self._logits: Tensor | None = None
        self._rebalancing = rebalancing
        self._rebalanced = None if rebalancing is None else RebalancedArgmax(rebalancing.offsets, rebalancing.knots)
        self.size: tuple[int, int] = logits.size if meta is None else tuple(meta['ori_shape'])
        self._losses = RunningSums(terms, sample, self.size, self._num_channels) if terms else None

    def update(self, channels: Tensor, first: int) -> None:
        """Add channels, (1, number of channels, H, W), of which the first has index ``first``."""
        if self._num_channels == 1:
            self._logits = channels[0]
        else:
            argmax = self._argmax if self._rebalanced is None else self._rebalanced
            argmax.update(channels.detach(), first)
            if self._keep_logits:
                if self._logits is None:
                    self._logits = channels.new_empty((self._num_channels, *self.size))
                self._logits[first : first + channels.shape[1]] = channels[0]
        if self._losses is not None:
            self._losses.update(channels.detach(), first)

    def refine(self, channels: Tensor, first: int) -> None:
        """Add channels in a second pass, after :meth:`update` of all of them, to predict with offsets."""
        if self._num_channels > 1:
            assert self._rebalanced is not None
            self._rebalanced.refine(channels.detach(), first)

    def resize(self, channels: Tensor) -> Tensor:
        """Remove the padding, undo a flip and resize from the tested size to that of the original image."""
        if self._meta is None:
            return channels
        left, right, top, bottom = self._meta.get('img_padding_size', self._meta.get('padding_size', [0] * 4))
        height, width = channels.shape[2:]
        channels = channels[:, :, top : height - bottom, left : width - right]
        if self._meta.get('flip'):
            direction = self._meta.get('flip_direction')
            if direction not in ('horizontal', 'vertical'):
                raise AssertionError(
                    f'flip_direction={direction!r} of an image: mmseg can only undo horizontal and vertical'
                )
            channels = channels.flip(dims=(3 if direction == 'horizontal' else 2,))
        return F.interpolate(channels, size=self.size, mode='bilinear', align_corners=self._align_corners)

    def finish(self) -> None:
        """Write the prediction, the loss sums and, if asked for, the logits into the sample."""
        if self._num_channels == 1:
            assert self._logits is not None
            self._rebalance_one_channel(self._logits)
            self._logits = self._logits.sigmoid()
            prediction = (self._logits > self._threshold).to(self._logits)
        else:
            prediction = self._argmax.index if self._rebalancing is None else self._rebalanced_prediction()
        self._sample.set_data(dict(pred_sem_seg=PixelData(data=prediction)))
        self._sample.pop(SUMS, None)  # left by an earlier prediction
        if self._losses is not None:
            self._losses.finish()
        if self._keep_logits:
            self._sample.set_data(dict(seg_logits=PixelData(data=self._logits)))
            return
        if 'seg_logits' in self._sample:  # left by an earlier prediction
            del self._sample.seg_logits
        if type(self._sample) is SegDataSample:
            object.__setattr__(self._sample, '__class__', _SampleWithoutLogits)

    def _rebalanced_prediction(self) -> Tensor:
        """Store the classes for every row of offsets; return those without, (1, H, W)."""
        assert self._rebalanced is not None
        assert self._rebalancing is not None
        result = self._rebalanced.result
        self._sample.set_field(result._replace(lowest=result.lowest[0]), REBALANCED)
        return result.prediction(self._rebalancing.unchanged)

    def _rebalance_one_channel(self, logits: Tensor) -> None:
        """Store the classes for every row of offsets, from the logits of label 1, (1, H, W)."""
        if self._rebalancing is None:
            return
        moved = logits.float() + self._rebalancing.offsets.to(logits.device, torch.float32).view(-1, 1, 1)
        classes = (moved.sigmoid() > self._threshold).long()
        everywhere = torch.arange(classes[0].numel(), device=classes.device)
        self._sample.set_field(RebalancedClasses(classes[0], everywhere, classes.flatten(1)), REBALANCED)
