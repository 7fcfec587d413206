"""Logits and labels of a batch, and the parts of its loss, each computed at most once, on demand. Imports no mmseg.

Arguments are checked at the entry points, in :mod:`mmseg_wce.functional`,
:class:`mmseg_wce.losses.WeightedCrossEntropyLoss` and the fused heads. These create a batch, which checks only labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmseg_wce.arguments import Normalizer, Reduction
from mmseg_wce.kernels.binary import element_loss, positive_elements, sweep_sigmoid
from mmseg_wce.kernels.focal import focal_loss, focal_sum
from mmseg_wce.kernels.inputs import Inputs
from mmseg_wce.kernels.op import PixelMaps, PixelSums, sweep_softmax
from mmseg_wce.kernels.reference import resized
from mmseg_wce.targets import report_invalid, valid_pixels
from torch import Tensor

__all__ = ['PixelBatch', 'SigmoidBatch', 'SigmoidMaps', 'SoftmaxBatch', 'smoothing_weight']

SigmoidMaps = tuple[Tensor, Tensor, Tensor]  # positive, negative, correct
Maps = TypeVar('Maps', PixelMaps, SigmoidMaps)
_MAX_TABLE_SIZE = 1 << 16
_MMSEG_EPS = torch.finfo(torch.float32).eps  # mmseg divides by it for avg_factor=0


def smoothing_weight(logits: Tensor, class_weight: Tensor | None, label_smoothing: float) -> Tensor | None:
    """Return the class weights for the map ``smooth`` of :func:`mmseg_wce.kernels.pixel_nll`.

    Args:
        logits: (N, C, ...); only their shape, dtype and device matter.
        class_weight: (C,), or None.
        label_smoothing: in [0, 1].

    Returns:
        (C,): the class weights, or ones without them; None without smoothing.

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import smoothing_weight
        >>> smoothing_weight(torch.zeros(2, 3, 4, 4), None, label_smoothing=0.1)
        tensor([1., 1., 1.])
    """
    if label_smoothing == 0:
        return None
    return logits.new_ones(logits.shape[1]) if class_weight is None else class_weight.detach()


@dataclass(eq=False)
class PixelBatch(Generic[Maps]):
    """Logits, labels and weights of the pixels of a batch.

    Attributes:
        logits: (N, C, h, w), or (N, C, ...) of the target's size; floating point.
        target: (N, H, W) or (N, ...), int64.
        class_weight: class weights as in :mod:`mmseg_wce.functional`, or None.
        ignore_index: the ignored label.
        align_corners: option of the upsampling.
        computed_maps: per-pixel maps of the logits; None until they are needed. Fused heads set shared ones.
        focal_gamma: exponent of the focal loss, 0 for the cross-entropy.
        dtype: dtype of the losses: float32, or float64 for float64 logits.
    """

    logits: Tensor
    target: Tensor
    class_weight: Tensor | None
    ignore_index: int
    align_corners: bool = False
    computed_maps: Maps | None = None
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        self.num_channels, self.dtype = self.logits.shape[1], torch.promote_types(self.logits.dtype, torch.float32)
        self._valid: Tensor | None = None
        self._label_weight: Tensor | None = None
        self._all_reduce: tuple[Any, Tensor] | None = None  # a handle and the denominator

    @property
    def maps(self) -> Maps:
        """Per-pixel maps of the logits; computed at the first access."""
        if self.computed_maps is None:
            self.computed_maps = self._sweep()
        return self.computed_maps

    def _sweep(self) -> Maps:
        """Compute the maps from the logits."""
        raise NotImplementedError

    @property
    def num_labels(self) -> int:
        """Number of labels that are not ignored: one channel has the labels 0 and 1."""
        return max(self.num_channels, 2)

    @property
    def label_class_weight(self) -> Tensor | None:
        """Class weight of each label, (number of labels,); None without class weights."""
        return self.class_weight

    @property
    def valid(self) -> Tensor:
        """Mask of the pixels that are not ignored, (N, ...) bool. Checks the labels.

        Raises:
            ValueError: as :func:`mmseg_wce.targets.valid_pixels`.
        """
        if self._valid is None:
            self._valid = valid_pixels(self.target, self.num_labels, self.ignore_index)
        return self._valid

    @property
    def label_weight(self) -> Tensor | None:
        """Class weight of every pixel's label, (N, ...), 0 where ignored; None without class weights."""
        weights = self.label_class_weight
        if self._label_weight is None and weights is not None:
            self._label_weight = self._gather_label_weight(weights.detach().to(self.dtype))
        return self._label_weight

    def _gather_label_weight(self, weights: Tensor) -> Tensor:
        valid = self.valid
        if self.target.device.type == 'cpu' and 0 <= self.ignore_index <= _MAX_TABLE_SIZE:
            # on CPU, valid_pixels has checked that every label is a class or ignore_index: the target is the index
            weights, index = F.pad(weights, (0, max(self.ignore_index + 1 - self.num_labels, 0))), self.target
        else:
            weights, index = F.pad(weights, (0, 1)), torch.where(valid, self.target, self.num_labels)
        label_weight = weights.index_select(0, index.flatten()).view(self.target.shape)
        return label_weight * valid if 0 <= self.ignore_index < self.num_labels else label_weight

    def normalizer(self, normalize_by: Normalizer) -> Tensor:
        """Return the denominator of the mean, a scalar; does not read the logits."""
        if normalize_by == 'class_weight' and self.label_weight is not None:
            return self.label_weight.sum()
        if normalize_by == 'all':
            return torch.full((), self.target.numel(), dtype=self.dtype, device=self.target.device)
        return self.valid.count_nonzero().to(self.dtype)

    def start_normalizer(self, normalize_by: Normalizer) -> None:
        """Start to average the denominator over the ranks, if these average gradients; :meth:`reduce` waits for it.

        Call it before the maps are computed, so that the all-reduce runs meanwhile.
        """
        needs_grad = torch.is_grad_enabled() and self.logits.requires_grad
        if needs_grad and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            normalizer = self.normalizer(normalize_by).to(self.dtype, copy=True)
            self._all_reduce = dist.all_reduce(normalizer, async_op=True), normalizer

    def reduce(
        self,
        reduction: Reduction,
        normalize_by: Normalizer,
        pixel_weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss, with the options of :func:`mmseg_wce.functional.weighted_cross_entropy`, already checked."""
        if reduction == 'none':
            return self._apply_pixel_weight(self.pixel_losses(each_channel=True), pixel_weight)
        loss = self._sum(pixel_weight)
        if reduction == 'sum':
            return loss
        if avg_factor is not None:
            divisor = torch.as_tensor(avg_factor, dtype=loss.dtype, device=loss.device).reshape(())
            return loss / torch.where(divisor == 0, _MMSEG_EPS, divisor)
        if self._all_reduce is None:
            normalizer = self.normalizer(normalize_by).to(loss.dtype)
        else:
            handle, total = self._all_reduce
            handle.wait()
            normalizer = total / dist.get_world_size()
        # x / inf is 0 and stays connected to the graph; unlike x * 0 it does not hide a NaN
        return loss / torch.where(normalizer == 0, torch.inf, normalizer)

    def _sum(self, pixel_weight: Tensor | None) -> Tensor:
        """Add up the weighted losses of all pixels."""
        return self._apply_pixel_weight(self.pixel_losses(), pixel_weight).sum()

    def pixel_losses(self, each_channel: bool = False) -> Tensor:
        """Return the losses of pixels (N, ...), or with ``each_channel`` those of channels, if these are separate."""
        raise NotImplementedError

    def _apply_pixel_weight(self, loss: Tensor, pixel_weight: Tensor | None) -> Tensor:
        """Multiply losses of pixels (N, ...), or of elements (N, C, ...), by the weights of the pixels."""
        if pixel_weight is None and not self.target.is_cuda:
            return loss
        by_element = loss.dim() > self.target.dim()
        if pixel_weight is not None:
            weight = pixel_weight.to(loss.dtype)
            loss = loss * (weight.unsqueeze(1) if by_element else weight)
        # where(), because 0 * NaN is NaN; on CUDA it also drops invalid labels, for which a later call raises
        return torch.where(self.valid.unsqueeze(1) if by_element else self.valid, loss, 0)


@dataclass(eq=False)
class SoftmaxBatch(PixelBatch[PixelMaps]):
    """Pixels of a weighted cross-entropy, C >= 2.

    Attributes:
        label_smoothing: in [0, 1].
    """

    label_smoothing: float = 0.0

    def _sweep(self) -> PixelMaps:
        smoothing = smoothing_weight(self.logits, self.class_weight, self.label_smoothing)
        return sweep_softmax(
            Inputs(self.logits, self.target, self.ignore_index, smoothing, self.class_weight, self.align_corners)
        )

    def _computed_sums(self) -> PixelSums | None:
        """Return the sums computed along with the maps; None while compiling, when values cannot be read."""
        maps = self.computed_maps
        if torch.compiler.is_compiling() or maps is None or maps.class_weight is not self.class_weight:
            return None
        return maps.sums

    def normalizer(self, normalize_by: Normalizer) -> Tensor:
        """Return the denominator of the mean, a scalar; does not read the logits."""
        sums = self._computed_sums()
        if normalize_by == 'all' or sums is None:
            return super().normalizer(normalize_by)
        return sums.weight if normalize_by == 'class_weight' else sums.valid

    def _sum(self, pixel_weight: Tensor | None) -> Tensor:
        _ = self.maps
        sums = self._computed_sums()
        if sums is None or pixel_weight is not None:
            return super()._sum(pixel_weight)
        report_invalid(self.target, self.num_labels, self.ignore_index, sums.invalid)
        if self.focal_gamma > 0:
            labels = self.target, self.ignore_index, self.num_channels, self.class_weight
            return focal_sum(self.maps.nll, *labels, self.focal_gamma)
        return self._mix_smoothing(sums.loss, sums.smooth)

    def pixel_losses(self, each_channel: bool = False) -> Tensor:
        maps, weight = self.maps, self.label_weight
        _ = self.valid
        loss = focal_loss(maps.nll, self.focal_gamma)
        return self._mix_smoothing(loss if weight is None else weight * loss, maps.smooth)

    def _mix_smoothing(self, weighted_nll: Tensor, smooth: Tensor) -> Tensor:
        """Mix nll and smoothing term, of pixels or of sums over pixels."""
        if self.label_smoothing == 0:
            return weighted_nll
        return (1 - self.label_smoothing) * weighted_nll + (self.label_smoothing / self.num_channels) * smooth


@dataclass(eq=False)
class SigmoidBatch(PixelBatch[SigmoidMaps]):
    """Pixels of a weighted binary cross-entropy of every channel, C >= 1.

    Attributes:
        threshold: probability above which one channel predicts label 1.
    """

    threshold: float = 0.5

    def _sweep(self) -> SigmoidMaps:
        return sweep_sigmoid(
            self.logits, self.target, self.ignore_index, self.threshold, self.align_corners, self.focal_gamma
        )

    @property
    def label_class_weight(self) -> Tensor | None:
        """Weight of each label's positive term, (C,), or (2,) for one channel; None without class weights."""
        weights = self.class_weight
        if weights is None or weights.numel() > 1:
            return weights
        if self.num_channels > 1:
            return weights.reshape(1).expand(self.num_channels)
        return F.pad(weights.reshape(1), (1, 0), value=1.0)

    def normalizer(self, normalize_by: Normalizer) -> Tensor:
        """Return the denominator of the mean, a scalar: number of elements, or for one channel the sum of weights."""
        return self.num_channels * super().normalizer(normalize_by)

    def pixel_losses(self, each_channel: bool = False) -> Tensor:
        if each_channel and self.num_channels > 1:
            return self._element_losses()
        positive, negative = self.maps[:2]
        weight = self.label_weight
        _ = self.valid
        if weight is None:
            return positive + negative
        if self.num_channels == 1:  # the weight of label 0 applies to the negative term
            return weight * (positive + negative)
        return weight * positive + negative

    def _element_losses(self) -> Tensor:
        """Compute the weighted loss of every element, (N, C, ...), with full-size logits."""
        valid, weights = self.valid.unsqueeze(1), self.label_class_weight
        z = torch.where(valid, resized(self.logits, self.target.shape[1:], self.align_corners), 0)
        positive = positive_elements(self.target, self.num_channels)
        loss = element_loss(z, positive, self.focal_gamma)
        if weights is not None:
            per_channel = weights.detach().to(loss.dtype).view(-1, *[1] * (self.target.dim() - 1))
            loss = torch.where(positive, per_channel * loss, loss)
        return torch.where(valid, loss, 0)
