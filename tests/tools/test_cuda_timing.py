import stat
import time

import fake_cuda
import pytest
import torch


@pytest.fixture
def timing(import_tool, monkeypatch):
    fake_cuda.install(monkeypatch.setattr)
    return import_tool('cuda_timing')


def test_a_function_that_can_be_captured_is_timed_by_its_replays(timing, monkeypatch):
    calls = []
    monkeypatch.setattr(timing, 'capture', lambda function: lambda: calls.append('replay'))
    timer = timing.device_timer(lambda: calls.append('call'))
    calls.clear()

    seconds = timer.sample()

    assert (timer.method, timer.why_events) == ('graph', None)
    assert calls == ['replay'] * (timer.calls + 1)
    assert seconds > 0


def test_a_function_that_waits_is_timed_with_events(timing, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)

    def function():
        if modes[-1:] == ['error']:
            raise RuntimeError('called a synchronizing CUDA operation')

    timer = timing.device_timer(function)

    assert (timer.method, timer.why_events) == ('events', 'it waits for the device')
    assert timer.run is function
    assert modes == ['error', 0]


def test_a_capture_that_fails_leads_to_events_on_the_same_stream(timing, monkeypatch):
    streams, current = [], torch.cuda.current_stream()
    monkeypatch.setattr(torch.cuda, 'set_stream', streams.append)

    timer = timing.device_timer(lambda: None)

    assert timer.why_events == 'it cannot be captured: RuntimeError: no graphs here'
    assert streams == [current]


def test_other_errors_of_a_function_are_raised(timing):
    def function():
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    with pytest.raises(torch.cuda.OutOfMemoryError):
        timing.device_timer(function)


def test_a_sample_is_the_mean_of_calls_that_fill_it(timing, monkeypatch):
    monkeypatch.setattr(timing, 'SAMPLE_SECONDS', 0.1)
    clock = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])

    def function():
        clock[0] += 0.004

    timer = timing.device_timer(function)

    assert timer.calls == 25
    assert timer.sample() == pytest.approx(0.004)


def test_peak_is_that_of_the_last_call_alone(timing, monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: events.append('reset'))

    megabytes = timing.peak_megabytes(lambda: events.append('run'), lambda: events.append('clear'))

    assert events == ['run', 'clear', 'reset', 'run']
    assert megabytes == 5


def test_clocks_are_those_of_nvidia_smi_under_load(timing, monkeypatch, tmp_path):
    program = tmp_path / 'nvidia-smi'
    program.write_text('#!/bin/sh\nsleep 0.2\necho "1755 MHz, 1980 MHz, 3201 MHz, 41, 250.10 W, 570.1"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    loads = []

    clocks = timing.clocks_under_load(lambda: loads.append(1))

    assert clocks['clocks.sm'] == '1755 MHz'
    assert clocks['driver_version'] == '570.1'
    assert loads
    program.write_text('#!/bin/sh\necho "No devices were found"\nexit 6\n')
    assert timing.clocks_under_load(lambda: None) == 'not measured: No devices were found'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_a_step_is_captured_and_one_that_waits_is_not(import_tool):
    timing = import_tool('cuda_timing')
    a = torch.randn(512, 512, device='cuda')
    a @ a

    captured, waiting = timing.device_timer(lambda: a @ a), timing.device_timer(lambda: (a @ a).sum().item())

    assert (captured.method, waiting.method) == ('graph', 'events')
    assert 0 < captured.sample() < 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
