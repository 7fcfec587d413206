# FastSCNN with softmax losses. The base has use_sigmoid=True in all three heads: a binary cross-entropy for each class.
# Its BatchNorm momentum of 0.01 is made for 160k iterations; statistics have to settle within some hundreds here.
_base_ = 'mmseg::_base_/models/fast_scnn.py'

norm_cfg = dict(type='SyncBN', requires_grad=True, momentum=0.1)
model = _base_.model  # heads in a list cannot be changed by a dict
model.backbone.norm_cfg = norm_cfg
for head in (model.decode_head, *model.auxiliary_head):
    head.norm_cfg = norm_cfg
    head.loss_decode.use_sigmoid = False
del head
