"""Losses that the benchmarks compare, each as a careful user of that implementation would write it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial

import mmseg_wce
import torch
import torch.nn.functional as F
from benchmark_cases import Case
from mmseg_wce.functional import smoothing_weight, weighted_binary_cross_entropy, weighted_cross_entropy
from mmseg_wce.kernels import pixel_bce, pixel_maps
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if mmseg_wce.why_not_registered is None:
    from mmseg.models.losses import CrossEntropyLoss, accuracy
    from mmseg.models.utils import resize

LossFunction = Callable[[Tensor, Tensor, Case], tuple[Tensor, Tensor]]
"""Returns the loss and the pixel accuracy for logits and labels."""


def built_in(logits: Tensor, target: Tensor, case: Case, use_sigmoid: bool = False) -> tuple[Tensor, Tensor]:
    """Run mmseg's loss and accuracy as ``BaseDecodeHead.loss_by_feat`` does."""
    z = resize(logits, size=target.shape[1:], mode='bilinear', align_corners=case.align_corners)
    return _built_in_loss(use_sigmoid)(z, target, ignore_index=255), accuracy(z.detach(), target, ignore_index=255)


@cache
def _built_in_loss(use_sigmoid: bool) -> torch.nn.Module:
    return CrossEntropyLoss(use_sigmoid=use_sigmoid, avg_non_ignore=False)


def built_in_written_out(
    logits: Tensor, target: Tensor, case: Case, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute ``built_in`` in plain PyTorch, operation by operation; an ignored label weighs nothing.

    (mmseg's loss indexes the class weights with ignored labels: an IndexError, or on CUDA the end of the process.)
    """
    z, valid, eps = _upsampled(logits, target, case), target != 255, torch.finfo(torch.float32).eps
    weight = None if weight is None else weight.to(z.dtype)
    loss = F.cross_entropy(z, target, weight, reduction='none', ignore_index=255)
    total = target.numel() if weight is None else (weight[target.where(valid, 0)] * valid).sum()
    correct = z.detach().topk(1, dim=1).indices.transpose(0, 1).eq(target.unsqueeze(0))[:, valid]
    percent = correct.reshape(-1).float().sum(0, keepdim=True).add(eps).mul(100 / (target[valid].numel() + eps))
    return loss.sum() / total, percent


def plain(logits: Tensor, target: Tensor, case: Case, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute the loss and the accuracy in plain PyTorch, which torch.compile compiles without graph breaks."""
    z = _upsampled(logits, target, case)
    correct = (z.argmax(1) == target).sum() / (target != 255).sum()
    loss = F.cross_entropy(z.float(), target, weight, ignore_index=255, label_smoothing=case.label_smoothing)
    return loss, correct


def _upsampled(logits: Tensor, target: Tensor, case: Case) -> Tensor:
    if logits.shape[2:] == target.shape[1:]:
        return logits
    return F.interpolate(logits, size=target.shape[1:], mode='bilinear', align_corners=case.align_corners)


def compiled(logits: Tensor, target: Tensor, case: Case, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run ``plain`` through torch.compile."""
    return _compiled_for(case)(logits, target, case, weight)


@lru_cache(maxsize=1)
def _compiled_for(case: Case) -> LossFunction:
    # without the reset, later cases would get code for dynamic shapes, or run eagerly
    torch.compiler.reset()
    return torch.compile(plain, dynamic=False)


def checkpointed(logits: Tensor, target: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Compute one image after the other, and its full-size logits again in the backward."""

    def total(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = _upsampled(z, y, case)
        correct = (z.detach().argmax(1) == y).sum()
        return F.cross_entropy(z.float(), y, ignore_index=255, reduction='sum'), correct

    parts = [
        checkpoint(total, z, y, use_reentrant=False) for z, y in zip(logits.split(1), target.split(1), strict=True)
    ]
    valid = (target != 255).sum()
    return sum(loss for loss, _ in parts) / valid, sum(correct for _, correct in parts) / valid


def liger(logits: Tensor, target: Tensor, case: Case, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run Liger-Kernel's cross-entropy on full-size logits."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    z = _upsampled(logits, target, case)
    correct = (z.detach().argmax(1) == target).sum() / (target != 255).sum()
    flat = z.permute(0, 2, 3, 1).reshape(-1, case.classes)
    options = dict(weight=weight, ignore_index=255, label_smoothing=case.label_smoothing)
    return liger_cross_entropy(flat, target.flatten(), **options), correct


def ours(
    logits: Tensor, target: Tensor, case: Case, weight: Tensor | None = None, focal_gamma: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Run our loss as fused heads do."""
    maps = pixel_maps(
        logits,
        target,
        weight,
        ignore_index=255,
        smoothing_weight=smoothing_weight(logits, weight, case.label_smoothing),
        align_corners=case.align_corners,
    )
    correct, valid = maps.count_pixels(target, 255)
    options = dict(label_smoothing=case.label_smoothing, focal_gamma=focal_gamma)
    loss = weighted_cross_entropy(logits, target, weight, **options, pixels=maps)
    return loss, correct / valid


def ours_weighted(logits: Tensor, target: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Run our loss with class weights, as fused heads do."""
    return ours(logits, target, case, replace(case, weighted=True).class_weight(logits.device))


def ours_sigmoid(logits: Tensor, target: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Run our binary cross-entropy as fused heads do."""
    pixels = pixel_bce(logits, target, ignore_index=255, align_corners=case.align_corners)
    correct = pixels[2].count_nonzero() / (target != 255).count_nonzero()
    return weighted_binary_cross_entropy(logits, target, normalize_by='all', pixels=pixels), correct


@dataclass(frozen=True)
class Implementation:
    """A loss to measure; ``by_default`` is False if it must be named in --ways."""

    loss: LossFunction
    by_default: bool = True


IMPLEMENTATIONS = {
    'built-in': Implementation(built_in),
    'compiled': Implementation(compiled),
    'checkpointed': Implementation(checkpointed),
    'mmseg_wce': Implementation(ours),
    'mmseg_wce, weighted': Implementation(ours_weighted),
    'mmseg_wce, focal': Implementation(partial(ours, focal_gamma=2.0)),
    'built-in, sigmoid': Implementation(partial(built_in, use_sigmoid=True), by_default=False),
    'mmseg_wce, sigmoid': Implementation(ours_sigmoid, by_default=False),
}


class Step:
    """A loss step of one implementation in one case; forward and backward can be timed separately."""

    def __init__(self, name: str, case: Case, device: str) -> None:
        self.loss_function, self.case = IMPLEMENTATIONS[name].loss, case
        self.logits, self.target = case.make(device)
        self.logits.requires_grad_()

    def clear(self) -> None:
        self.logits.grad = self.loss = None

    def forward(self) -> None:
        self.clear()
        self.loss, self.accuracy = self.loss_function(self.logits, self.target, self.case)

    def backward(self) -> None:
        self.loss.backward()

    def run(self) -> None:
        self.forward()
        self.backward()
