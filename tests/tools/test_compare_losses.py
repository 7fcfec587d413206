"""A comparison on generated scenes, from configs to page; its figures against those that mmseg printed."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from mmengine.config import Config

LOSSES = ['built_in_avg_non_ignore', 'unweighted', 'median_frequency']
OPTIONS = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=1',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=1',
    'train_dataloader.batch_size=2',
]


@pytest.fixture
def compare(import_tool, demo_folder, root):
    """The tool, for two losses unless others are given; returns its exit status."""
    tool = import_tool('compare_losses')

    def run(*words: str, losses=('built_in', 'median_frequency'), seeds=('0',)) -> int:
        config = root / 'configs/demo/fast_scnn_1xb4-400_demo-192x256.py'
        return tool.main([str(config), '--losses', *losses, '--seeds', *seeds, *words, '--cfg-options', *OPTIONS])

    return run


FOLDER = 'work_dirs/compare/report/fast_scnn_1xb4-400_demo-192x256'
WORK = 'work_dirs/compare/fast_scnn_1xb4-400_demo-192x256'


@pytest.mark.heavy
def test_from_config_to_page(compare, demo_folder, capsys):
    assert compare('--jobs', '2', losses=LOSSES) == 0
    assert '3 trainings, 0 of them done' in capsys.readouterr().out

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


@pytest.mark.parametrize('loss', ['built_in', 'enet', 'hard_pixels'])
def test_only_the_losses_on_pixels_change(import_tool, demo_folder, root, tmp_path, loss):
    """And nothing else in a config: of three heads, one of them weighted differently."""
    import_tool('compare_losses')
    from compare import runs

    file = root / 'configs/demo/fast_scnn_1xb4-wce-400_demo-192x256.py'
    config = Config.fromfile(file)
    run = runs.Run(runs.Comparison(file, config, tmp_path / 'work', tmp_path / 'out'), loss, 7)
    run.write_config()

    found = Config.fromfile(run.work_dir.with_suffix('.py'))
    assert found.randomness.seed == 7
    heads = [found.model.decode_head, *found.model.auxiliary_head]
    for head, before in zip(heads, [config.model.decode_head, *config.model.auxiliary_head], strict=True):
        settings = head.pop('loss_decode')
        assert settings.loss_weight == before.pop('loss_decode').loss_weight
        assert settings.type == ('CrossEntropyLoss' if loss == 'built_in' else 'WeightedCrossEntropyLoss')
        assert settings.get('class_weight', {}).get('scheme') == ('enet' if loss == 'enet' else None)
        sampler = head.pop('sampler', None)
        expected = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=int(0.2 * 192 * 256))
        assert sampler == (expected if loss == 'hard_pixels' else None)
    assert found.model == config.model


@pytest.mark.slow
def test_goes_on_where_it_stopped(compare, demo_folder, capsys, monkeypatch):
    from compare.runs import Run

    monkeypatch.setattr(Run, '_keep', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compare(losses=['built_in'])
    monkeypatch.undo()
    work_dir = demo_folder / WORK / 'built_in-seed0'
    (work_dir / 'iter_2.pth').unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_1.pth'))
    monkeypatch.chdir(demo_folder)

    assert compare(losses=['built_in']) == 0

    log = (work_dir / 'train.log').read_text()
    assert 'resumed epoch' in log
    assert 'Iter(train) [2/2]' in log
    assert 'Iter(train) [1/2]' not in log
    result = json.loads((demo_folder / FOLDER / 'built_in-seed0.json').read_text())
    assert result['training']['step'] == [1, 2]  # of both parts


def result(loss: str, seed: int, confusion, classes=('sky', 'road', 'flag')) -> dict:
    return dict(
        run=dict(config='c.py', options=OPTIONS, loss=loss, seed=seed),
        environment=dict(device='CPU', torch='2', python='3', date='2026-01-01'),
        classes=list(classes),
        confusion=np.asarray(confusion).tolist(),
        training_pixels=[600, 300, 100],
        training=dict(step=[1, 2], loss=[2.0, 1.0]),
        validation=dict(step=[2], mIoU=[1.0], mAcc=[1.0], aAcc=[1.0]),
        seconds_per_iteration=0.5,
        megabytes=900,
    )


def load_results(import_tool, folder):
    import_tool('compare_losses')
    from compare.results import load_results

    return load_results(folder)


BASE = np.array([[90, 10, 0], [0, 50, 0], [5, 4, 1]])
FLAGS_FOUND = np.array([[85, 10, 5], [0, 50, 0], [1, 1, 8]])


def write(folder, *results: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(results):
        (folder / f'{i}.json').write_text(json.dumps(one))


def test_figures_by_hand(import_tool, tmp_path):
    write(tmp_path, *(result('built_in', s, BASE) for s in (0, 1)), *(result('enet', s, FLAGS_FOUND) for s in (1, 0)))

    found = load_results(import_tool, tmp_path)

    assert list(found.outcomes) == ['built_in', 'enet']
    assert found.share.tolist() == [0.6, 0.3, 0.1]
    base = found.outcomes['built_in']
    assert base.seeds == [0, 1]
    np.testing.assert_allclose(base.iou[0], [100 * 90 / 105, 100 * 50 / 64, 100 * 1 / 10])
    np.testing.assert_allclose(base.accuracy[0], [90, 100, 10])
    np.testing.assert_allclose(base.precision[0], [100 * 90 / 95, 100 * 50 / 64, 100])
    np.testing.assert_allclose(base.means['aAcc'], [100 * 141 / 160] * 2)
    np.testing.assert_allclose(found.difference('enet', 'accuracy')[0], [-5, 0, 70])
    assert [name for name, _ in found.always('enet', 'accuracy', +1)] == ['flag']
    assert found.always('enet', 'accuracy', -1) == [('sky', pytest.approx(-5))]


@pytest.mark.parametrize(('seeds', 'shared'), [((0, 1), 1), ((1, 2), 0)])
def test_one_seed_agrees_with_nobody_and_other_seeds_are_not_compared(import_tool, tmp_path, seeds, shared):
    write(tmp_path, result('built_in', 0, BASE), *(result('enet', seed, FLAGS_FOUND) for seed in seeds))

    found = load_results(import_tool, tmp_path)

    assert len(found.difference('enet', 'iou')) == shared
    assert found.always('enet', 'accuracy', +1) == []


def test_a_class_that_never_occurs_has_no_figure_and_spoils_no_mean(import_tool, tmp_path):
    never = np.array([[90, 10, 0], [0, 50, 0], [0, 0, 0]])
    write(tmp_path, result('built_in', 0, never))

    base = load_results(import_tool, tmp_path).base

    assert np.isnan(base.iou[0, 2])
    np.testing.assert_allclose(base.means['mAcc'], [95])


def test_names_cannot_do_anything_in_the_page(import_tool, compare, demo_folder):
    evil = '<script>alert(1)</script>'
    write(demo_folder / FOLDER, result('built_in', 0, BASE, classes=(evil, '$a$', 'flag')))

    assert compare('--report') == 0

    page = (demo_folder / FOLDER).parent.joinpath('report.html').read_text()
    assert evil not in page


def test_result_of_another_training_is_not_taken_for_it(compare, demo_folder, capsys):
    other = result('built_in', 0, BASE)
    (demo_folder / FOLDER).mkdir(parents=True)
    (demo_folder / FOLDER / 'built_in-seed0.json').write_text(json.dumps(other))

    assert compare() == 2
    assert "built_in-seed0.json' is of {'config': 'c.py'" in capsys.readouterr().err


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


def test_errors_before_anything_is_trained(compare, import_tool, root, demo_folder, capsys, monkeypatch):
    assert compare('--report') == 2
    assert 'no training of fast_scnn_1xb4-400_demo-192x256 is done' in capsys.readouterr().err
    tool = import_tool('compare_losses')
    assert tool.main(['missing.py']) == 2
    assert "config file 'missing.py' does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(['missing.py', '--jobs', '0'])
