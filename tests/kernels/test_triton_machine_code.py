"""The machine code of the Triton kernels: registers, stack, instructions, and when they are compiled anew.

No GPU is needed: compile_triton.py compiles what the back end launches. triton_machine_code.json has what it found.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('triton', reason='the package triton is not installed')
from machine_code import VERSION, flat, inner_loops, read_table

SCRIPT = Path(__file__).with_name('compile_triton.py')
SLACK = 1.05  # small changes of a kernel move its figures by a few percent
STACK_SLACK = 32  # bytes
# cases of other sizes or numbers of classes, for which nothing is compiled
NOTHING_NEW = ('scale 4, 19 classes', 'scale 4, other sizes', 'any scale, other sizes', 'same size, other sizes')
# For every version of Triton. Kernels that compute in float64 are left out: usually they return at once.
MOST_STACK = 512  # bytes
MOST_STACK_AT_SCALE_4 = 64
MOST_INSTRUCTIONS_PER_PAIR = {'scale 4: measure_blocks': 9.0, 'scale 4: differentiate_blocks': 14.0}


@pytest.mark.parametrize(
    ('chip', 'cases'),
    [
        (90, ['--quick']),
        pytest.param(80, [], marks=pytest.mark.slow),
        pytest.param(90, [], marks=pytest.mark.slow),
        pytest.param(100, [], marks=pytest.mark.slow),
    ],
)
def test_machine_code(chip, cases):
    found = compiled('--chips', str(chip), *cases)

    # add_up loads several numbers at once where the number of pixels is divisible by 16
    anew = [kernel for case in NOTHING_NEW for kernel in found[case] if kernel != 'add_up']
    assert not anew, 'kernels are compiled anew'
    problems = [problem for name, kernel in flat(found).items() for problem in beyond_bars(name, kernel)]
    known = read_table().get(VERSION, {}).get(f'sm_{chip}')
    if known is not None:
        problems += worse_than(flat(found), flat({case: known.get(case, {}) for case in found}))
    advice = f'if this is intended: python tests/kernels/{SCRIPT.name} --write'
    assert not problems, '\n'.join([*problems, advice])


def compiled(*arguments: str) -> dict:
    """Run the script where Triton compiles, not in its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    command = [sys.executable, str(SCRIPT), '--json', *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])  # a fork of mmengine prints lines when it is imported


def beyond_bars(name: str, kernel: dict[str, int]) -> list[str]:
    """Return what is beyond the limits that hold for every version of Triton."""
    problems = []
    most = MOST_STACK_AT_SCALE_4 if name.startswith('scale 4: ') else MOST_STACK
    if 'FINE' not in name and 'float64' not in name and kernel['stack'] > most:
        problems.append(f'{name}: {kernel["stack"]} bytes of stack, at most {most}')
    if most := MOST_INSTRUCTIONS_PER_PAIR.get(name):
        per_pair = kernel['instructions'] / kernel['pairs']
        if per_pair > most:
            problems.append(f'{name}: {per_pair:.2f} instructions for a pixel and class, at most {most}')
    return problems


def worse_than(found: dict[str, dict[str, int]], known: dict[str, dict[str, int]]) -> list[str]:
    """Return which kernels need more than the table says, or are not in both."""
    problems = [f'{name}: only compiled, or only in the table' for name in found.keys() ^ known.keys()]
    for name in found.keys() & known.keys():
        most = {key: value * SLACK for key, value in rates(known[name]).items()}
        most['stack'] = known[name]['stack'] + STACK_SLACK
        for key, value in rates(found[name]).items():
            if key not in most or value > most[key]:
                problems.append(f'{name}: {key} {value:g}, the table has {rates(known[name]).get(key, "none")}')
    return problems


def rates(kernel: dict[str, int]) -> dict[str, float]:
    """Return the figures of a kernel, those of its loop for a pair of a pixel and a class."""
    figures = {key: kernel[key] for key in ('registers', 'stack', 'shared')}
    if 'pairs' in kernel:
        figures |= {f'{key} per pair': kernel[key] / kernel['pairs'] for key in ('instructions', 'exponentials')}
    return figures


@pytest.mark.parametrize(
    ('changes', 'problem'),
    [
        (dict(registers=101), 'registers 101'),
        (dict(stack=40), 'stack 40'),
        (dict(instructions=140), 'instructions per pair 8.75'),
        (dict(exponentials=5), 'exponentials per pair 0.3125'),
        (dict(registers=99, stack=16, instructions=135), None),
        (dict(registers=50, instructions=100), None),
    ],
)
def test_worse_code_is_found(changes, problem):
    known = dict(registers=96, stack=0, shared=0, instructions=131, exponentials=4, pairs=16)

    problems = worse_than({'scale 4: measure_blocks': {**known, **changes}}, {'scale 4: measure_blocks': known})

    assert len(problems) == (problem is not None)
    assert all(problem in found for found in problems)


def test_code_beyond_the_bars_is_found():
    kernel = dict(registers=96, stack=520, shared=0, instructions=160, exponentials=4, pairs=16)

    assert len(beyond_bars('scale 4: measure_blocks', kernel)) == 2
    assert len(beyond_bars('scale 8: measure_blocks', kernel)) == 1
    assert beyond_bars('scale 8: differentiate_cells, FINE', kernel) == []


def test_instructions_of_inner_loops():
    listing = """
.L_x_0:
        /*0000*/                   LDG.E R1, [R2] ;
.L_x_1:
        /*0010*/                   MUFU.EX2 R1, R1 ;
        /*0020*/               @P1 BRA `(.L_x_2) ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/               @P2 BRA `(.L_x_0) ;
.L_x_3:
        /*0050*/                   BRA `(.L_x_3);
"""

    assert inner_loops(listing) == [dict(instructions=3, exponentials=1), dict(instructions=1, exponentials=0)]
