# Set MMSEG_WCE_DATA to the folder that holds camvid/.
_base_ = './ade20k_layout.py'

dataset_type = 'CamVidDataset'
data_root = '{{$MMSEG_WCE_DATA:../shared/data}}/camvid'
crop_size = (352, 480)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_prefix = dict(img_path='images/test', seg_map_path='annotations/test')
test_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, data_prefix=test_prefix))
