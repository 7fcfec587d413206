import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg_wce.head_losses import _Fused
from mmseg_wce.losses import WeightedCrossEntropyLoss

OURS = 'WeightedCrossEntropyLoss'


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


@pytest.mark.parametrize(
    ('name', 'before', 'after'),
    [
        ('ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512', ['CrossEntropyLoss'] * 2, [OURS] * 2),
        (
            'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes',
            ['CrossEntropyLoss', 'OhemCrossEntropy', 'BoundaryLoss', 'OhemCrossEntropy'],
            [OURS, 'OhemCrossEntropy', 'BoundaryLoss', 'OhemCrossEntropy'],
        ),
        (
            'stdc/stdc1_4xb12-80k_cityscapes-512x1024',
            ['CrossEntropyLoss'] * 4 + ['DiceLoss'],
            [OURS] * 3 + ['CrossEntropyLoss', 'DiceLoss'],
        ),
        (
            'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512',
            ['CrossEntropyLoss'] * 2,
            [OURS] * 2,
        ),
    ],
)
def test_lists_and_losses_that_stay(tool, name, before, after):
    assert tool.main([f'mmseg::{name}.py', '--out', 'mine.py']) == 0

    old, new = Config.fromfile(tool.SHIPPED / f'{name}.py'), Config.fromfile('mine.py')
    assert types(old.model) == before
    assert types(new.model) == after


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


def test_every_ade20k_config_of_mmseg(tool, tmp_path, capsys):
    names = sorted(name for name, _ in tool.named('mmseg::*ade20k*'))

    assert tool.main(['mmseg::*ade20k*', '--out', 'converted']) == 0

    summary = capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / 'converted').iterdir())
    assert len(names) >= 180
    assert f'{len(written)} of {len(names)} configs written' in summary
    replaced = 0
    for name in names:
        file = tool.SHIPPED / name.removeprefix('mmseg::')
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
        assert types(new.model) == [OURS if kind == 'CrossEntropyLoss' else kind for kind in types(old.model)]
        replaced += len(changed)
    assert f'{replaced} losses replaced' in summary


@pytest.mark.parametrize('family', ['danet', 'encnet', 'knet', 'mobilenet_v2', 'segmenter'])
def test_a_sample_trains_converted_and_fused(tool, import_tool, tmp_path, monkeypatch, family):
    """Heads and backbones that configs/ does not have."""
    trial = import_tool('try_stack')
    file = trial.of_each_family()[family]
    assert 'ade20k' in file.name
    seen, value = [], _Fused.value

    def watched(self, loss, *args, **options):
        seen.append((type(loss), tuple(self.logits.shape[2:])))
        return value(self, loss, *args, **options)

    monkeypatch.setattr(_Fused, 'value', watched)
    tool.convert(f'mmseg::{file.relative_to(tool.SHIPPED)}', file, tmp_path / 'mine.py')

    trial.an_iteration(Config.fromfile(tmp_path / 'mine.py'), size=64, fuse=True)

    assert (WeightedCrossEntropyLoss, (8, 8)) in seen or (WeightedCrossEntropyLoss, (4, 4)) in seen


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
        ('fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024', 'use_sigmoid=True: a binary cross-entropy'),
        ('san/san-vit-b16_coco-stuff164k-640x640', 'it classifies masks, not pixels'),
        ('maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512', 'it has no loss on pixels'),
    ],
)
def test_nothing_to_replace(tool, tmp_path, capsys, name, reason):
    assert tool.main([f'mmseg::{name}.py', '--out', 'mine.py']) == 1

    assert reason in capsys.readouterr().out
    assert not (tmp_path / 'mine.py').exists()


@pytest.mark.parametrize('config', ['mmseg::no/such*.py', 'missing.py', 'broken.py', 'without_model.py'])
def test_what_cannot_be_read(tool, tmp_path, capsys, config):
    (tmp_path / 'broken.py').write_text('model = dict(')
    (tmp_path / 'without_model.py').write_text('a = 1\n')

    assert tool.main([config, '--out', 'mine.py']) == 2

    assert capsys.readouterr().err.startswith('error: ')
