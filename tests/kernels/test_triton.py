import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ways import CUDA, Way, assert_equal_to_pytorch, assert_far_apart_is_the_same

triton = pytest.importorskip('mmseg_wce.kernels.triton', reason='the package triton is not installed')

TRITON = Way('triton', 'cuda' if CUDA else 'cpu')
TILES = dict(
    default=triton.Tiles(),
    small=triton.Tiles(lanes=2, forward_columns=16, channels=16, columns=16, input_rows=2),
    wide=triton.Tiles(lanes=64, forward_columns=32, channels=32, columns=128, input_columns=32, input_rows=3),
)


@pytest.mark.parametrize('tiles', list(TILES))
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
    ('nodes', 'pixels'), [((4, 18), (12, 54)), ((5, 7), (13, 41)), ((9, 8), (5, 4)), ((2, 1), (20, 9))]
)
def test_tiles_are_only_a_matter_of_speed(tiles, nodes, pixels, align_corners, monkeypatch):
    monkeypatch.setattr(triton, 'TILES', TILES[tiles])

    assert_equal_to_pytorch(TRITON, *TRITON.problem(18, nodes, pixels, images=1), align_corners)


@pytest.mark.parametrize('tiles', list(TILES))
def test_tiles_where_nothing_is_resized(tiles, monkeypatch):
    monkeypatch.setattr(triton, 'TILES', TILES[tiles])

    assert_equal_to_pytorch(TRITON, *TRITON.problem(21, (3, 45), (3, 45)))


@pytest.mark.parametrize('tiles', list(TILES))
@pytest.mark.parametrize('pixels', [(4, 4), (8, 8)])
def test_tiles_and_offsets_beyond_32_bits(tiles, pixels, monkeypatch):
    monkeypatch.setattr(triton, 'TILES', TILES[tiles])

    assert_far_apart_is_the_same(TRITON, pixels)


@pytest.mark.parametrize(
    ('nodes', 'pixels', 'align_corners', 'rows', 'owned'),
    [
        (128, 512, False, 4, 15),
        (128, 512, True, 4, 14),
        (64, 512, False, 8, 15),
        (128, 474, False, 4, 16),
        (256, 512, False, 2, 16),
        (128, 32, False, 1, 16),
        (1, 512, False, 8, 16),
    ],
)
def test_choice_of_tiles(nodes, pixels, align_corners, rows, owned):
    assert triton._rows_at_once(nodes, pixels, align_corners, 8) == rows
    assert triton._owned_columns(nodes, pixels, align_corners, 16, 64) == owned


@pytest.mark.parametrize('capability', [pytest.param(80, marks=pytest.mark.slow), 90])
def test_kernels_compile_for_gpus(capability):
    """Check what the interpreter does not: types, layouts, and registers spilled to memory."""
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    script = Path(__file__).parent / 'compile_triton.py'
    found = subprocess.run(
        [sys.executable, '-W', 'ignore', script, str(capability)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert found.returncode == 0, found.stderr
    kernels = [json.loads(line) for line in found.stdout.splitlines() if line.startswith('{')]
    assert len(kernels) == 54
    usual = [kernel for kernel in kernels if not kernel['fine']]  # the others rarely do more than look if they have to
    assert all(kernel['stack'] <= 320 for kernel in usual), kernels  # bytes: some spills outside the inner loops
