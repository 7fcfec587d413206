"""A segmentor of mmseg without anything that depends on how a batch is divided: no normalisation, no dropout."""

import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

NUM_CLASSES = 4


@MODELS.register_module()
class TinyBackbone(nn.Module):
    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 6, 3, padding=1)
        if unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.first(images).relu()
        return middle, self.second(middle).relu()


def tiny_segmentor(
    loss: dict | list[dict], sampler: dict | None = None, unused: bool = False, one_channel: bool = False
) -> nn.Module:
    """Decode head and two auxiliary heads with the same losses, in float64, the same at every call."""
    classes = dict(num_classes=2, out_channels=1, threshold=0.5) if one_channel else dict(num_classes=NUM_CLASSES)
    init_default_scope('mmseg')
    torch.manual_seed(0)

    def head(index: int, loss_weight: float) -> dict:
        return dict(
            type='FCNHead',
            in_channels=6,
            in_index=index,
            channels=5,
            num_convs=1,
            concat_input=False,
            **classes,
            norm_cfg=None,
            dropout_ratio=0,
            align_corners=False,
            sampler=sampler,
            loss_decode=[dict(one, loss_weight=loss_weight) for one in (loss if isinstance(loss, list) else [loss])],
        )

    return MODELS.build(
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='BaseDataPreprocessor'),
            backbone=dict(type='TinyBackbone', unused=unused),
            decode_head=head(1, 1.0),
            auxiliary_head=[head(0, 0.4), head(1, 0.7)],
        )
    ).double()


def tiny_batch(images: Tensor, labels: Tensor) -> dict:
    """Return a batch as mmseg's data loader does: images (N, 3, H, W), labels (N, H, W)."""
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    return dict(inputs=images, data_samples=samples)
