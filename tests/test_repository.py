"""What only pre-commit reads: every version in it is the one that is pinned here."""

import re

import yaml


def load(path):
    return yaml.safe_load(path.read_text())


def pins(root) -> dict[str, str]:
    return dict(re.findall(r'^([\w-]+)==([\w.]+)', (root / 'requirements/tests.txt').read_text(), re.MULTILINE))


def test_pre_commit_has_the_pinned_versions(root):
    repos = {repo['repo'].split('/')[-1]: repo for repo in load(root / '.pre-commit-config.yaml')['repos']}
    (mypy,) = repos['local']['hooks']

    assert repos['ruff-pre-commit']['rev'] == 'v' + pins(root)['ruff']
    assert mypy['entry'] == '.venv/bin/mypy'  # which is the pinned one
    assert 'mypy' in pins(root)
