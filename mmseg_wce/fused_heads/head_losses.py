"""``loss_by_feat`` of mmseg's decode heads from low-resolution logits, with the same terms, names and values.

mmseg upsamples the logits first. Here losses, hard pixels and accuracy are computed from three maps of one number per
pixel: those of :func:`mmseg_wce.kernels.pixel_nll` for a softmax, of :func:`mmseg_wce.kernels.pixel_bce` for sigmoids.
Full-size logits are built only for losses that cannot be computed from the maps.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from mmseg.models.decode_heads import PIDHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import OhemCrossEntropy, accuracy
from mmseg.models.utils import resize
from mmseg.structures.sampler import OHEMPixelSampler
from mmseg_wce.arguments import broadcast_pixel_weight, check_logits_and_target
from mmseg_wce.built_in_losses import (
    built_in_batch,
    built_in_class_weight,
    built_in_value,
    is_hard,
    needs_full_size_built_in,
)
from mmseg_wce.kernels.binary import sweep_sigmoid
from mmseg_wce.kernels.op import PixelMaps, sweep_softmax
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.model_walk import losses_of
from mmseg_wce.pixel_batch import SigmoidBatch, SigmoidMaps, SoftmaxBatch, smoothing_weight
from torch import Tensor, nn

_FORWARD = WeightedCrossEntropyLoss.forward
_EPSILON = torch.finfo(torch.float32).eps  # mmseg adds it to the accuracy


def base_loss_by_feat(
    head: BaseDecodeHead, built_in: bool, seg_logits: Tensor, batch_data_samples: list
) -> dict[str, Tensor]:
    """Compute the terms of ``BaseDecodeHead.loss_by_feat``."""
    fused = _SharedMaps(head, built_in, seg_logits, head._stack_batch_gt(batch_data_samples).squeeze(1))
    losses, options = pixel_losses(head), dict(ignore_index=head.ignore_index)
    weight = None
    if head.sampler is not None:
        for loss in losses:
            fused.prepare(loss, head.ignore_index)
        with torch.no_grad():
            weight = _hard_pixels(head, fused, losses)
    terms: dict[str, Tensor] = {}
    for loss in losses:
        term = fused.value(loss, weight=weight, **options)
        name = str(loss.loss_name)
        terms[name] = terms[name] + term if name in terms else term
    terms['acc_seg'] = fused.accuracy()
    return terms


def pid_loss_by_feat(head: PIDHead, built_in: bool, seg_logits: tuple, batch_data_samples: list) -> dict[str, Tensor]:
    """Compute the terms of ``PIDHead.loss_by_feat``: proportional, integral and boundary branch."""
    p_logits, i_logits, d_logits = seg_logits
    label, boundary = (y.squeeze(1) for y in head._stack_batch_gt(batch_data_samples))
    d_logits = resize(d_logits, boundary.shape[1:], mode='bilinear', align_corners=head.align_corners)
    near_boundary = torch.where(torch.sigmoid(d_logits[:, 0]) > 0.8, label, head.ignore_index)
    p, i = (_SharedMaps(head, built_in, logits, label) for logits in (p_logits, i_logits))
    p_loss, i_loss, boundary_loss, near_boundary_loss = head.loss_decode
    shares_maps = _ignore_index(near_boundary_loss, None) == head.ignore_index
    near = i if shares_maps else _SharedMaps(head, built_in, i_logits, near_boundary)
    return dict(
        loss_sem_p=p.value(p_loss, ignore_index=head.ignore_index),
        loss_sem_i=i.value(i_loss),
        loss_bd=boundary_loss(d_logits, boundary),
        loss_sem_bd=near.value(near_boundary_loss, near_boundary),
        acc_seg=i.accuracy(),
    )


def ddr_loss_by_feat(
    head: BaseDecodeHead, built_in: bool, seg_logits: tuple, batch_data_samples: list
) -> dict[str, Tensor]:
    """Compute the terms of ``DDRHead.loss_by_feat``: context and spatial branch."""
    label = head._stack_batch_gt(batch_data_samples).squeeze(1)
    context, spatial = (_SharedMaps(head, built_in, logits, label) for logits in seg_logits)
    context_loss, spatial_loss = head.loss_decode
    return dict(
        loss_context=context.value(context_loss),
        loss_spatial=spatial.value(spatial_loss),
        acc_seg=context.accuracy(),
    )


def pixel_losses(head: BaseDecodeHead) -> list[nn.Module]:
    """Return the losses of a head on class logits: all but the boundary loss of PIDNet."""
    return [loss for i, loss in enumerate(losses_of(head)) if not (isinstance(head, PIDHead) and i == 2)]


def needs_full_size(loss: nn.Module, channels: int, built_in: bool) -> str:
    """Explain why a loss cannot be computed from the maps; empty if it can."""
    if not isinstance(loss, WeightedCrossEntropyLoss):
        return needs_full_size_built_in(loss, channels, built_in)
    if type(loss).forward is not _FORWARD:
        return f'a {type(loss).__name__}, which overrides forward'
    if channels == 1 and not loss.use_sigmoid:
        return f'a {type(loss).__name__} without use_sigmoid=True, and a softmax needs two channels'
    if channels > 1 and loss.use_sigmoid and loss.reduction == 'none':
        return f"a {type(loss).__name__} with use_sigmoid=True and reduction='none', whose value has full size itself"
    return ''


class _SharedMaps:
    """Low-resolution logits (N, C, h, w) of a head, labels (N, H, W), and the maps that the losses share."""

    def __init__(self, head: BaseDecodeHead, built_in: bool, logits: Tensor, label: Tensor) -> None:
        check_logits_and_target(logits, label)
        self.head, self.built_in, self.logits, self.label = head, built_in, logits, label.long()
        self._softmax: dict[tuple, PixelMaps] = {}
        self._sigmoid: dict[int, SigmoidMaps] = {}

    @property
    def channels(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def full_size(self) -> Tensor:
        return resize(self.logits, self.label.shape[1:], mode='bilinear', align_corners=self.head.align_corners)

    @cached_property
    def _smoothing_loss(self) -> WeightedCrossEntropyLoss | None:
        """First loss with label smoothing, or None; its smoothing map is computed in the first sweep."""
        weighted = (loss for loss in pixel_losses(self.head) if isinstance(loss, WeightedCrossEntropyLoss))
        return next((loss for loss in weighted if loss.label_smoothing > 0), None)

    def softmax_maps(
        self, ignore_index: int, loss: nn.Module | None = None, class_weight: Tensor | None = None
    ) -> PixelMaps:
        """Return the maps for a loss; computed once for all losses that can share them."""
        source = (
            loss if isinstance(loss, WeightedCrossEntropyLoss) and loss.label_smoothing > 0 else self._smoothing_loss
        )
        key = ignore_index, id(source)
        if key not in self._softmax:
            smoothing = None
            if source is not None:
                smoothing = smoothing_weight(self.logits, source.float32_class_weight(), source.label_smoothing)
            self._softmax[key] = sweep_softmax(
                self.logits,
                self.label,
                class_weight,
                ignore_index=ignore_index,
                smoothing_weight=smoothing,
                align_corners=self.head.align_corners,
            )
        return self._softmax[key]

    def sigmoid_maps(self, ignore_index: int) -> SigmoidMaps:
        """Return the maps for sigmoids; one channel is compared with the threshold of the head."""
        if ignore_index not in self._sigmoid:
            threshold = self.head.threshold if self.channels == 1 else None
            self._sigmoid[ignore_index] = sweep_sigmoid(
                self.logits, self.label, ignore_index, 0.5 if threshold is None else threshold, self.head.align_corners
            )
        return self._sigmoid[ignore_index]

    def prepare(self, loss: nn.Module, ignore_index: int) -> None:
        """Compute the inputs of a loss while gradients are recorded."""
        if needs_full_size(loss, self.channels, self.built_in):
            _ = self.full_size
        elif getattr(loss, 'use_sigmoid', False):
            self.sigmoid_maps(ignore_index)
        else:
            self.softmax_maps(ignore_index, loss, _class_weight(loss, self.logits.device))

    def value(self, loss: nn.Module, label_override: Tensor | None = None, **options: Any) -> Tensor:
        """Compute a loss as the head would call it.

        Args:
            loss: a loss of the head.
            label_override: (N, H, W), replaces the labels of the batch; may only ignore more pixels. None by default.
            options: ``weight``, ``ignore_index`` and ``reduction_override``, as the head passes them.
        """
        label = self.label if label_override is None else label_override.long()
        if needs_full_size(loss, self.channels, self.built_in):
            return loss(self.full_size, label, **options)
        weight, override = options.get('weight'), options.get('reduction_override')
        ignore_index = _ignore_index(loss, options.get('ignore_index'), self.channels)
        inputs = self.logits, label, ignore_index, self.head.align_corners
        if not isinstance(loss, WeightedCrossEntropyLoss):
            batch = built_in_batch(loss, *inputs)
            self._fill_maps(batch, loss)
            return built_in_value(loss, batch, weight, override)
        batch, reduction = loss.make_batch(*inputs), override or loss.reduction
        normalizer = loss.start_normalizer(batch, reduction)
        self._fill_maps(batch, loss)
        return loss.reduce(batch, reduction, weight, normalizer=normalizer)

    def _fill_maps(self, batch: SoftmaxBatch | SigmoidBatch, loss: nn.Module) -> None:
        """Set the maps of a batch to the shared ones, with 0 where only the labels of the batch ignore a pixel."""
        if isinstance(batch, SigmoidBatch):
            batch.maps = self.sigmoid_maps(batch.ignore_index)
        else:
            batch.maps = self.softmax_maps(batch.ignore_index, loss, batch.class_weight)
        if batch.target is not self.label:
            first, second, correct = batch.maps[:3]
            is_same = batch.target == self.label
            maps = torch.where(is_same, first, 0), torch.where(is_same, second, 0), correct
            batch.maps = maps if isinstance(batch, SigmoidBatch) else PixelMaps(*maps)

    def accuracy(self) -> Tensor:
        """Return mmseg's ``accuracy``, (1,), in percent, without waiting for the device.

        For one channel it is the share of correct pixels at the head's threshold; mmseg's is the share of label 0.
        """
        ignore_index = self.head.ignore_index
        if self.channels == 1 or (self._sigmoid and not self._softmax):
            maps = PixelMaps(*self.sigmoid_maps(ignore_index))
        elif self._softmax:
            maps = self.softmax_maps(ignore_index)
        else:
            return accuracy(self.full_size, self.label, ignore_index=ignore_index)
        correct, valid = maps.count_pixels(self.label, ignore_index)
        return 100 * (correct + _EPSILON).reshape(1) / (valid + _EPSILON)


def _class_weight(loss: nn.Module, device: torch.device) -> Tensor | None:
    if isinstance(loss, WeightedCrossEntropyLoss):
        return loss.float32_class_weight()
    return built_in_class_weight(loss, device)


def _ignore_index(loss: nn.Module, from_head: int | None, channels: int = 0) -> int:
    """Return the label that a loss ignores; ``from_head`` is None for heads that leave it to the loss."""
    if isinstance(loss, WeightedCrossEntropyLoss):
        return loss.resolve_ignore_index(from_head, channels)
    if isinstance(loss, OhemCrossEntropy):
        return loss.ignore_label
    return -100 if from_head is None else from_head


def _hard_pixels(head: BaseDecodeHead, fused: _SharedMaps, losses: list[nn.Module]) -> Tensor:
    """Return the pixel weights of mmseg's ``OHEMPixelSampler.sample``, (N, H, W), from maps."""
    sampler, label = head.sampler, fused.label
    if type(sampler) is not OHEMPixelSampler:  # replaced after the head was fused
        return broadcast_pixel_weight(sampler.sample(fused.full_size, label.unsqueeze(1)), label)
    valid = label != head.ignore_index
    min_kept = sampler.min_kept * label.shape[0]
    if sampler.thresh is not None:
        nll = fused.softmax_maps(head.ignore_index).nll
        return is_hard(nll, valid, min_kept, sampler.thresh).to(nll.dtype)
    zeros = fused.logits.new_zeros(label.shape, dtype=torch.promote_types(fused.logits.dtype, torch.float32))
    options = dict(weight=None, ignore_index=head.ignore_index, reduction_override='none')
    total_loss = sum((fused.value(loss, **options) for loss in losses), zeros)
    order = total_loss[valid].sort(descending=True)[1]
    valid_weight = torch.zeros(order.shape, dtype=zeros.dtype, device=zeros.device)
    valid_weight[order[:min_kept]] = 1
    return zeros.masked_scatter(valid, valid_weight)
