"""What only pip, GitHub, pre-commit and openmim read: every name and version in it is one that exists here."""

import re

import mmseg_wce
import pytest
import yaml
from mmengine.config import Config
from packaging.requirements import Requirement


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


@pytest.mark.parametrize('version', ['3.10', '3.11', '3.12', '3.13', '3.14'])
def test_every_python_has_one_pin_of_each_package(root, version):
    names = ['common', 'numba', 'tests', 'torch', 'lite']
    lines = [line for n in names for line in (root / f'requirements/{n}.txt').read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith('#')]
    taken = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({'python_version': version})]

    assert len(set(taken)) == len(taken)
    assert {pin.name for pin in pins} - set(taken) <= {'tomli'}


@pytest.fixture
def jobs(root) -> dict[str, dict]:
    return load(root / '.github/workflows/ci.yml')['jobs']


def test_ci_runs_targets_of_the_makefile(root, jobs):
    makefile = (root / 'Makefile').read_text()
    targets = set(re.findall(r'^([\w-]+):.*## ', makefile, re.MULTILINE))
    (stacks,) = re.findall(r'^STACKS := (.*)$', makefile, re.MULTILINE)
    commands = [step['run'] for job in jobs.values() for step in job['steps'] if 'run' in step]

    assert len(commands) == len(jobs)
    for command in commands:
        make, target, *variables = command.replace('${{ matrix.stack }}', 'lite').split()
        assert make == 'make'
        assert target in targets
        assert variables[0] == 'PYTHON=python'  # or make would look for its own
        assert set(variables[1:]) <= {f'STACK={stack}' for stack in stacks.split()}
    assert set(jobs['test']['strategy']['matrix']['stack']) | {'full'} == set(stacks.split())


def test_ci_tests_the_versions_of_python_that_setup_names(root, jobs):
    classified = re.findall(r'Python :: (3\.\d+)', (root / 'pyproject.toml').read_text())
    setups = [step for job in jobs.values() for step in job['steps'] if 'setup-python' in step.get('uses', '')]
    fixed = {step['with']['python-version'] for step in setups if '${{' not in step['with']['python-version']}

    assert jobs['test']['strategy']['matrix']['python-version'] == classified
    assert len(setups) == len(jobs)
    assert fixed <= set(classified)


def test_ci_may_only_read_and_ends(root, jobs):
    workflow = load(root / '.github/workflows/ci.yml')

    assert workflow['permissions'] == {'contents': 'read'}
    assert all('permissions' not in job and job['timeout-minutes'] <= 120 for job in jobs.values())
    assert {'push', 'pull_request', 'schedule', 'workflow_dispatch'} == set(workflow[True])  # YAML reads `on` so


@pytest.mark.parametrize('name', ['bug', 'feature'])
def test_issue_forms_have_what_github_asks_for(root, name):
    form = load(root / f'.github/ISSUE_TEMPLATE/{name}.yml')

    assert form['name']
    assert form['description']
    assert all(isinstance(label, str) for label in form['labels'])
    ids = [field['id'] for field in form['body']]
    assert len(set(ids)) == len(ids)
    for field in form['body']:
        assert field['type'] in ('textarea', 'dropdown')
        assert field['attributes']['label']
        if field['type'] == 'dropdown':
            assert all(isinstance(option, str) for option in field['attributes']['options'])


def test_citation_has_this_version(root):
    citation = load(root / 'CITATION.cff')

    assert citation['version'] == mmseg_wce.__version__
    assert citation['cff-version'] == '1.2.0'
    assert f'license = "{citation["license"]}"' in (root / 'pyproject.toml').read_text()


@pytest.fixture
def metafiles(root) -> list[dict]:
    return [load(root / path) for path in load(root / 'model-index.yml')['Import']]


def test_every_config_is_in_the_model_index(root, metafiles):
    indexed = [model['Config'] for metafile in metafiles for model in metafile['Models']]

    assert sorted(indexed) == sorted(str(p.relative_to(root)) for p in (root / 'configs').glob('[!_]*/*.py'))


def test_the_model_index_says_what_the_configs_say(root, metafiles):
    collections = [collection for metafile in metafiles for collection in metafile.get('Collections', ())]
    names = [collection['Name'] for collection in collections]
    models = [model for metafile in metafiles for model in metafile['Models']]

    assert len(set(names)) == len(names)
    assert {model['In Collection'] for model in models} == set(names)
    assert all((root / collection['README']).is_file() for collection in collections)
    for model in models:
        config, metadata = Config.fromfile(root / model['Config']), model['Metadata']
        gpus, samples = map(int, re.search(r'_(\d+)xb(\d+)-', model['Name']).groups())
        assert (root / model['Config']).stem == model['Name']
        assert config.train_dataloader.batch_size == samples
        assert metadata['Batch Size'] == gpus * samples
        assert metadata['Iterations'] == config.train_cfg.max_iters
