import re

import pytest
import torch


@pytest.mark.slow
def test_no_fault_changes_the_result(import_tool, shared_data, capsys):
    faults = import_tool('faults')

    status = faults.main(['--kills', '4', '--camvid', str(shared_data / 'camvid')])

    table = capsys.readouterr().out
    assert status == 0
    assert table.count('| the same bits |') == 9
    rows = table.replace('| nothing |', '| 0 iterations |')
    lost = [int(number) for number in re.findall(r'\| (\d+) iterations? \|', rows)]
    assert len(lost) == 9
    assert max(lost) <= 2 * faults.INTERVAL + 1  # the one before a damaged checkpoint
    assert "'disk/iter_15.pth' was not written completely" in table
    assert "'writing/iter_15.pth': it is damaged, or no checkpoint" in table
    assert 'OSError: [Errno 27] File too large. The training stopped.' in table
    assert (
        'failed to load image: data/demo_scenes/images/training/demo_training_0003.jpg. The training stopped' in table
    )
    assert "of 'data/demo_scenes/annotations/training/demo_training_0003.png'" in table


def test_same_means_to_the_last_bit(import_tool):
    same = import_tool('faults').same
    state = dict(a=torch.ones(3), b=[1, (2.0, torch.zeros(2))])

    assert same(state, dict(a=torch.ones(3), b=[1, (2.0, torch.zeros(2))]))
    assert not same(state, dict(a=torch.ones(3), b=[1, (2.0, torch.zeros(2) + 1e-30)]))
    assert not same(state, dict(a=torch.ones(3)))
