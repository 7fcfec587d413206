_base_ = './fast_scnn_1xb8-4k_camvid-352x480.py'

# tools/class_weights.py of the training labels by sqrt_inverse_frequency; tests/test_configs.py computes them anew
class_weight = [0.8769, 0.7463, 3.6303, 0.6397, 1.6992, 1.1542, 3.3232, 3.3906, 1.4861, 4.5016, 6.6643]

model = _base_.model
for head in (model.decode_head, *model.auxiliary_head):
    head.loss_decode.type = 'WeightedCrossEntropyLoss'
    head.loss_decode.class_weight = class_weight
del head
