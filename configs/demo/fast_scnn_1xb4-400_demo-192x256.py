_base_ = [
    '../_base_/models/fast_scnn_softmax.py',
    '../_base_/datasets/demo_scenes.py',
    '../_base_/schedules/schedule_4k.py',
    '../_base_/default_runtime.py',
]
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', eta_min=1e-5, power=0.9, by_epoch=False, begin=30, end=400),
]
train_cfg = dict(max_iters=400, val_interval=400)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=100, max_keep_ckpts=2))
train_dataloader = dict(batch_size=4)
randomness = dict(seed=0)

model = _base_.model
model.data_preprocessor.size = _base_.crop_size
for head in (model.decode_head, *model.auxiliary_head):
    head.num_classes = 10
del head
