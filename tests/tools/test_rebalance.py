"""tools/rebalance.py as a user runs it: its figures against those that tools/test.py prints for what it writes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg_wce.class_weights import LabelEncoding, LabelStatistics, load_statistics, save_statistics
from mmseg_wce.datasets import DemoScenesDataset
from mmseg_wce.functional import class_offsets
from mmseg_wce.metrics import MEANS, area_scores, mean_scores

CONFIG = 'configs/demo/fast_scnn_1xb4-400_demo-192x256.py'
WEIGHTED = 'configs/demo/fast_scnn_1xb4-wce-400_demo-192x256.py'
BINARY = 'configs/demo/fast_scnn_1xb4-wce-binary-400_demo-192x256.py'
OPTIONS = [
    f'{split}_dataloader.{name}=0' for split in ('val', 'test') for name in ('num_workers', 'persistent_workers')
]
LAYER = 'decode_head.conv_seg'


def demo_statistics() -> LabelStatistics:
    classes = DemoScenesDataset.METAINFO['classes']
    statistics = LabelStatistics.empty('demo', classes, LabelEncoding())
    return replace(statistics, pixels=np.arange(1, len(classes) + 1))


@pytest.fixture
def tool(import_tool, demo_folder):
    return import_tool('rebalance')


@pytest.fixture
def make_checkpoint(root, demo_folder):
    """Save a model of a config with random weights that predict many classes; return the path."""

    @torch.no_grad()
    def make(config=CONFIG, **content) -> str:
        init_default_scope('mmseg')
        torch.manual_seed(0)
        model = MODELS.build(Config.fromfile(root / config).model)
        layer = model.decode_head.conv_seg
        torch.nn.init.normal_(layer.weight)
        files = sorted((demo_folder / 'data/demo_scenes/images/validation').iterdir())
        images = torch.stack([torch.from_numpy(cv2.imread(str(file))).permute(2, 0, 1) for file in files])
        inputs = model.data_preprocessor(dict(inputs=list(images)))['inputs'].float()
        model.train()
        for _ in range(30):  # batch normalisation learns its averages
            model.decode_head(model.extract_feat(inputs))
        logits = model.eval().decode_head(model.extract_feat(inputs))
        layer.bias -= logits.mean((0, 2, 3))
        path = str(demo_folder / 'model.pth')
        torch.save({'meta': dict(iter=1), 'state_dict': model.state_dict(), **content}, path)
        return path

    return make


@pytest.fixture
def rebalance(tool, root):
    """Run the tool; return its exit status."""

    def run(checkpoint: str, *arguments: str, config=CONFIG, options=()) -> int:
        return tool.main([str(root / config), checkpoint, *arguments, '--cfg-options', *OPTIONS, *options])

    return run


@pytest.fixture
def tested(root, demo_folder):
    """Run tools/test.py; return the means that it prints."""

    def run(checkpoint: str, config=CONFIG) -> dict[str, float]:
        command = [sys.executable, str(root / 'tools/test.py'), str(root / config), checkpoint]
        process = subprocess.run(
            [*command, '--cfg-options', *OPTIONS], capture_output=True, text=True, check=False, cwd=demo_folder
        )
        assert process.returncode == 0, process.stderr[-3000:]
        line = next(line for line in process.stdout.splitlines() if 'Iter(test)' in line and 'mIoU: ' in line)
        return {name: float(re.search(rf'{name}: ([\d.]+)', line)[1]) for name in MEANS}

    return run


@pytest.mark.heavy
@pytest.mark.parametrize('config', [CONFIG, BINARY])
def test_the_written_checkpoint_has_the_figures_of_the_table(make_checkpoint, rebalance, tested, demo_folder, config):
    checkpoint = make_checkpoint(config)

    assert rebalance(checkpoint, '--tau', '0.3', '--out', 'new.pth', config=config) == 0

    found = json.loads((demo_folder / 'model.rebalance.json').read_text())
    means = mean_scores(np.array(found['report']))
    for path, tau in ((checkpoint, 0.0), ('new.pth', 0.3)):
        for name, value in tested(path, config).items():
            assert value == pytest.approx(means[name][found['taus'].index(tau)], abs=0.03)  # ties are rounded
    assert means['aAcc'][found['taus'].index(0.3)] != pytest.approx(means['aAcc'][found['taus'].index(0.0)], abs=0.5)
    before, after = (torch.load(path, weights_only=True)['state_dict'] for path in (checkpoint, 'new.pth'))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {f'{LAYER}.bias'}


def test_prior_of_the_training_labels_and_what_is_noted(make_checkpoint, rebalance, demo_folder, capsys):
    assert rebalance(make_checkpoint(), '--best', 'mAcc', '--out', 'new.pth', '--taus', '-1', '0.5') == 0

    printed = capsys.readouterr().out
    file = 'work_dirs/class_weights/fast_scnn_1xb4-400_demo-192x256.json'
    statistics, found = load_statistics(file), json.loads((demo_folder / 'model.rebalance.json').read_text())
    assert found['taus'] == [-1, 0, 0.5]
    means = mean_scores(np.array(found['choice']))
    best = max(range(3), key=lambda t: (means['mAcc'][t], -abs(found['taus'][t])))
    assert found['chosen'] == found['taus'][best]
    assert 'chosen by mAcc on the 2 images of val' in ' '.join(printed.split())
    checkpoint = torch.load('new.pth', weights_only=True)
    (note,) = checkpoint['meta']['rebalanced']
    assert note['offsets'] == pytest.approx(class_offsets(statistics, found['chosen']).tolist())
    assert (note['tau'], note['statistics']) == (found['chosen'], file)
    assert note['how'] == 'chosen by mAcc on the 2 images of val'
    assert note['prior'] == dict(kind='trained', counts=statistics.pixels.tolist(), class_weight=None)
    assert (demo_folder / 'model.rebalance.png').stat().st_size > 10_000
    tables = (demo_folder / 'model.rebalance.md').read_text()
    assert tables.startswith(f'tau {found["chosen"]:g}, chosen by mAcc')
    recall = area_scores(np.array(found['choice']))['Acc'][:, 0]
    assert f'| {statistics.classes[0]} | {" | ".join(f"{x:.1f}" for x in recall)} |' in tables.split('### Recall')[1]
    for name, score in zip(statistics.classes, found['choice'][1][0], strict=True):
        assert name in printed
        assert score >= 0


@pytest.mark.parametrize('prior', ['trained', 'frequency'])
def test_class_weights_of_the_training(make_checkpoint, rebalance, demo_folder, capsys, prior):
    checkpoint = make_checkpoint(WEIGHTED)
    weights = json.dumps([0.5 + c for c in range(10)])
    option = f'model.decode_head.loss_decode.class_weight={weights.replace(" ", "")}'

    assert rebalance(checkpoint, '--prior', prior, '--taus', '1', config=WEIGHTED, options=[option]) == 0

    found = json.loads((demo_folder / 'model.rebalance.json').read_text())
    expected = json.loads(weights) if prior == 'trained' else None
    assert found['prior']['class_weight'] == expected


def test_weights_that_have_evened_out_the_classes(make_checkpoint, rebalance, capsys):
    assert rebalance(make_checkpoint(), '--taus', '1') == 0
    assert 'evened out' not in capsys.readouterr().out
    statistics = 'work_dirs/class_weights/fast_scnn_1xb4-400_demo-192x256.json'
    weight = f"model.decode_head.loss_decode.class_weight.statistics='{statistics}'"
    scheme = 'model.decode_head.loss_decode.class_weight.scheme=inverse_frequency'
    ours = 'model.decode_head.loss_decode.type=WeightedCrossEntropyLoss'

    assert rebalance('model.pth', '--taus', '1', options=[ours, weight, scheme]) == 0

    assert '--prior frequency moves along the frequencies' in capsys.readouterr().out


@pytest.mark.parametrize('tau', [-0.5, 0.5])
def test_a_class_that_was_not_learnt_gains_on_no_class(make_checkpoint, rebalance, demo_folder, tau):
    options = [
        'model.decode_head.loss_decode.type=WeightedCrossEntropyLoss',
        'model.decode_head.loss_decode.class_weight=[1,1,1,1,1,1,1,1,1,0]',
    ]

    assert rebalance(make_checkpoint(), f'--tau={tau}', '--out', 'new.pth', options=options) == 0

    found = json.loads((demo_folder / 'model.rebalance.json').read_text())
    (note,) = torch.load('new.pth', weights_only=True)['meta']['rebalanced']
    assert note['offsets'][9] == min(note['offsets'])
    predicted = dict(zip(found['taus'], (areas[1][9] for areas in found['report']), strict=True))
    assert predicted[tau] <= predicted[0]


def test_one_number_for_the_foreground(make_checkpoint, rebalance, demo_folder):
    option = 'model.decode_head.loss_decode.class_weight=3.0'

    assert rebalance(make_checkpoint(BINARY), '--taus', '0.5', config=BINARY, options=[option]) == 0

    found = json.loads((demo_folder / 'model.rebalance.json').read_text())
    assert found['prior']['class_weight'] == [1, 3]


def test_images_drawn_by_their_classes(make_checkpoint, rebalance, root, demo_folder):
    """The prior is that of the images as the training drew them."""
    checkpoint = make_checkpoint()
    assert rebalance(checkpoint, '--taus', '0.5') == 0
    before = json.loads((demo_folder / 'model.rebalance.json').read_text())['prior']['counts']
    statistics = 'work_dirs/class_weights/fast_scnn_1xb4-400_demo-192x256.json'
    sampler = dict(_delete_=True, type='RareClassSampler', statistics=statistics, temperature=0.05)
    text = f"_base_ = '{root / CONFIG}'\ntrain_dataloader = dict(sampler={sampler!r})\n"
    (demo_folder / 'rare.py').write_text(text)

    assert rebalance(checkpoint, '--taus', '0.5', '--statistics', statistics, config=demo_folder / 'rare.py') == 0

    after = json.loads((demo_folder / 'model.rebalance.json').read_text())['prior']['counts']
    rarest = int(np.argmin(before))
    assert after[rarest] / sum(after) > 1.05 * before[rarest] / sum(before)


def test_a_loss_whose_weights_are_not_known_is_named(make_checkpoint, rebalance, capsys):
    options = ['model.decode_head.loss_decode.type=DiceLoss', 'model.decode_head.loss_decode.loss_name=loss_dice']
    checkpoint = make_checkpoint()
    options.append('model.decode_head.loss_decode.use_sigmoid=False')

    assert rebalance(checkpoint, '--taus', '0.5', options=options) == 0

    assert 'no class weights are in the prior; those of these losses are not looked at: loss_dice (a DiceLoss)' in (
        ' '.join(capsys.readouterr().out.split())
    )


def test_a_report_on_the_images_that_tau_is_chosen_on(make_checkpoint, rebalance, capsys):
    """test_dataloader = val_dataloader, as in mmseg's configs."""
    checkpoint = make_checkpoint()

    assert rebalance(checkpoint, '--taus', '0.5', '--report-on', 'test') == 2

    message = ' '.join(capsys.readouterr().err.split())
    assert '2 of the 2 images of test are also in val, which tau is chosen on' in message
    assert rebalance(checkpoint, '--taus', '0.5', '--choose-on', '0.5') == 0  # as it advises
    assert rebalance(checkpoint, '--tau', '0.5', '--report-on', 'test') == 0  # nothing is chosen


def test_a_checkpoint_that_was_trained_with_other_weights(make_checkpoint, rebalance, root, capsys):
    same = make_checkpoint(meta=dict(iter=1, cfg=Config.fromfile(root / CONFIG).pretty_text))
    assert rebalance(same, '--taus', '0.5') == 0
    assert 'was trained with other' not in capsys.readouterr().out

    other = make_checkpoint(meta=dict(iter=1, cfg=Config.fromfile(root / WEIGHTED).pretty_text))
    assert rebalance(other, '--taus', '0.5') == 0
    said = ' '.join(capsys.readouterr().out.split())
    assert 'the checkpoint was trained with other losses than this config has, and the prior follows the config' in said
    assert 'WeightedCrossEntropyLoss' in said

    assert rebalance(other, '--taus', '0.5', '--prior', 'frequency') == 0
    assert 'was trained with other' not in capsys.readouterr().out


def test_a_score_without_a_value_leaves_tables_and_picture(make_checkpoint, rebalance, demo_folder, capsys):
    arguments = '--taus', '0.5', '--best', 'Acc/flag', '--out', 'new.pth'

    assert rebalance(make_checkpoint(), *arguments, options=['val_dataloader.dataset.indices=1']) == 2

    assert '--best Acc/flag: it has no value on the 1 images of val' in capsys.readouterr().err
    assert 'none could be chosen' in (demo_folder / 'model.rebalance.md').read_text()
    assert (demo_folder / 'model.rebalance.png').exists()
    assert not (demo_folder / 'new.pth').exists()


def test_a_sampler_whose_images_are_elsewhere(make_checkpoint, rebalance, root, demo_folder, capsys):
    checkpoint, statistics = make_checkpoint(), str(demo_folder / 'labels.json')
    save_statistics(demo_statistics(), statistics)
    sampler = dict(_delete_=True, type='RareClassSampler', statistics=statistics)
    text = f"_base_ = '{root / CONFIG}'\ntrain_dataloader = dict(sampler={sampler!r})\n"
    (demo_folder / 'rare.py').write_text(text + "train_dataloader['dataset'] = dict(data_root='nowhere')\n")
    arguments = '--taus', '0.5', '--statistics', statistics

    assert rebalance(checkpoint, *arguments, config=demo_folder / 'rare.py') == 2
    assert 'the prior needs the training images, which RareClassSampler draws from' in capsys.readouterr().err
    assert rebalance(checkpoint, *arguments, '--prior', 'frequency', config=demo_folder / 'rare.py') == 0


def test_a_tau_that_no_bias_can_hold(make_checkpoint, rebalance, capsys):
    assert rebalance(make_checkpoint(), '--tau', '1e300', '--out', 'huge.pth') == 2
    assert 'offsets too large for float32' in capsys.readouterr().err


@pytest.mark.parametrize('change', ['indices', 'folder', 'encoding'])
def test_statistics_of_another_training_set_are_not_reused(make_checkpoint, rebalance, demo_folder, capsys, change):
    checkpoint = make_checkpoint()
    assert rebalance(checkpoint, '--taus', '0.5') == 0
    if change == 'folder':
        shutil.copytree(demo_folder / 'data/demo_scenes', demo_folder / 'data/other')
    option = dict(indices='indices=3', folder='data_root=data/other', encoding='reduce_zero_label=False')[change]
    options = [f'train_dataloader.dataset.{option}']
    if change == 'encoding':
        options.append('train_dataloader.dataset.pipeline.1.reduce_zero_label=False')

    assert rebalance(checkpoint, '--taus', '0.5', options=options) == 2

    words = 'holds statistics of labels with' if change == 'encoding' else 'holds statistics of 8 labels in'
    assert words in capsys.readouterr().err


def test_several_evaluators_and_their_ignored_label(make_checkpoint, rebalance, tool, root, demo_folder):
    evaluators = [dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=3), dict(type='IoUMetric', prefix='b')]
    text = f"_base_ = '{root / CONFIG}'\nval_evaluator = {evaluators!r}\ntest_evaluator = {evaluators!r}\n"
    (demo_folder / 'several.py').write_text(
        text + 'resume = True\ntrain_dataloader = train_cfg = optim_wrapper = param_scheduler = None\n'
    )
    statistics = demo_folder / 'labels.json'
    save_statistics(demo_statistics(), statistics)

    checkpoint = make_checkpoint()
    settings = tool.test_settings(Config.fromfile('several.py'), 'val', [0.0])
    assert settings['test_evaluator']['ignore_index'] == 3

    text = (demo_folder / 'several.py').read_text().replace("'ignore_index': 3", "'ignore_index': 255")
    (demo_folder / 'several.py').write_text(text)
    arguments = ['--taus', '0.5', '--statistics', str(statistics)]
    assert rebalance(checkpoint, *arguments, config=demo_folder / 'several.py') == 0


def test_a_split_without_a_loader_and_a_checkpoint_elsewhere(
    make_checkpoint, rebalance, tool, root, demo_folder, capsys
):
    text = f"_base_ = '{root / CONFIG}'\ntest_dataloader = None\ntest_evaluator = None\ntest_cfg = None\n"
    (demo_folder / 'val_only.py').write_text(text)
    checkpoint = make_checkpoint()

    arguments = ['--taus', '0.5', '--report-on', 'test']
    assert tool.main([str(demo_folder / 'val_only.py'), checkpoint, *arguments]) == 2
    assert 'the config has no test_dataloader' in capsys.readouterr().err
    assert rebalance('https://example.com/model.pth') == 2
    assert 'download it first' in capsys.readouterr().err


def test_images_that_are_chosen_on_and_images_of_the_report(make_checkpoint, rebalance, demo_folder, capsys):
    checkpoint = make_checkpoint()
    assert rebalance(checkpoint, '--taus', '0.5', '--json', 'all.json') == 0
    assert rebalance(checkpoint, '--taus', '0.5', '--choose-on', '0.5', '--json', 'halves.json') == 0
    images = 'test_dataloader.dataset.data_prefix.img_path=images/training'
    labels = 'test_dataloader.dataset.data_prefix.seg_map_path=annotations/training'
    arguments = '--taus', '0.5', '--report-on', 'test', '--json', 'splits.json'
    assert rebalance(checkpoint, *arguments, options=[images, labels]) == 0

    whole, halves, splits = (
        json.loads((demo_folder / f'{name}.json').read_text()) for name in ('all', 'halves', 'splits')
    )
    assert whole['choice'] == whole['report']
    assert (np.array(halves['choice']) + halves['report']).tolist() == whole['choice']
    assert splits['choice'] == whole['choice']
    assert splits['report'] != whole['report']
    assert (halves['chosen_on'], halves['reported_on']) == (
        'the first 1 of 2 images of val',
        'the other 1 images of val',
    )
    assert splits['reported_on'] == 'the 8 images of test'


@pytest.mark.heavy
def test_two_ranks_count_what_one_counts(make_checkpoint, rebalance, root, demo_folder):
    """One image for two ranks, of which the second gets a copy that does not count."""
    checkpoint, one, threads = make_checkpoint(), 'val_dataloader.dataset.indices=1', torch.get_num_threads()
    torch.set_num_threads(1)  # as each rank has: sums of convolutions, and so a few classes, depend on it
    try:
        assert rebalance(checkpoint, '--json', 'one.json', options=[one]) == 0
    finally:
        torch.set_num_threads(threads)

    command = [str(root / 'tools/dist_run.sh'), 'rebalance.py', '2', str(root / CONFIG), checkpoint]
    arguments = ['--json', 'two.json', '--cfg-options', *OPTIONS, one]
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PORT='29871')
    process = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env=environment)

    assert process.returncode == 0, process.stderr[-3000:]
    first, second = (json.loads((demo_folder / f'{name}.json').read_text()) for name in ('one', 'two'))
    assert first['choice'] == second['choice']
    assert first['chosen'] == second['chosen']


def test_a_checkpoint_that_was_adjusted_before(make_checkpoint, rebalance, capsys):
    assert rebalance(make_checkpoint(), '--tau', '0.25', '--taus', '0.25', '--out', 'new.pth') == 0
    assert rebalance('new.pth', '--tau', '0.25', '--taus', '0.25', '--out', 'again.pth') == 2
    assert 'has been rebalanced already (tau 0.25 from' in capsys.readouterr().err

    assert rebalance('new.pth', '--tau', '0.25', '--taus', '0.25', '--out', 'again.pth', '--again') == 0

    assert len(torch.load('again.pth', weights_only=True)['meta']['rebalanced']) == 2


def test_a_layer_without_a_bias(make_checkpoint, rebalance, tool, capsys, monkeypatch):
    checkpoint = make_checkpoint()
    content = torch.load(checkpoint, weights_only=True)
    del content['state_dict'][f'{LAYER}.bias']
    torch.save(content, checkpoint)
    build = tool.build_runner

    def without_bias(config):
        runner = build(config)
        runner.model.decode_head.conv_seg.bias = None
        return runner

    monkeypatch.setattr(tool, 'build_runner', without_bias)

    assert rebalance(checkpoint, '--tau', '0.25', '--taus', '0.25', '--out', 'new.pth') == 0

    assert f"custom_hooks = [dict(type='OutputBiasHook', layer={LAYER!r})]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--best', 'Dice'], r'--best Dice: give one of mIoU, mAcc, aAcc, IoU/CLASS'),
        (['--best', 'IoU/unicorn'], r'--best IoU/unicorn: give one of .* with one of the classes '),
        (['--json', 'model.pth'], "--json 'model.pth' is the checkpoint itself: give another name"),
        (['--json', 'a.md', '--tables', 'a.md'], "--json 'a.md' is the file of --tables"),
        (['--statistics', 'nowhere.json'], r"statistics 'nowhere\.json' cannot be read"),
        (['--statistics', 'ade20k'], 'statistics of 150 classes do not fit a head with 10 channels'),
        (['--choose-on', '0.1'], r'--choose-on 0\.1 divides 2 images into 0 and 2'),
        (['--out', 'model.pth'], "--out 'model.pth' is the checkpoint itself"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_pass(
    make_checkpoint, rebalance, tool, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr(tool, 'count', lambda *_: pytest.fail('images were predicted'))
    checkpoint = make_checkpoint()
    before = Path(checkpoint).read_bytes()

    assert rebalance(checkpoint, '--taus', '0.5', *arguments) == 2

    error = capsys.readouterr().err.strip()
    assert re.search(f'^error: .*{message}', error.splitlines()[-1])
    assert Path(checkpoint).read_bytes() == before


def test_a_checkpoint_that_does_not_exist(rebalance, capsys):
    assert rebalance('nowhere.pth') == 2
    assert "'nowhere.pth' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--report-on', 'val'], '--report-on val is the split that tau is chosen on'),
        (['--report-on', 'test', '--choose-on', '0.5'], 'give one of the two'),
        (['--choose-on', '1'], '--choose-on must be above 0 and below 1'),
        (['--accuracy-loss', '-1'], '--accuracy-loss must not be negative'),
        (['--taus', 'nan'], 'every tau must be finite'),
        (['--accuracy-loss', '1', '--tau', '0.5'], '--accuracy-loss bounds the choice of tau'),
        (['--picture', 'a.txt'], '--picture a.txt must end in .png'),
    ],
)
def test_arguments_that_contradict_each_other(rebalance, capsys, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        rebalance('model.pth', *arguments)
    assert message in capsys.readouterr().err
