import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import torch
from mmseg_wce.kernels import resized, same_size
from mmseg_wce.kernels.workers import run, scratch, script

CPU = torch.device('cpu')


def spread(function, jobs):
    return run(function, jobs, CPU, spread=True)


def test_results_come_in_the_order_of_the_jobs():
    assert spread(lambda i: i * i, range(50)) == [i * i for i in range(50)]
    assert spread(lambda i: i, []) == []


def test_every_worker_computes_alone_and_nobody_else_does():
    before = torch.get_num_threads()
    elsewhere = []

    inside = spread(lambda _: torch.get_num_threads(), range(8))
    torch.randn(1 << 20).sum()  # a thread settles its number with its first parallel operation
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()

    assert set(inside) == {1}
    assert torch.get_num_threads() == elsewhere[0] == before


def test_as_many_threads_as_pytorch_has():
    before = torch.get_num_threads()
    barrier = threading.Barrier(3)

    def job(_):
        barrier.wait(timeout=10)
        return threading.get_ident()

    torch.set_num_threads(3)
    try:
        assert len(Counter(spread(job, range(3)))) == 3
    finally:
        torch.set_num_threads(before)


def test_denormals_are_zero_in_the_workers_only():
    tiny = torch.full((64,), 1e-30)

    assert spread(lambda _: (tiny * 1e-10).sum().item(), [0]) == [0.0]
    assert (tiny * 1e-10).sum() > 0


@pytest.mark.parametrize('alone', [True, False])
def test_without_gradients_and_autocast(alone):
    weight = torch.ones(4, 4, requires_grad=True)

    with torch.autocast('cpu', dtype=torch.bfloat16):
        ((dtype, needs_gradient),) = run(
            lambda _: ((weight @ weight).dtype, (weight @ weight).requires_grad), [0], CPU, spread=not alone
        )

    assert dtype == torch.float32
    assert not needs_gradient


def test_exceptions_arrive():
    def job(i):
        if i == 3:
            raise KeyError(i)

    with pytest.raises(KeyError):
        spread(job, range(8))
    assert spread(lambda i: i, range(3)) == [0, 1, 2]


def test_an_exception_ends_the_other_jobs():
    done = []

    def job(i):
        if i == 0:
            raise KeyError(i)
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(KeyError):
        spread(job, range(100))
    spread(lambda i: i, range(4))
    assert len(done) < 20


def test_threads_that_cannot_start_leave_nothing_behind(monkeypatch):
    before, start = torch.get_num_threads(), threading.Thread.start
    started = []

    def start_few(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    torch.set_num_threads(5)
    try:
        monkeypatch.setattr(threading.Thread, 'start', start_few)
        with pytest.raises(RuntimeError, match='start new thread'):
            spread(lambda i: i, range(8))
        monkeypatch.undo()
        for thread in started:
            thread.join(timeout=10)
        assert not any(thread.is_alive() for thread in started)
        assert torch.get_num_threads() == 5
        assert spread(lambda i: i, range(8)) == list(range(8))
    finally:
        torch.set_num_threads(before)


def test_scratch_is_kept_by_workers_only():
    def address(_):
        return scratch('test', (100,), torch.float32, CPU).data_ptr()

    assert len(set(run(address, range(4), CPU, spread=True))) <= torch.get_num_threads()
    first, second = (scratch('test', (2, 3), torch.float32, CPU) for _ in range(2))
    assert first.data_ptr() != second.data_ptr()


def test_what_torchscript_does_not_take_runs_all_the_same():
    def unscriptable(x):
        import math

        return math.floor(x)

    with pytest.warns(UserWarning, match='TorchScript does not take unscriptable'):
        function = script(unscriptable)

    assert function(3.5) == 3


def test_all_of_the_strips_are_torchscript():
    for function in (
        resized.measure_band,
        resized.differentiate_band,
        same_size.measure_columns,
        same_size.differentiate_columns,
    ):
        assert isinstance(script(function), torch.jit.ScriptFunction)


LOSS = (
    'import torch\n'
    'from mmseg_wce.kernels import pixel_nll\n'
    'torch.manual_seed(0)\n'
    'z, y = torch.randn(2, 19, 20, 20, requires_grad=True), torch.randint(0, 19, (2, 80, 80))\n'
    'def value():\n'
    '    nll = pixel_nll(z, y, ignore_index=255)[0]\n'
    '    return nll.sum().item(), torch.autograd.grad(nll.sum(), z)[0].double().square().sum().item()\n'
)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_works_in_a_forked_child():
    code = LOSS + (
        'import os\n'
        'before = value()\n'
        'child = os.fork()\n'
        'if child == 0: os._exit(0 if value() == before else 1)\n'
        'assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n'
        'assert value() == before\n'
    )

    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, timeout=120)


def test_the_same_without_torchscript():
    outputs = [
        subprocess.run(
            [sys.executable, '-c', LOSS + 'print(value())'],
            env={**os.environ, 'PYTORCH_JIT': jit},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for jit in ('0', '1')
    ]

    assert outputs[0] == outputs[1] != ''
