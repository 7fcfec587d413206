_base_ = 'mmseg::ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmseg_wce'])
default_hooks = dict(label_check=dict(type='LabelCheckHook'), fused_predict=dict(type='FusedPredictHook'))
model = _base_.model
for head in model.decode_head:  # a dict cannot change one element of a list
    head.loss_decode.type = 'WeightedCrossEntropyLoss'
del head
