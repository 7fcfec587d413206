"""F.interpolate of all channels and arg-max are the oracle: the same class at every pixel, without any tolerance."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import examples
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce import upsampling
from mmseg_wce.functional import upsampled_argmax
from mmseg_wce.upsampling import RunningArgmax


def by_all_channels(logits, sizes, align_corners):
    for size in sizes:
        logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=align_corners)
    return logits.argmax(dim=1)


def with_layout(logits, layout):
    if layout == 'channels_last':
        return logits.to(memory_format=torch.channels_last)
    if layout == 'part of channels_last':
        return torch.cat([logits, logits], 1).to(memory_format=torch.channels_last)[:, : logits.shape[1]]
    if layout == 'transposed':
        return logits.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == 'part of a row':
        return torch.cat([logits, logits], 3)[..., : logits.shape[3]]
    return logits


# outputs of up to 128 rows and columns together take another kernel of PyTorch
sides = st.one_of(st.integers(1, 20), st.integers(40, 90), st.integers(100, 150))
layouts = st.sampled_from(('contiguous', 'channels_last', 'part of channels_last', 'transposed', 'part of a row'))


@examples(150)
@given(
    batch_size=st.integers(1, 3),
    num_channels=st.sampled_from((1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 19, 31, 33, 47, 48, 50, 65, 150)),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    sizes=st.lists(st.tuples(sides, sides), max_size=3),
    layout=layouts,
    dtype=st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    align_corners=st.booleans(),
    ties=st.booleans(),
    specials=st.lists(st.sampled_from((math.nan, math.inf, -math.inf)), max_size=4),
    seed=st.integers(0, 2**31),
)
def test_same_class_at_every_pixel(
    batch_size, num_channels, height, width, sizes, layout, dtype, align_corners, ties, specials, seed
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch_size, num_channels, height, width, generator=generator)
    logits = (logits.round() if ties else logits).to(dtype)
    for value in specials:
        logits.view(-1)[torch.randint(logits.numel(), (), generator=generator)] = value
    logits = with_layout(logits, layout)

    found = upsampled_argmax(logits, *sizes, align_corners=align_corners)

    expected = by_all_channels(logits, sizes, align_corners)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('size', [(40, 50), (130, 140)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_groups_of_channels_are_resized_to_the_same_bits_as_all(dtype, size, memory_format):
    logits = torch.randn(2, 150, 16, 20).to(dtype).contiguous(memory_format=memory_format)

    groups = [upsampling.resize_channels(logits, c, [size]) for c in upsampling.channel_slices(logits, [size])]

    assert len(groups) > 1
    assert torch.equal(torch.cat(groups, 1), F.interpolate(logits, size=size, mode='bilinear'))


@pytest.mark.parametrize(('memory_format', 'most'), [(torch.contiguous_format, 7), (torch.channels_last, 22)])
def test_only_a_few_channels_are_at_full_size_at_a_time(monkeypatch, memory_format, most):
    interpolate, seen = F.interpolate, []
    monkeypatch.setattr(F, 'interpolate', lambda x, **options: seen.append(x.shape[1]) or interpolate(x, **options))

    upsampled_argmax(torch.randn(1, 150, 16, 20).contiguous(memory_format=memory_format), (100, 120))

    assert sum(seen) == 150
    assert max(seen) <= most


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_argmax_under_autocast_is_that_of_all_channels(memory_format):
    logits = torch.randn(1, 19, 16, 20).bfloat16().contiguous(memory_format=memory_format)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(
            upsampled_argmax(logits, (60, 70), (100, 120)), by_all_channels(logits, [(60, 70), (100, 120)], False)
        )


@examples(100)
@given(
    groups=st.lists(
        st.lists(st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.0)), min_size=1, max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_both_ways_of_comparing_follow_argmax(groups):
    """Accelerators take all channels of a group at once, the CPU one at a time."""
    one_by_one, together = RunningArgmax(), RunningArgmax()
    together._update_one_by_one = together._update_together
    first = 0
    for group in groups:
        for argmax in (one_by_one, together):
            argmax.update(torch.tensor(group).view(1, -1, 1), first)
        first += len(group)

    expected = torch.tensor(list(chain(*groups))).argmax()

    assert one_by_one.index.item() == expected
    assert together.index.item() == expected


def test_one_pixel_whose_layout_is_not_clear():
    logits = torch.randn(2, 150, 1, 1).bfloat16().to(memory_format=torch.channels_last)
    sizes = [(32, 32), (112, 70)]

    groups = [upsampling.resize_channels(logits, c, sizes) for c in upsampling.channel_slices(logits, sizes)]

    expected = logits
    for size in sizes:
        expected = F.interpolate(expected, size=size, mode='bilinear')
    assert torch.equal(torch.cat(groups, 1), expected)


@pytest.mark.parametrize(('images', 'size'), [(0, (8, 9)), (1, tuple(np.array([8, 9])))])
def test_no_image_and_sizes_of_numpy(images, size):
    assert upsampled_argmax(torch.zeros(images, 5, 4, 4), size).shape == (images, 8, 9)


def test_no_gradient_is_recorded():
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)

    assert not upsampled_argmax(logits, (8, 8)).requires_grad


def test_more_classes_than_a_small_integer_holds():
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 299, 1] = 1

    assert upsampled_argmax(logits).tolist() == [[[0, 0], [299, 299]]]


@pytest.mark.parametrize(
    ('logits', 'sizes', 'error', 'message'),
    [
        (torch.zeros(1, 2, 3, 3, dtype=torch.int64), [(4, 4)], TypeError, 'floating-point tensor, got torch.int64'),
        ([1.0], [(4, 4)], TypeError, 'floating-point tensor, got list'),
        (torch.zeros(2, 3, 3), [(4, 4)], ValueError, r'\(N, C, h, w\) with C >= 1, got \(2, 3, 3\)'),
        (torch.zeros(1, 0, 3, 3), [(4, 4)], ValueError, r'C >= 1, got \(1, 0, 3, 3\)'),
        (torch.zeros(1, 2, 3, 3), [4, 4], TypeError, 'two integers, .* got 4: pass one pair per resize'),
        (torch.zeros(1, 2, 3, 3), [(4.0, 4)], TypeError, r'two integers, .* got \(4\.0, 4\)'),
        (torch.zeros(1, 2, 3, 3), [(True, 4)], TypeError, r'two integers, .* got \(True, 4\)'),
        (torch.zeros(1, 2, 3, 3), [(4, 0)], ValueError, r'at least \(1, 1\), got \(4, 0\)'),
    ],
)
def test_bad_arguments_are_named(logits, sizes, error, message):
    with pytest.raises(error, match=message):
        upsampled_argmax(logits, *sizes)
