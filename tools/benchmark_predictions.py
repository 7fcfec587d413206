"""Predictions of photos with 150 classes after the network has run: mmseg's implementation and ours."""

from collections.abc import Callable
from dataclasses import dataclass

import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads.predict_hook import add_validation_loss, fuse_predict
from torch import Tensor, nn

NUM_CLASSES = 150


@dataclass(frozen=True)
class Photo:
    """Sizes (height, width): logits of the photo or of a window, the photo as it is tested, and the original photo."""

    title: str
    logits: tuple[int, int]
    tested: tuple[int, int]
    original: tuple[int, int]
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None


PHOTOS = {
    'photo': Photo('photo, 512 x 683 -> 1500 x 2000', (128, 171), (512, 683), (1500, 2000)),
    'small-photo': Photo('photo, 512 x 683', (128, 171), (512, 683), (512, 683)),
    'slide': Photo('1024 x 2048, crop 512, stride 341', (128, 128), (1024, 2048), (1024, 2048), (512, 512), (341, 341)),
}


class NoNetwork(nn.Module):
    """A backbone that returns its input."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


def segmentor(photo: Photo, device: str) -> nn.Module:
    """Build an EncoderDecoder whose head returns ready logits."""
    init_default_scope('mmseg')
    if 'NoNetwork' not in MODELS:
        MODELS.register_module(module=NoNetwork)
    loss = dict(type='WeightedCrossEntropyLoss', class_weight=[1.0] * NUM_CLASSES)
    head = dict(type='FCNHead', in_channels=3, channels=4, num_convs=1, num_classes=NUM_CLASSES, loss_decode=loss)
    mode = dict(mode='slide', crop_size=photo.crop, stride=photo.stride) if photo.crop else dict(mode='whole')
    model = MODELS.build(
        dict(type='EncoderDecoder', backbone=dict(type='NoNetwork'), decode_head=head, test_cfg=ConfigDict(mode))
    )
    logits = torch.randn(1, NUM_CLASSES, *photo.logits, generator=torch.Generator().manual_seed(0)).to(device)
    model.decode_head.forward = lambda features: logits.clone()  # a new tensor for every window
    return model.to(device).eval()


class Prediction:
    """Prediction of one photo by one implementation."""

    def __init__(self, implementation: str, photo: Photo, device: str) -> None:
        self.model, self.photo = segmentor(photo, device), photo
        self.image = torch.zeros(1, 3, *photo.tested, device=device)
        generator = torch.Generator().manual_seed(1)
        self.label = torch.randint(0, NUM_CLASSES, (1, *photo.original), generator=generator).to(device)
        self.run: Callable[[], object] = self.predict
        if implementation == 'compiled':
            torch.compiler.reset()
            compiled, logits = torch.compile(self.plain, dynamic=False), self.model.decode_head(None)
            self.run = lambda: compiled(logits)
        elif implementation != 'built-in':
            fuse_predict(self.model)
        if implementation == 'mmseg_wce, with the loss':
            add_validation_loss(self.model)

    def clear(self) -> None:
        """Do nothing: a prediction keeps no tensors."""

    @torch.no_grad()
    def predict(self) -> list[SegDataSample]:
        meta = dict(img_shape=self.photo.tested, pad_shape=self.photo.tested, ori_shape=self.photo.original)
        sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=self.label))
        return self.model.predict(self.image, [sample])

    def plain(self, logits: Tensor) -> Tensor:
        for size in (self.photo.tested, self.photo.original):
            logits = F.interpolate(logits, size=size, mode='bilinear')
        return logits.argmax(1)


def implementations_for(photo: Photo) -> list[str]:
    """Return the names of the implementations; without 'compiled' for windows: mmseg's Python loop breaks the graph."""
    names = ['built-in', 'compiled', 'mmseg_wce', 'mmseg_wce, with the loss']
    return [name for name in names if name != 'compiled' or photo.crop is None]
