"""Heads of mmseg: the layer is found, and offsets in its bias predict the classes of offsets on full-size logits."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads import fuse_predict, prediction
from mmseg_wce.fused_heads.predict_hook import add_rebalancing
from mmseg_wce.rebalancing.output_layer import OutputBiasHook, find_output_layer
from photos import runner_of
from tiny_segmentor import tiny_segmentor
from torch import nn

TAUS = [-0.5, 0.0, 0.4, 1.0]
PHOTO = 90, 130
OFFICIAL = {
    'fast_scnn': ('_base_/models/fast_scnn.py', 'decode_head.conv_seg'),
    'segformer': ('_base_/models/segformer_mit-b0.py', 'decode_head.conv_seg'),
    'upernet': ('_base_/models/upernet_r50.py', 'decode_head.conv_seg'),
    'ocrnet': ('_base_/models/ocrnet_hr18.py', 'decode_head.1.conv_seg'),
    'encnet': ('_base_/models/encnet_r50-d8.py', 'decode_head.conv_seg'),
    'danet': ('_base_/models/danet_r50-d8.py', 'decode_head.conv_seg'),
    'pidnet': ('pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', 'decode_head.conv_seg'),
    'ddrnet': ('ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py', 'decode_head.conv_seg'),
    'segnext': ('segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py', 'decode_head.conv_seg'),
}


def official(path: str) -> nn.Module:
    """A model of mmseg with random weights that predict many classes."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    config = get_config(f'mmseg::{path}').model
    config.backbone.init_cfg = config.pretrained = config.data_preprocessor = None
    config.pop('pretrained')
    config.backbone.pop('pretrained', None)
    model = MODELS.build(config).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels == model.out_channels:
            nn.init.normal_(layer.weight)
    return model


def predictions(model: nn.Module, images: torch.Tensor) -> list[SegDataSample]:
    meta = dict(ori_shape=PHOTO, img_shape=images.shape[2:], pad_shape=images.shape[2:], padding_size=[0] * 4)
    torch.manual_seed(0)  # of SegNeXt's head
    with torch.no_grad():
        return model.predict(images, [SegDataSample(metainfo=meta) for _ in images])


def assert_bias_is_as_offsets(model: nn.Module, layer: str, channels: int) -> None:
    """Compare predictions with a changed bias, with offsets on mmseg's logits, and those that a sweep stores."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).dtype)
    direction = torch.linspace(-1, 1, channels)[torch.randperm(channels, generator=torch.Generator().manual_seed(2))]
    expected = predictions(model, images)
    fused = copy.deepcopy(model)
    fuse_predict(fused)
    scale = expected[0].seg_logits.data.std().item() if channels > 1 else 1.0
    direction = direction * scale if channels > 1 else torch.tensor([1.5])
    add_rebalancing(fused, torch.tensor(TAUS).view(-1, 1) * direction, TAUS.index(0.0))
    stored = predictions(fused, images)
    for t, tau in enumerate(TAUS):
        changed = copy.deepcopy(model)
        changed.get_submodule(layer).bias.data += tau * direction
        adjusted = predictions(changed, images)
        for before, with_bias, swept in zip(expected, adjusted, stored, strict=True):
            logits = before.seg_logits.data
            if channels > 1:
                wanted = (logits + tau * direction.view(-1, 1, 1)).argmax(0)
            else:  # mmseg stores probabilities
                limit = torch.tensor(model.decode_head.threshold).logit()
                wanted = (logits.logit()[0] + tau * direction > limit).long()
            # rounding decides near ties
            for found in (with_bias.pred_sem_seg.data[0].long(), swept.rebalanced_classes.prediction(t)):
                assert (found == wanted).float().mean() > 0.999
    lowest, unchanged, _, highest = map(stored[0].rebalanced_classes.prediction, range(4))
    assert torch.equal(unchanged, stored[0].pred_sem_seg.data[0])
    changes = [(moved != unchanged).float().mean() for moved in (lowest, highest)]
    assert max(changes) > 0.02, 'offsets that change nothing would show little'


@pytest.mark.parametrize('name', OFFICIAL)
def test_official_models(name):
    path, layer = OFFICIAL[name]
    model = official(path)

    assert find_output_layer(model) == layer

    assert_bias_is_as_offsets(model, layer, model.out_channels)


@pytest.mark.parametrize('kept', [1 << 24, 0])
@pytest.mark.parametrize('one_channel', [False, True])
@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_windows_and_one_channel(one_channel, mode, kept, monkeypatch):
    monkeypatch.setattr(prediction, '_MAX_KEPT', kept)
    model = tiny_segmentor(dict(type='WeightedCrossEntropyLoss', use_sigmoid=one_channel), one_channel=one_channel)
    model.test_cfg = ConfigDict(mode=mode, crop_size=(32, 40), stride=(20, 27))
    model.float().eval()
    nn.init.normal_(model.decode_head.conv_seg.weight)

    assert find_output_layer(model) == 'decode_head.conv_seg'

    assert_bias_is_as_offsets(model, 'decode_head.conv_seg', 1 if one_channel else 4)


def test_nothing_is_changed_by_looking():
    model = tiny_segmentor(dict(type='WeightedCrossEntropyLoss')).float().eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    find_output_layer(model)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert 'predict_by_feat' not in vars(model.decode_head)
    assert all(p.grad is None for p in model.parameters())


def test_a_fused_model_stays_fused():
    model = tiny_segmentor(dict(type='WeightedCrossEntropyLoss')).float().eval()
    fuse_predict(model)
    method = model.decode_head.predict_by_feat

    find_output_layer(model)

    assert model.decode_head.predict_by_feat is method


class _Scaled(FCNHead):
    """Its logits are not those of the last convolution."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


@pytest.mark.parametrize('kind', [_Scaled, 'segmenter'])
def test_heads_without_such_a_layer_are_named(kind):
    if kind == 'segmenter':
        config = get_config('mmseg::_base_/models/segmenter_vit-b16_mask.py').model
        config.pretrained = config.backbone.init_cfg = None
        config.data_preprocessor = None
        config.backbone.update(num_layers=1)
        config.decode_head.update(num_layers=1)
        model, name = MODELS.build(config).eval(), 'SegmenterMaskTransformerHead'
    else:
        model, name = tiny_segmentor(dict(type='WeightedCrossEntropyLoss')).float().eval(), '_Scaled'
        model.decode_head.__class__ = _Scaled

    with pytest.raises(ValueError, match=f'^{name} has no layer whose bias is added to the logits'):
        find_output_layer(model)


def test_a_layer_without_a_bias_is_found_and_gets_one(tmp_path):
    runner = runner_of(tmp_path)
    layer = runner.model.decode_head.conv_seg
    layer.bias = None

    assert find_output_layer(runner.model.eval()) == 'decode_head.conv_seg'
    assert layer.bias is None

    OutputBiasHook('decode_head.conv_seg').before_run(runner)
    assert layer.bias.tolist() == [0] * 4
    with torch.no_grad():
        layer.bias += 1
    OutputBiasHook('decode_head.conv_seg').before_run(runner)
    assert layer.bias.tolist() == [1] * 4


def test_the_hook_names_a_layer_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"OutputBiasHook: the model has no layer 'decode_head\.nothing'"):
        OutputBiasHook('decode_head.nothing').before_run(runner_of(tmp_path))
