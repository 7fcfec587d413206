# mmseg has PIDNet for Cityscapes only: here with ADE20K's data, classes and schedule, without its class weights.
# Of its four losses, the first is a softmax cross-entropy. The second and fourth (OhemCrossEntropy) and the third
# (BoundaryLoss, of one channel) stay.
_base_ = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'
custom_imports = dict(imports=['mmseg_wce'])

crop_size = (512, 512)
class_weight = None  # of slot 0: a list of 150 numbers or a file
model = _base_.model
model.data_preprocessor.update(size=crop_size, test_cfg=dict(size_divisor=64))  # its branches meet at such sizes only
model.decode_head.num_classes = 150
of_p, of_i, _, near_boundary = model.decode_head.loss_decode
of_p.update(type='WeightedCrossEntropyLoss', class_weight=class_weight)
for loss in (of_i, near_boundary):
    loss.class_weight = None
del of_p, of_i, near_boundary, loss, _

dataset = dict(type='ADE20KDataset', data_root='data/ade/ADEChallengeData2016')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='GenerateEdge', edge_width=4),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
training = dict(img_path='images/training', seg_map_path='annotations/training')
validation = dict(img_path='images/validation', seg_map_path='annotations/validation')
train_dataloader = dict(batch_size=4, dataset=dict(**dataset, data_prefix=training, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, data_prefix=validation, pipeline=test_pipeline))
test_dataloader = val_dataloader

param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=160000, by_epoch=False)]
train_cfg = dict(max_iters=160000, val_interval=16000)
default_hooks = dict(
    checkpoint=dict(interval=16000),
    label_check=dict(type='LabelCheckHook'),
    fused_predict=dict(type='FusedPredictHook'),
)
