"""A comparison on generated scenes, from configs to page; its figures against those that mmseg printed."""

import copy
import html
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from filelock import FileLock
from mmengine.config import Config
from mmseg_wce.class_weights import load_statistics, save_statistics

LOSSES = ['built_in_avg_non_ignore', 'unweighted', 'median_frequency']
OPTIONS = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=1',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=1',
    'train_dataloader.batch_size=2',
    *(
        f'{split}_dataloader.{option}=0'
        for split in ('train', 'val', 'test')
        for option in ('num_workers', 'persistent_workers')
    ),
]


CONFIG = 'configs/demo/fast_scnn_1xb4-400_demo-192x256.py'


@pytest.fixture
def tool(import_tool, demo_folder):
    return import_tool('compare_losses')


@pytest.fixture
def compare(tool, root):
    """The tool, for two losses unless others are given; returns its exit status."""

    def run(*words: str, losses=('built_in', 'median_frequency'), seeds=('0',), options=OPTIONS) -> int:
        options = ['--cfg-options', *options] if options else []
        return tool.main([str(root / CONFIG), '--losses', *losses, '--seeds', *seeds, *words, *options])

    return run


@cache
def read_config(file: Path) -> Config:
    return Config.fromfile(file)


@pytest.fixture
def a_run(tool, root):
    """Make trainings of one comparison as the tool does."""

    def run(loss: str, seed: int, name: str = CONFIG, options=OPTIONS):
        from compare.runs import Comparison, Run

        config = copy.deepcopy(read_config(root / name))
        config.merge_from_dict({key: int(value) for key, value in (word.split('=') for word in options)})
        folders = Path('work_dirs/compare'), Path('work_dirs/compare/report')
        return Run(Comparison(str(root / name), root / name, config, *folders, tuple(options)), loss, seed)

    return run


FOLDER = 'work_dirs/compare/report/fast_scnn_1xb4-400_demo-192x256'
WORK = 'work_dirs/compare/fast_scnn_1xb4-400_demo-192x256'


def interrupt(compare, work_dir, capsys, monkeypatch) -> None:
    """Start a comparison of one loss, and leave its training as if it had been stopped after one iteration."""
    from compare.runs import Run

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Run, '_last_checkpoint', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert compare(losses=[work_dir.name.removesuffix('-seed0')]) == 130
    assert 'the same command goes on from there' in capsys.readouterr().out
    (work_dir / 'iter_2.pth').unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_1.pth'))


@pytest.mark.heavy
def test_from_config_to_page_with_an_interruption(compare, demo_folder, capsys, monkeypatch):
    work_dir = demo_folder / WORK / 'median_frequency-seed0'
    interrupt(compare, work_dir, capsys, monkeypatch)

    assert compare('--jobs', '2', losses=LOSSES) == 0
    assert '3 trainings, 0 of them done' in capsys.readouterr().out

    log = (work_dir / 'train.log').read_text()
    assert 'resumed epoch' in log
    assert log.count('Iter(train) [1/2]') == 1
    assert log.count('Iter(train) [2/2]') == 2

    folder = demo_folder / FOLDER
    results = {file.stem: json.loads(file.read_text()) for file in folder.glob('*.json')}
    assert len(results) == 3
    for name, result in results.items():
        log = (demo_folder / WORK / name / 'test.log').read_text()
        confusion = np.array(result['confusion'])
        hit, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
        with np.errstate(invalid='ignore'):
            mean = np.nanmean(100 * hit / union)
        assert float(re.search(r'mIoU: ([\d.]+)', log)[1]) == pytest.approx(mean, abs=0.01)
        assert result['training']['step'] == [1, 2]
        assert result['validation']['step'] == [1, 2]
        assert result['seconds_per_iteration'] > 0
        assert result['megabytes'] > 100
    same = [results[name]['training']['loss'][0] for name in ('built_in_avg_non_ignore-seed0', 'unweighted-seed0')]
    assert same[0] == pytest.approx(same[1], rel=1e-4)  # as it is logged
    assert results['unweighted-seed0']['training']['loss'] != results['median_frequency-seed0']['training']['loss']

    page = (folder.parent / 'report.html').read_text()
    assert page.count('<img src="data:image/png;base64,') == 8
    for loss in LOSSES:
        assert f'<td>{loss}</td>' in page
    for name in ('means', 'changes', 'classes', 'confusions', 'curves', 'agreement', 'scenes', 'zoomed'):
        assert plt.imread(folder / f'{name}.png').std() > 0.02
    assert str(demo_folder) not in page

    assert compare('--jobs', '2', losses=LOSSES) == 0
    assert '3 trainings, 3 of them done' in capsys.readouterr().out


@pytest.mark.parametrize('loss', ['built_in', 'enet', 'hard_pixels', 'focal', 'rare_class_sampling_sqrt'])
def test_only_the_losses_on_pixels_change(a_run, loss):
    """And nothing else in a config: of three heads, one of them weighted differently."""
    run = a_run(loss, 7, 'configs/demo/fast_scnn_1xb4-wce-400_demo-192x256.py', options=())
    config = run.comparison.config
    save_statistics(load_statistics('ade20k'), run.comparison.labels)

    run.write_config()

    found = Config.fromfile(run.config_file)
    assert found.randomness.seed == 7
    assert found.default_hooks.logger == dict(config.default_hooks.logger, log_metric_by_epoch=False)
    heads = [found.model.decode_head, *found.model.auxiliary_head]
    for head, before in zip(heads, [config.model.decode_head, *config.model.auxiliary_head], strict=True):
        settings = head.pop('loss_decode')
        assert settings.loss_weight == before.pop('loss_decode').loss_weight
        assert settings.type == ('CrossEntropyLoss' if loss == 'built_in' else 'WeightedCrossEntropyLoss')
        scheme = dict(enet='enet', rare_class_sampling_sqrt='sqrt_inverse_frequency').get(loss)
        assert settings.get('class_weight', {}).get('scheme') == scheme
        assert settings.get('focal_gamma', 0) == (2.0 if loss == 'focal' else 0)
        sampler = head.pop('sampler', None)
        expected = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=int(0.2 * 192 * 256))
        assert sampler == (expected if loss == 'hard_pixels' else None)
    assert found.model == config.model
    images = found.train_dataloader.sampler
    assert images.type == ('RareClassSampler' if 'rare' in loss else config.train_dataloader.sampler.type)
    assert images.get('statistics') == (str(run.comparison.labels.resolve()) if 'rare' in loss else None)


def write(run, confusion, classes=('sky', 'road', 'flag'), **changes) -> None:
    """Write the result file of a training."""
    content = dict(
        run=run.identity(),
        environment=dict(device='CPU', torch='2', date='2026-01-01'),
        classes=list(classes),
        confusion=np.asarray(confusion).tolist(),
        training_pixels=[600, 300, 100],
        training=dict(step=[1, 2], loss=[2.0, 1.0]),
        validation=dict(step=[2], mIoU=[1.0], mAcc=[1.0], aAcc=[1.0]),
        seconds_per_iteration=0.5,
        megabytes=900,
    )
    run.result_file.parent.mkdir(parents=True, exist_ok=True)
    run.result_file.write_text(json.dumps({**content, **changes}))


def write_sweep(run, areas_of_taus) -> None:
    """Write what tools/rebalance.py counts: pixels right, predicted and labelled for tau -1, 0 and 1."""
    content = dict(
        run=run.identity(), taus=[-1, 0, 1], classes=['sky', 'road', 'flag'], chosen_on='these', reported_on='those'
    )
    run.rebalanced_file.parent.mkdir(parents=True, exist_ok=True)
    run.rebalanced_file.write_text(json.dumps(content | dict(choice=areas_of_taus, report=areas_of_taus)))


def load(*runs):
    from compare.results import load_results

    return load_results(runs)


BASE = np.array([[90, 10, 0], [0, 50, 0], [5, 4, 1]])
FLAGS_FOUND = np.array([[85, 10, 5], [0, 50, 0], [1, 1, 8]])


def test_figures_by_hand(a_run):
    runs = [a_run(loss, seed) for loss in ('enet', 'built_in') for seed in (1, 0)]
    for run in runs:
        write(run, BASE if run.loss == 'built_in' else FLAGS_FOUND)

    found = load(*runs)

    assert list(found.outcomes) == ['built_in', 'enet']
    assert found.outcomes['enet'].last_validation.tolist() == [1, 1]
    assert found.share.tolist() == [0.6, 0.3, 0.1]
    base = found.outcomes['built_in']
    assert base.seeds == [0, 1]
    np.testing.assert_allclose(base.iou[0], [100 * 90 / 105, 100 * 50 / 64, 100 * 1 / 10])
    np.testing.assert_allclose(base.accuracy[0], [90, 100, 10])
    np.testing.assert_allclose(base.precision[0], [100 * 90 / 95, 100 * 50 / 64, 100])
    np.testing.assert_allclose(base.means['aAcc'], [100 * 141 / 160] * 2)
    np.testing.assert_allclose(base.mean_iou_of(found.rarest_third), [10, 10])
    np.testing.assert_allclose(found.difference('enet', 'accuracy')[0], [-5, 0, 70])


def test_a_figure_is_apart_if_it_lies_beyond_every_training_without_weights(a_run):
    """Flags are found by all of one loss, and by one training of any that has no weights; road is worse than in any."""
    losses = 'built_in', 'built_in_avg_non_ignore', 'unweighted', 'enet', 'hard_pixels'
    runs = [a_run(loss, seed) for loss in losses for seed in (0, 1, 2)]
    road_worse = np.add(FLAGS_FOUND, [[0, 0, 0], [5, -5, 0], [0, 0, 0]])
    for run in runs:
        write(run, road_worse if run.loss in ('enet', 'hard_pixels') else BASE)
    found = load(*runs)
    assert found.apart('enet', 'accuracy').tolist() == [-1, -1, 1]
    assert found.classes_apart('enet', 'accuracy', +1) == [('flag', pytest.approx(70))]
    assert found.classes_apart('enet', 'accuracy', -1) == [('road', pytest.approx(-10)), ('sky', pytest.approx(-5))]
    assert found.apart('enet', 'mAcc') == 1

    for loss in losses[:3]:
        write(a_run(loss, 1), FLAGS_FOUND)
        found = load(*runs)
        assert found.apart('enet', 'accuracy').tolist() == [0, -1, 0]
        assert found.apart('enet', 'mAcc') == 0
        assert found.apart(loss, 'accuracy').tolist() == [0, 0, 0]
        write(a_run(loss, 1), BASE)


def test_one_training_alone_is_never_apart(a_run):
    runs = [*(a_run('built_in', seed) for seed in range(8)), a_run('enet', 0)]
    for run in runs:
        write(run, FLAGS_FOUND if run.loss == 'enet' else BASE)

    assert load(*runs).classes_apart('enet', 'accuracy', +1) == []


@pytest.mark.parametrize(('without', 'apart'), [([], 0), (['built_in'], 0), (['built_in', 'unweighted'], 1)])
def test_trainings_are_apart_only_from_six_or_more(a_run, without, apart):
    """Three are from three in one of ten figures by chance, from six in one of 42."""
    runs = [a_run(loss, seed) for loss in (*without, 'enet', 'median_frequency') for seed in (0, 1, 2)]
    for run in runs:
        write(run, BASE if run.loss in without else FLAGS_FOUND if run.loss == 'enet' else BASE[::-1])

    assert load(*runs).apart('enet', 'accuracy').tolist() == [-apart, 0, apart]


def test_a_figure_that_a_training_lacks_is_never_apart(a_run):
    runs = [a_run(loss, seed) for loss in ('built_in', 'unweighted', 'enet') for seed in (0, 1, 2)]
    for run in runs:
        write(run, FLAGS_FOUND if run.loss == 'enet' else BASE)
    write(runs[0], [[90, 10, 0], [0, 50, 0], [5, 5, 0]])  # flag is never predicted

    assert load(*runs).apart('enet', 'precision')[2] == 0
    assert load(*runs).apart('enet', 'accuracy')[2] == 1


@pytest.mark.parametrize(('seeds', 'shared'), [((7, 8, 9), 1), ((8, 9, 10), 0)])
def test_other_seeds_are_not_compared(a_run, seeds, shared):
    runs = [*(a_run('built_in', seed) for seed in range(8)), *(a_run('enet', seed) for seed in seeds)]
    for run in runs:
        write(run, FLAGS_FOUND if run.loss == 'enet' else BASE)

    found = load(*runs)

    assert len(found.difference('enet', 'iou')) == shared
    assert found.apart('enet', 'accuracy').tolist() == [-1, 0, 1]
    assert [name for name, _ in found.classes_apart('enet', 'accuracy', +1)] == ['flag'] * shared


def test_a_class_that_never_occurs_has_no_figure_and_spoils_no_mean(a_run):
    write(run := a_run('built_in', 0), [[90, 10, 0], [0, 50, 0], [0, 0, 0]])

    base = load(run).base

    assert np.isnan(base.iou[0, 2])
    np.testing.assert_allclose(base.means['mAcc'], [95])


def test_only_what_is_asked_for_is_reported(a_run):
    write(asked := a_run('built_in', 0), BASE)
    write(a_run('built_in', 1), BASE)

    assert load(asked).base.seeds == [0]


def test_curves_have_the_steps_that_every_seed_has(a_run):
    write(first := a_run('built_in', 0), BASE)
    write(second := a_run('built_in', 1), BASE, training=dict(step=[2, 3], loss=[5.0, 6.0]))

    steps, values = load(first, second).base.curve('training', 'loss')

    assert steps.tolist() == [2]
    assert values.tolist() == [[1.0], [5.0]]


@pytest.mark.parametrize('names', [('<script>alert(1)</script>', '$a$', r'$\x$'), ('a', 'b', 'ein & zwei')])
def test_class_names_are_escaped_in_page_and_pictures(a_run, compare, demo_folder, names):
    """A loss that is not finite, or was never logged, does not spoil a picture."""
    odd = dict(training=dict(step=[1], loss=[float('nan')]), validation=dict(step=[], mIoU=[], mAcc=[], aAcc=[]))
    losses, seeds = ('built_in', 'unweighted', 'enet'), ('0', '1', '2')
    runs = [a_run(loss, int(seed)) for loss in losses for seed in seeds]
    for run in runs:
        write(run, FLAGS_FOUND if run.loss == 'enet' else BASE, names, **odd)
        run.predictions.mkdir(parents=True)
        for scene in (demo_folder / 'data/demo_scenes/annotations/validation').iterdir():
            cv2.imwrite(str(run.predictions / scene.name), np.zeros((192, 256), np.uint8))

    assert compare('--report', losses=losses, seeds=seeds) == 0

    page = (demo_folder / FOLDER).parent.joinpath('report.html').read_text()
    assert '<script' not in page
    for name in (names[0], names[2]):  # worse, and better, in all trainings
        assert page.count(f'{html.escape(name)}&nbsp;<small>') == 1
    assert page.count('class="apart">+') == 3  # all means
    assert page.count('<img src=') == 7  # no agreement


def test_the_page_says_where_and_how_far_both_agree(a_run, compare, demo_folder):
    losses = 'built_in_avg_non_ignore', 'unweighted'
    write(a_run(losses[0], 0), BASE, training=dict(step=[2, 3, 4], loss=[2.0, 1.0, 1.0]))
    write(a_run(losses[1], 0), BASE, training=dict(step=[1, 2, 3], loss=[9.0, 2.002, 1.05]))

    assert compare('--report', losses=losses, seeds=('0', '1')) == 0

    page = (demo_folder / FOLDER).parent.joinpath('report.html').read_text()
    assert '2 of 4 trainings are done' in page
    assert re.search(r'device CPU;\s+torch 2;\s+date 2026-01-01\.', page)
    assert re.search(r'differ by 0.001 of their value at\s+step 2, .* by at most 0.05 at any', page)
    assert '--report' not in page  # who types its command means to train


def test_summary_by_hand(a_run, compare, demo_folder):
    losses, never_flags = ('built_in', 'unweighted', 'enet', 'hard_pixels'), [[80, 20, 0], [0, 50, 0], [10, 0, 0]]
    validated = dict(step=[1, 2], mIoU=[9.0, 60.0], mAcc=[0.0, 0.0], aAcc=[0.0, 0.0])
    for seed in (0, 1, 2):
        write(a_run('built_in', seed), BASE if seed < 2 else FLAGS_FOUND)
        write(a_run('unweighted', seed), BASE)
        write(a_run('enet', seed), FLAGS_FOUND, validation=validated)
        write(a_run('hard_pixels', seed), never_flags)

    assert compare('--report', losses=losses, seeds=('0', '1', '2')) == 0

    text = (demo_folder / FOLDER).parent.joinpath('summary.md').read_text()
    assert [line for line in text.splitlines() if re.match(r'\| `\w+` \| 3', line)] == [
        '| `built_in` | 3 | 63.0 ± 8.8 | 73.9 ± 12.5 | 88.5 ± 0.7 | 24.4 | 1.0 |',
        '| `unweighted` | 3 | 57.9 ± 0.0, -5.1 | 66.7 ± 0.0, -7.2 | 88.1 ± 0.0, -0.4 | 10.0 | 1.0 |',
        '| `enet` | 3 | 73.2 ± 0.0, +10.1 | 88.3 ± 0.0, +14.4 | 89.4 ± 0.0, +0.8 | 53.3 | **60.0** |',
        '| `hard_pixels` | 3 | 48.1 ± 0.0, **-15.0** | 60.0 ± 0.0, **-13.9** | 81.2 ± 0.0, **-7.3** | 0.0 | 1.0 |',
    ]
    assert '| flag | 10 % | 33.3 | 10.0 | 80.0 | 0.0 |' in text.split('### Accuracy')[1]
    assert re.search(r'\| flag \| 10 % \| [\d.]+ \| 100.0 \| 61.5 \| \|', text.split('### Precision')[1])


@pytest.mark.parametrize('classes', [1, 150])
def test_one_class_and_many(a_run, compare, demo_folder, classes):
    confusion = np.diag(np.arange(classes) + 1)
    confusion[:, 0] += 1
    for loss in ('built_in', 'median_frequency'):
        names, pixels = [f'class {i}' for i in range(classes)], list(range(1, classes + 1))
        write(a_run(loss, 0), confusion, names, training_pixels=pixels)

    assert compare('--report') == 0

    page = (demo_folder / FOLDER).parent.joinpath('report.html').read_text()
    assert ('show the 40 rarest' in page) == (classes == 150)


def test_result_of_another_training_is_not_taken_for_it(a_run, compare, capsys):
    write(a_run('built_in', 0, options=OPTIONS[1:]), BASE)

    assert compare() == 2
    assert "built_in-seed0.json' is of {'config': 'fast_scnn" in capsys.readouterr().err


def test_work_dir_of_another_training_is_refused(a_run, compare, capsys):
    """Its checkpoints would be gone on from."""
    other = a_run('built_in', 0, options=OPTIONS[1:])
    save_statistics(load_statistics('ade20k'), other.comparison.labels)
    other.write_config()

    assert compare('--out', 'elsewhere') == 2
    assert 'choose another --work-dir' in capsys.readouterr().err


def test_a_training_with_another_config_or_other_batches_is_another_training(a_run):
    run, edited, moved = (a_run('built_in', 0) for _ in range(3))
    edited.comparison.config.optim_wrapper.optimizer.lr = 9
    moved.comparison.config.train_dataloader.dataset.data_root = 'elsewhere'
    wider = replace(run, comparison=replace(run.comparison, processes=2))

    assert edited.identity() != run.identity() == moved.identity() != wider.identity()
    assert moved.comparison.labels != run.comparison.labels


def test_trainings_on_other_labels_are_not_compared(a_run, compare, capsys):
    write(a_run('built_in', 0), BASE)
    write(a_run('median_frequency', 0), BASE, training_pixels=[600, 300, 101])

    assert compare('--report') == 2
    assert 'trained on different labels: ' in capsys.readouterr().err


def checkpoint(run, step: int) -> Path:
    path = run.work_dir / f'iter_{step}.pth'
    run.work_dir.mkdir(parents=True, exist_ok=True)
    torch.save(dict(meta=dict(iter=step, epoch=0)), path)
    (run.work_dir / 'last_checkpoint').write_text(str(path))
    return path


def test_only_the_last_weights_are_tested(a_run):
    from subprocess_runner import Failed

    run = a_run('built_in', 0)
    checkpoint(run, 1)
    with pytest.raises(Failed, match='is of iteration 1, not of 2'):
        run._last_checkpoint(None)
    last = checkpoint(run, 2)
    assert run._last_checkpoint(None) == str(last)
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(Failed, match='it is damaged'):
        run._last_checkpoint(None)


def test_incomplete_log_lines_are_skipped(tool):
    from compare.runs import _complete_lines

    assert list(_complete_lines('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 2, "loss": 1.0}\n')) == [
        {'step': 1, 'loss': 2.0},
        {'step': 2, 'loss': 1.0},
    ]


def test_two_processes_cannot_train_the_same_run(a_run):
    from subprocess_runner import Failed

    run = a_run('built_in', 0)
    run.work_dir.mkdir(parents=True)

    with FileLock(run.work_dir / 'lock'), pytest.raises(Failed, match='another process is training it'):
        run.train_and_test({}, print)


def test_whatever_stops_one_training_leaves_the_others(a_run, compare, capsys, monkeypatch):
    def train(run, *_):
        if run.loss == 'built_in':
            raise OSError('No space left on device')
        write(run, BASE)

    monkeypatch.setattr('compare.runs.Run.train_and_test', train)

    assert compare() == 1

    output = capsys.readouterr().out
    assert 'built_in-seed0: OSError: No space left on device' in output
    assert 'Report: ' in output


def test_a_cut_result_is_named(a_run, compare, capsys):
    write(run := a_run('built_in', 0), BASE)
    run.result_file.write_text(run.result_file.read_text()[:50])

    assert compare() == 2
    assert "built_in-seed0.json' cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_fails_is_named_and_the_others_go_on(compare, demo_folder, capsys, monkeypatch):
    from compare.runs import Run

    settings = Run._loss_settings
    broken = dict(type='NoSuchLoss')
    monkeypatch.setattr(Run, '_loss_settings', lambda run: broken if run.loss == 'built_in' else settings(run))

    assert compare() == 1

    output = capsys.readouterr().out
    assert 'built_in-seed0: failed, see work_dirs' in output
    assert 'NoSuchLoss' in output
    assert [file.name for file in (demo_folder / FOLDER).glob('*.json')] == ['median_frequency-seed0.json']
    assert (demo_folder / FOLDER).parent.joinpath('report.html').exists()


@pytest.mark.slow
def test_two_processes_and_no_checkpoint(compare, demo_folder, capsys):
    assert compare('--gpus', '2', losses=['built_in']) == 0
    two = json.loads((demo_folder / FOLDER / 'built_in-seed0.json').read_text())
    assert np.sum(two['confusion']) == np.sum(
        [(cv2.imread(str(file), 0) > 0).sum() for file in Path('data/demo_scenes/annotations/validation').iterdir()]
    )
    assert two['megabytes'] is None

    options = [*OPTIONS[:3], 'default_hooks.checkpoint.interval=-1', 'default_hooks.checkpoint.save_last=False']
    assert compare('--out', 'o', '--work-dir', 'w', losses=['built_in'], options=options) == 2
    assert 'wrote no checkpoint' in capsys.readouterr().out


WITHOUT_SIZE = 'model = dict(data_preprocessor=dict(size=None))\n'
SAMPLES = "model = dict(decode_head=dict(sampler=dict(type='OHEMPixelSampler', thresh=0.5, min_kept=10)))\n"
NO_LABELS = "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))\n"


@pytest.mark.parametrize(
    ('text', 'words', 'message'),
    [
        (WITHOUT_SIZE, [], 'hard_pixels needs model.data_preprocessor.size'),
        (SAMPLES, [], 'model.decode_head already has a sampler'),
        (NO_LABELS, [], 'test_dataloader must have one data set'),
        ('', ['--cfg-options', 'randomness.seed=5'], 'randomness.seed: the comparison sets it itself'),
        ('', ['--cfg-options', 'model.decode_head.loss_decode.type=X'], 'the comparison sets it itself'),
        ('', ['--work-dir', 'mine.py'], "--work-dir 'mine.py' is a file"),
        ('', ['--out', 'mine.py'], "--out 'mine.py' is a file"),
        ('', ['--report'], 'no training of mine is finished'),
        ('', [str(Path('other') / 'mine.py')], 'configs with the same name share their folders'),
    ],
)
def test_errors_before_anything_is_trained(tool, root, demo_folder, capsys, text, words, message):
    (demo_folder / 'other').mkdir()
    for file in ('mine.py', 'other/mine.py'):
        (demo_folder / file).write_text(f'_base_ = {str(root / CONFIG)!r}\n{text}')

    assert tool.main(['mine.py', *words]) == 2

    assert message in capsys.readouterr().err


def test_a_config_that_cannot_be_inherited_from(tool, root, demo_folder, capsys):
    imports = 'from mmengine.config import read_base\nwith read_base():\n    from .parts import *\n'
    (demo_folder / 'parts.py').write_text(Config.fromfile(root / CONFIG).pretty_text)
    (demo_folder / 'mine.py').write_text(imports)

    assert tool.main(['mine.py']) == 2

    assert "'mine.py' is of the new style" in capsys.readouterr().err


def test_missing_config_and_zero_jobs_are_errors(tool, capsys):
    assert tool.main(['missing.py']) == 2
    assert "config file 'missing.py' does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(['missing.py', '--jobs', '0'])


def test_gpus_are_those_that_may_be_used(tool, monkeypatch):
    monkeypatch.setattr(tool.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5,7')

    slots = tool.Slots(jobs=2, processes=2)

    assert [slots._free.get()['CUDA_VISIBLE_DEVICES'] for _ in range(2)] == ['2,3', '5,7']


UNCHANGED = [[90, 50, 1], [95, 64, 11], [100, 50, 10]]
FLAGS_MOVED = [[80, 50, 8], [81, 61, 18], [100, 50, 10]]
NO_FLAGS = [[91, 50, 0], [98, 62, 0], [100, 50, 10]]


def means_by_hand(areas) -> tuple[float, float, float]:
    right, predicted, labelled = map(np.array, areas)
    iou, accuracy = right / (predicted + labelled - right), right / labelled
    return 100 * iou.mean(), 100 * accuracy.mean(), 100 * right.sum() / labelled.sum()


def test_a_training_is_done_when_it_is_rebalanced_too(a_run):
    run = a_run('unweighted', 0)
    write(run, BASE)
    assert run.is_done()

    asked = replace(run, comparison=replace(run.comparison, rebalanced=('unweighted',)))

    assert not asked.is_done()
    write_sweep(asked, [NO_FLAGS, UNCHANGED, FLAGS_MOVED])
    assert asked.is_done()


def test_rebalanced_trainings_in_the_report(a_run, compare, demo_folder):
    """For each seed the tau with the best mean IoU, and how it differs from the training as it is."""
    asked = ('built_in', 'unweighted')
    for seed in (0, 1):
        write(a_run('built_in', seed), BASE)
        run = a_run('unweighted', seed)
        run = replace(run, comparison=replace(run.comparison, rebalanced=('unweighted',)))
        write(run, BASE)
        write_sweep(run, [NO_FLAGS, UNCHANGED, FLAGS_MOVED])

    assert compare('--report', '--rebalance', 'unweighted', losses=asked, seeds=('0', '1')) == 0

    folder = demo_folder / FOLDER
    text = folder.parent.joinpath('summary.md').read_text()
    moved = text.split('moved after the training')[1].split('###')[0]
    (iou, accuracy, pixels), (old_iou, old_accuracy, old_pixels) = map(means_by_hand, (FLAGS_MOVED, UNCHANGED))
    pairs = (iou, old_iou), (accuracy, old_accuracy), (pixels, old_pixels)
    cells = ' | '.join(f'{new:.1f} ± 0.0, {new - old:+.1f}' for new, old in pairs)
    assert f'| `unweighted` | 2 | 1, 1 | {cells} |' in moved
    assert plt.imread(folder / 'prices.png').std() > 0.02
    assert 'Moved after the training' in (folder.parent / 'report.html').read_text()


def test_the_command_that_rebalances(a_run, monkeypatch):
    """With the statistics of the comparison, and the test images for the report."""
    from compare import runs as module

    run = a_run('unweighted', 3)
    run = replace(run, comparison=replace(run.comparison, rebalanced=('unweighted',)))
    commands = []
    monkeypatch.setattr(module, 'watch', lambda command, *_: commands.append(command) or 900.0)
    monkeypatch.setattr(module.Run, '_last_checkpoint', lambda *_: 'last.pth')
    monkeypatch.setattr(module.Run, '_keep', lambda *_: None)
    run.write_config()
    (run.work_dir / 'rebalance.json').write_text(json.dumps(dict(taus=[0], config='a', checkpoint='b', statistics='c')))

    run.train_and_test({}, lambda *_: None)

    *_, rebalance = commands
    assert [Path(command[1]).name for command in commands] == ['train.py', 'test.py', 'rebalance.py']
    assert rebalance[2:6] == [str(run.config_file), 'last.pth', '--report-on', 'test']
    assert rebalance[rebalance.index('--statistics') + 1] == str(run.comparison.labels.resolve())
    assert json.loads(run.rebalanced_file.read_text()).keys() == {'run', 'environment', 'taus'}  # no paths
    assert [float(tau) for tau in rebalance[rebalance.index('--taus') + 1 :][:17]] == [i / 8 for i in range(-8, 9)]
    assert rebalance[rebalance.index('--cfg-options') + 1 :] == OPTIONS
