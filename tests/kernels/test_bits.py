"""What does not change a bit of the results: autocast, PyTorch's deterministic mode, another process."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fresh_process import WITHOUT_MMSEG
from mmseg_wce.functional import weighted_cross_entropy
from mmseg_wce.kernels.backends import has_triton
from ways import CUDA, Way, every_way, fused, resize

# Classes, nodes, pixels: resized and not; then to less, and with two classes.
PROBLEMS = [(19, (6, 7), (13, 28)), (19, (6, 7), (6, 7)), (5, (12, 13), (5, 6)), (2, (6, 7), (6, 7))]


def results(way: Way, classes: int, nodes: tuple, pixels: tuple, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Maps, loss and gradient, with label smoothing: all that a back end computes."""
    logits, target, weight = way.problem(classes, nodes, pixels, dtype)
    logits.requires_grad_()
    maps = way(logits, target, smoothing_weight=weight)
    loss = weighted_cross_entropy(logits, target, weight, label_smoothing=0.1, pixels=maps)
    (gradient,) = torch.autograd.grad(loss, logits)
    names = 'nll', 'smooth', 'correct', 'loss', 'gradient'
    return {name: x.detach() for name, x in zip(names, (*maps, loss, gradient), strict=True)}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []


@every_way
@pytest.mark.parametrize(
    ('problem', 'autocast', 'dtype'),
    [(PROBLEMS[0], torch.float16, torch.float16), (PROBLEMS[1], torch.bfloat16, torch.float32)],
)
def test_same_bits_under_autocast(way, problem, autocast, dtype):
    """The backward sweep as well, which is under autocast where activations are checkpointed."""
    expected = results(way, *problem, dtype)

    with torch.autocast(way.device, autocast):
        found = results(way, *problem, dtype)

    assert_same_bits(found, expected)


@pytest.fixture
def determinism(monkeypatch):
    """The switch, which is off again afterwards."""
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # PyTorch wants it before it multiplies matrices on CUDA
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@fused
@pytest.mark.parametrize('problem', PROBLEMS)
def test_same_bits_with_deterministic_algorithms(way, problem, determinism):
    """PyTorch refuses none of the operations. It also fills memory that was not written yet with NaN."""
    expected = results(way, *problem)

    determinism(True)
    assert torch.empty(3).isnan().all()
    found = results(way, *problem)

    assert_same_bits(found, expected)


@pytest.mark.parametrize('problem', PROBLEMS)
def test_the_reference_with_deterministic_algorithms(problem, determinism):
    """On CUDA PyTorch upsamples in another way then."""
    way = Way('reference', 'cuda' if CUDA else 'cpu')
    expected = results(way, *problem)

    determinism(True)

    torch.testing.assert_close(results(way, *problem), expected)


@pytest.mark.skipif(not CUDA, reason='needs a GPU')
def test_pytorchs_loss_is_refused_with_deterministic_algorithms(determinism):
    """If this fails, PyTorch has made it deterministic."""
    logits, target, weight = Way('slabs', 'cuda').problem(dtype=torch.float32)
    determinism(True)

    with pytest.raises(RuntimeError, match='does not have a deterministic implementation'):
        F.cross_entropy(resize(logits, target.shape[1:]), target, weight, ignore_index=255)


def hashes() -> dict[str, str]:
    """Return a digest of the results of every back end in this process."""
    ways = [Way('cpu', 'cpu'), Way('slabs', 'cpu'), Way('reference', 'cpu')]
    if has_triton():
        ways.append(Way('triton', 'cuda' if CUDA else 'cpu'))
    return {
        f'{way.backend} {problem} {name}': hashlib.sha256(result.cpu().numpy().tobytes()).hexdigest()
        for way in ways
        for problem in PROBLEMS[: 2 if way.backend == 'triton' else None]
        for name, result in results(way, *problem).items()
    }


def test_same_bits_in_another_process(tmp_path):
    answer = tmp_path / 'hashes.json'  # a file: the fork prints a line of its own while it is imported
    code = WITHOUT_MMSEG + 'import json, sys, test_bits; json.dump(test_bits.hashes(), open(sys.argv[1], "w"))'
    folders = map(str, Path(__file__).parents[:2])
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': str(torch.get_num_threads())}

    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(answer)], env=environment, check=True)

    elsewhere = json.loads(answer.read_text())
    assert len(elsewhere) == 5 * (12 + 2 * has_triton())
    assert elsewhere == hashes()
