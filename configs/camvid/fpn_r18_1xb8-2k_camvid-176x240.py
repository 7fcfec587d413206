# mmseg's Semantic FPN, with a ResNet-18 of half its width for a CPU, from scratch
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    '../_base_/datasets/camvid_half.py',
    '../_base_/schedules/schedule_2k.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    pretrained=None,
    backbone=dict(type='ResNet', depth=18, stem_channels=32, base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=11),
)
