"""Heads and losses of a built model, single or in lists."""

import pytest
from mmseg_wce.model_walk import heads_of, losses_of, main_head
from torch import nn


def module(**children) -> nn.Module:
    parent = nn.Module()
    for name, child in children.items():
        setattr(parent, name, child)
    return parent


@pytest.mark.parametrize('decode', [1, None, 2])
@pytest.mark.parametrize('auxiliary', [1, None, 2])
def test_heads_of_a_model_are_listed(decode, auxiliary):
    heads, expected = {}, []
    for name, number in (('decode_head', decode), ('auxiliary_head', auxiliary)):
        made = [nn.Identity() for _ in range(number or 0)]
        heads[name] = nn.ModuleList(made) if number == 2 else made[0] if made else None
        expected += [(f'{name}[{i}]' if number == 2 else name, head) for i, head in enumerate(made)]
    model = module(**heads)

    assert list(heads_of(model)) == expected
    assert main_head(model) is (expected[decode - 1][1] if decode else None)
    assert list(heads_of(nn.Identity())) == []


def test_losses_of_a_head_are_listed():
    loss = nn.Identity()

    assert losses_of(module(loss_decode=loss)) == [loss]
    assert losses_of(module(loss_decode=nn.ModuleList([loss, loss]))) == [loss, loss]
    assert losses_of(nn.Identity()) == losses_of(None) == []
