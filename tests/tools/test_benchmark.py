import json
from functools import cache, partial

import pytest
import torch


@pytest.fixture
def benchmark(import_tool, monkeypatch):
    tool = import_tool('benchmark_wall_time')
    small = tool.Case('small', 1, 7, (8, 8), (32, 32))
    monkeypatch.setitem(tool.CASES, 'binary', small)
    # each memory is measured in a process of its own, which imports torch and mmseg: one is enough
    measure = cache(partial(tool.extra_megabytes, 'mmseg_wce', small, 'cpu'))
    monkeypatch.setattr(tool, 'extra_megabytes', lambda *_: measure())
    return tool


def test_table_results_and_pictures(benchmark, tmp_path, capsys):
    arguments = ['--cases', 'binary', '--ways', 'built-in', 'checkpointed', 'mmseg_wce', '--rounds', '1']

    benchmark.main([*arguments, '--models', '--photos', '--crops', '64', '--out', str(tmp_path)])

    results = json.loads((tmp_path / 'benchmark.json').read_text())
    (case,) = results['cases']
    assert list(case['ways']) == ['built-in', 'checkpointed', 'mmseg_wce']
    for way in case['ways'].values():
        assert way['both']['median'] > 0
        assert way['megabytes'] is None or way['megabytes'] >= 0
    assert 0 < case['floor'] < case['ways']['mmseg_wce']['both']['median']
    assert results['environment']['torch'] == torch.__version__
    assert results['crops'][0]['crop'] == 64
    assert all((tmp_path / name).stat().st_size > 1000 for name in ('times.png', 'memory.png'))
    output = capsys.readouterr().out
    assert 'against' in output
    assert 'checkpointed'[:6] in output


def test_all_ways_agree(import_tool):
    ways = import_tool('benchmark_implementations')
    case = ways.Case('small', 2, 7, (8, 8), (30, 33))
    found = {}
    for name, way in ways.IMPLEMENTATIONS.items():
        if way.by_default and name != 'compiled':  # plain, but it needs a compiler
            step = ways.Step(name, case, 'cpu')
            step.forward()
            step.backward()
            found[name] = step.loss.detach(), step.logits.grad
    logits, target = case.make('cpu')
    plain_loss, plain_accuracy = ways.plain(logits, target, case)

    for name in ('checkpointed', 'mmseg_wce'):
        torch.testing.assert_close(found[name][0], plain_loss)
    torch.testing.assert_close(found['mmseg_wce'][1], found['checkpointed'][1])
    # mmseg's default mean counts ignored pixels
    share = (target != 255).float().mean()
    torch.testing.assert_close(found['built-in'][0], plain_loss * share)
    torch.testing.assert_close(found['built-in'][1], found['mmseg_wce'][1] * share)
    _, accuracy = ways.ours(logits, target, case)
    torch.testing.assert_close(accuracy, plain_accuracy)


@pytest.mark.parametrize('classes', [1, 7])
def test_ways_with_sigmoids_agree(import_tool, classes):
    ways = import_tool('benchmark_implementations')
    case, found = ways.Case('small', 2, classes, (8, 8), (30, 33)), []
    for name in ('built-in, sigmoid', 'mmseg_wce, sigmoid'):
        step = ways.Step(name, case, 'cpu')
        step.forward()
        step.backward()
        found.append((step.loss.detach(), step.logits.grad))

    torch.testing.assert_close(*found)


def test_ways_with_sigmoids_are_measured_when_asked(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, 'extra_megabytes', lambda *_: None)
    arguments = ['--cases', 'binary', '--ways', 'built-in, sigmoid', 'mmseg_wce, sigmoid', '--rounds', '1']

    benchmark.main([*arguments, '--models', '--photos', '--crops', '--out', str(tmp_path)])

    (case,) = json.loads((tmp_path / 'benchmark.json').read_text())['cases']
    assert list(case['ways']) == ['built-in, sigmoid', 'mmseg_wce, sigmoid']


def test_predictions_are_measured(benchmark, import_tool, monkeypatch, tmp_path, capsys):
    tool = benchmark
    sizes = dict(logits=(8, 8), tested=(32, 32), original=(48, 40))
    monkeypatch.setitem(tool.PHOTOS, 'photo', tool.Photo('a photo', **sizes))
    monkeypatch.setitem(tool.PHOTOS, 'slide', tool.Photo('a large photo', **sizes, crop=(16, 16), stride=(8, 8)))
    monkeypatch.setattr(
        tool, 'implementations_for', lambda photo: ['built-in', 'mmseg_wce', 'mmseg_wce, with the loss']
    )
    megabytes = import_tool('memory').extra_megabytes('mmseg_wce', tool.PHOTOS['slide'], 'cpu')
    assert megabytes is None or megabytes >= 0
    monkeypatch.setattr(tool, 'extra_megabytes', lambda *_: megabytes)
    arguments = ['--cases', 'one-image', '--ways', 'built-in', '--rounds', '1', '--models', '--crops']

    tool.main([*arguments, '--photos', 'photo', 'slide', '--out', str(tmp_path)])

    found = json.loads((tmp_path / 'benchmark.json').read_text())['predictions']
    assert [result['case'] for result in found] == ['a photo', 'a large photo']
    for result in found:
        assert list(result['ways']) == ['built-in', 'mmseg_wce', 'mmseg_wce, with the loss']
        assert all(way['median'] > 0 for way in result['ways'].values())
    assert '| a large photo | ' in (tmp_path / 'benchmark.md').read_text()
    assert 'Prediction after the network: a photo' in capsys.readouterr().out


@pytest.mark.parametrize('key', ['photo', 'slide'])
def test_all_ways_predict_the_same(import_tool, key):
    tool = import_tool('benchmark_predictions')
    crop, stride = ((16, 16), (8, 8)) if key == 'slide' else (None, None)
    photo = tool.Photo('small', (8, 8), (32, 32), (48, 40), crop, stride)
    found = []
    for way in tool.implementations_for(photo):
        step = tool.Prediction(way, photo, 'cpu')
        if way == 'compiled':
            found.append(step.plain(step.model.decode_head(None)))
        else:
            found.append(step.run()[0].pred_sem_seg.data)

    assert len(found) == len(tool.implementations_for(photo))
    assert all(torch.equal(one, found[0]) for one in found)


def test_cuda_without_a_device_is_an_error(import_tool, tmp_path):
    if torch.cuda.is_available():
        pytest.skip('this machine has a CUDA device')

    with pytest.raises(SystemExit, match='error: --device cuda needs a CUDA device'):
        import_tool('benchmark').main(['--device', 'cuda', '--json', str(tmp_path / 'results.json')])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(('device', 'option'), [('cpu', '--largest-built-in-crop'), ('cuda', '--seconds')])
def test_help_is_that_of_the_device(import_tool, device, option, capsys):
    with pytest.raises(SystemExit, match='0'):
        import_tool('benchmark').main(['--device', device, '--help'])

    output = capsys.readouterr().out
    assert f'Those of {device}:' in output
    assert option in output


def test_cuda_without_triton_is_an_error(import_tool, monkeypatch):
    tool = import_tool('benchmark')
    monkeypatch.setattr(tool, 'find_spec', lambda name: None)

    with pytest.raises(SystemExit, match='error: --device cuda needs Triton'):
        tool.main(['--device', 'cuda'])
