_base_ = [
    '../_base_/models/fast_scnn_softmax.py',
    '../_base_/datasets/camvid_half.py',
    '../_base_/schedules/schedule_2k.py',
    '../_base_/default_runtime.py',
]

model = _base_.model
model.data_preprocessor.size = _base_.crop_size
for head in (model.decode_head, *model.auxiliary_head):
    head.num_classes = 11
del head
