import json

import matplotlib.pyplot as plt
import pytest


def test_demo_from_scenes_to_picture(import_tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    import_tool('demo').main(['--iterations', '2', '--images', '20'])

    output = capsys.readouterr().out
    for word in ('flag', 'mean', 'built-in', 'weighted', 'work_dirs/demo/report.png'):
        assert word in output
    weights = json.loads((tmp_path / 'data/demo_scenes/class_weight.json').read_text())
    assert len(weights) == 10
    assert weights[9] > weights[0]  # a flag is rarer than the sky
    picture = plt.imread(tmp_path / 'work_dirs/demo/report.png')
    assert picture.shape[1] > picture.shape[0] > 500
    assert picture[..., :3].std() > 0.1


def test_failed_training_shows_the_end_of_its_log(import_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without data

    with pytest.raises(SystemExit, match=r"(?s)train\.log:\n.*data_root 'data/demo_scenes' does not exist"):
        import_tool('demo').train('built-in', iterations=1)
