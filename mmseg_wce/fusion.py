"""Decode heads that compute resize, loss and accuracy in one sweep and never build full-size logits.

What mmseg's ``BaseDecodeHead.loss_by_feat`` computes from upsampled logits comes from three maps of one number per
pixel (:func:`mmseg_wce.kernels.pixel_nll`) instead: the same terms, names and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.utils import resize
from mmseg.registry import HOOKS
from mmseg.structures.sampler import OHEMPixelSampler
from mmseg_wce.class_weights import load_class_weight
from mmseg_wce.functional import Pixels, check_inputs, weighted_cross_entropy
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
    if _is_fused(head):
        del head.loss_by_feat
    standard = isinstance(head, BaseDecodeHead) and type(head).loss_by_feat is BaseDecodeHead.loss_by_feat
    if not standard or 'loss_by_feat' in vars(head):
        return 'left alone: it computes its loss in a way of its own'
    if head.out_channels == 1:
        return 'left alone: it has one channel, which is no softmax'
    if head.sampler is not None and type(head.sampler) is not OHEMPixelSampler:
        return f'left alone: its sampler {type(head.sampler).__name__} needs full-size logits'
    others = [(loss, reason) for loss in _losses(head) if (reason := _needs_full_size(loss, built_in))]
    if len(others) == len(_losses(head)):
        return 'left alone: ' + '; '.join(f'{loss.loss_name} is {reason}' for loss, reason in others)
    head.loss_by_feat = partial(_loss_by_feat, head, built_in)
    names = ', '.join(loss.loss_name for loss, _ in others)
    return f'fused; full-size logits are still built for {names}' if names else 'fused'


def _is_fused(head: nn.Module) -> bool:
    own = vars(head).get('loss_by_feat')
    return isinstance(own, partial) and own.func is _loss_by_feat


def _needs_full_size(loss: nn.Module, built_in: bool) -> str:
    """Why a loss cannot be computed from the maps; empty where it can."""
    if isinstance(loss, WeightedCrossEntropyLoss):
        return ''
    if type(loss) is not CrossEntropyLoss:
        return f'a {type(loss).__name__}'
    if loss.use_sigmoid or loss.use_mask:
        return 'a CrossEntropyLoss with use_sigmoid or use_mask'
    return '' if built_in else 'a softmax CrossEntropyLoss, which built_in=True would fuse'


def _loss_by_feat(
    head: BaseDecodeHead, built_in: bool, seg_logits: Tensor, batch_data_samples: list
) -> dict[str, Tensor]:
    """Takes the place of ``BaseDecodeHead.loss_by_feat`` in one head."""
    label = head._stack_batch_gt(batch_data_samples).squeeze(1)
    losses = _losses(head)
    pixels, smoothed = _sweep(head, seg_logits, label, losses)

    @cache
    def full_size() -> Tensor:
        return resize(seg_logits, label.shape[1:], mode='bilinear', align_corners=head.align_corners)

    def value(loss: nn.Module, **options) -> Tensor:
        options['ignore_index'] = head.ignore_index
        if _needs_full_size(loss, built_in):
            return loss(full_size(), label, **options)
        if isinstance(loss, CrossEntropyLoss):
            return _built_in_value(loss, seg_logits, label, pixels, **options)
        of_its_own = loss.label_smoothing > 0 and loss is not smoothed
        options['pixels'] = _sweep(head, seg_logits, label, [loss])[0] if of_its_own else pixels
        return loss(seg_logits, label, **options)

    weight = None
    if head.sampler is not None:
        with torch.no_grad():
            weight = _hard_pixels(
                head, pixels, label, lambda: [value(loss, weight=None, reduction_override='none') for loss in losses]
            )
    terms: dict[str, Tensor] = {}
    for loss in losses:
        term = value(loss, weight=weight)
        terms[loss.loss_name] = terms[loss.loss_name] + term if loss.loss_name in terms else term
    terms['acc_seg'] = _accuracy(pixels[2], label, head.ignore_index)
    return terms


def _built_in_value(
    loss: CrossEntropyLoss,
    logits: Tensor,
    label: Tensor,
    pixels: Pixels,
    weight: Tensor | None,
    ignore_index: int,
    reduction_override: str | None = None,
) -> Tensor:
    """What mmseg's softmax loss gives: its own normalisation, its attributes as they are now."""
    class_weight = None if loss.class_weight is None else load_class_weight(loss.class_weight).to(logits.device)
    return loss.loss_weight * weighted_cross_entropy(
        logits,
        label,
        class_weight,
        ignore_index=ignore_index,
        pixel_weight=weight,
        reduction=reduction_override or loss.reduction,
        normalize_by='class_weight' if loss.avg_non_ignore or class_weight is not None else 'all',
        pixels=pixels,
    )


def _sweep(
    head: BaseDecodeHead, logits: Tensor, label: Tensor, losses: list[nn.Module]
) -> tuple[Pixels, WeightedCrossEntropyLoss | None]:
    """The maps that all losses share, and the loss whose smoothing they hold."""
    check_inputs(logits, label, None)
    ours = [loss for loss in losses if isinstance(loss, WeightedCrossEntropyLoss)]
    smoothed = next((loss for loss in ours if loss.label_smoothing > 0), None)
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
