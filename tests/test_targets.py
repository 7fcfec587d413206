import math

import pytest
import torch
from cases import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from mmseg_wce import targets
from mmseg_wce.functional import weighted_cross_entropy
from mmseg_wce.targets import valid_pixels

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def refusal(target, num_classes, ignore_index=255) -> str:
    with pytest.raises(ValueError, match='have a label that is neither') as caught:
        valid_pixels(target, num_classes, ignore_index)
    return str(caught.value)


def likely_cause(message: str) -> str:
    return message.split('Likely cause: ')[1].split('; or ')[0]


@pytest.mark.parametrize('ignore_index', [255, 2, 0, -100])
def test_mask_of_the_pixels_that_count(ignore_index):
    target = torch.tensor([[0, 1, 2], [2, 1, 0]])
    if ignore_index not in (0, 1, 2):
        target[0, 0] = ignore_index

    assert torch.equal(valid_pixels(target, 3, ignore_index), target != ignore_index)


def test_message_names_values_counts_place_and_shape():
    target = torch.zeros(2, 4, 5, dtype=torch.long)
    target[1, 2, 3] = target[1, 3, 0] = 151
    target[1, 3, 1] = 7000

    message = refusal(target, 150)

    assert '3 of 40 pixels' in message
    assert '(2, 4, 5)' in message
    assert '151 (2 px)' in message
    assert '7000 (1 px)' in message
    assert 'The first is 151 at index (1, 2, 3)' in message
    assert 'ignore_index=255' in message


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    num_classes=st.integers(2, 300),
    ignore_index=st.sampled_from((255, -1, -100, 0)),
    bad=st.lists(st.integers(-(2**62), 2**62) | st.integers(-3, 400), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@examples(60)
def test_any_bad_label_is_counted_and_found(shape, num_classes, ignore_index, bad, seed):
    bad = [value for value in bad if value != ignore_index and not 0 <= value < num_classes]
    assume(bad)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, num_classes, shape, generator=generator)
    for value in bad:
        target.view(-1)[int(torch.randint(0, target.numel(), (), generator=generator))] = value
    is_bad = (target != ignore_index) & ((target < 0) | (target >= num_classes))
    first = tuple(is_bad.nonzero()[0].tolist())

    message = refusal(target, num_classes, ignore_index)

    assert message.startswith(f'{int(is_bad.sum())} of {target.numel()} pixels of the target {shape} ')
    assert f'The first is {target[first].item()} at index {first}. ' in message
    for value, count in zip(*target[is_bad].unique(return_counts=True), strict=True):
        assert f'{value.item()} ({count.item()} px)' in message


def ade_like(*values: int) -> torch.Tensor:
    """Mostly classes 1..9, with a pixel of each given value."""
    target = torch.arange(400).remainder(9).add(1).view(1, 20, 20)
    for i, value in enumerate(values):
        target[0, 5, i] = value
    return target


@pytest.mark.parametrize(
    ('target', 'num_classes', 'ignore_index', 'cause'),
    [
        (ade_like(150, 150, 0), 150, 255, 'raw labels 0..150'),
        (ade_like(150, 255, 255, 255), 150, 255, 'raw 151 in the label files became 150'),
        (ade_like(150, 201, 253), 150, 255, 'raw 151..254 in the label files became 150..253'),
        (ade_like(255), 150, -100, '255 marks pixels without a class'),
        (ade_like(255), 150, 0, '255 marks pixels without a class'),
        (ade_like(254), 150, 255, '255 - 1 = 254'),
        (ade_like(-1), 150, 255, '0 - 1 = -1'),
        (ade_like(-100), 150, 255, 'negative labels mark pixels without a class'),
        (ade_like(12, 14), 11, -1, 'these ids have gaps, and class indices (0..10) have none'),
        (ade_like(10, 11), 10, -1, 'num_classes=10 is too small: these labels need num_classes=12'),
        (torch.tensor([[0, 255, 255, 0]]), 2, -100, 'masks of 0 and 255'),
        (ade_like(1000, 3000), 150, 255, 'ids of the full ADE20K'),
        (ade_like(1000, 3000), 140, -1, '1000..3000 are ids of another kind'),
        (ade_like(150), 150, -1, 'raw labels 0..150'),
        (ade_like(150), 150, 255, 'raw labels 0..150'),
    ],
)
def test_likely_cause(target, num_classes, ignore_index, cause):
    assert cause in likely_cause(refusal(target, num_classes, ignore_index))


def test_raw_ade20k_labels_name_reduce_zero_label(shared_data):
    import cv2

    annotations = sorted((shared_data / 'ade20k_sample/annotations/validation').glob('*.png'))
    raw = torch.from_numpy(cv2.imread(str(annotations[0]), cv2.IMREAD_UNCHANGED)).long()
    num_classes = int(raw.max())  # a task whose last class occurs in this image, read without reduce_zero_label

    assert 'set reduce_zero_label=True' in refusal(raw[None], num_classes)


def test_no_index_out_of_bounds_whatever_the_label():
    for bad in (150, 254, -1, 2**40, -(2**40)):
        target = torch.zeros(1, 4, 4, dtype=torch.long)
        target[0, 1, 1] = bad
        with pytest.raises(ValueError, match=f'The first is {bad} at index'):
            weighted_cross_entropy(torch.randn(1, 150, 4, 4), target)


def test_every_value_is_counted_the_most_frequent_first():
    message = refusal(ade_like(2000, -5, -5, -7, 2000, 2000), 150)

    assert '2000 (3 px), -5 (2 px), -7 (1 px)' in message


def test_on_a_device_values_outside_a_byte_are_counted_together(pending):
    pending.append(in_flight(torch.tensor([[0, 1000, 2000, -5]]), arrived=True))

    with pytest.raises(ValueError, match=r'above 255 \(2 px\), below 0 \(1 px\)\. The first is 1000'):
        targets.raise_pending()


@given(
    num_classes=st.sampled_from((3, 256, 300)),
    ignore_index=st.sampled_from((255, -1, 299, 70000, 0)),
    low=st.sampled_from((-3, 0)),
    high=st.sampled_from((3, 400)),
    seed=st.integers(0, 99),
)
@examples(60)
def test_what_a_device_measures_is_what_the_target_holds(num_classes, ignore_index, low, high, seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(low, high, (2, 5, 7), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = ignore_index
    bad = (target != ignore_index) & ((target < 0) | (target >= num_classes))

    measured = targets._measure(target, bad, ignore_index)
    findings = targets._read(measured, target.shape, num_classes, ignore_index, ())

    if not bad.any():
        assert findings is None
        return
    assert findings.first_index == tuple(bad.nonzero()[0].tolist())
    assert findings.first_value == target[findings.first_index]
    assert findings.num_bad == bad.sum()
    assert sum(findings.counts.values()) == target.numel()
    counted = dict(zip(*(x.tolist() for x in target.unique(return_counts=True)), strict=True))
    together = {
        -math.inf: sum(n for v, n in counted.items() if v < 0 and v != ignore_index),
        math.inf: sum(n for v, n in counted.items() if v > 255 and v >= num_classes and v != ignore_index),
        ignore_index: counted.get(ignore_index, 0),
    }
    assert all(findings.counts.get(value, 0) == n for value, n in together.items())
    assert all(findings.counts.get(value, 0) == n for value, n in counted.items() if 0 <= value < 256)


def test_many_different_values_are_summed_up():
    message = refusal(torch.arange(256).view(1, 16, 16), 10, 255)

    assert '245 of 256 pixels' in message
    assert 'others (237 px)' in message


class Arrival:
    """Stands in for a CUDA event: a finding that has not arrived yet, until it is waited for."""

    def __init__(self, arrived: bool) -> None:
        self.arrived = arrived

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.arrived = True


def in_flight(target: torch.Tensor, arrived: bool) -> targets._InFlight:
    bad = (target < 0) | ((target >= 3) & (target != 255))
    return targets._InFlight(targets._measure(target, bad, 255), Arrival(arrived), target.shape, 3, 255)


@pytest.fixture
def pending():
    targets._pending.clear()
    yield targets._pending
    targets._pending.clear()


def test_a_finding_under_way_is_not_waited_for(pending):
    pending.append(in_flight(torch.tensor([[0, 9]]), arrived=False))

    targets.raise_pending(wait=False)

    assert len(pending) == 1


def test_a_finding_that_arrived_is_raised_with_the_same_message(pending):
    target = torch.tensor([[0, 1, 255], [9, 2, 9]])
    pending.extend([in_flight(torch.tensor([[0, 1]]), True), in_flight(target, True), in_flight(target, False)])

    with pytest.raises(ValueError, match='In an earlier iteration') as caught:
        targets.raise_pending(wait=False)

    assert refusal(target, 3) in str(caught.value)
    assert not pending


def test_waiting_raises_what_is_under_way(pending):
    pending.append(in_flight(torch.tensor([[0, 9]]), arrived=False))

    with pytest.raises(ValueError, match=r'9 \(1 px\)'):
        targets.raise_pending()


@needs_cuda
def test_cuda_raises_later_and_counts_no_bad_pixel(pending):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 8, 8))
    without = target.clone()
    target[0, 3, 4], without[0, 3, 4] = 77, 255

    loss = weighted_cross_entropy(logits.cuda(), target.cuda())

    torch.testing.assert_close(loss.cpu(), weighted_cross_entropy(logits, without))
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r'77 \(1 px\).*at index \(0, 3, 4\)'):
        weighted_cross_entropy(logits.cuda(), without.cuda())


@needs_cuda
def test_cuda_does_not_synchronise(pending):
    logits, target = torch.randn(2, 5, 8, 8, device='cuda', requires_grad=True), torch.zeros(2, 8, 8).long().cuda()
    weight = torch.ones(5, device='cuda')
    weighted_cross_entropy(logits, target, weight).backward()
    torch.cuda.set_sync_debug_mode('error')
    try:
        weighted_cross_entropy(logits, target, weight).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')
