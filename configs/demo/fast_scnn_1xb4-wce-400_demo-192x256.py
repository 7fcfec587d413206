_base_ = './fast_scnn_1xb4-400_demo-192x256.py'

model = _base_.model
for head in (model.decode_head, *model.auxiliary_head):
    head.loss_decode.type = 'WeightedCrossEntropyLoss'
    head.loss_decode.class_weight = 'data/demo_scenes/class_weight.json'
del head
