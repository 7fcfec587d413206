# Trees against everything else: one channel, labels 0 and 1. Pixels without a class (raw 0, then 255) stay ignored.
_base_ = './fast_scnn_1xb4-400_demo-192x256.py'

trees = dict(type='MapLabels', mapping={5: 1, 255: 255}, other=0)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    trees,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    trees,
    dict(type='PackSegInputs'),
]
binary_labels = dict(
    type='BaseSegDataset',
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=True,
    metainfo=dict(classes=('background', 'tree'), palette=[[205, 226, 160], [27, 120, 60]]),
)
train_dataloader = dict(dataset=dict(**binary_labels, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**binary_labels, pipeline=test_pipeline))
test_dataloader = val_dataloader

model = _base_.model
for head in (model.decode_head, *model.auxiliary_head):
    head.num_classes = 2
    head.out_channels = 1
    head.threshold = 0.5
    head.loss_decode.type = 'WeightedCrossEntropyLoss'
    head.loss_decode.use_sigmoid = True
    head.loss_decode.class_weight = [1.0, 3.0]
del head, trees, binary_labels
