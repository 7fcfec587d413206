"""Decode heads that compute resize, loss and accuracy in one sweep and never build full-size logits.

What mmseg's ``BaseDecodeHead.loss_by_feat`` computes from upsampled logits comes from three maps of one number per
pixel (:func:`mmseg_wce.kernels.pixel_nll`) instead: the same terms, names and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import MethodType

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.utils import resize
from mmseg.registry import HOOKS
from mmseg.structures.sampler import OHEMPixelSampler
from mmseg_wce.functional import Pixels, check_inputs
from mmseg_wce.kernels import pixel_nll
from mmseg_wce.losses import WeightedCrossEntropyLoss
from torch import Tensor, nn

__all__ = ['FusedLossHook', 'fuse_decode_heads']


@HOOKS.register_module()
class FusedLossHook(Hook):
    """Fuses the decode and auxiliary heads of the model before a run, and logs which it left alone and why.

    ``custom_hooks = [dict(type='FusedLossHook')]``

    Args:
        built_in: fuse mmseg's softmax ``CrossEntropyLoss`` as well, with its own normalisation.
    """

    def __init__(self, built_in: bool = False) -> None:
        self.built_in = built_in

    def before_run(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for line in fuse_decode_heads(model, self.built_in):
            runner.logger.info(f'FusedLossHook: {line}')


def fuse_decode_heads(model: nn.Module, built_in: bool = False) -> list[str]:
    """Let every head that computes its loss the standard way compute it from low-resolution logits.

    Args:
        model: an mmseg segmentor, with ``decode_head`` and perhaps ``auxiliary_head``, each a head or a list of heads.
        built_in: fuse mmseg's softmax ``CrossEntropyLoss`` as well, with its own normalisation.

    Returns:
        A line for each head: what was fused in it, or why it was left alone.
    """
    return [f'{name} ({type(head).__name__}): {_fuse(head, built_in)}' for name, head in _heads(model)]


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, name, None)
        if isinstance(heads, nn.ModuleList):
            yield from ((f'{name}[{i}]', head) for i, head in enumerate(heads))
        elif heads is not None:
            yield name, heads


def _losses(head: BaseDecodeHead) -> list[nn.Module]:
    return list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]


def _fuse(head: nn.Module, built_in: bool) -> str:
    if not isinstance(head, BaseDecodeHead) or type(head).loss_by_feat is not BaseDecodeHead.loss_by_feat:
        return 'left alone: it computes its loss in a way of its own'
    if head.sampler is not None and type(head.sampler) is not OHEMPixelSampler:
        return f'left alone: its sampler {type(head.sampler).__name__} needs full-size logits'
    stand_ins = [_stand_in(loss, built_in) for loss in _losses(head)]
    if not any(stand_ins):
        advice = '' if built_in else ' (built_in=True would fuse the softmax CrossEntropyLoss)'
        return f'left alone: none of its losses is a WeightedCrossEntropyLoss{advice}'
    head.loss_by_feat = MethodType(_FusedLoss(stand_ins), head)
    names = [loss.loss_name for loss, stand_in in zip(_losses(head), stand_ins, strict=True) if stand_in is None]
    return f'fused; full-size logits are still built for {", ".join(names)}' if names else 'fused'


def _stand_in(loss: nn.Module, built_in: bool) -> WeightedCrossEntropyLoss | None:
    """The loss itself, or one of the same value as mmseg's, or None where it needs full-size logits."""
    if isinstance(loss, WeightedCrossEntropyLoss):
        return loss
    if not built_in or type(loss) is not CrossEntropyLoss or loss.use_sigmoid or loss.use_mask:
        return None
    return WeightedCrossEntropyLoss(
        reduction=loss.reduction,
        class_weight=loss.class_weight,
        loss_weight=loss.loss_weight,
        loss_name=loss.loss_name,
        avg_non_ignore=loss.avg_non_ignore,
        sync_normalizer=False,
    )


class _FusedLoss:
    """Takes the place of ``BaseDecodeHead.loss_by_feat`` in one head."""

    def __init__(self, stand_ins: list[WeightedCrossEntropyLoss | None]) -> None:
        # Those that the head owns are found there, so that a copy of the head uses its own.
        self.stand_ins = stand_ins

    def __call__(self, head: BaseDecodeHead, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        label = head._stack_batch_gt(batch_data_samples).squeeze(1)
        fused = [
            loss if isinstance(loss, WeightedCrossEntropyLoss) else self._on_device(stand_in, seg_logits)
            for loss, stand_in in zip(_losses(head), self.stand_ins, strict=True)
        ]
        pixels, smoothed = _sweep(head, seg_logits, label, [loss for loss in fused if loss is not None])

        @cache
        def full_size() -> Tensor:
            return resize(seg_logits, label.shape[1:], mode='bilinear', align_corners=head.align_corners)

        def value(loss: nn.Module, stand_in: WeightedCrossEntropyLoss | None, **options) -> Tensor:
            options['ignore_index'] = head.ignore_index
            if stand_in is None:
                return loss(full_size(), label, **options)
            of_its_own = stand_in.label_smoothing > 0 and stand_in is not smoothed
            options['pixels'] = _sweep(head, seg_logits, label, [stand_in])[0] if of_its_own else pixels
            return stand_in(seg_logits, label, **options)

        pairs = list(zip(_losses(head), fused, strict=True))
        weight = None
        if head.sampler is not None:
            with torch.no_grad():
                weight = _hard_pixels(
                    head,
                    pixels,
                    label,
                    lambda: [value(*pair, weight=None, reduction_override='none') for pair in pairs],
                )
        losses: dict[str, Tensor] = {}
        for loss, stand_in in pairs:
            term = value(loss, stand_in, weight=weight)
            losses[loss.loss_name] = losses[loss.loss_name] + term if loss.loss_name in losses else term
        losses['acc_seg'] = _accuracy(pixels[2], label, head.ignore_index)
        return losses

    @staticmethod
    def _on_device(loss: WeightedCrossEntropyLoss | None, logits: Tensor) -> WeightedCrossEntropyLoss | None:
        if loss is not None and loss.class_weight is not None and loss.class_weight.device != logits.device:
            loss.to(logits.device)
        return loss


def _sweep(
    head: BaseDecodeHead, logits: Tensor, label: Tensor, losses: list[WeightedCrossEntropyLoss]
) -> tuple[Pixels, WeightedCrossEntropyLoss | None]:
    """The maps that all losses share, and the loss whose smoothing they hold."""
    check_inputs(logits, label, None)
    smoothed = next((loss for loss in losses if loss.label_smoothing > 0), None)
    pixels = pixel_nll(
        logits,
        label.long(),
        ignore_index=head.ignore_index,
        smoothing_weight=None if smoothed is None else smoothed.smoothing_weight(logits),
        align_corners=head.align_corners,
    )
    return pixels, smoothed


def _hard_pixels(head: BaseDecodeHead, pixels: Pixels, label: Tensor, losses: Callable[[], list[Tensor]]) -> Tensor:
    """What mmseg's ``OHEMPixelSampler.sample`` gives, (N, H, W), from maps instead of full-size logits."""
    sampler = head.sampler
    valid = label != head.ignore_index
    kept = sampler.min_kept * label.shape[0]
    weight = torch.zeros_like(pixels[0])
    if sampler.thresh is None:
        of_valid = torch.zeros_like(weight[valid])
        of_valid[sum(losses())[valid].sort(descending=True)[1][:kept]] = 1
    else:
        probability = pixels[0][valid].neg().exp()
        ranked = probability.sort()[0]
        threshold = max(float(ranked[min(kept, len(ranked) - 1)]), sampler.thresh) if len(ranked) else sampler.thresh
        of_valid = (probability < threshold).to(weight.dtype)
    weight[valid] = of_valid
    return weight


def _accuracy(correct: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """mmseg's ``accuracy``, (1,), in percent; without waiting for the device."""
    epsilon = torch.finfo(torch.float32).eps  # as mmseg adds it
    valid = (label != ignore_index).sum()
    return 100 * (correct.sum() + epsilon).reshape(1) / (valid + epsilon)
