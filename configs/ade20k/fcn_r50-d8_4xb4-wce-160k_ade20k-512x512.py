_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmseg_wce'])
default_hooks = dict(label_check=dict(type='LabelCheckHook'), fused_predict=dict(type='FusedPredictHook'))
wce = dict(loss_decode=dict(type='WeightedCrossEntropyLoss'))
model = dict(decode_head=wce, auxiliary_head=wce)
