"""Every config is built and trained for an iteration; its logged loss is PyTorch's on the same logits."""

import json

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.utils import resize
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.class_weights import class_weights
from mmseg_wce.dataset_checks import from_config, scan
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
from mmseg_wce.losses import WeightedCrossEntropyLoss

SEGFORMER = 'ade20k/segformer_mit-b0_8xb2-wce-160k_ade20k-512x512.py'
PIDNET = 'ade20k/pidnet-s_4xb4-wce-160k_ade20k-512x512.py'
ADE20K = [  # over mmseg's own baselines
    'ade20k/fcn_r50-d8_4xb4-wce-160k_ade20k-512x512.py',
    'ade20k/pspnet_r50-d8_4xb4-wce-160k_ade20k-512x512.py',
    'ade20k/deeplabv3plus_r50-d8_4xb4-wce-160k_ade20k-512x512.py',
    'ade20k/upernet_r50_4xb4-wce-160k_ade20k-512x512.py',
    'ade20k/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-wce-160k_ade20k-512x512.py',
    SEGFORMER,
    'ade20k/segformer_mit-b5_8xb2-wce-160k_ade20k-512x512.py',
    'ade20k/segnext_mscan-t_1xb16-adamw-wce-160k_ade20k-512x512.py',
    'ade20k/ocrnet_hr18_4xb4-wce-160k_ade20k-512x512.py',
    PIDNET,
]
WEIGHTED = {
    'demo/fast_scnn_1xb4-wce-400_demo-192x256.py': 'demo/fast_scnn_1xb4-400_demo-192x256.py',
    'camvid/fast_scnn_1xb8-wce-4k_camvid-352x480.py': 'camvid/fast_scnn_1xb8-4k_camvid-352x480.py',
    'camvid/segformer_mit-b0_1xb8-wce-4k_camvid-352x480.py': 'camvid/segformer_mit-b0_1xb8-4k_camvid-352x480.py',
    **dict.fromkeys(ADE20K),
}
BINARY = 'demo/fast_scnn_1xb4-wce-binary-400_demo-192x256.py'
COMPARED = ['camvid/fast_scnn_1xb8-2k_camvid-176x240.py', 'camvid/fpn_r18_1xb8-2k_camvid-176x240.py']
ALL = [*WEIGHTED, BINARY, *filter(None, WEIGHTED.values()), *COMPARED]


@pytest.fixture
def load(root, tmp_path, monkeypatch):
    """Read a config; class weights of the demo lie in a file that ``make demo`` writes, so give it one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/demo_scenes').mkdir(parents=True)
    (tmp_path / 'data/demo_scenes/class_weight.json').write_text(json.dumps([0.5 + c for c in range(10)]))
    init_default_scope('mmseg')
    return lambda name: Config.fromfile(root / 'configs' / name)


def listed(value) -> list:
    """Return a list of what mmseg writes as one value, a list or None."""
    return [] if value is None else list(value) if isinstance(value, list | torch.nn.ModuleList) else [value]


def losses_of(model) -> list:
    """Every loss, of a model or of its config."""
    heads = [*listed(model.decode_head), *listed(getattr(model, 'auxiliary_head', None))]
    return [loss for head in heads for loss in listed(head.loss_decode)]


def without_download(config: Config) -> None:
    config.model.backbone.init_cfg = None
    config.model.pretrained = None


def build(config: Config, size: tuple[int, int] = (64, 64)):
    """The model as the Runner would build it without distributed training, for small inputs, without a download."""
    config.model.data_preprocessor.size = size
    without_download(config)
    return revert_sync_batchnorm(MODELS.build(config.model))


def batch(num_classes: int, size: int = 64, number: int = 2):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (number, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = []
    for _ in range(number):
        label = torch.randint(0, num_classes, (1, size, size), generator=generator)
        label[:, : size // 4] = 255
        sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
        sample.set_data(dict(gt_sem_seg=PixelData(data=label)))
        samples.append(sample)
    return dict(inputs=list(inputs), data_samples=samples)


def test_every_config_is_listed(root):
    found = {str(p.relative_to(root / 'configs')) for p in (root / 'configs').glob('[!_]*/*.py')}

    assert found == set(ALL)


@pytest.mark.parametrize('name', ALL)
def test_reduces_zero_label_everywhere_and_keeps_a_checkpoint_while_the_next_is_written(load, name):
    config = load(name)
    kept = config.default_hooks.checkpoint.get('max_keep_ckpts', -1)

    assert kept == -1 or kept >= 2  # mmengine deletes the oldest first
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        steps = [step for step in dataset.pipeline if step.type == 'LoadAnnotations']
        assert [step.get('reduce_zero_label') for step in steps] == [True]


@pytest.mark.parametrize(('name', 'baseline'), [(name, baseline) for name, baseline in WEIGHTED.items() if baseline])
def test_weighted_config_differs_from_its_baseline_in_the_losses_only(load, name, baseline):
    ours, baseline = load(name), load(baseline)
    for config in (ours, baseline):
        for loss in losses_of(config.model):
            assert loss.use_sigmoid is False
            assert loss.pop('type') == ('WeightedCrossEntropyLoss' if config is ours else 'CrossEntropyLoss')
            loss.pop('class_weight', None)

    assert ours.model == baseline.model
    assert ours.train_dataloader == baseline.train_dataloader
    assert ours.optim_wrapper == baseline.optim_wrapper
    assert ours.param_scheduler == baseline.param_scheduler


@pytest.mark.parametrize('name', ADE20K)
def test_ade20k_configs_change_every_softmax_loss_of_mmsegs_and_nothing_else(load, name):
    config = load(name)
    kept = ['OhemCrossEntropy', 'BoundaryLoss', 'OhemCrossEntropy'] if name == PIDNET else []

    losses = losses_of(config.model)
    assert [loss.type for loss in losses if loss.type != 'WeightedCrossEntropyLoss'] == kept
    assert all(loss.get('class_weight') is None for loss in losses)  # of Cityscapes, PIDNet's base has some
    if name != PIDNET:
        base = get_config(f'mmseg::{config_in_mmseg(name)}')
        for theirs, ours in zip(losses_of(base.model), losses, strict=True):
            assert theirs.use_sigmoid is False
            theirs.type = ours.type
        assert without_scope(config.model) == without_scope(base.model)
        assert without_scope(config.train_dataloader) == without_scope(base.train_dataloader)


def without_scope(config):
    """Inheritance over ``mmseg::`` writes the scope into what it inherits."""
    if isinstance(config, dict):
        return {key: without_scope(value) for key, value in config.items() if key != '_scope_'}
    return [without_scope(value) for value in config] if isinstance(config, list | tuple) else config


def config_in_mmseg(name: str) -> str:
    file = name.split('/')[1].replace('-wce-', '-')
    folder = 'swin' if file.startswith('swin') else file.split('_')[0]
    return f'{folder}/{file}'


def assert_logged_losses_are_pytorchs(model, losses: dict, seen: list) -> None:
    """Each loss that the model logged, on the logits and labels that its module saw."""
    logged = [value for key, value in losses.items() if key.endswith(('loss_ce', 'loss_sem_p'))]
    ours = [m for m in losses_of(model) if isinstance(m, WeightedCrossEntropyLoss)]
    assert len(logged) == len(seen) == len(ours) > 0
    for value, (loss, logits, label) in zip(logged, seen, strict=True):
        torch.testing.assert_close(value, loss.loss_weight * pytorchs(loss, logits, label))


def pytorchs(loss, logits, label):
    if not loss.use_sigmoid:
        return F.cross_entropy(logits, label, loss.class_weight, ignore_index=255)
    elements = F.binary_cross_entropy_with_logits(logits.squeeze(1), (label == 1).float(), reduction='none')
    counted = label != 255
    return (loss.class_weight[label[counted]] * elements[counted]).mean()


@pytest.fixture
def seen(monkeypatch) -> list:
    """Record the arguments of every call of our losses."""
    calls, forward = [], WeightedCrossEntropyLoss.forward

    def recording(self, logits, label, **options):
        calls.append((self, logits.detach(), label))
        return forward(self, logits, label, **options)

    monkeypatch.setattr(WeightedCrossEntropyLoss, 'forward', recording)
    return calls


@pytest.mark.parametrize('name', [BINARY, *(name for name in WEIGHTED if name not in ADE20K)])
def test_loss_is_pytorchs_and_predict_runs(load, name, seen):
    torch.manual_seed(0)
    model = build(load(name))
    data = model.data_preprocessor(batch(model.num_classes), training=True)

    losses = model.loss(data['inputs'], data['data_samples'])
    model.parse_losses(losses)[0].backward()

    assert_logged_losses_are_pytorchs(model, losses, seen)
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.decode_head.parameters() if p.requires_grad
    )

    model.eval()
    with torch.no_grad():
        predicted = model.predict(data['inputs'])
    assert predicted[0].pred_sem_seg.data.shape == (1, 64, 64)
    assert set(predicted[0].pred_sem_seg.data.unique().tolist()) <= set(range(model.num_classes))


def test_one_channel_learns_a_class_of_the_generated_scenes(load, tmp_path):
    """From files of eleven raw values to the IoU of trees, with the hooks that know of one channel."""
    generate_demo_scenes(tmp_path / 'data/demo_scenes', num_training=4, num_validation=4, progress=False)
    config = load(BINARY)
    config.merge_from_dict(
        {
            'work_dir': str(tmp_path / 'work'),
            'experiment_name': tmp_path.name,
            'visualizer.name': tmp_path.name,  # or it is that of an earlier run of this process
            'log_level': 'WARNING',
            'custom_hooks': [dict(type='FusedLossHook'), dict(type='LossMonitorHook')],
            'train_cfg.max_iters': 60,
            'train_cfg.val_interval': 60,
            'param_scheduler': [],
            'val_dataloader.dataset.data_prefix': config.train_dataloader.dataset.data_prefix,
            'default_hooks.checkpoint.interval': -1,
            'default_hooks.logger.interval': 10,
            **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val')},
            **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val')},
            'train_dataloader.batch_size': 2,
        }
    )
    labels = DATASETS.build(config.train_dataloader.dataset)[0]['data_samples'].gt_sem_seg.data
    runner = Runner.from_cfg(config)

    runner.train()

    assert set(labels.unique().tolist()) == {0, 1, 255}
    assert 'loss_by_feat' in vars(runner.model.decode_head)
    losses, _ = runner.message_hub.get_scalar('train/decode.loss_ce').data
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
    assert 90 < runner.message_hub.get_scalar('train/decode.acc_seg').current() <= 100
    assert runner.message_hub.get_scalar('val/mIoU').current() > 60  # nothing but background: 48
    monitored = (next((tmp_path / 'work').glob('*/vis_data/scalars.json'))).read_text()
    assert all(f'"{kind}/tree"' in monitored for kind in ('pixels', 'nll_share', 'acc'))


@pytest.mark.parametrize('name', COMPARED)
def test_compared_configs_train_with_softmax_losses(load, name):
    config = load(name)
    model = build(config)
    data = model.data_preprocessor(batch(model.num_classes), training=True)

    losses = model.loss(data['inputs'], data['data_samples'])

    assert all(type(loss).__name__ == 'CrossEntropyLoss' and not loss.use_sigmoid for loss in losses_of(model))
    assert all(value.isfinite() for value in losses.values())
    assert config.param_scheduler[-1].end == config.train_cfg.max_iters


def test_head_upsamples_before_the_loss(load, monkeypatch):
    """The low-resolution logits given to our functional are the same loss: the fused path rests on it."""
    from mmseg_wce.functional import weighted_cross_entropy

    torch.manual_seed(0)
    model = build(load(SEGFORMER))
    model.decode_head.dropout = None
    data = model.data_preprocessor(batch(model.num_classes), training=True)
    logits = model.decode_head.forward(model.eval().extract_feat(data['inputs']))
    label = torch.stack([sample.gt_sem_seg.data for sample in data['data_samples']]).squeeze(1)
    full_size = resize(logits, size=label.shape[1:], mode='bilinear', align_corners=model.align_corners)

    assert logits.shape[2:] != label.shape[1:]
    torch.testing.assert_close(
        weighted_cross_entropy(logits, label, align_corners=model.align_corners),
        model.decode_head.loss_decode(full_size, label, ignore_index=255),
    )


@pytest.mark.parametrize('name', [name for name in WEIGHTED if name.startswith('camvid/')])
def test_camvid_weights_are_those_of_its_training_labels(load, shared_data, name):
    config = load(name)
    config.train_dataloader.dataset.data_root = str(shared_data / 'camvid')

    *_, (_, statistics) = scan(from_config(config))

    assert config.class_weight == [round(float(w), 4) for w in class_weights(statistics, 'sqrt_inverse_frequency')]


def on_real_images(name, load, shared_data, tmp_path, **changes) -> Config:
    """A config of ADE20K on its three real images, small, on CPU."""
    config, crop = load(name), (64, 64)
    without_download(config)
    config.merge_from_dict({'model.data_preprocessor.size': crop, **changes})
    prefix = dict(img_path='images/validation', seg_map_path='annotations/validation')
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(shared_data / 'ade20k_sample'), data_prefix=prefix)
    config.train_dataloader.batch_size = 2
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == 'RandomCrop':
            step.crop_size = crop
    for split in ('val', 'test'):
        for step in config[f'{split}_dataloader'].dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (128, 128)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    config.default_hooks.checkpoint.update(interval=1)
    config.default_hooks.logger.update(interval=1)
    config.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), randomness=dict(seed=0), log_level='WARNING'))
    config.experiment_name = tmp_path.name
    return config


# those whose heads and losses another config has as well
REPEATED = [name for name in ADE20K if '/fcn_' in name or 'swin-tiny' in name or 'mit-b5' in name]


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in REPEATED)) for name in ADE20K])
def test_an_iteration_and_a_validation_on_real_images(load, shared_data, tmp_path, name, seen, monkeypatch):
    config = on_real_images(name, load, shared_data, tmp_path)
    config.train_cfg.update(max_iters=1, val_interval=1)
    config.default_hooks.checkpoint.update(interval=-1, save_last=False)
    runner, losses = Runner.from_cfg(config), {}
    model, parse = runner.model, runner.model.parse_losses
    monkeypatch.setattr(model, 'parse_losses', lambda found: losses.update(found) or parse(found))

    runner.train()

    assert runner.iter == 1
    assert_logged_losses_are_pytorchs(model, losses, seen)
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100


def test_segformer_trains_validates_and_resumes_on_real_ade20k(load, shared_data, tmp_path):
    class_weight = [1.0 + c % 3 for c in range(150)]
    changes = {'model.decode_head.loss_decode.class_weight': class_weight}
    runner = Runner.from_cfg(on_real_images(SEGFORMER, load, shared_data, tmp_path, **changes))
    runner.train()

    assert runner.iter == 2
    assert runner.message_hub.get_scalar('train/decode.loss_ce').current() > 0
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100

    config = on_real_images(SEGFORMER, load, shared_data, tmp_path, **changes)
    config.resume = True
    config.train_cfg.max_iters = 3
    config.experiment_name += '_resumed'
    resumed = Runner.from_cfg(config)
    resumed.train()

    assert resumed.iter == 3
    history = resumed.message_hub.get_scalar('train/decode.loss_ce').data[0]
    assert len(history) == 3
