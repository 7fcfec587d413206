"""Compile the Triton kernels that calls of the loss launch, for GPUs that need not be there, and look at their code.

    python tests/kernels/compile_triton.py              print registers, stack and the instructions of inner loops
    python tests/kernels/compile_triton.py --write      put them into triton_machine_code.json, for this Triton

The back end runs on small tensors on the CPU. A stand-in for the CUDA driver has Triton compile what is launched, with
the types, constants and options of the launch, and runs nothing.
"""

import argparse
import json
import math
import os
from typing import Any, NamedTuple

if __name__ == '__main__':  # pytest imports this file in search of docstrings
    os.environ.pop('TRITON_INTERPRET', None)  # read where kernels are made

import torch
import triton
from machine_code import TABLE, VERSION, Figures, figures, text_table, write_table
from mmseg_wce.kernels import triton as kernels
from mmseg_wce.kernels.inputs import Inputs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CHIPS = (80, 90, 100)  # compute capabilities
_PIXELS_AND_CLASSES = ('BLOCK_W', 'BLOCK_H', 'ROWS', 'CLASSES')  # constants whose product is the pairs of an inner loop
_FAR = 2**31
_SIZES = ((2, 5, 7), (1, 16, 32), (3, 20, 2))  # images, and rows and columns of logits


class Case(NamedTuple):
    """Calls of the loss.

    Attributes:
        pixels: output pixels for 8 input pixels.
        channels: C.
        dtype: of the logits.
        smoothed: with label smoothing.
        weighted: with class weights.
        of_maps: with gradients of the maps, not of their sums.
        sizes: images, and rows and columns of logits, of each call.
        memory_format: of the logits.
        misaligned: the address of the logits is not divisible by 16.
        far_apart: 32 bits do not reach from one row of logits to the next. What is between stays unused.
        focal: only the sum of the focal loss, of a map that a forward has made.
        is_quick: part of the quick set.
    """

    pixels: int
    channels: int = 150
    dtype: torch.dtype = torch.bfloat16
    smoothed: bool = False
    weighted: bool = False
    of_maps: bool = False
    sizes: tuple[tuple[int, int, int], ...] = ((2, 8, 16),)
    memory_format: torch.memory_format = torch.contiguous_format
    misaligned: bool = False
    far_apart: bool = False
    focal: bool = False
    is_quick: bool = True

    def run(self) -> None:
        for images, height, width in self.sizes:
            self._run(images, height, width)

    def _run(self, images: int, height: int, width: int) -> None:
        numbers = images * self.channels * height * width
        logits = torch.zeros(numbers + 1, dtype=self.dtype)[self.misaligned :][:numbers]
        logits = logits.view(images, self.channels, height, width).contiguous(memory_format=self.memory_format)
        if self.far_apart:
            memory = torch.empty((height - 1) * _FAR + self.channels * width, dtype=self.dtype)
            logits = memory.as_strided(logits.shape, (0, width, _FAR, 1))
        size = height * self.pixels // 8, width * self.pixels // 8
        weight, one = torch.ones(self.channels), torch.ones(())
        if self.focal:
            nll, target = torch.zeros(images, *size), torch.zeros(images, *size, dtype=torch.long)
            kernels.focal_sum(nll, target, 255, self.channels, weight if self.weighted else None, 2.0)
            return
        inputs = Inputs(
            logits, torch.zeros(images, *size, dtype=torch.long), 255,
            weight if self.smoothed else None, weight if self.weighted else None, False,
        )  # fmt: skip
        nll, smooth, _, statistics, *_ = kernels.forward(inputs)
        gradients = (nll, smooth, None, None) if self.of_maps else (None, None, one, one if self.smoothed else None)
        kernels.backward(inputs, statistics, *gradients)


# A kernel belongs to the first case that launches it.
CASES = {
    'scale 4': Case(32),
    'scale 4, 19 classes': Case(32, channels=19),
    'scale 4, other sizes': Case(32, sizes=_SIZES, misaligned=True),
    'scale 4, weights and smoothing': Case(32, smoothed=True, weighted=True),
    'scale 8': Case(64),
    'any scale': Case(30),
    'any scale, other sizes': Case(30, sizes=((1, 16, 32), (3, 24, 8)), misaligned=True),
    'same size': Case(8),
    'same size, other sizes': Case(8, sizes=_SIZES, misaligned=True),
    'same size, weights and smoothing': Case(8, smoothed=True, weighted=True),
    'focal loss': Case(8, focal=True),
    'focal loss, weights': Case(8, focal=True, weighted=True),
    'scale 4, float32': Case(32, dtype=torch.float32, is_quick=False),
    'scale 4, float16': Case(32, dtype=torch.float16, is_quick=False),
    'scale 4, gradients of maps': Case(32, smoothed=True, of_maps=True, is_quick=False),
    'scale 4, channels_last': Case(32, memory_format=torch.channels_last, is_quick=False),
    'scale 2': Case(16, is_quick=False),
    'scale 14': Case(112, is_quick=False),
    'scale 16': Case(128, is_quick=False),
    'scale 4, far apart': Case(32, sizes=((1, 2, 16),), far_apart=True, is_quick=False),
    'any scale, far apart': Case(30, sizes=((1, 2, 16),), far_apart=True, is_quick=False),
    'any scale, weights and smoothing': Case(30, smoothed=True, weighted=True, is_quick=False),
}


class _Kernel:
    """A kernel that was compiled. Triton takes it for the function that launches it."""

    def __init__(self, source: Any, metadata: Any) -> None:
        function, constants = source.fn, source.constants
        constants = {function.arg_names[path[0]]: value for path, value in constants.items()}
        is_fine, name = constants.get('FINE', False), function.__name__
        self.name, self.cubin = f'{name}, FINE' if is_fine else name, b''
        # those that compute in float64 usually return at once; add_up_focal has no loop over classes
        is_usual = not is_fine and name not in ('measure_in_float64', 'add_up_focal')
        self.pairs = math.prod(constants.get(key, 1) for key in _PIXELS_AND_CLASSES) if is_usual else None
        driver.active.compiled.append(self)

    def __call__(self, *arguments: Any) -> None:
        """Launch nothing."""


class _Driver:
    """Stands in for Triton's CUDA driver. The number of a device is its compute capability."""

    launcher_cls = _Kernel

    def __init__(self, chip: int) -> None:
        self.chip, self.utils = chip, self
        self.compiled: list[_Kernel] = []

    def get_current_device(self) -> int:
        return self.chip

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget('cuda', self.chip, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return dict(max_shared_mem=160 * 2**10)

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, ...]:
        self.compiled[-1].cubin = cubin
        handles_registers_spills = 1, 1, 0, 0
        return handles_registers_spills if VERSION == '3.3' else (*handles_registers_spills, 1024)


def measure(chip: int, names: list[str]) -> Figures:
    """Return the figures of the kernels that each case launches first."""
    stand_in, found = _Driver(chip), {}
    driver.set_active(stand_in)
    for name in names:
        stand_in.compiled.clear()
        CASES[name].run()
        found[name] = {kernel.name: figures(kernel.cubin, kernel.pairs) for kernel in stand_in.compiled}
    return found


def main() -> None:
    """Compile, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--chips', type=int, nargs='+', choices=CHIPS, default=CHIPS, help='[all]')
    parser.add_argument('--quick', action='store_true', help='only the cases that every run of the tests compiles')
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--write', action='store_true', help=f'put all figures into {TABLE.name}')
    group.add_argument('--json', action='store_true', help='print JSON, a line for each chip')
    args = parser.parse_args()
    if args.write and args.quick:
        parser.error('--write needs all cases, not --quick')
    names = [name for name, case in CASES.items() if case.is_quick or not args.quick]
    for chip in args.chips:
        found = measure(chip, names)
        if args.json:
            print(json.dumps(found), flush=True)
        else:
            print(f'Triton {triton.__version__}, sm_{chip}\n{text_table(found)}\n', flush=True)
        if args.write:
            write_table(f'sm_{chip}', found)


if __name__ == '__main__':
    main()
