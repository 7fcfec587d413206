# Without class_weight the mean is PyTorch's over the pixels that are not ignored.
# class_weight='weights.json', a list of 150 numbers, weights the classes.
_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
custom_imports = dict(imports=['mmseg_wce'])
default_hooks = dict(label_check=dict(type='LabelCheckHook'), fused_predict=dict(type='FusedPredictHook'))
model = dict(decode_head=dict(loss_decode=dict(type='WeightedCrossEntropyLoss')))
