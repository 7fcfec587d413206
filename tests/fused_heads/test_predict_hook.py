"""mmseg's own predict is the oracle: the same class at every pixel, in the same dtype and shape."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hub import get_config
from mmengine.registry import LOOPS, init_default_scope
from mmengine.runner import ValLoop
from mmengine.structures import PixelData
from mmseg.apis import MMSegInferencer
from mmseg.models.decode_heads import PointHead
from mmseg.models.segmentors import EncoderDecoder, SegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads import fuse_predict
from mmseg_wce.fused_heads.predict_hook import add_validation_loss
from photos import Photos, runner_of
from tiny_segmentor import tiny_segmentor
from torch import nn

FUSED = (
    "full-size logits are not built; samples have no seg_logits (dict(type='FusedPredictHook', keep_logits=True) keeps "
    'them)'
)
LOSS = dict(type='WeightedCrossEntropyLoss')
BINARY = dict(LOSS, use_sigmoid=True)
SLIDE = dict(mode='slide', crop_size=(32, 40), stride=(20, 27))
MANY_WINDOWS = dict(mode='slide', crop_size=(32, 40), stride=(4, 5))  # whose logits take more than full-size ones
test_cfgs = pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE, MANY_WINDOWS])


def segmentor(one_channel=False, align_corners=False, **test_cfg):
    model = tiny_segmentor(BINARY if one_channel else LOSS, one_channel=one_channel).float().eval()
    model.align_corners = model.decode_head.align_corners = align_corners
    model.test_cfg = ConfigDict(test_cfg or dict(mode='whole'))
    return model


def images(number=1, height=48, width=64, seed=0):
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(seed))


def samples_of(inputs, *metas):
    shape = tuple(inputs.shape[2:])
    common = dict(img_shape=shape, pad_shape=shape, ori_shape=shape)
    return [SegDataSample(metainfo=common | meta) for meta in metas or [{}] * len(inputs)]


@torch.no_grad()
def both(model, inputs, *metas, data_samples=True):
    """Predictions of mmseg and of the fused model, and the samples of the latter."""
    fused = copy.deepcopy(model)
    assert fuse_predict(fused) == FUSED
    of_mmseg, of_fused = (
        m.predict(inputs, samples_of(inputs, *metas) if data_samples else None) for m in (model, fused)
    )
    return [s.pred_sem_seg.data for s in of_mmseg], [s.pred_sem_seg.data for s in of_fused], of_fused


def assert_same(expected, found):
    assert len(found) == len(expected)
    for a, b in zip(expected, found, strict=True):
        assert (b.dtype, b.shape) == (a.dtype, a.shape)
        assert torch.equal(b, a)
        assert b.unique().numel() > 1, 'a prediction of one class would show little'


@test_cfgs
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('one_channel', [False, True])
@pytest.mark.parametrize(
    'metas',
    [
        [{}],
        [dict(ori_shape=(133, 97))],
        [dict(ori_shape=(20, 31))],
        [dict(ori_shape=(133, 97), padding_size=[0, 3, 2, 5])],
        [dict(ori_shape=(133, 97), img_padding_size=[1, 0, 0, 6], padding_size=[0, 3, 2, 5])],
        [dict(ori_shape=(133, 97), flip=True, flip_direction='horizontal')],
        [dict(ori_shape=(133, 97), flip=True, flip_direction='vertical', padding_size=[2, 3, 4, 5])],
        [dict(ori_shape=(133, 97)), dict(ori_shape=(40, 200), padding_size=[0, 3, 2, 5]), {}],
    ],
)
def test_same_predictions(test_cfg, align_corners, one_channel, metas):
    model = segmentor(one_channel, align_corners, **test_cfg)

    expected, found, _ = both(model, images(len(metas)), *metas)

    assert_same(expected, found)


@test_cfgs
@pytest.mark.parametrize('one_channel', [False, True])
def test_same_predictions_without_samples(test_cfg, one_channel):
    expected, found, _ = both(segmentor(one_channel, **test_cfg), images(2), data_samples=False)

    assert_same(expected, found)


@test_cfgs
@pytest.mark.parametrize(
    'form',
    [*(dict(dtype=t) for t in (torch.bfloat16, torch.float16, torch.float64)), dict(memory_format=torch.channels_last)],
)
def test_same_predictions_in_other_precisions_and_in_channels_last(test_cfg, form):
    metas = dict(ori_shape=(133, 97)), dict(padding_size=[1, 2, 3, 4])

    expected, found, _ = both(segmentor(**test_cfg).to(**form), images(2).to(**form), *metas)

    assert_same(expected, found)


@test_cfgs
def test_same_predictions_under_autocast(test_cfg):
    with torch.autocast('cpu', torch.bfloat16):
        expected, found, _ = both(segmentor(**test_cfg), images(), dict(ori_shape=(133, 97)))

    assert_same(expected, found)


@pytest.mark.parametrize('crop_and_stride', [((48, 64), (30, 30)), ((100, 100), (70, 70)), ((48, 30), (48, 7))])
def test_windows_as_large_as_the_image_and_larger(crop_and_stride):
    crop, stride = crop_and_stride

    expected, found, _ = both(
        segmentor(mode='slide', crop_size=crop, stride=stride), images(), dict(ori_shape=(90, 70))
    )

    assert_same(expected, found)


def test_windows_that_leave_pixels_out_are_refused():
    model = segmentor(mode='slide', crop_size=(16, 16), stride=(20, 16))
    fuse_predict(model)

    with pytest.raises(AssertionError, match=r'crop_size=\(16, 16\) at stride=\(20, 16\) leave pixels out'):
        model.predict(images())


def test_other_callers_of_the_same_methods_get_full_size_logits():
    model, inputs = segmentor(**SLIDE), images()
    metas = [dict(ori_shape=(48, 64), img_shape=(48, 64), pad_shape=(48, 64))]
    with torch.no_grad():
        expected = model.inference(inputs, copy.deepcopy(metas)), model.encode_decode(inputs, copy.deepcopy(metas))
        fuse_predict(model)
        found = model.inference(inputs, copy.deepcopy(metas)), model.encode_decode(inputs, copy.deepcopy(metas))

    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


OFFICIAL = {
    'ocrnet': 'mmseg::_base_/models/ocrnet_hr18.py',
    'fast_scnn': 'mmseg::_base_/models/fast_scnn.py',
    'segformer': 'mmseg::_base_/models/segformer_mit-b0.py',
    'pidnet': 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'ddrnet': 'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py',
    'encnet': 'mmseg::_base_/models/encnet_r50-d8.py',
    'danet': 'mmseg::_base_/models/danet_r50-d8.py',
    'bisenetv2': 'mmseg::_base_/models/bisenetv2.py',
    'knet': 'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
}


def official(name):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    config = get_config(OFFICIAL[name]).model
    config.backbone.init_cfg = config.backbone.pretrained = config.pretrained = None
    for part in (config, config.backbone):
        part.pop('pretrained')
    config.data_preprocessor = None
    model = MODELS.build(config).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels == model.out_channels:
            nn.init.normal_(layer.weight)  # mmseg's are so small that one class wins everywhere
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


@pytest.mark.parametrize('name', OFFICIAL)
def test_heads_of_official_models(name):
    expected, found, _ = both(official(name), images(1, 128, 192), dict(ori_shape=(150, 210)))

    assert_same(expected, found)


@pytest.mark.parametrize('one_channel', [False, True])
@test_cfgs
def test_kept_logits_have_the_same_bits(one_channel, test_cfg):
    model, inputs, meta = segmentor(one_channel, **test_cfg), images(), dict(ori_shape=(133, 97))
    fused = copy.deepcopy(model)

    line = fuse_predict(fused, keep_logits=True)

    assert line == 'predicts from low-resolution logits; seg_logits are still built and kept (keep_logits=True)'
    with torch.no_grad():
        (expected,), (found,) = (m.predict(inputs, samples_of(inputs, meta)) for m in (model, fused))
    assert torch.equal(found.seg_logits.data, expected.seg_logits.data)
    assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)


def test_logits_that_are_missed_say_where_they_are():
    _, _, (sample,) = both(segmentor(), images())

    with pytest.raises(AttributeError, match=r"no seg_logits: dict\(type='FusedPredictHook', keep_logits=True\)"):
        _ = sample.seg_logits
    assert not hasattr(sample, 'seg_logits')
    assert 'seg_logits' not in sample
    assert 'pred_sem_seg' in sample.cpu()
    pickle.loads(pickle.dumps(sample)).seg_logits = sample.pred_sem_seg


def test_kept_logits_can_be_differentiated():
    model = segmentor()
    fuse_predict(model, keep_logits=True)

    (sample,) = model.predict(images(), samples_of(images(), dict(ori_shape=(133, 97))))

    sample.seg_logits.data.sum().backward()
    assert model.decode_head.conv_seg.weight.grad.any()


def test_a_head_that_is_put_in_later_predicts_as_mmseg_wrote_it():
    model, other = segmentor(), segmentor()
    fuse_predict(model)
    model.decode_head = other.decode_head

    (sample,) = model.predict(images())

    assert 'seg_logits' in sample


def test_logits_of_an_earlier_prediction_do_not_stay():
    model, (sample,) = segmentor(), samples_of(images())
    model.predict(images(), [sample])
    assert 'seg_logits' in sample

    fuse_predict(model)
    model.predict(images(), [sample])

    assert 'seg_logits' not in sample
    fuse_predict(model, keep_logits=True)
    model.predict(images(), [sample])
    assert sample.seg_logits.shape == (48, 64)


def test_copies_and_pickles_predict_with_their_own_weights():
    model, inputs = segmentor(), images()
    fuse_predict(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for parameter in copied.decode_head.parameters():
            parameter.data.neg_()
        (before,), (after,) = model.predict(inputs), copied.predict(inputs)
        assert not torch.equal(before.pred_sem_seg.data, after.pred_sem_seg.data)


class OwnPostprocessing(EncoderDecoder):
    def postprocess_result(self, seg_logits, data_samples=None):
        return super().postprocess_result(seg_logits.softmax(1), data_samples)


class PredictsInForward(EncoderDecoder):
    """Its forward may not lead to predict."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.postprocess_result(self.inference(inputs, [{}]), data_samples)


OVERRIDES = 'it overrides a method that predicts'


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (
            lambda m: setattr(m, '__class__', OwnPostprocessing),
            f'{OVERRIDES} (OwnPostprocessing.postprocess_result)',
        ),
        (lambda m: setattr(m, '__class__', PredictsInForward), f'{OVERRIDES} (PredictsInForward.forward)'),
        # the fork cannot build one without compiled mmcv
        (lambda m: setattr(m.decode_head, '__class__', PointHead), f'{OVERRIDES} (PointHead.predict)'),
        (lambda m: setattr(m, 'predict', m.predict), 'predict of its EncoderDecoder has been replaced'),
        (
            lambda m: setattr(m.decode_head, 'predict_by_feat', m.decode_head.predict_by_feat),
            'predict_by_feat of its FCNHead has been replaced',
        ),
    ],
)
def test_models_that_predict_in_their_own_way_are_left_alone(change, reason):
    model = segmentor()
    change(model)
    before = dict(vars(model)), dict(vars(model.decode_head))

    assert fuse_predict(model) == f'left alone: {reason}'

    assert (dict(vars(model)), dict(vars(model.decode_head))) == before


def test_test_time_augmentation_is_left_alone():
    model = SegTTAModel(module=segmentor())

    assert fuse_predict(model) == 'left alone: SegTTAModel reads the seg_logits of every augmented image'


def test_fusing_again_changes_the_choice():
    model = segmentor()
    fuse_predict(model, keep_logits=True)
    fuse_predict(model)

    (sample,) = model.predict(images())

    assert 'seg_logits' not in sample


class Predictions(BaseMetric):
    """The predictions of a run, as metrics are shown them."""

    def process(self, data_batch, data_samples):
        self.results += [(sample['pred_sem_seg']['data'], 'seg_logits' in sample) for sample in data_samples]

    def compute_metrics(self, results):
        predictions.append(results)
        return {}


predictions: list = []


def run(folder, hooks, **options):
    """Predictions of every validation."""
    predictions.clear()
    evaluator = Evaluator([Predictions()])
    runner = runner_of(folder, custom_hooks=[dict(type=kind) for kind in hooks], val_evaluator=evaluator, **options)
    runner.train()
    return runner, list(predictions)


def test_validation_in_a_training_predicts_the_same(tmp_path):
    _, expected = run(tmp_path / 'a', ['FusedLossHook'])
    _, found = run(tmp_path / 'b', ['FusedLossHook', 'FusedPredictHook'])

    assert len(found) == len(expected) == 2
    for a, b in zip(expected, found, strict=True):
        assert_same([prediction for prediction, _ in a], [prediction for prediction, _ in b])
    assert all(kept for one in expected for _, kept in one)
    assert not any(kept for one in found for _, kept in one)


def test_validation_with_averaged_weights_predicts_the_same(tmp_path):
    _, expected = run(tmp_path / 'a', ['EMAHook'])
    for order in (['EMAHook', 'FusedPredictHook'], ['FusedPredictHook', 'EMAHook']):
        _, found = run(tmp_path / order[0], order)
        for a, b in zip(expected, found, strict=True):
            assert_same([prediction for prediction, _ in a], [prediction for prediction, _ in b])


def test_a_resumed_training_predicts_the_same(tmp_path):
    hooks = ['FusedLossHook', 'FusedPredictHook']
    checkpoint = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
    _, expected = run(tmp_path / 'whole', hooks, default_hooks=checkpoint)

    run(tmp_path / 'a', hooks, default_hooks=checkpoint, train_cfg=dict(by_epoch=False, max_iters=2, val_interval=2))
    options = dict(default_hooks=checkpoint, load_from=str(tmp_path / 'a/iter_2.pth'), resume=True)
    _, found = run(tmp_path / 'b', hooks, **options)

    assert len(found) == 1
    assert_same([prediction for prediction, _ in expected[1]], [prediction for prediction, _ in found[0]])


def test_the_log_says_what_was_done(tmp_path):
    runner_of(tmp_path).val()

    (log,) = tmp_path.glob('*/*.log')
    assert f'FusedPredictHook: {FUSED}' in log.read_text()


def test_inferencer(tmp_path, root):
    photo = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    inferencer = MMSegInferencer(str(root / 'configs/demo/fast_scnn_1xb4-400_demo-192x256.py'), device='cpu')
    for layer in inferencer.model.decode_head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight)
    expected = inferencer(photo, out_dir=str(tmp_path / 'a'))['predictions']

    assert fuse_predict(inferencer.model) == FUSED

    found = inferencer(photo, out_dir=str(tmp_path / 'b'))['predictions']
    assert found.shape == expected.shape == (90, 120)
    assert (found == expected).all()
    assert np.unique(found).size > 1
    for kind in ('pred', 'vis'):
        a, b = (sorted((tmp_path / x / kind).iterdir()) for x in 'ab')
        assert [file.read_bytes() for file in b] == [file.read_bytes() for file in a]
        assert b


def test_test_time_augmentation_of_a_hook(tmp_path):
    """It wraps the model when the test begins."""
    loader = dict(num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1)
    found = []
    for hooks in ([], [dict(type='FusedPredictHook')], [dict(type='FusedPredictHook', keep_logits=True)]):
        tta = dict(type='PrepareTTAHook', tta_cfg=dict(type='SegTTAModel'))
        evaluator = Evaluator([Predictions()])
        predictions.clear()
        runner = runner_of(
            tmp_path / str(len(found)),
            custom_hooks=[*hooks, tta],
            test_dataloader=dict(loader, dataset=Views(), collate_fn=dict(type='pseudo_collate')),
            test_evaluator=evaluator,
            test_cfg=dict(type='TestLoop'),
        )
        runner.test()
        found.append([prediction for prediction, _ in predictions[0]])

    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


class Views(Photos):
    """Each photo as it is, and again."""

    def __getitem__(self, i):
        items = [super(Views, self).__getitem__(i) for _ in range(2)]
        return {key: [item[key] for item in items] for key in items[0]}


class LoopWithoutEvaluator(ValLoop):
    def __init__(self, runner, dataloader, evaluator):
        super().__init__(runner, dataloader, evaluator)
        del self.evaluator

    def run(self):
        self.runner.call_hook('before_val')


def test_a_loop_that_evaluates_nothing(tmp_path):
    if 'LoopWithoutEvaluator' not in LOOPS:
        LOOPS.register_module(module=LoopWithoutEvaluator)

    runner_of(tmp_path, val_cfg=dict(type='LoopWithoutEvaluator')).val()


def test_a_compiled_forward_is_fused():
    model = segmentor()
    model.forward = torch.compile(model.forward)

    assert fuse_predict(model) == FUSED


def test_sums_of_an_earlier_prediction_are_not_left_in_a_sample():
    model, inputs = segmentor(), images()
    (sample,) = samples_of(inputs)
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 48, 64, dtype=torch.long))
    fuse_predict(model)
    add_validation_loss(model)
    model.predict(inputs, [sample])
    assert 'validation_loss_sums' in sample

    fuse_predict(model)
    model.predict(inputs, [sample])

    assert 'validation_loss_sums' not in sample
