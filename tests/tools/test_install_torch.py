"""tools/install_torch.sh with a Python that installs nothing: where it looks for torch, in which order."""

import os
import re
import subprocess

import pytest

CPU_BUILD = '-m pip install PIN+cpu'
UV = '-m pip install -r uv.txt'
UV_INSTALL = '-m uv pip install --python python --torch-backend=auto PIN'
CONFIGURED = '-m pip install PIN'
HAS_TRITON = '-c import triton'
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

    def run(*failing: str, gpu: bool = False, **variables: str) -> tuple[int, list[str], str]:
        (tmp_path / 'failing').write_text('\n'.join(failing).replace('PIN', pin))
        python = add_command('python', PYTHON)
        add_command('nvidia-smi', f'exit {int(not gpu)}')
        environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', **variables}
        script = [root / 'tools/install_torch.sh', python]
        process = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
        calls = (tmp_path / 'calls').read_text().replace(pin, 'PIN').splitlines()
        return process.returncode, calls, process.stderr

    return run


def test_takes_the_cpu_build_of_the_configured_index(install):
    assert install() == (0, [CPU_BUILD, HAS_TRITON], '')


def test_takes_pytorchs_index_where_the_configured_one_has_no_cpu_build(install):
    assert install(CPU_BUILD) == (0, [CPU_BUILD, UV, UV_INSTALL, HAS_TRITON], '')


def test_looks_for_no_cpu_build_beside_a_gpu(install):
    assert install(gpu=True) == (0, [UV, UV_INSTALL, HAS_TRITON], '')


@pytest.mark.parametrize('failing', [UV, UV_INSTALL])
@pytest.mark.parametrize('gpu', [False, True])
def test_takes_what_the_configured_index_has_and_says_how_large_it_is(install, pin, failing, gpu):
    status, calls, said = install(CPU_BUILD, failing, gpu=gpu)

    assert status == 0
    assert calls[-2:] == [CONFIGURED, HAS_TRITON]
    assert said.count('\n') == 1
    assert f'Installing {pin} from the configured index' in said
    assert re.search(r'[\d.]+ GB to download, [\d.]+ GB on disk', said)


def test_fails_where_no_index_has_torch(install):
    status, calls, _ = install(CPU_BUILD, UV_INSTALL, CONFIGURED)

    assert status != 0
    assert calls == [CPU_BUILD, UV, UV_INSTALL, CONFIGURED]


def test_takes_the_index_of_the_variable_and_no_other(install):
    there = '-m pip install --index-url somewhere PIN'

    assert install(TORCH_INDEX_URL='somewhere') == (0, [there, HAS_TRITON], '')


def test_fails_where_the_index_of_the_variable_has_no_torch(install):
    there = '-m pip install --index-url somewhere PIN'
    status, calls, _ = install(there, TORCH_INDEX_URL='somewhere')

    assert status != 0
    assert calls[-1] == there


def test_adds_triton_where_torch_brought_none(install):
    assert install(HAS_TRITON) == (0, [CPU_BUILD, HAS_TRITON, TRITON], '')
