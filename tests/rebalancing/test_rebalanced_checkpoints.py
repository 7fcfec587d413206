from collections import OrderedDict

import pytest
import torch
from mmseg_wce.rebalancing.checkpoints import NOTE, check_layer, rebalancing_of, write_rebalanced
from mmseg_wce.training.preflight import PreflightError
from mmseg_wce.version import __version__

LAYER = 'decode_head.conv_seg'
OFFSETS = torch.tensor([0.5, -0.25, -0.25])


def state(prefix='', bias=True):
    weights = {f'{prefix}{LAYER}.weight': torch.randn(3, 2, 1, 1), f'{prefix}backbone.weight': torch.randn(4)}
    return weights | ({f'{prefix}{LAYER}.bias': torch.tensor([1.0, 2.0, 3.0])} if bias else {})


@pytest.fixture
def write(tmp_path):
    """Save a checkpoint and rebalance it; return what was written, and whether there was a bias."""

    def run(content, layer=LAYER, offsets=OFFSETS, **note):
        source, target = str(tmp_path / 'source.pth'), tmp_path / 'new/target.pth'
        torch.save(content, source)
        had_bias = write_rebalanced(source, target, layer, offsets, **note)
        return torch.load(target, weights_only=True), had_bias

    return run


def test_only_the_bias_changes(write, tmp_path):
    before = dict(meta=dict(iter=5, epoch=1), state_dict=state(), optimizer=dict(a=1), message_hub={})

    found, had_bias = write(before, tau=0.25, statistics='labels.json')

    assert had_bias
    assert found.keys() == {'meta', 'state_dict'}
    assert found['state_dict'].keys() == before['state_dict'].keys()
    for name, value in found['state_dict'].items():
        expected = before['state_dict'][name] + (OFFSETS if name == f'{LAYER}.bias' else 0)
        assert torch.equal(value, expected)
    assert (found['meta']['iter'], found['meta']['epoch']) == (5, 1)
    note = dict(tau=0.25, statistics='labels.json', source=str(tmp_path / 'source.pth'), layer=LAYER)
    assert found['meta'][NOTE] == [note | dict(offsets=OFFSETS.tolist(), mmseg_wce=__version__)]


def test_averaged_weights_change_too(write):
    before = dict(state_dict=state(), ema_state_dict={**state('module.'), 'steps': torch.tensor(7)}, meta={})

    found, _ = write(before)

    bias = found['ema_state_dict'][f'module.{LAYER}.bias']
    assert torch.equal(bias, torch.tensor([1.5, 1.75, 2.75]))
    assert found['ema_state_dict']['steps'] == 7


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_plain_state_dict(write, prefix):
    found, _ = write(state(prefix))

    assert torch.equal(found['state_dict'][f'{prefix}{LAYER}.bias'], torch.tensor([1.5, 1.75, 2.75]))


def test_a_layer_without_bias_gets_one(write):
    found, had_bias = write(dict(state_dict=state(bias=False)))

    assert not had_bias
    assert torch.equal(found['state_dict'][f'{LAYER}.bias'], OFFSETS)


def test_versions_of_modules_stay(write):
    """The attribute _metadata of a state dict, which torch.save keeps."""
    weights = OrderedDict(state())
    weights._metadata = {'': dict(version=2)}

    found, _ = write(dict(state_dict=weights))

    assert found['state_dict']._metadata == {'': dict(version=2)}


def test_half_precision_stays(write):
    weights = {name: value.half() for name, value in state().items()}

    found, _ = write(dict(state_dict=weights))

    assert {value.dtype for value in found['state_dict'].values()} == {torch.float16}


def test_a_second_time_is_found_and_noted(write, tmp_path):
    found, _ = write(dict(state_dict=state()), tau=0.25)
    path = str(tmp_path / 'new/target.pth')

    assert rebalancing_of(path) == f'tau 0.25 from {str(tmp_path / "source.pth")!r}'
    assert rebalancing_of(str(tmp_path / 'source.pth')) == ''
    write_rebalanced(path, tmp_path / 'twice.pth', LAYER, OFFSETS, tau=0.25)

    twice = torch.load(tmp_path / 'twice.pth', weights_only=True)
    assert len(twice['meta'][NOTE]) == 2
    assert torch.equal(twice['state_dict'][f'{LAYER}.bias'], found['state_dict'][f'{LAYER}.bias'] + OFFSETS)


@pytest.mark.parametrize(
    ('content', 'options', 'message'),
    [
        (dict(state_dict=state()), dict(layer='another'), r'state_dict of checkpoint .* has no another\.weight'),
        (dict(state_dict=state()), dict(offsets=torch.zeros(5)), 'has 3 channels in .*, the model of the config 5'),
        ([1, 2], {}, 'is not a checkpoint: it holds a list'),
    ],
)
def test_checkpoints_of_other_models(write, tmp_path, content, options, message):
    with pytest.raises(PreflightError, match=message):
        write(content, **options)
    assert not (tmp_path / 'new').exists()
    with pytest.raises(PreflightError, match=message):
        check_layer(str(tmp_path / 'source.pth'), options.get('layer', LAYER), len(options.get('offsets', OFFSETS)))


def test_the_source_is_not_overwritten(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=state()), path)
    before = path.read_bytes()

    with pytest.raises(PreflightError, match='is the checkpoint itself'):
        write_rebalanced(str(path), path, LAYER, OFFSETS)
    assert path.read_bytes() == before
