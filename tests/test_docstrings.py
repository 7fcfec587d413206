"""Public names say what they take, give and raise, and the main ones show it; pytest runs what they show."""

import ast
import importlib
import inspect
import pkgutil
import textwrap

import mmseg_wce
import pytest

# but the kernels of CUDA, which have no public names and cannot be imported everywhere
MODULES = {module.name for module in pkgutil.walk_packages(mmseg_wce.__path__, 'mmseg_wce.')}
MODULES = {name for name in MODULES if not name.startswith('mmseg_wce.kernels.triton')}


def public_names() -> dict[str, object]:
    """Functions and classes in every ``__all__``, by the module that defines them."""
    found = {}
    for module in map(importlib.import_module, sorted(MODULES)):
        for name in getattr(module, '__all__', ()):
            value = getattr(module, name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith('mmseg_wce'):
                found[f'{value.__module__}.{value.__qualname__}'] = value
    return found


NAMES = public_names()
# what a reader comes for
MAIN = [
    'functional.weighted_cross_entropy',
    'functional.normalizer',
    'functional.weighted_binary_cross_entropy',
    'functional.binary_normalizer',
    'pixel_batch.smoothing_weight',
    'kernels.op.pixel_nll',
    'kernels.binary.pixel_bce',
    'targets.valid_pixels',
    'targets.explain',
    'targets.raise_pending',
    'losses.WeightedCrossEntropyLoss',
    'observed_pixels.ObservedPixels',
    'fused_heads.loss_hook.FusedLossHook',
    'fused_heads.loss_hook.fuse_decode_heads',
    'fused_heads.predict_hook.FusedPredictHook',
    'fused_heads.predict_hook.fuse_predict',
    'upsampling.upsampled_argmax',
    'validation_loss.ValidationLoss',
    'samplers.check_sampler',
    'hooks.label_check.LabelCheckHook',
    'hooks.loss_monitor.LossMonitorHook',
    'metrics.confusion_matrix',
    'metrics.ClassIoUMetric',
    'class_weights.schemes.class_weights',
    'class_weights.weights.load_class_weight',
    'class_weights.weights.check_class_weight',
    'class_weights.statistics.LabelStatistics',
    'class_weights.statistics.LabelEncoding',
    'class_weights.statistics_file.load_statistics',
    'class_weights.statistics_file.save_statistics',
    'datasets.camvid.CamVidDataset',
    'datasets.demo_scenes.DemoScenesDataset',
    'datasets.demo_scenes.draw_scene',
    'datasets.demo_scenes.generate_demo_scenes',
    'dataset_checks.discovery.from_folder',
    'dataset_checks.discovery.from_config',
    'dataset_checks.scanning.scan',
    'dataset_checks.statistics_checks.check_statistics',
    'dataset_checks.config_consistency.check_config',
    'training.checkpoints.checkpoints_in',
    'training.checkpoints.damage',
    'training.preflight.load_config',
    'resources.find_config',
]


def parameters(function) -> list[str]:
    named = inspect.signature(function).parameters.values()
    return [p.name for p in named if p.name not in ('self', 'cls') and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def raised(function) -> set[str]:
    """Errors that a function itself raises by name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    named = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    return {name for name in named if name[0].isupper()}


@pytest.mark.parametrize('name', NAMES)
def test_says_what_it_is(name):
    assert (NAMES[name].__doc__ or '').strip(), name


@pytest.mark.parametrize('name', [name for name, value in NAMES.items() if inspect.isfunction(value)])
def test_says_what_it_takes_gives_and_raises(name):
    function, doc = NAMES[name], NAMES[name].__doc__
    taken, gives = parameters(function), inspect.signature(function).return_annotation

    if len(taken) > 1:  # of one, and of what a question answers, the first line says enough
        assert 'Args:' in doc
        assert [p for p in taken if f' {p}: ' not in doc] == []
        assert gives in (None, 'None') or 'Returns:' in doc or 'Yields:' in doc
    assert [error for error in raised(function) if error not in doc] == []


@pytest.mark.parametrize(
    'name', [name for name, value in NAMES.items() if inspect.isclass(value) and '__init__' in vars(value)]
)
def test_says_how_it_is_made(name):
    kind, doc = NAMES[name], NAMES[name].__doc__

    if '__match_args__' not in vars(kind):  # fields of a dataclass are its attributes
        assert [p for p in parameters(kind.__init__) if f' {p}: ' not in doc] == []
        assert [error for error in raised(kind.__init__) if error not in doc] == []
    else:
        assert len(parameters(kind.__init__)) < 4 or 'Attributes:' in doc


@pytest.mark.parametrize('name', MAIN)
def test_the_main_ones_show_how_they_are_used(name):
    assert '>>> ' in NAMES[f'mmseg_wce.{name}'].__doc__


@pytest.mark.parametrize('name', MAIN)
def test_the_main_names_are_in_the_api_reference(root, name):
    listed = [
        line.rpartition('.')[2] for line in (root / 'docs/api.md').read_text().splitlines() if line.startswith(':::')
    ]

    assert name.rpartition('.')[2] in listed
