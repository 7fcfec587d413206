"""Which Python `make` takes, with interpreters of every version that are one and the same."""

import re
import shutil
import subprocess
import sys

import pytest

VERSIONS = ['3.10', '3.11', '3.12', '3.13', '3.14']


@pytest.fixture
def make(root, tmp_path):
    """Run `make` where the commands of a folder are all there are."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for tool in ('sh', 'echo', 'grep', 'awk', 'rm'):
        (folder / tool).symlink_to(shutil.which(tool))

    def run(*arguments: str, **pythons: str) -> subprocess.CompletedProcess:
        for name, version in pythons.items():
            claimed = f'import sys; sys.version_info = ({version.replace(".", ", ")}, 0); exec(sys.argv[1])'
            path = folder / name.replace('_', '.')
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{claimed}" "$2"\n')
            path.chmod(0o755)
        command = [shutil.which('make'), *arguments]
        return subprocess.run(command, cwd=root, env={'PATH': str(folder)}, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ('pythons', 'expected'),
    [
        *[(dict(python3=version, python3_14='3.14', python3_10='3.10'), 'python3') for version in VERSIONS],
        *[(dict(python3=old, python3_10='3.10', python3_13='3.13'), 'python3.13') for old in ('3.9', '3.15', '2.7')],
        *[({f'python{version.replace(".", "_")}': version}, f'python{version}') for version in VERSIONS],
    ],
)
def test_takes_the_machines_own_python3_or_the_newest_that_will_do(make, pythons, expected):
    shown = make('help', **pythons).stdout

    assert re.search(r'interpreter for the environment \(default: (.*)\)', shown).group(1) == expected


def test_says_which_versions_will_do_where_there_is_none(make, tmp_path):
    process = make('install', f'VENV={tmp_path}/venv', python3='3.9')

    assert process.returncode != 0
    assert 'no Python 3.10 to 3.14 found' in process.stderr


def test_setup_names_the_same_versions(root):
    assert re.findall(r'Python :: (3\.\d+)', (root / 'pyproject.toml').read_text()) == VERSIONS


def test_says_what_to_do_about_a_python_that_cannot_make_environments(make, tmp_path):
    process = make('install', f'VENV={tmp_path}/venv', 'PYTHON=false')

    assert process.returncode != 0
    assert 'apt install python3-venv' in process.stderr
    assert not (tmp_path / 'venv').exists()
