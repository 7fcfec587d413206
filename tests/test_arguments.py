import warnings

import pytest
import torch
import torch.nn.functional as F
from mmseg_wce import arguments
from mmseg_wce.functional import binary_normalizer, normalizer, weighted_binary_cross_entropy, weighted_cross_entropy

LOSSES = [weighted_cross_entropy, weighted_binary_cross_entropy]


def complaint(logits, target, error=ValueError) -> str:
    with pytest.raises(error) as caught:
        weighted_cross_entropy(logits, target)
    return str(caught.value)


@pytest.mark.parametrize('num_classes', [2, 3, 4, 19])
@pytest.mark.parametrize('dim', [1, -1])
@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.float32, torch.bool])
def test_one_hot_labels_are_named(num_classes, dim, dtype):
    labels = torch.randint(0, num_classes, (2, 5, 6), generator=torch.Generator().manual_seed(0))
    hot = F.one_hot(labels, num_classes)
    hot = (hot.permute(0, 3, 1, 2) if dim == 1 else hot).to(dtype)
    logits = torch.zeros(2, num_classes, 5, 6)

    message = complaint(logits, hot, TypeError if dtype in (torch.float32, torch.bool) else ValueError)

    assert f'one-hot: take their class indices, target.argmax({dim})' in message
    assert 'colour' not in message
    assert weighted_cross_entropy(logits, hot.long().argmax(dim)).item() == pytest.approx(
        torch.tensor(float(num_classes)).log().item()
    )


@pytest.mark.parametrize('dim', [1, -1])
def test_colours_of_three_classes_are_not_called_one_hot(dim):
    colours = torch.randint(0, 256, (2, 5, 6, 3), generator=torch.Generator().manual_seed(0))
    colours = colours.permute(0, 3, 1, 2) if dim == 1 else colours

    assert 'colour channels' in complaint(torch.zeros(2, 3, 5, 6), colours)


def test_soft_labels_of_many_classes_are_named():
    assert 'target.argmax(1)' in complaint(torch.zeros(2, 19, 4, 4), torch.rand(2, 19, 4, 4), TypeError)


def test_other_floats_are_no_one_hot_labels():
    message = complaint(torch.zeros(2, 19, 4, 4), torch.zeros(2, 4, 4), TypeError)

    assert 'one-hot' not in message
    assert 'torch.float32' in message


@pytest.fixture
def warned(recwarn):
    """Messages about the ignored label, which are given once in a process."""
    arguments._warn_class_is_ignored.cache_clear()
    yield lambda: [str(w.message) for w in recwarn if 'is ignored, because' in str(w.message)]
    arguments._warn_class_is_ignored.cache_clear()


@pytest.mark.parametrize('num_classes', [256, 300])
@pytest.mark.parametrize('loss', LOSSES)
def test_warns_once_if_a_class_is_ignored_by_default(loss, num_classes, warned):
    logits, labels = torch.zeros(1, num_classes, 2, 2), torch.full((1, 2, 2), 255)

    for _ in range(3):
        assert loss(logits, labels).item() == 0

    (message,) = warned()
    assert message.startswith(f'class 255 of {num_classes} is ignored')


@pytest.mark.parametrize('loss', LOSSES)
def test_no_warning_if_the_ignored_label_is_given(loss, warned):
    logits, labels = torch.zeros(1, 300, 2, 2), torch.full((1, 2, 2), 255)

    loss(logits, labels, ignore_index=255)
    assert loss(logits, labels, ignore_index=-1).item() > 0
    loss(torch.zeros(1, 255, 2, 2), labels)

    assert warned() == []


def test_normalizers_have_the_same_default(warned):
    logits, labels = torch.zeros(1, 300, 2, 2), torch.tensor([[[255, 0], [1, 2]]])

    assert normalizer(logits, labels).item() == 3
    assert binary_normalizer(logits, labels).item() == 900
    assert len(warned()) == 1


def test_the_warning_names_the_line_that_calls(warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        weighted_cross_entropy(torch.zeros(1, 300, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))

    assert [w.filename for w in caught] == [__file__]


def test_compiled_with_the_default(warned):
    compiled = torch.compile(weighted_cross_entropy, fullgraph=True, backend='aot_eager')

    assert compiled(torch.zeros(1, 300, 2, 2), torch.full((1, 2, 2), 255)).item() == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.bool])
@pytest.mark.parametrize('shape', [(2, 4, 4), (2, 1, 4, 4)])
def test_masks_of_other_dtypes_say_how_they_become_labels(dtype, shape):
    logits, target = torch.zeros(2, 1, 4, 4), torch.ones(shape).to(dtype)

    with pytest.raises(TypeError, match=r'must hold class indices') as caught:
        weighted_binary_cross_entropy(logits, target)

    change = str(caught.value).rpartition(': target')[2]
    labels = eval(f'target{change}')  # what it says to do
    assert weighted_binary_cross_entropy(logits, labels).isfinite()


def test_two_masks_for_one_channel_are_one_hot():
    target = torch.nn.functional.one_hot(torch.tensor([[0, 1], [1, 1]])).movedim(-1, 1)

    with pytest.raises(ValueError, match=r'one-hot: take their class indices, target\.argmax\(1\)'):
        weighted_binary_cross_entropy(torch.zeros(2, 1, 2), target)
