"""Loss steps that the benchmark compares, each as a careful user of that implementation would write it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec

import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
import torch
import torch.nn.functional as F
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.losses import CrossEntropyLoss, accuracy
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.functional import weighted_binary_cross_entropy, weighted_cross_entropy
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.kernels import pixel_bce, pixel_maps
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    """Sizes of a loss step: normally distributed logits (N, C, h, w), and labels (N, H, W), 8 % of them ignored."""

    title: str
    images: int
    classes: int
    nodes: tuple[int, int]
    pixels: tuple[int, int]
    dtype: str = 'float32'
    align_corners: bool = False
    scale: float = 1.0
    devices: tuple[str, ...] = ('cpu', 'cuda')

    def exponentials(self) -> int:
        """Return 2 N C H W: every implementation needs one for the softmax and one for its gradient."""
        return 2 * self.images * self.classes * self.pixels[0] * self.pixels[1]

    def make(self, device: str) -> tuple[Tensor, Tensor]:
        """Return logits and labels."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(self.images, self.classes, *self.nodes, generator=generator) * self.scale
        target = torch.randint(0, max(self.classes, 2), (self.images, *self.pixels), generator=generator)
        target[torch.rand(target.shape, generator=generator) < 0.08] = 255
        return logits.to(device, getattr(torch, self.dtype)), target.to(device)


ADE20K = (2, 150, (128, 128), (512, 512))
CITYSCAPES = (2, 19, (128, 256), (512, 1024))
CASES = {
    'ade20k': Case('ADE20K', *ADE20K),
    'ade20k-bf16': Case('ADE20K, bfloat16', *ADE20K, dtype='bfloat16'),
    'ade20k-8': Case('ADE20K, batch 8', 8, *ADE20K[1:], devices=('cuda',)),
    'ade20k-8-bf16': Case('ADE20K, batch 8, bfloat16', 8, *ADE20K[1:], dtype='bfloat16', devices=('cuda',)),
    'cityscapes': Case('Cityscapes', *CITYSCAPES),
    'cityscapes-bf16': Case('Cityscapes, bfloat16', *CITYSCAPES, dtype='bfloat16'),
    'coco-stuff': Case('COCO-Stuff 171, stride 8', 2, 171, (64, 64), (512, 512)),
    'lvis': Case('1203 classes, stride 8', 1, 1203, (64, 64), (512, 512)),
    'binary': Case('binary, nothing to resize', 2, 2, (512, 512), (512, 512)),
    'binary-resized': Case('binary, stride 4', 2, 2, (128, 128), (512, 512)),
    'one-channel': Case('one channel, stride 4', 2, 1, (128, 128), (512, 512), devices=()),  # for sigmoids only
    'tiny': Case('64 images of 3 classes, 32 -> 64', 64, 3, (32, 32), (64, 64)),
    'small': Case('8 images of 5 classes, 64 x 64, nothing to resize', 8, 5, (64, 64), (64, 64)),
    'smaller': Case('19 classes, downscaled 128 -> 32', 1, 19, (128, 128), (32, 32)),
    'ade20k-smaller': Case('ADE20K, downscaled 128 -> 32', *ADE20K[:3], (32, 32)),
    'one-image': Case('one image of 3 classes, 8 -> 16', 1, 3, (8, 8), (16, 16)),
    'align-corners': Case('ADE20K, align_corners', *ADE20K, align_corners=True),
    'fractional': Case('ADE20K, scale 3.7', 2, 150, (128, 128), (474, 474)),
    'same-size': Case('ADE20K, nothing to resize', 2, 150, (512, 512), (512, 512)),
    'scale-10': Case('ADE20K, logits times 10', *ADE20K, scale=10.0),
    'scale-20': Case('ADE20K, logits times 20', *ADE20K, scale=20.0),
    'scale-40': Case('ADE20K, logits times 40', *ADE20K, scale=40.0),
}

LossFunction = Callable[[Tensor, Tensor, Case], tuple[Tensor, Tensor]]
"""Returns the loss and the pixel accuracy for logits and labels."""


def built_in(logits: Tensor, target: Tensor, case: Case, use_sigmoid: bool = False) -> tuple[Tensor, Tensor]:
    """Run mmseg's loss and accuracy as ``BaseDecodeHead.loss_by_feat`` does."""
    z = resize(logits, size=target.shape[1:], mode='bilinear', align_corners=case.align_corners)
    return _built_in_loss(use_sigmoid)(z, target, ignore_index=255), accuracy(z.detach(), target, ignore_index=255)


@cache
def _built_in_loss(use_sigmoid: bool) -> CrossEntropyLoss:
    return CrossEntropyLoss(use_sigmoid=use_sigmoid, avg_non_ignore=False)


def plain(logits: Tensor, target: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Compute the same as ``built_in`` in plain PyTorch, which torch.compile compiles without graph breaks."""
    z = _upsampled(logits, target, case)
    correct = (z.argmax(1) == target).sum() / (target != 255).sum()
    return F.cross_entropy(z.float(), target, ignore_index=255), correct


def _upsampled(logits: Tensor, target: Tensor, case: Case) -> Tensor:
    if logits.shape[2:] == target.shape[1:]:
        return logits
    return F.interpolate(logits, size=target.shape[1:], mode='bilinear', align_corners=case.align_corners)


def compiled(logits: Tensor, target: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Run ``plain`` through torch.compile."""
    return _compiled_for(case)(logits, target, case)


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


def liger(logits: Tensor, target: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Run Liger-Kernel's cross-entropy on full-size logits."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    z = _upsampled(logits, target, case)
    correct = (z.detach().argmax(1) == target).sum() / (target != 255).sum()
    flat = z.permute(0, 2, 3, 1).reshape(-1, case.classes)
    return liger_cross_entropy(flat, target.flatten(), ignore_index=255), correct


def ours(logits: Tensor, target: Tensor, case: Case, weighted: bool = False) -> tuple[Tensor, Tensor]:
    """Run our loss as fused heads do; if weighted, with class weights from 0.5 to 2."""
    weight = torch.linspace(0.5, 2, case.classes, device=logits.device) if weighted else None
    maps = pixel_maps(logits, target, weight, ignore_index=255, align_corners=case.align_corners)
    correct, valid = maps.count_pixels(target, 255)
    return weighted_cross_entropy(logits, target, weight, pixels=maps), correct / valid


def ours_sigmoid(logits: Tensor, target: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Run our binary cross-entropy as fused heads do."""
    pixels = pixel_bce(logits, target, ignore_index=255, align_corners=case.align_corners)
    correct = pixels[2].count_nonzero() / (target != 255).count_nonzero()
    return weighted_binary_cross_entropy(logits, target, normalize_by='all', pixels=pixels), correct


@dataclass(frozen=True)
class Implementation:
    """A loss to measure; ``is_available`` takes the device, ``by_default`` is False if it must be named in --ways."""

    loss: LossFunction
    is_available: Callable[[str], bool] = lambda device: True
    by_default: bool = True


IMPLEMENTATIONS = {
    'built-in': Implementation(built_in),
    'compiled': Implementation(compiled),
    'checkpointed': Implementation(checkpointed),
    'liger': Implementation(liger, lambda device: device == 'cuda' and find_spec('liger_kernel') is not None),
    'mmseg_wce': Implementation(ours),
    'mmseg_wce, weighted': Implementation(partial(ours, weighted=True)),
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


# configs of mmseg
END_TO_END = {
    'SegFormer-B0': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'FCN-R50': 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
}


def training_data(model: nn.Module, labels: Tensor) -> dict:
    """Return a batch of random images with labels, (N, 1, H, W), as the heads of all models of mmseg need it."""
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), tuple(labels.shape[2:]))
    samples = [
        SegDataSample(metainfo=shapes, gt_sem_seg=PixelData(data=y), gt_edge_map=PixelData(data=(y == 0).long()))
        for y in labels
    ]
    images = list(torch.randint(0, 256, (len(labels), 3, *labels.shape[2:]), dtype=torch.uint8))
    return model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)


class TrainingStep(Step):
    """Loss and gradients of a whole model on random images; with fused heads for the implementation 'mmseg_wce'."""

    def __init__(self, model: str, implementation: str, device: str, crop: int) -> None:
        config = get_config(END_TO_END[model])
        init_default_scope('mmseg')
        config.model.data_preprocessor.size = (crop, crop)
        config.model.backbone.init_cfg = config.model.pretrained = None
        torch.manual_seed(0)
        self.model = revert_sync_batchnorm(MODELS.build(config.model)).to(device).train()
        if implementation == 'mmseg_wce':
            lines = fuse_decode_heads(self.model, built_in=True)
            assert all(line.endswith('fused') for line in lines), lines
        self.data = training_data(self.model, torch.randint(0, 150, (2, 1, crop, crop)))

    def clear(self) -> None:
        self.model.zero_grad()
        self.loss = None

    def forward(self) -> None:
        self.clear()
        self.loss = self.model.parse_losses(self.model.loss(self.data['inputs'], self.data['data_samples']))[0]
