_base_ = 'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmseg_wce'])
default_hooks = dict(label_check=dict(type='LabelCheckHook'), fused_predict=dict(type='FusedPredictHook'))
model = dict(decode_head=dict(loss_decode=dict(type='WeightedCrossEntropyLoss')))
