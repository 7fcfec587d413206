"""tools/install_torch.sh with a Python that installs nothing: where it looks for torch, in which order."""

import os
import re
import subprocess

import pytest

CPU_BUILD = '-m pip install PIN+cpu'
UV = '-m pip install -r uv.txt'
UV_INSTALL = '-m uv pip install --python python --torch-backend=auto PIN'
CONFIGURED = '-m pip install PIN'
IS_CUDA_BUILD = '-c import sys, torch; sys.exit(torch.version.cuda is None)'
TRITON = '-m pip install --no-deps -r triton.txt'
PYTHON = """
folder=$(dirname "$0")
call=$(echo "$*" | sed 's|[^ ]*/||g')  # without folders
echo "$call" >>"$folder/calls"
! echo "$call" | grep -qxFf "$folder/failing"
"""


@pytest.fixture
def pin(root):
    return (root / 'requirements/torch.txt').read_text().split()[-1]


@pytest.fixture
def install(root, tmp_path, pin):
    """Run the script. Returns its exit status, its calls of Python and what it says."""

    def add_command(name: str, body: str) -> str:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\n{body}\n')
        path.chmod(0o755)
        return str(path)

    def run(*failing: str, gpu: bool = False, triton: str = '', **variables: str) -> tuple[int, list[str], str]:
        (tmp_path / 'failing').write_text('\n'.join(failing).replace('PIN', pin))
        python = add_command('python', PYTHON)
        add_command('nvidia-smi', f'exit {int(not gpu)}')
        environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', **variables}
        script = [root / 'tools/install_torch.sh', python, *filter(None, [triton])]
        process = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
        calls = (tmp_path / 'calls').read_text().replace(pin, 'PIN').splitlines()
        return process.returncode, calls, process.stderr

    return run


ELSEWHERE = '-m pip install --index-url somewhere PIN'


@pytest.mark.parametrize(
    ('failing', 'options', 'calls'),
    [
        pytest.param([], {}, [CPU_BUILD, IS_CUDA_BUILD], id='CPU build of the configured index'),
        pytest.param([CPU_BUILD], {}, [CPU_BUILD, UV, UV_INSTALL, IS_CUDA_BUILD], id='it has none: index of PyTorch'),
        pytest.param([], dict(gpu=True), [UV, UV_INSTALL, IS_CUDA_BUILD], id='no CPU build beside a GPU'),
        pytest.param(
            [], dict(TORCH_INDEX_URL='somewhere'), [ELSEWHERE, IS_CUDA_BUILD], id='index of the variable alone'
        ),
        pytest.param([IS_CUDA_BUILD], {}, [CPU_BUILD, IS_CUDA_BUILD, TRITON], id='triton where torch brings none'),
        pytest.param(
            [IS_CUDA_BUILD],
            dict(triton='newest.txt'),
            [CPU_BUILD, IS_CUDA_BUILD, TRITON.replace('triton.txt', 'newest.txt')],
            id='another triton',
        ),
    ],
)
def test_torch_and_triton_are_looked_for_in_this_order(install, failing, options, calls):
    assert install(*failing, **options) == (0, calls, '')


@pytest.mark.parametrize('failing', [UV, UV_INSTALL])
@pytest.mark.parametrize('gpu', [False, True])
def test_takes_what_the_configured_index_has_and_says_how_large_it_is(install, pin, failing, gpu):
    status, calls, said = install(CPU_BUILD, failing, gpu=gpu)

    assert status == 0
    assert calls[-2:] == [CONFIGURED, IS_CUDA_BUILD]
    assert said.count('\n') == 1
    assert f'Installing {pin} from the configured index' in said
    assert re.search(r'[\d.]+ GB to download, [\d.]+ GB on disk', said)


@pytest.mark.parametrize(
    ('failing', 'options', 'calls'),
    [
        ([CPU_BUILD, UV_INSTALL, CONFIGURED], {}, [CPU_BUILD, UV, UV_INSTALL, CONFIGURED]),
        ([ELSEWHERE], dict(TORCH_INDEX_URL='somewhere'), [ELSEWHERE]),
    ],
)
def test_fails_where_no_index_has_torch(install, failing, options, calls):
    status, found, _ = install(*failing, **options)

    assert status != 0
    assert found == calls
