from pathlib import Path

import mmseg
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg_wce.fused_heads.head_losses import _SharedMaps
from mmseg_wce.losses import WeightedCrossEntropyLoss

OURS = 'WeightedCrossEntropyLoss'
SHIPPED = Path(mmseg.__file__).parent / '.mim/configs'


@pytest.fixture
def tool(import_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init_default_scope('mmseg')
    return import_tool('convert_config')


def types(value, found=None) -> list[str]:
    """The type of every loss on pixels below a config."""
    found = [] if found is None else found
    if isinstance(value, dict):
        losses = value.get('loss_decode', [])
        found += [loss.type for loss in (losses if isinstance(losses, list) else [losses])]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        types(inner, found)
    return found


def test_two_heads(tool, tmp_path, capsys):
    name = 'mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py'

    assert tool.main([name, '--out', 'new/mine.py']) == 0

    assert (tmp_path / 'new/mine.py').read_text().splitlines() == [
        f"_base_ = '{name}'",
        "custom_imports = dict(imports=['mmseg_wce'])",
        'model = _base_.model',
        f"model.decode_head.loss_decode.type = '{OURS}'",
        f"model.auxiliary_head.loss_decode.type = '{OURS}'",
    ]
    assert capsys.readouterr().out.splitlines() == [
        f'model.decode_head.loss_decode: CrossEntropyLoss -> {OURS}',
        f'model.auxiliary_head.loss_decode: CrossEntropyLoss -> {OURS}',
    ]


def test_fused_adds_hooks_where_no_loss_is_replaced(tool, tmp_path, capsys):
    ours = dict(type=OURS, class_weight=[1.0] * 150)
    base = "_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py'\nmodel = _base_.model\n"
    heads = f'model.decode_head.loss_decode = {ours}\nmodel.auxiliary_head.loss_decode = {ours}\n'
    (tmp_path / 'base.py').write_text(f"custom_imports = dict(imports=['mmseg_wce'])\n{base}{heads}")

    assert tool.main(['base.py', '--out', 'mine.py']) == 1
    assert not (tmp_path / 'mine.py').exists()
    assert tool.main(['base.py', '--out', 'mine.py', '--fused']) == 0

    found, before = Config.fromfile('mine.py'), Config.fromfile('base.py')
    assert found.model == before.model
    assert found.default_hooks.fused_predict == dict(type='FusedPredictHook')
    assert capsys.readouterr().out.splitlines()[-1] == 'default_hooks: FusedLossHook and FusedPredictHook added'


@pytest.mark.parametrize('custom_hooks', ['', "custom_hooks = [dict(type='EMAHook')]\n"])
def test_fused_adds_both_hooks_to_those_of_the_base(tool, tmp_path, custom_hooks):
    base = "_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py'\n"
    (tmp_path / 'base.py').write_text(base + custom_hooks)

    assert tool.main(['base.py', '--out', 'mine.py', '--fused']) == 0

    found, before = Config.fromfile('mine.py'), Config.fromfile('base.py')
    added = dict(fused_loss=dict(type='FusedLossHook'), fused_predict=dict(type='FusedPredictHook'))
    assert found.default_hooks == {**before.default_hooks, **added}
    assert found.get('custom_hooks') == before.get('custom_hooks')


def converted(types: list[str]) -> list[str]:
    return [OURS if kind == 'CrossEntropyLoss' else kind for kind in types]


@pytest.mark.parametrize(
    ('name', 'before'),
    [
        ('ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512', ['CrossEntropyLoss'] * 2),
        (
            'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes',
            ['CrossEntropyLoss', 'OhemCrossEntropy', 'BoundaryLoss', 'OhemCrossEntropy'],
        ),
        ('stdc/stdc1_4xb12-80k_cityscapes-512x1024', ['CrossEntropyLoss'] * 4 + ['DiceLoss']),
        ('fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024', ['CrossEntropyLoss'] * 3),
        ('knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512', ['CrossEntropyLoss'] * 2),
    ],
)
def test_softmax_losses_of_official_configs_are_replaced_and_others_stay(tool, name, before):
    assert tool.main([f'mmseg::{name}.py', '--out', 'mine.py']) == 0

    assert types(Config.fromfile(SHIPPED / f'{name}.py').model) == before
    assert types(Config.fromfile('mine.py').model) == converted(before)


def differences(old, new, place=''):
    """Place, old and new value of everything that is not the same; ``mmseg::`` writes the scope into its configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            if key != '_scope_':
                yield from differences(old.get(key), new.get(key), f'{place}.{key}'.lstrip('.'))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for i, (of_old, of_new) in enumerate(zip(old, new, strict=True)):
            yield from differences(of_old, of_new, f'{place}[{i}]')
    elif old != new:
        yield place, old, new


@pytest.mark.parametrize(
    ('pattern', 'fewest'), [pytest.param('mmseg::*ade20k*', 180, marks=pytest.mark.slow), ('mmseg::*-t_*ade20k*', 5)]
)
def test_ade20k_configs_of_mmseg_differ_in_their_losses_alone(
    tool, import_tool, root, tmp_path, capsys, pattern, fewest
):
    names = sorted(name for name, _ in import_tool('base_configs').find_configs(pattern))

    assert tool.main([pattern, '--out', 'converted']) == 0

    summary = capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / 'converted').iterdir())
    assert len(names) >= fewest
    assert f'{len(written)} of {len(names)} configs written' in summary
    replaced = 0
    for name in names:
        file = SHIPPED / name.removeprefix('mmseg::')
        old = Config.fromfile(file, import_custom_modules=False)
        if file.name not in written:
            assert f'nothing to replace in {name}' in summary
            assert 'CrossEntropyLoss' not in types(old.model)
            continue
        new = Config.fromfile(tmp_path / 'converted' / file.name, import_custom_modules=False)
        changed = {place: (before, after) for place, before, after in differences(old.to_dict(), new.to_dict())}
        imports = changed.pop('custom_imports', None) or changed.pop('custom_imports.imports')
        assert 'mmseg_wce' in str(imports[1])
        assert changed
        for place, pair in changed.items():
            assert place.rsplit('.', 1)[-1] == 'type'
            assert 'loss_decode' in place
            assert pair == ('CrossEntropyLoss', OURS)
        assert types(new.model) == converted(types(old.model))
        replaced += len(changed)
    assert f'{replaced} losses replaced' in summary
    if pattern == 'mmseg::*ade20k*':
        shown = [line for line in summary.splitlines() if line and 'nothing to replace' not in line]
        assert '\n'.join(shown) in (root / 'configs/README.md').read_text()


@pytest.mark.parametrize('family', ['danet', 'encnet', 'fastscnn', 'knet', 'mobilenet_v2', 'segmenter', 'stdc'])
def test_a_sample_trains_converted_and_fused(tool, import_tool, tmp_path, monkeypatch, family):
    """Heads and backbones that configs/ does not have, and heads with sigmoids."""
    trial = import_tool('try_stack')
    file = trial.family_configs()[family]
    assert ('ade20k' in file.name) == (family not in ('fastscnn', 'stdc'))
    seen, value = [], _SharedMaps.value

    def watched(self, loss, *args, **options):
        seen.append((type(loss), tuple(self.logits.shape[2:])))
        return value(self, loss, *args, **options)

    monkeypatch.setattr(_SharedMaps, 'value', watched)
    tool.convert(f'mmseg::{file.relative_to(SHIPPED)}', file, tmp_path / 'mine.py')

    trial.train_step(Config.fromfile(tmp_path / 'mine.py'), size=64, fuse=True)

    assert (WeightedCrossEntropyLoss, (8, 8)) in seen or (WeightedCrossEntropyLoss, (4, 4)) in seen


def test_one_channel_trains_converted_and_fused(tool, import_tool, tmp_path, monkeypatch):
    (tmp_path / 'theirs.py').write_text(
        "_base_ = 'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py'\n"
        'model = _base_.model\n'
        'for head in (model.decode_head, *model.auxiliary_head):\n'
        '    head.update(num_classes=2, out_channels=1, threshold=0.5)\n'
        'del head\n'
    )
    seen, value = [], _SharedMaps.value
    monkeypatch.setattr(
        _SharedMaps, 'value', lambda self, *args, **options: seen.append(self.channels) or value(self, *args, **options)
    )

    assert tool.main(['theirs.py', '--out', 'mine.py']) == 0
    config = Config.fromfile(tmp_path / 'mine.py')
    import_tool('try_stack').train_step(config, size=64, fuse=True)

    assert types(config.model) == [OURS] * 3
    assert seen == [1] * 3


def test_upernet_convnext(tool, import_tool, tmp_path):
    pytest.importorskip('mmpretrain.models', reason='mmpretrain is not installed', exc_type=ImportError)
    name = 'convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
    tool.convert(f'mmseg::{name}', SHIPPED / name, tmp_path / 'mine.py')

    config = Config.fromfile(tmp_path / 'mine.py')  # imports mmpretrain.models and mmseg_wce
    import_tool('try_stack').train_step(config, size=64, fuse=True)

    assert config.custom_imports.imports == ['mmpretrain.models', 'mmseg_wce']
    assert types(config.model) == [OURS, OURS]


def test_a_config_file_with_imports_of_its_own(tool, tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/theirs.py').write_text(
        "custom_imports = dict(imports='json', allow_failed_imports=False)\n"
        "head = dict(type='FCNHead', in_channels=8, channels=4, num_classes=5)\n"
        "loss = dict(type='CrossEntropyLoss', loss_weight=0.4, class_weight=[1.0] * 5)\n"
        'model = dict(decode_head=dict(**head), auxiliary_head=[dict(**head, loss_decode=loss)])\n'
    )

    assert tool.main(['configs/theirs.py', '--out', 'new/mine.py']) == 0

    new = Config.fromfile('new/mine.py')
    assert new.custom_imports == dict(imports=['json', 'mmseg_wce'], allow_failed_imports=False)
    heads = [MODELS.build(head) for head in (new.model.decode_head, *new.model.auxiliary_head)]
    assert all(isinstance(head.loss_decode, WeightedCrossEntropyLoss) for head in heads)
    assert [head.loss_decode.loss_weight for head in heads] == [1.0, 0.4]


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('san/san-vit-b16_coco-stuff164k-640x640', 'it classifies masks, not pixels'),
        ('maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512', 'it has no loss on pixels'),
    ],
)
def test_configs_without_a_softmax_loss_are_not_written(tool, tmp_path, capsys, name, reason):
    assert tool.main([f'mmseg::{name}.py', '--out', 'mine.py']) == 1

    assert reason in capsys.readouterr().out
    assert not (tmp_path / 'mine.py').exists()


HEAD = "dict(type='FCNHead', in_channels=8, channels=4, num_classes=5)"
BROKEN = {
    'mmseg::no/such*.py': ('', 'ships no config'),
    'missing.py': (None, 'does not exist'),
    'broken.py': ('model = dict(', 'cannot be read'),
    'without_model.py': ('a = 1', 'has no model'),
    'no_model.py': ('model = None', 'has no model'),
    'imports.py': (f"custom_imports = ['json']\nmodel = dict(decode_head={HEAD})", 'custom_imports must be dict'),
    'new_style.py': (
        'from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\nmodel.update(a=1)\n',
        'read_base()',
    ),
    'classes.py': (
        'from mmseg.models import FCNHead\n\nmodel = dict(decode_head=dict(type=FCNHead, num_classes=5))\n',
        'of the new style',
    ),
}


@pytest.mark.parametrize('config', BROKEN)
def test_unreadable_configs_are_errors_on_one_line(tool, tmp_path, capsys, config):
    text, words = BROKEN[config]
    (tmp_path / 'base.py').write_text(f'model = dict(decode_head={HEAD})\n')
    if text is not None and '::' not in config:
        (tmp_path / config).write_text(text)

    assert tool.main([config, '--out', 'mine.py']) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    assert words in line
    assert not (tmp_path / 'mine.py').exists()


def a_config(folder, text=f'model = dict(decode_head={HEAD})\n', name='theirs.py'):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def test_nothing_is_overwritten(tool, tmp_path, capsys):
    config = a_config(tmp_path / 'own')

    assert tool.main([config, '--out', config]) == 2
    assert tool.main([config, '--out', 'own']) == 2
    assert Config.fromfile(config).model.decode_head.num_classes == 5
    assert capsys.readouterr().err.count('exists and differs') == 2

    assert tool.main([config, '--out', 'mine.py']) == 0
    assert tool.main([config, '--out', 'mine.py']) == 0  # the same again
    mine = tmp_path / 'mine.py'
    mine.write_text(mine.read_text() + "model.decode_head.loss_decode.class_weight = 'weights.json'\n")
    assert tool.main([config, '--out', 'mine.py']) == 2
    assert 'weights.json' in mine.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['mine.py', 'own']


def test_out_is_a_new_file_or_a_folder(tool, tmp_path, capsys):
    one, two = a_config(tmp_path / 'a b'), a_config(tmp_path / 'c')
    other = a_config(tmp_path / 'c', name='other.py')
    (tmp_path / 'file').touch()
    (tmp_path / 'folder.py').mkdir()

    for configs, out in (
        ([one], 'mine.yaml'),
        ([one], 'no_folder'),
        ([one, other], 'mine.py'),
        ([one, two], 'new'),
        ([one], 'file/mine.py'),
    ):
        assert tool.main([*configs, '--out', out]) == 2
        assert capsys.readouterr().err.startswith('error: ')
    assert not (tmp_path / 'new').exists()

    assert tool.main([one, '--out', 'folder.py']) == 0
    assert tool.main([one, other, '--out', 'new']) == 0
    for written in ('folder.py/theirs.py', 'new/theirs.py', 'new/other.py'):
        assert types(Config.fromfile(tmp_path / written).model) == [OURS]


def test_a_bad_config_does_not_stop_the_others(tool, tmp_path, capsys):
    good, bad = a_config(tmp_path / 'a'), a_config(tmp_path / 'b', 'model = dict(', 'bad.py')

    assert tool.main([bad, good, '--out', 'new']) == 2

    output = capsys.readouterr()
    assert output.err.startswith(f'error: config file {bad!r} cannot be read')
    assert (tmp_path / 'new/theirs.py').exists()


@pytest.mark.parametrize(
    ('head', 'place', 'reason'),
    [
        ("dict(type='NoSuchHead', num_classes=5)", 'model.decode_head', 'no such head is registered'),
        (HEAD.replace('classes=5', 'classes=1'), 'model.decode_head.loss_decode', 'one channel is no softmax'),
        (
            HEAD.replace('classes=5', 'classes=2, out_channels=1').replace(
                ')', ", loss_decode=dict(type='CrossEntropyLoss'))"
            ),
            'model.decode_head.loss_decode',
            'one channel is no softmax',
        ),
        (
            HEAD.replace(')', ", loss_decode=dict(type='CrossEntropyLoss', use_mask=True))"),
            'model.decode_head.loss_decode',
            'use_mask=True: a loss on masks',
        ),
        ("dict(type='PSPHead', num_classes=5, loss_decode=dict(loss_weight=1))", 'model.decode_head.loss_decode', ''),
    ],
)
def test_heads_that_cannot_be_converted_stay_with_a_reason(tool, tmp_path, capsys, head, place, reason):
    assert tool.main([a_config(tmp_path / 'a', f'model = dict(decode_head={head})\n'), '--out', 'mine.py']) == 1

    shown = capsys.readouterr().out
    assert shown.startswith(f'{place}: ')
    assert reason in shown
    assert not (tmp_path / 'mine.py').exists()


def test_a_model_without_heads_is_said(tool, tmp_path, capsys):
    assert tool.main([a_config(tmp_path / 'a', "model = dict(type='Mine')\n"), '--out', 'mine.py']) == 1

    assert 'model: Mine -> left alone, it has no decode_head' in capsys.readouterr().out


def test_heads_further_down_and_heads_of_ones_own(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'my_own_heads.py').write_text(
        'from mmseg.models import FCNHead\n'
        'from mmseg.registry import MODELS\n\n\n'
        '@MODELS.register_module(force=True)\nclass MyOwnHead(FCNHead):\n    pass\n'
    )
    text = (
        "custom_imports = dict(imports=['my_own_heads', 'not_installed', 'mmseg_wce'])\n"
        f'mine = {HEAD.replace("FCNHead", "MyOwnHead")}\n'
        f'theirs = dict(**{HEAD}, loss_decode=dict(type="CrossEntropyLoss"))\n'
        "model = dict(type='Distiller', student=dict(decode_head=mine), teachers=[dict(auxiliary_head=[theirs])])\n"
    )

    assert tool.main([a_config(tmp_path / 'a', text), '--out', 'mine.py']) == 0

    assert capsys.readouterr().out.splitlines() == [
        f"model.student.decode_head.loss_decode: mmseg's default -> {OURS}",
        f'model.teachers[0].auxiliary_head[0].loss_decode: CrossEntropyLoss -> {OURS}',
    ]
    new = Config.fromfile('mine.py', import_custom_modules=False)
    assert types(new.model) == [OURS, OURS]
    assert new.custom_imports.imports == ['my_own_heads', 'not_installed', 'mmseg_wce']


def test_other_slots_of_a_head_are_reported(tool, capsys):
    assert tool.main(['mmseg::encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512', '--out', 'mine.py']) == 0

    assert (
        'decode_head.loss_se_decode: CrossEntropyLoss -> left alone, not the loss on pixels' in capsys.readouterr().out
    )
