"""Sizes of the loss steps that the benchmark measures."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Sizes and options of a loss step: normally distributed logits (N, C, h, w), and labels (N, H, W), 8 % ignored.

    ``by_default`` is False if the case must be named in --cases. The last two are read by the benchmark on CUDA.
    """

    title: str
    images: int
    classes: int
    nodes: tuple[int, int]
    pixels: tuple[int, int]
    dtype: str = 'float32'
    align_corners: bool = False
    scale: float = 1.0
    by_default: bool = True
    weighted: bool = False
    label_smoothing: float = 0.0

    def exponentials(self) -> int:
        """Return 2 N C H W: every implementation needs one for the softmax and one for its gradient."""
        return 2 * self.images * self.classes * self.pixels[0] * self.pixels[1]

    def pairs(self) -> int:
        """Return N C H W, the pairs of a pixel and a class."""
        return self.exponentials() // 2

    def cells(self) -> int:
        """Return the pairs of a class and a cell: a square between four input pixels, or beyond those at the border."""
        return self.images * self.classes * (self.nodes[0] + 1) * (self.nodes[1] + 1)

    def class_weight(self, device: str) -> Tensor | None:
        """Return class weights from 0.5 to 2; None if the case has none."""
        return torch.linspace(0.5, 2, self.classes, device=device) if self.weighted else None

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
    'cityscapes': Case('Cityscapes', *CITYSCAPES),
    'cityscapes-bf16': Case('Cityscapes, bfloat16', *CITYSCAPES, dtype='bfloat16'),
    'coco-stuff': Case('COCO-Stuff 171, stride 8', 2, 171, (64, 64), (512, 512)),
    'lvis': Case('1203 classes, stride 8', 1, 1203, (64, 64), (512, 512)),
    'binary': Case('binary, nothing to resize', 2, 2, (512, 512), (512, 512)),
    'binary-resized': Case('binary, stride 4', 2, 2, (128, 128), (512, 512)),
    'one-channel': Case('one channel, stride 4', 2, 1, (128, 128), (512, 512), by_default=False),  # for sigmoids only
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

CROPS = (8, 150, (128, 128), (512, 512))
WIDE = (8, 19, (64, 64), (512, 512))
VIT_14, VIT_16 = (8, 150, (37, 37), (518, 518)), (8, 150, (32, 32), (512, 512))
BF16 = dict(dtype='bfloat16')
CUDA_CASES = {
    'ade20k-bf16': Case('ADE20K, bfloat16', *CROPS, **BF16),
    'ade20k': Case('ADE20K', *CROPS),
    'cityscapes-bf16': Case('19 classes, stride 8, bfloat16', *WIDE, **BF16),
    'cityscapes': Case('19 classes, stride 8', *WIDE),
    'vit-16-bf16': Case('ViT, stride 16, bfloat16', *VIT_16, **BF16),
    'vit-16': Case('ViT, stride 16', *VIT_16),
    'vit-14-bf16': Case('ViT, stride 14, bfloat16', *VIT_14, **BF16),
    'vit-14': Case('ViT, stride 14', *VIT_14),
    'ade20k-weighted-bf16': Case('ADE20K, class weights, bfloat16', *CROPS, weighted=True, **BF16),
    'ade20k-weighted': Case('ADE20K, class weights', *CROPS, weighted=True),
    'ade20k-smoothed-bf16': Case('ADE20K, label smoothing, bfloat16', *CROPS, label_smoothing=0.1, **BF16),
    'ade20k-smoothed': Case('ADE20K, label smoothing', *CROPS, label_smoothing=0.1),
    'ade20k-scale-20': Case('ADE20K, logits times 20', *CROPS, scale=20.0),
}
