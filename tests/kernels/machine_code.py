"""The figures of compiled Triton kernels, from Triton's own cuobjdump and nvdisasm, and the table of those we know."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton

TABLE = Path(__file__).with_name('triton_machine_code.json')
VERSION = '.'.join(triton.__version__.split('.')[:2])
_PROGRAMS = Path(triton.__file__).parent / 'backends/nvidia/bin'
_USAGE = dict(registers='REG', stack='STACK', shared='SHARED')

# The figures of kernels, by the case that launches them first and their name: see `figures`.
Figures = dict[str, dict[str, dict[str, int]]]


def figures(cubin: bytes, pairs: int | None) -> dict[str, int]:
    """Return what a kernel needs, and how many instructions its inner loop has.

    Args:
        cubin: the compiled kernel.
        pairs: pairs of a pixel and a class in a round of the inner loop; None to leave out the loop.

    Returns:
        Registers, bytes of stack (for what does not fit into registers) and of shared memory. Of the innermost loop
        with exponentials, if there is one: instructions, exponentials and pairs.
    """
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        usage = _output('cuobjdump', '-res-usage', file.name)
        listing = _output('nvdisasm', '-c', file.name) if pairs else ''
    found = {name: int(re.search(rf'\b{key}:(\d+)', usage)[1]) for name, key in _USAGE.items()}
    loops = [loop for loop in inner_loops(listing) if loop['exponentials']]
    if loops:
        found |= max(loops, key=lambda loop: loop['instructions']) | dict(pairs=pairs)
    return found


def _output(program: str, *arguments: str) -> str:
    return subprocess.run([_PROGRAMS / program, *arguments], capture_output=True, text=True, check=True).stdout


def inner_loops(listing: str) -> list[dict[str, int]]:
    """Count the instructions, and the exponentials among them, of the innermost loops in the output of nvdisasm."""
    instructions, labels, loops = [], {}, []
    for line in listing.splitlines():
        if label := re.match(r'(\.L_\w+):', line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r'/\*[0-9a-f]{4,}\*/\s+(.*?);', line):
            instructions.append(instruction[1])
            target = re.search(r'\bBRA\b.*\((\.L_\w+)\)', instruction[1])
            if target and target[1] in labels:  # a label seen before: the branch leads backwards
                loops.append((labels[target[1]], len(instructions)))
    inner = [
        (begin, end)
        for begin, end in loops
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops)
    ]
    return [
        dict(instructions=end - begin, exponentials=sum('MUFU.EX2' in x for x in instructions[begin:end]))
        for begin, end in inner
    ]


def text_table(found: Figures) -> str:
    """Return a table of the figures of a chip."""
    lines = [f'{"":60}{"registers":>10}{"stack":>7}{"shared":>8}{"loop":>7}{"per pair":>10}{"per exponential":>17}']
    for name, kernel in flat(found).items():
        line = f'{name:60}{kernel["registers"]:10}{kernel["stack"]:7}{kernel["shared"]:8}'
        if 'pairs' in kernel:
            loop = kernel['instructions']
            line += f'{loop:7}{loop / kernel["pairs"]:10.2f}{loop / kernel["exponentials"]:17.1f}'
        lines.append(line)
    return '\n'.join(lines)


def flat(found: Figures) -> dict[str, dict[str, int]]:
    """Return the figures by 'case: kernel'."""
    return {f'{case}: {kernel}': values for case, kernels in found.items() for kernel, values in kernels.items()}


def read_table() -> dict[str, dict[str, Figures]]:
    """Return the figures that we know, by the version of Triton and the chip."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def write_table(chip: str, found: Figures) -> None:
    """Replace the figures of this Triton and a chip in the table, which has a line for each kernel."""
    table = read_table()
    table.setdefault(VERSION, {})[chip] = found
    text = json.dumps(dict(sorted(table.items())), indent=1)
    TABLE.write_text(re.sub(r'\{[^{}]*\}', lambda kernel: ' '.join(kernel[0].split()), text) + '\n')
