# Made by tools/demo.py.
_base_ = './ade20k_layout.py'

dataset_type = 'DemoScenesDataset'
data_root = 'data/demo_scenes'
crop_size = (192, 256)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(num_workers=1, dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
