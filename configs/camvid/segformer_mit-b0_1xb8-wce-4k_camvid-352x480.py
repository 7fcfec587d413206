_base_ = './segformer_mit-b0_1xb8-4k_camvid-352x480.py'

# as in fast_scnn_1xb8-wce-4k_camvid-352x480.py
class_weight = [0.8769, 0.7463, 3.6303, 0.6397, 1.6992, 1.1542, 3.3232, 3.3906, 1.4861, 4.5016, 6.6643]

model = dict(decode_head=dict(loss_decode=dict(type='WeightedCrossEntropyLoss', class_weight=class_weight)))
