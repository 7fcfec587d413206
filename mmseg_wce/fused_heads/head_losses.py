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
from mmseg_wce.arguments import (
    broadcast_pixel_weight,
    check_logits_and_target,
    check_sigmoid_weight,
    check_softmax_weight,
    resolve_ignore_index,
)
from mmseg_wce.built_in_losses import built_in_class_weight, built_in_value, is_hard, needs_full_size
from mmseg_wce.deprecated import renamed_attribute
from mmseg_wce.kernels.binary import sweep_sigmoid
from mmseg_wce.kernels.inputs import Inputs
from mmseg_wce.kernels.op import PixelMaps, sweep_softmax
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.model_walk import losses_of
from mmseg_wce.pixel_batch import SigmoidBatch, SigmoidMaps, SoftmaxBatch, smoothing_weight
from torch import Tensor, nn

_EPSILON = torch.finfo(torch.float32).eps  # mmseg adds it to the accuracy


def __getattr__(name: str) -> Any:
    return renamed_attribute(__name__, name)


def base_loss_by_feat(
    head: BaseDecodeHead, built_in: bool, seg_logits: Tensor, batch_data_samples: list
) -> dict[str, Tensor]:
    """Compute the terms of ``BaseDecodeHead.loss_by_feat``."""
    fused = _SharedMaps(head, built_in, seg_logits, head._stack_batch_gt(batch_data_samples).squeeze(1))
    losses, weight = pixel_losses(head), None
    if head.sampler is not None:
        with torch.no_grad():
            weight = _hard_pixels(head, fused, losses)
    terms: dict[str, Tensor] = {}
    for loss in losses:
        term = fused.value(loss, weight=weight, ignore_index=head.ignore_index)
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


class _SharedMaps:
    """Low-resolution logits (N, C, h, w) of a head, labels (N, H, W), and the maps that the losses share."""

    def __init__(self, head: BaseDecodeHead, built_in: bool, logits: Tensor, label: Tensor) -> None:
        check_logits_and_target(logits, label)
        self.head, self.built_in, self.logits, self.label = head, built_in, logits, label.long()
        self.channels = logits.shape[1]
        self._records_gradients = torch.is_grad_enabled()  # also for what a sampler needs, which ranks without
        self._softmax: dict[tuple, PixelMaps] = {}
        self._sigmoid: dict[tuple[int, float], SigmoidMaps] = {}

    @cached_property
    def full_size(self) -> Tensor:
        with torch.set_grad_enabled(self._records_gradients):
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
            with torch.set_grad_enabled(self._records_gradients):
                self._softmax[key] = sweep_softmax(
                    Inputs(self.logits, self.label, ignore_index, smoothing, class_weight, self.head.align_corners)
                )
        return self._softmax[key]

    def sigmoid_maps(self, ignore_index: int, focal_gamma: float = 0.0) -> SigmoidMaps:
        """Return the maps for sigmoids; one channel is compared with the threshold of the head."""
        key = ignore_index, focal_gamma
        if key not in self._sigmoid:
            threshold = self.head.threshold if self.channels == 1 else None
            options = ignore_index, 0.5 if threshold is None else threshold, self.head.align_corners, focal_gamma
            with torch.set_grad_enabled(self._records_gradients):
                self._sigmoid[key] = sweep_sigmoid(self.logits, self.label, *options)
        return self._sigmoid[key]

    def _any_sigmoid_maps(self, ignore_index: int) -> SigmoidMaps:
        """Return maps for sigmoids, of any ``focal_gamma``: it does not change which pixels are correct."""
        known = (maps for (ignored, _), maps in self._sigmoid.items() if ignored == ignore_index)
        return next(known, None) or self.sigmoid_maps(ignore_index)

    def value(self, loss: Any, label_override: Tensor | None = None, **options: Any) -> Tensor:
        """Compute a loss as the head would call it; ``label_override``, (N, H, W), may only ignore more pixels."""
        label = self.label if label_override is None else label_override.long()
        rejects_options = isinstance(loss, OhemCrossEntropy) and options  # raises TypeError, as in mmseg
        if rejects_options or needs_full_size(loss, self.channels, self.built_in):
            return loss(self.full_size, label, **options)
        weight, override = options.get('weight'), options.get('reduction_override')
        ignore_index = _ignore_index(loss, options.get('ignore_index'), self.channels)
        batch = self._make_batch(loss, label, ignore_index)
        if not isinstance(loss, WeightedCrossEntropyLoss):
            batch.computed_maps = self._maps_for(loss, batch)
            return built_in_value(loss, batch, weight, override)
        reduction = override or loss.reduction
        loss.start_normalizer(batch, reduction)
        batch.computed_maps = self._maps_for(loss, batch)
        return loss.reduce(batch, reduction, weight)

    def _make_batch(self, loss: Any, label: Tensor, ignore_index: int) -> SoftmaxBatch | SigmoidBatch:
        align_corners = self.head.align_corners
        if isinstance(loss, WeightedCrossEntropyLoss):
            return loss.make_batch(self.logits, label, ignore_index, align_corners)
        class_weight = built_in_class_weight(loss, self.logits.device)
        if getattr(loss, 'use_sigmoid', False):
            check_sigmoid_weight(class_weight, self.logits)
            return SigmoidBatch(self.logits, label, class_weight, ignore_index, align_corners)
        check_softmax_weight(class_weight, self.logits)
        return SoftmaxBatch(self.logits, label, class_weight, ignore_index, align_corners)

    def _maps_for(self, loss: nn.Module, batch: SoftmaxBatch | SigmoidBatch) -> Any:
        """Return the shared maps for a loss, with 0 where only the labels of the batch ignore a pixel."""
        is_sigmoid = isinstance(batch, SigmoidBatch)
        maps: SigmoidMaps | PixelMaps
        if is_sigmoid:
            maps = self.sigmoid_maps(batch.ignore_index, batch.focal_gamma)
        else:
            maps = self.softmax_maps(batch.ignore_index, loss, batch.class_weight)
        if batch.target is self.label:
            return maps
        is_same = batch.target == self.label
        masked = torch.where(is_same, maps[0], 0), torch.where(is_same, maps[1], 0), maps[2]
        return masked if is_sigmoid else PixelMaps(*masked)

    def accuracy(self) -> Tensor:
        """Return mmseg's ``accuracy``, (1,), in percent, without waiting for the device.

        For one channel it is the share of correct pixels at the head's threshold; mmseg's is the share of label 0.
        """
        ignore_index = self.head.ignore_index
        if self.channels == 1 or (self._sigmoid and not self._softmax):
            maps = PixelMaps(*self._any_sigmoid_maps(ignore_index))
        elif self._softmax:
            maps = self.softmax_maps(ignore_index)
        else:
            return accuracy(self.full_size, self.label, ignore_index=ignore_index)
        correct, valid = maps.count_pixels(self.label, ignore_index)
        return 100 * (correct + _EPSILON).reshape(1) / (valid + _EPSILON)


def _ignore_index(loss: nn.Module, from_head: int | None, channels: int = 0) -> int:
    """Return the label that a loss ignores; ``from_head`` is None for heads that leave it to the loss."""
    if isinstance(loss, WeightedCrossEntropyLoss):
        return resolve_ignore_index(loss.resolve_ignore_index(from_head), channels)
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
