"""A small training whose photos are tested at another size than their own."""

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

LOSS = dict(type='WeightedCrossEntropyLoss', class_weight=[0.1, 3.0, 1.0, 0.3])


class Photos(torch.utils.data.Dataset):
    """Noise of several sizes with labels."""

    metainfo = dict(classes=tuple('abcd'))

    def __init__(self):
        self.bad = set()  # images with a label that cannot be right

    def __len__(self):
        return 5

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        image, size = torch.rand(3, 4, 6, generator=generator) * 255, (20 + i, 30 + 2 * i)
        label = torch.randint(0, 4, (1, *size), generator=generator)
        label[torch.rand(label.shape, generator=generator) < 0.2 * i] = 255
        if i in self.bad:
            label[0, 3, 4] = 77
        meta = dict(img_path=f'{i}.jpg', ori_shape=size, img_shape=(16, 24), pad_shape=(16, 24))
        return dict(
            inputs=F.interpolate(image[None], scale_factor=4)[0],
            data_samples=SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=label)),
        )


class TrainingPhotos(Photos):
    """The first of them again and again, so that no step depends on the order."""

    def __getitem__(self, i):
        item = super().__getitem__(0)
        label = torch.randint(0, 4, (1, 16, 24), generator=torch.Generator().manual_seed(0))
        item['data_samples'].gt_sem_seg = PixelData(data=label)
        return item


@MODELS.register_module(force=True)
class StridedBackbone(nn.Module):
    """One convolution of stride 4."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images):
        return [self.convolution(images)]


def model_config() -> ConfigDict:
    """A segmentor of two convolutions."""
    head = dict(in_channels=4, channels=4, num_convs=0, concat_input=False, num_classes=4, dropout_ratio=0)
    head['init_cfg'] = dict(type='Normal', std=1, override=dict(name='conv_seg'))  # mmseg's lets one class win
    return ConfigDict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[128] * 3, std=[64] * 3, size=(16, 24)),
        backbone=dict(type='StridedBackbone'),
        decode_head=dict(type='FCNHead', norm_cfg=None, align_corners=False, loss_decode=LOSS, **head),
        test_cfg=dict(mode='whole'),
    )


def runner_of(folder, **options) -> Runner:
    """A training of four iterations with two validations, on the CPU, in under a second."""
    loader = dict(num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    return Runner(
        **(
            dict(
                model=model_config(),
                work_dir=str(folder),
                default_scope='mmseg',
                randomness=dict(seed=0),
                train_dataloader=dict(loader, batch_size=2, dataset=TrainingPhotos()),
                val_dataloader=dict(loader, batch_size=1, dataset=Photos()),
                val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
                val_cfg=dict(type='ValLoop'),
                train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                custom_hooks=[dict(type='FusedLossHook'), dict(type='FusedPredictHook')],
                experiment_name=str(folder).replace('/', '_'),
            )
            | options
        )
    )
