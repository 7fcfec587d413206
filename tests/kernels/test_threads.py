import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('numba')
from fresh_process import WITHOUT_MMSEG
from mmseg_wce.kernels.cpu.threads import _pool, run

MANY = 1 << 30  # exponentials: worth any number of threads


@pytest.mark.parametrize('pieces', [1, 2, 7, 100])
@pytest.mark.parametrize('threads', [1, 2, 3])
def test_every_piece_is_done_once(pieces, threads, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    done = []

    run(lambda first, last: done.extend(range(first, last)), pieces, MANY)

    assert sorted(done) == list(range(pieces))


def test_little_work_stays_in_the_calling_thread():
    found = []

    run(lambda first, last: found.append((threading.get_ident(), first, last)), 50, 1000)

    assert found == [(threading.get_ident(), 0, 50)]


def test_threads_are_kept_where_calls_are_worth_different_numbers_of_them(monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 4)
    run(lambda first, last: None, 100, MANY)
    started = _pool.cache_info().misses

    for work in (MANY, 1 << 19, MANY):
        run(lambda first, last: None, 100, work)

    assert _pool.cache_info().misses == started


def test_pieces_of_threads_that_did_start_are_waited_for_where_another_cannot(monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)
    pool, calls, done = ThreadPoolExecutor(1), [], []

    def submit(take):
        calls.append(take)
        if len(calls) > 1:
            raise RuntimeError("can't start new thread")
        return pool.submit(take)

    monkeypatch.setattr('mmseg_wce.kernels.cpu.threads._pool', lambda *_: SimpleNamespace(submit=submit))
    caller = threading.get_ident()

    def kernel(first, last):
        time.sleep(0.05 if threading.get_ident() != caller else 0.005)
        done.extend(range(first, last))

    run(kernel, 24, MANY)

    assert sorted(done) == list(range(24))


def test_an_exception_of_one_thread_ends_the_others_and_is_raised(monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    started = []

    def kernel(first, last):
        started.append(first)
        raise KeyError(first)

    with pytest.raises(KeyError):
        run(kernel, 1000, MANY)
    assert len(started) <= 2


def test_nothing_of_pytorch_is_changed():
    before = torch.get_num_threads()
    elsewhere = []

    run(lambda first, last: None, 100, MANY)
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()

    assert torch.get_num_threads() == elsewhere[0] == before


# Worth two threads of ours, and too small for those of PyTorch, whose OpenMP hangs in a forked child.
LOSS = WITHOUT_MMSEG + (
    'import torch\n'
    'from mmseg_wce.kernels import pixel_nll\n'
    'torch.manual_seed(0)\n'
    'z, y = torch.randn(2, 19, 28, 28, requires_grad=True), torch.randint(0, 19, (2, 120, 120))\n'
    'def value():\n'
    '    nll = pixel_nll(z, y, ignore_index=255)[0]\n'
    '    return nll.sum().item(), torch.autograd.grad(nll.sum(), z)[0].double().square().sum().item()\n'
)


def run_code(code: str, **environment: str) -> None:
    environment = {**os.environ, 'OMP_NUM_THREADS': '2', **environment}
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=environment, check=True, timeout=300)


FORKED = (
    'import os\n'
    'if hasattr(os, "fork"):\n'
    '    child = os.fork()\n'
    '    if child == 0: os._exit(0 if value() == expected else 1)\n'
    '    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "in a forked child"\n'
    '    assert value() == expected, "in its parent, afterwards"\n'
)
TWO_THREADS = (
    'from concurrent.futures import ThreadPoolExecutor\n'
    'with ThreadPoolExecutor(2) as pool:\n'
    '    found = [f.result() for f in [pool.submit(value) for _ in range(8)]]\n'
    'assert found == [expected] * 8, "in two threads at once"\n'
)
WHILE_THE_INTERPRETER_ENDS = (
    'import atexit\n'
    'def last():\n'
    '    try: os._exit(0 if value() == expected else 1)\n'
    '    finally: os._exit(2)\n'
    'atexit.register(last)\n'
)


def test_works_in_a_forked_child_in_two_threads_and_while_the_interpreter_ends():
    """In one process, in this order: that of a data loader, of a server, and of an exit handler."""
    run_code(LOSS + 'expected = value()\n' + FORKED + TWO_THREADS + WHILE_THE_INTERPRETER_ENDS)


def test_works_in_spawned_workers(tmp_path):
    (tmp_path / 'of_workers.py').write_text(LOSS)
    run_code(
        'import multiprocessing, of_workers\n'
        'if __name__ == "__main__":\n'
        '    with multiprocessing.get_context("spawn").Pool(2) as pool:\n'
        '        assert pool.starmap(of_workers.value, [()] * 2) == [of_workers.value()] * 2\n',
        PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])]),
    )


@pytest.mark.slow
def test_ranks_that_compile_at_once(tmp_path):
    """With an empty cache, as in the first training on a machine."""
    environment = {**os.environ, 'NUMBA_CACHE_DIR': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    code = LOSS + 'print(value())\n'
    ranks = [
        subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [rank.communicate(timeout=300)[0] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0]
    assert answers[0] == answers[1] != ''
