import pytest

CONFIG = 'configs/demo/fast_scnn_1xb4-wce-400_demo-192x256.py'
IN_THIS_PROCESS = ['--cfg-options', 'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False']


@pytest.fixture
def tool(import_tool, demo_folder):
    return import_tool('compare_predictions')


def test_every_way_predicts_the_same(tool, root, monkeypatch, capsys):
    def here(way, arguments):
        return tool.validate(way, tool.load_config(arguments[0], options), None, 2)

    options = {'val_dataloader.num_workers': 0, 'val_dataloader.persistent_workers': False}
    monkeypatch.setattr(tool, 'run_in_process', here)
    monkeypatch.setattr(tool, 'HAS_HIGH_WATER_MARK', False)

    assert tool.main([str(root / CONFIG), *IN_THIS_PROCESS]) == 0

    rows = [line.split('│') for line in capsys.readouterr().out.splitlines() if '│' in line]
    columns = zip(*([cell.strip() for cell in row[1:-1]] for row in rows), strict=True)
    names, differ, classes, _, _, mean_iou, loss = map(list, columns)
    assert names == list(tool.IMPLEMENTATIONS)
    assert differ == ['0'] * 3
    assert int(classes[0]) > 1
    assert mean_iou == mean_iou[:1] * 3
    assert loss[:2] == ['', '']
    assert float(loss[2]) > 0


def test_predictions_that_differ_are_counted(tool, root, monkeypatch, capsys):
    result = dict(hashes=['a', 'b'], classes=3, seconds=1.0, megabytes=None, metrics={})
    results = dict.fromkeys(tool.IMPLEMENTATIONS, result) | {tool.IMPLEMENTATIONS[1]: result | dict(hashes=['a', 'c'])}
    monkeypatch.setattr(tool, 'run_in_process', lambda way, *_: results[way])

    assert tool.main([str(root / CONFIG)]) == 1

    rows = [line.split('│') for line in capsys.readouterr().out.splitlines() if '│' in line]
    assert [cells[2].strip() for cells in rows] == ['0', '1', '0']


def test_a_process_for_each_way(tool, root, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'IMPLEMENTATIONS', tool.IMPLEMENTATIONS[1:2])

    assert tool.main([str(root / CONFIG), '--images', '1', *IN_THIS_PROCESS]) == 0

    assert 'FusedPredictHook' in capsys.readouterr().out


def test_a_missing_checkpoint(tool, root):
    with pytest.raises(SystemExit, match=r"error: .*'nowhere\.pth'"):
        tool.main([str(root / CONFIG), '--checkpoint', 'nowhere.pth'])


def test_a_config_of_mmseg_by_its_name_and_one_name_of_several(tool, shared_data, capsys):
    data = f'val_dataloader.dataset.data_root={shared_data / "ade20k_sample"}'

    with pytest.raises(SystemExit, match=r"error: 'mmseg::fcn/\*ade20k\*' is the name of \d configs: choose one"):
        tool.main(['mmseg::fcn/*ade20k*', '--cfg-options', data])
    with pytest.raises(SystemExit, match='2'):
        tool.main(['mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512', '--images', '0', '--cfg-options', data])
    assert '--images must be at least 1, got 0' in capsys.readouterr().err
    arguments = ['--checkpoint', 'nowhere.pth', '--cfg-options', data]
    with pytest.raises(SystemExit, match=r"error: checkpoint 'nowhere\.pth'"):
        tool.main(['mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512', *arguments])
