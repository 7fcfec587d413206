"""Training iterations of whole models of mmseg, without and with fused heads, on random images."""

import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
import torch
from benchmark_implementations import Step
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads import fuse_decode_heads
from torch import Tensor, nn

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
