import json

import pytest


def test_slope_is_of_what_comes_after_the_warm_up(import_tool):
    slope = import_tool('soak').slope

    assert slope([5.0] * 50 + [700.0] * 50) == pytest.approx(0, abs=1e-6)
    assert slope([700 + 0.01 * i for i in range(100)]) == pytest.approx(10)


@pytest.mark.slow
def test_memory_stays_flat(import_tool, tmp_path, capsys):
    status = import_tool('soak').main(['--out', str(tmp_path / 'soak.json')])

    assert status == 0, capsys.readouterr().out[-300:]
    assert len(json.loads((tmp_path / 'soak.json').read_text())['losses']) == 2000
