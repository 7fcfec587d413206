"""Compile every Triton kernel for a GPU that need not be there, and print what ptxas says of it as a line of JSON."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from mmseg_wce.kernels import triton as kernels
from mmseg_wce.kernels.triton import kernels as programs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FLOAT32 = 'max_logit lowest smoothing_weight smoothing_sum row_fraction column_fraction nll smooth grad_nll grad_smooth'
TYPES = dict.fromkeys([*FLOAT32.split(), 'origins', 'log_sums', 'lowest_origin'], '*fp32')
TYPES |= dict.fromkeys(('row_fraction_float64', 'column_fraction_float64'), '*fp64')
TYPES |= dict(target='*i64', correct='*i1', row_start='*i32', column_cell='*i32', column_start='*i32')
OF_SMOOTHING = ('smooth', 'grad_smooth', 'smoothing_weight', 'smoothing_sum')
OF_RESIZING = ('row_fraction', 'row_start', 'column_cell', 'column_fraction', 'origins')


def compiled(kernel, dtype: str, capability: int, warps: int, constants: dict) -> dict:
    constants = {k: v for k, v in {'stride_w': 1, **constants}.items() if k in kernel.arg_names}
    types = TYPES | dict.fromkeys(('logits', 'gradient'), f'*{dtype}') | dict.fromkeys(constants, 'constexpr')
    source = ASTSource(
        kernel,
        {name: types.get(name, 'i32') for name in kernel.arg_names},
        {(kernel.arg_names.index(k),): v for k, v in constants.items()},
    )
    options = kernels.launch_options(warps)
    binary = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options).asm['cubin']
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary)
        file.flush()
        tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
        usage = subprocess.run([tool, '-res-usage', file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf'{what}:(\d+)', usage)[1]) for what in ('REG', 'STACK'))
    fine = kernel is programs.measure_finely or constants.get('FINE', False)
    return dict(kernel=kernel.__name__, fine=fine, dtype=dtype, registers=registers, stack=stack)


def main(capability: int) -> None:
    tiles = kernels.TILES
    for dtype in ('fp32', 'fp16', 'bf16'):
        for smoothing in (False, True):
            common = dict(SMOOTHING=smoothing, COLUMNS=tiles.forward_columns, ROWS=1, CHANNELS=tiles.lanes)
            common |= {} if smoothing else dict.fromkeys(OF_SMOOTHING)
            same = common | dict.fromkeys(OF_RESIZING) | dict(RESIZED=False)
            resized = common | dict(RESIZED=True)
            backward = common | dict(CHANNELS=tiles.channels, COLUMNS=tiles.columns, INPUT_COLUMNS=tiles.input_columns)
            backward |= dict(PRECISION='tf32' if dtype == 'bf16' else 'ieee', FINE=False)
            few_channels = dict(CHANNELS=16)
            for kernel, warps, constants in (
                (programs.measure, 4, same),
                (programs.measure, 4, resized | dict(ROWS=2, CHANNELS=tiles.lanes // 2)),
                (programs.measure, 4, resized | dict(ROWS=4, CHANNELS=tiles.lanes // 4)),
                (programs.measure, 4, resized | dict(ROWS=8, CHANNELS=tiles.lanes // 8)),
                (programs.measure_finely, 4, common),
                (programs.differentiate_same_size, 4, same),
                (programs.differentiate_resized, kernels.backward_warps(tiles.channels, tiles.columns), backward),
                (programs.differentiate_resized, kernels.backward_warps(16, tiles.columns), backward | few_channels),
                (
                    programs.differentiate_resized,
                    kernels.backward_warps(16, tiles.columns),
                    backward | few_channels | dict(FINE=True),
                ),
            ):
                print(json.dumps(compiled(kernel, dtype, capability, warps, constants)), flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]))
