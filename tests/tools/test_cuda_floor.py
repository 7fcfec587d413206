from types import SimpleNamespace

import fake_cuda
import pytest
import torch


@pytest.fixture
def tool(import_tool):
    return import_tool('cuda_floor')


def test_exponentials_are_computed_as_often_as_they_are_counted(tool, monkeypatch):
    monkeypatch.setattr(tool, 'ROUNDS', 5)
    monkeypatch.setattr(tool, 'BLOCK', 64)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    out = torch.zeros(128, device=device)

    tool.repeat_exp2(out)

    expected = torch.arange(128, device=device) % 32 / 32
    for _ in range(5):
        expected = torch.exp2(-expected)
    torch.testing.assert_close(out, expected)


def test_rates_are_what_was_computed_over_its_time(tool, monkeypatch):
    fake_cuda.install(monkeypatch.setattr)
    monkeypatch.setattr(tool, 'repeat_exp2', lambda out: None)
    seconds = iter([0.5, 0.75, 0.25])  # of a copy, of a kernel that moves as much, of exponentials

    def timer(function):
        value = next(seconds)
        return SimpleNamespace(sample=lambda: value)

    monkeypatch.setattr(tool, 'device_timer', timer)
    monkeypatch.setattr(tool, 'clocks_under_load', lambda load: 'not measured')

    rates, clocks = tool.measure_rates('cpu')

    assert rates.copied_bytes == 2 * (1 << 17) / 0.5  # an eighth of the free memory, read and written
    assert rates.exponentials == tool.ROUNDS * tool.BLOCK * tool.PROGRAMS_PER_MULTIPROCESSOR / 0.25
    assert clocks == 'not measured'


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
def test_floor_of_a_case_by_hand(tool, dtype, size):
    case = tool.Case('', 8, 150, (128, 128), (512, 512), dtype)

    found = tool.floor(case, tool.Rates(copied_bytes=4e12, exponentials=3e12))

    # four exponentials for each of 129 x 129 cells, forward and backward
    assert found['exponentials'] == 2 * 4 * 8 * 150 * 129 * 129
    # logits twice and their gradient; of every pixel in both sweeps the label and one float32
    moved = 3 * size * 8 * 150 * 128 * 128 + 2 * (8 + 4) * 8 * 512 * 512
    assert sum(sum(tensors.values()) for tensors in found['bytes'].values()) == moved
    assert found['seconds_of'] == dict(exponentials=found['exponentials'] / 3e12, bytes=moved / 4e12)
    assert found['seconds'] == max(found['seconds_of'].values())


def test_there_are_no_more_exponentials_than_pairs(tool):
    case = tool.Case('', 2, 3, (16, 16), (17, 17))

    assert tool.floor(case, tool.Rates(1, 1))['exponentials'] == 2 * 2 * 3 * 17 * 17
