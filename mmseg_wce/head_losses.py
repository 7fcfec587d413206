"""What mmseg's decode heads compute in ``loss_by_feat``, from low-resolution logits: the same terms, names and values.

mmseg upsamples the logits first. Here softmax losses, hard pixels and the accuracy come from three maps of one number
per pixel (:func:`mmseg_wce.kernels.pixel_nll`); only what needs more gets full-size logits.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import torch
from mmseg.models.decode_heads import PIDHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss, OhemCrossEntropy, accuracy, cross_entropy
from mmseg.models.utils import resize
from mmseg.structures.sampler import OHEMPixelSampler
from mmseg_wce.class_weights import load_class_weight
from mmseg_wce.functional import Pixels, Reduction, check_inputs, weighted_cross_entropy
from mmseg_wce.kernels import pixel_nll
from mmseg_wce.losses import WeightedCrossEntropyLoss
from torch import Tensor, nn

_FORWARD = WeightedCrossEntropyLoss.forward


def standard(head: BaseDecodeHead, built_in: bool, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
    """As ``BaseDecodeHead.loss_by_feat``."""
    fused = _Fused(head, built_in, seg_logits, head._stack_batch_gt(batch_data_samples).squeeze(1))
    losses, options = softmax_losses(head), dict(ignore_index=head.ignore_index)
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


def of_pid_head(head: PIDHead, built_in: bool, seg_logits: tuple, batch_data_samples: list) -> dict[str, Tensor]:
    """As ``PIDHead.loss_by_feat``: proportional, integral and boundary branch."""
    p_logits, i_logits, d_logits = seg_logits
    label, boundary = (y.squeeze(1) for y in head._stack_batch_gt(batch_data_samples))
    d_logits = resize(d_logits, boundary.shape[1:], mode='bilinear', align_corners=head.align_corners)
    near_boundary = torch.where(torch.sigmoid(d_logits[:, 0]) > 0.8, label, head.ignore_index)
    p, i = (_Fused(head, built_in, logits, label) for logits in (p_logits, i_logits))
    of_p, of_i, of_boundary, of_near_boundary = head.loss_decode
    shared = _own_ignore_index(of_near_boundary) == head.ignore_index
    near = i if shared else _Fused(head, built_in, i_logits, near_boundary)
    return dict(
        loss_sem_p=p.value(of_p, ignore_index=head.ignore_index),
        loss_sem_i=i.value(of_i),
        loss_bd=of_boundary(d_logits, boundary),
        loss_sem_bd=near.value(of_near_boundary, near_boundary),
        acc_seg=i.accuracy(),
    )


def of_ddr_head(head: BaseDecodeHead, built_in: bool, seg_logits: tuple, batch_data_samples: list) -> dict[str, Tensor]:
    """As ``DDRHead.loss_by_feat``: context and spatial branch."""
    label = head._stack_batch_gt(batch_data_samples).squeeze(1)
    context, spatial = (_Fused(head, built_in, logits, label) for logits in seg_logits)
    of_context, of_spatial = head.loss_decode
    return dict(
        loss_context=context.value(of_context), loss_spatial=spatial.value(of_spatial), acc_seg=context.accuracy()
    )


def softmax_losses(head: BaseDecodeHead) -> list[nn.Module]:
    """The losses on logits of classes: all of a head but the boundary loss of PIDNet."""
    losses = list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
    return [loss for i, loss in enumerate(losses) if not (isinstance(head, PIDHead) and i == 2)]


def needs_full_size(loss: nn.Module, built_in: bool) -> str:
    """Why a loss cannot be computed from the maps; empty where it can."""
    if isinstance(loss, WeightedCrossEntropyLoss):
        overridden = type(loss).forward is not _FORWARD
        return f'a {type(loss).__name__}, which computes the loss in a way of its own' if overridden else ''
    if type(loss) not in (CrossEntropyLoss, OhemCrossEntropy):
        return f'a {type(loss).__name__}'
    if isinstance(loss, CrossEntropyLoss) and (loss.use_sigmoid or loss.use_mask):
        return 'a CrossEntropyLoss with use_sigmoid or use_mask'
    return '' if built_in else f'a softmax {type(loss).__name__}, which built_in=True would fuse'


class _Fused:
    """Logits (N, C, h, w) as a head made them, the labels (N, H, W) they are for, and the maps of both."""

    def __init__(self, head: BaseDecodeHead, built_in: bool, logits: Tensor, label: Tensor) -> None:
        check_inputs(logits, label, None)
        self.head, self.built_in, self.logits, self.label = head, built_in, logits, label
        self._swept: dict[tuple, Pixels] = {}

    @cached_property
    def full_size(self) -> Tensor:
        return resize(self.logits, self.label.shape[1:], mode='bilinear', align_corners=self.head.align_corners)

    @cached_property
    def _smoothed(self) -> WeightedCrossEntropyLoss | None:
        """The loss whose smoothing the first sweep computes along with the rest."""
        ours = (loss for loss in softmax_losses(self.head) if isinstance(loss, WeightedCrossEntropyLoss))
        return next((loss for loss in ours if loss.label_smoothing > 0), None)

    def pixels(self, ignore_index: int, loss: nn.Module | None = None) -> Pixels:
        """Maps for a loss, swept once for all that can share them."""
        source = loss if isinstance(loss, WeightedCrossEntropyLoss) and loss.label_smoothing > 0 else self._smoothed
        key = ignore_index, id(source)
        if key not in self._swept:
            self._swept[key] = pixel_nll(
                self.logits,
                self.label.long(),
                ignore_index=ignore_index,
                smoothing_weight=None if source is None else source.smoothing_weight(self.logits),
                align_corners=self.head.align_corners,
            )
        return self._swept[key]

    def prepare(self, loss: nn.Module, ignore_index: int) -> None:
        """Make what a loss needs while gradients are still recorded."""
        _ = self.full_size if needs_full_size(loss, self.built_in) else self.pixels(ignore_index, loss)

    def value(self, loss: nn.Module, fewer: Tensor | None = None, **options: Any) -> Tensor:
        """A loss as the head would call it, of the label or of ``fewer``, in which more of its pixels are ignored."""
        label = self.label if fewer is None else fewer
        if needs_full_size(loss, self.built_in):
            return loss(self.full_size, label, **options)
        ignore_index = options.get('ignore_index', _own_ignore_index(loss))

        def pixels() -> Pixels:
            nll, smooth, correct = self.pixels(ignore_index, loss)
            if fewer is None:
                return nll, smooth, correct
            return torch.where(fewer == self.label, nll, 0), torch.where(fewer == self.label, smooth, 0), correct

        if isinstance(loss, WeightedCrossEntropyLoss):  # has something to send before the sweep
            return loss(self.logits, label, pixels=pixels, **options)
        of_type = {CrossEntropyLoss: _softmax_value, OhemCrossEntropy: _ohem_value}[type(loss)]
        return of_type(loss, self.logits, label, pixels=pixels(), **options)

    def accuracy(self) -> Tensor:
        """mmseg's ``accuracy``, (1,), in percent; without waiting for the device."""
        ignore_index = self.head.ignore_index
        if not self._swept:
            return accuracy(self.full_size, self.label, ignore_index=ignore_index)
        epsilon = torch.finfo(torch.float32).eps  # as mmseg adds it
        valid = (self.label != ignore_index).count_nonzero()
        correct = self.pixels(ignore_index)[2].count_nonzero()
        return 100 * (correct + epsilon).reshape(1) / (valid + epsilon)


def _own_ignore_index(loss: nn.Module) -> int:
    """What a loss ignores where its head does not say."""
    if isinstance(loss, OhemCrossEntropy):
        return loss.ignore_label
    if isinstance(loss, WeightedCrossEntropyLoss):
        return loss._resolve_ignore_index(None)
    return -100


def _softmax_value(
    loss: CrossEntropyLoss,
    logits: Tensor,
    label: Tensor,
    pixels: Pixels,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction_override: Reduction | None = None,
) -> Tensor:
    """What mmseg's softmax loss gives: its own normalisation, its attributes as they are now."""
    class_weight, avg_factor = _class_weight(loss, logits), None
    reduction = reduction_override or loss.reduction
    is_class = -logits.shape[1] <= ignore_index < logits.shape[1]
    counts = is_class and not loss.avg_non_ignore and _mmseg_weighs_ignored_pixels()
    if class_weight is not None and counts and reduction == 'mean':
        avg_factor = class_weight[label.long()].sum()
    return loss.loss_weight * weighted_cross_entropy(
        logits,
        label,
        class_weight,
        ignore_index=ignore_index,
        pixel_weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
        normalize_by='class_weight' if loss.avg_non_ignore or class_weight is not None else 'all',
        pixels=pixels,
    )


@cache
def _mmseg_weighs_ignored_pixels() -> bool:
    """Whether its weighted mean counts ignored pixels with the weight of their label: upstream does, the fork not."""
    options = dict(class_weight=torch.ones(2), ignore_index=0)
    mean = cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), **options)  # log(2) over 2 pixels, or over 1
    return mean.item() < 0.5


def _ohem_value(loss: OhemCrossEntropy, logits: Tensor, label: Tensor, pixels: Pixels) -> Tensor:
    """What mmseg's ``OhemCrossEntropy`` gives; 0 with zero gradient, not NaN, where no pixel is hard."""
    losses = weighted_cross_entropy(
        logits, label, _class_weight(loss, logits), ignore_index=loss.ignore_label, reduction='none', pixels=pixels
    )
    hard = _is_hard(pixels[0].detach(), label != loss.ignore_label, loss.min_kept, loss.thresh)
    return loss.loss_weight * (losses * hard).sum() / hard.count_nonzero().clamp(min=1)


def _class_weight(loss: CrossEntropyLoss | OhemCrossEntropy, logits: Tensor) -> Tensor | None:
    return None if loss.class_weight is None else load_class_weight(loss.class_weight).to(logits.device)


def _is_hard(nll: Tensor, valid: Tensor, kept: int, thresh: float) -> Tensor:
    """Pixels whose label has a probability below ``thresh``, or below that of the pixel ``kept`` places up the list."""
    probability = torch.where(valid, nll.neg().exp(), torch.inf)
    limit: Tensor | float = thresh
    number = int(valid.count_nonzero())
    if number > 0:
        place = min(kept, number - 1)
        if torch.are_deterministic_algorithms_enabled():  # which CUDA's kthvalue refuses
            value = probability.flatten().sort()[0][place]
        else:
            value = probability.flatten().kthvalue(place + 1)[0]
        limit = value.clamp(min=thresh)
    return probability < limit


def _hard_pixels(head: BaseDecodeHead, fused: _Fused, losses: list[nn.Module]) -> Tensor:
    """What mmseg's ``OHEMPixelSampler.sample`` gives, (N, H, W), from maps instead of full-size logits."""
    sampler, nll = head.sampler, fused.pixels(head.ignore_index)[0]
    if type(sampler) is not OHEMPixelSampler:  # somebody has put another one in its place
        return sampler.sample(fused.full_size, fused.label.unsqueeze(1))
    valid = fused.label != head.ignore_index
    kept = sampler.min_kept * fused.label.shape[0]
    if sampler.thresh is not None:
        return _is_hard(nll, valid, kept, sampler.thresh).to(nll.dtype)
    options = dict(weight=None, ignore_index=head.ignore_index, reduction_override='none')
    of_losses = sum((fused.value(loss, **options) for loss in losses), nll.new_zeros(()))
    ranked = of_losses[valid].sort(descending=True)[1]
    of_valid = torch.zeros(ranked.shape, dtype=nll.dtype, device=nll.device)
    of_valid[ranked[:kept]] = 1
    return torch.zeros_like(nll).masked_scatter(valid, of_valid)
