_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmseg_wce'])
wce = dict(loss_decode=dict(type='WeightedCrossEntropyLoss'))
model = dict(decode_head=wce, auxiliary_head=wce)
