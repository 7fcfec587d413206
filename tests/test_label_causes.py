import math
import re

import pytest
from cases import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from mmseg_wce.label_causes import likely_causes, mapping_advice
from mmseg_wce.label_evidence import LabelEvidence
from mmseg_wce.targets import LabelFindings


def evidence(values, num_classes, ignore_index=255, reduce_zero_label=None) -> LabelEvidence:
    counts = values if isinstance(values, dict) else dict.fromkeys(values, 100)
    return LabelEvidence(counts, num_classes, ignore_index, reduce_zero_label)


def first_cause(*args, **options) -> str:
    return likely_causes(evidence(*args, **options))[0]


def interpolated(*peaks, between=2, ignored=None) -> dict[int, int]:
    """Frequent values, and every second one between them."""
    counts = dict.fromkeys(range(peaks[0], peaks[-1], between), 10) | dict.fromkeys(peaks, 10_000)
    return counts | ({} if ignored is None else {ignored: 500})


SHIFTED = dict(reduce_zero_label=True)
COCO_HAS_NOT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


@pytest.mark.parametrize(
    ('values', 'num_classes', 'words'),
    [
        # a few values far apart
        ((29, 76, 150), 3, 'mapping={29: 0, 76: 1, 150: 2}'),
        ((0, 127, 254), 3, 'mapping={0: 0, 127: 1, 254: 2}'),
        ((0, 85, 170), 3, 'mapping={0: 0, 85: 1, 170: 2}'),
        ((0, 85, 170, 255), 4, 'mapping={0: 0, 85: 1, 170: 2, 255: 3}'),
        ((0, 85, 170, 255), 3, 'mapping={0: 0, 85: 1, 170: 2}'),
        ((0, 85, 170, 254), 3, 'mapping={0: 255, 85: 0, 170: 1, 254: 2}'),
        (range(0, 240, 12), 20, '228: 19}'),
        # interpolation and JPEG
        (interpolated(0, 255), 2, 'mapping={0: 0, 255: 1}'),
        (interpolated(0, 127, 254), 3, 'mapping={0: 0, 127: 1, 254: 2}'),
        (interpolated(0, 1, 2, 254, ignored=255), 3, 'resize masks with nearest neighbour'),
        (dict.fromkeys((*range(7), *range(249, 256)), 50) | {0: 9000, 255: 9000}, 2, 'saved as JPEG'),
        (dict.fromkeys(range(21), 1000) | dict.fromkeys(range(21, 254), 3) | {255: 900}, 21, 'with interpolation'),
        # ids with gaps
        ((1, 2, 4), 3, 'ids have gaps, and class indices (0..2) have none: map them'),
        ((0, 1, 3, 7, 8), 5, 'mapping={0: 0, 1: 1, 3: 2, 7: 3, 8: 4}'),
        (range(34), 19, "Cityscapes labelIds (0..33): read the train ids: seg_map_suffix='_gtFine_labelTrainIds.png'"),
        ((7, 8, 11, 21, 23, 26, 33), 19, 'Cityscapes labelIds'),
        ({*range(182)} - {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}, 171, 'COCO-Stuff ids'),
        ((3, 400, 2978), 150, 'ids of the full ADE20K'),
        ((17, 31, 44, 62, 90), 10, 'map every value of the data set to its class'),
        ((3, 17, 18, 31, 90), 10, 'are ids of another kind: map every id to its class'),
        # one value beyond a gap
        ((0, 1, 2, 4), 3, '4 perhaps marks pixels without a class'),
        ((0, 1, 2, 200, 255), 3, 'mapping={200: 255}'),
        ((*range(0, 150, 2), 200), 150, '200 perhaps marks'),
        ((0, 1, 2, 65535), 3, 'mapping={65535: 255}'),
        ((0, 1, 2, 400), 3, '400 perhaps marks'),
        # never shifted
        ((1, 2, 3), 3, 'set reduce_zero_label=True'),
        ({0: 30, 1: 100, 2: 100, 3: 100}, 3, 'set reduce_zero_label=True'),
        # one too many, and 0 may be "other" or a class
        (range(7), 6, 'if 0 means "other", as in ADE20K, set reduce_zero_label=True'),
        (range(7), 6, 'if 0 is a class, these labels need num_classes=7 in every head'),
        (range(21), 20, 'if 0 is a class, these labels need num_classes=21'),
        ({0: 5} | dict.fromkeys(range(1, 13), 100), 12, 'raw labels 0..12, as ADE20K stores them'),
        ({0: 900} | dict.fromkeys(range(1, 151), 10), 150, 'raw labels 0..150, as ADE20K stores them'),
        # too many by one or two
        ((0, 1, 2, 3), 3, 'num_classes=3 is too small: these labels need num_classes=4 in every head'),
        ((0, 1, 2, 3, 4), 3, 'num_classes=5'),
        (range(120), 100, 'num_classes=120'),
        # as before
        ({1: 100, 2: 100, 254: 50}, 3, '255 - 1 = 254'),
        ({0: 10, 255: 50, 150: 3} | dict.fromkeys(range(1, 100), 10), 150, 'raw 151 in the label files became 150'),
        ((0, 1, -1), 3, 'mapping={-1: 255}'),
        ((0, 1, -7), 3, 'mapping={-7: 255}'),
        ((0, 1, -9, -7), 3, 'mapping={-9: 255, -7: 255}'),
        ((0, 1, -math.inf), 3, 'negative labels mark pixels'),
        # one class
        ((0, 1), 1, 'set num_classes=2 in every head'),
        ((1,), 1, 'set num_classes=2 in every head'),
        ((0, 7), 1, 'mapping={7: 1}'),
        # two grey levels
        ((0, 254), 2, 'mapping={0: 0, 254: 1}'),
        # not the ids of a known data set
        ((*range(19), 21), 19, '21 perhaps marks'),
        (range(22), 19, 'num_classes=19 is too small: these labels need num_classes=22'),
        ((1, 3, 13, 80), 80, 'set reduce_zero_label=True'),
        (range(1, 172), 171, 'set reduce_zero_label=True'),
        ((-1, 7, 8, 11, 21, 23, 26), 19, 'Cityscapes labelIds'),
        # reduce_zero_label makes 255 of 0, which is a class
        (range(1, 301), 300, 'mapping={0: 255, **{k: k - 1 for k in range(1, 301)}}'),
        # ids of COCO
        ({*range(1, 91)} - COCO_HAS_NOT, 80, 'COCO category ids (1..90, with gaps)'),
        # many values that are as many as the classes
        (dict.fromkeys(range(0, 252, 21), 10) | {0: 9000, 231: 9000}, 12, 'mapping={0: 0, 21: 1'),
    ],
)
def test_first_cause(values, num_classes, words):
    assert words in first_cause(values, num_classes)


@pytest.mark.parametrize(
    ('values', 'num_classes', 'options', 'words'),
    [
        ((0, 255), 2, dict(ignore_index=-100), 'mapping={255: 1}'),
        ((0, 255), 1, dict(ignore_index=-100), 'mapping={255: 1}'),
        ((0, 255), 150, dict(ignore_index=-100), 'set ignore_index=255 in the head'),
        ((0, 1, 2, 255), 3, dict(ignore_index=-1), 'set ignore_index=255 in the head'),
        ((0, 1, 2, 4), 3, dict(ignore_index=-1), 'mapping={4: -1}'),
        ((1, 2, 3), 3, dict(ignore_index=-1), 'mapping={0: -1, **{k: k - 1 for k in range(1, 4)}}'),
        ((126, 253, 255), 3, SHIFTED, 'set reduce_zero_label=False in the dataset and in LoadAnnotations, and map'),
        ((126, 253, 255), 3, SHIFTED, 'mapping={0: 0, 127: 1, 254: 2}'),
        ((84, 169, 253, 255), 3, SHIFTED, 'mapping={0: 255, 85: 0, 170: 1, 254: 2}'),
        ((0, 1, 2, 3, 255), 3, SHIFTED, 'num_classes=4'),
        ((0, 1, 9, 255), 3, SHIFTED, 'raw 10 in the label files became 9'),
    ],
)
def test_first_cause_of_ignored_and_shifted_labels(values, num_classes, options, words):
    assert words in first_cause(values, num_classes, **options)


@pytest.mark.parametrize(
    ('values', 'num_classes', 'not_said'),
    [
        (dict.fromkeys(range(150), 100) | {200: 100}, 100, 'interpolation'),
        (dict.fromkeys(range(100), 100) | dict.fromkeys(range(100, 150), 3) | {255: 500}, 100, 'interpolation'),
        ((3, 20, 151), 150, 'grey levels'),
        ((0, 1, 2, 3), 3, 'gaps'),
        ((0, 1, 2, 4), 3, 'num_classes=3 is too small'),
        ((0, 127, 254), 3, '255 - 1'),
        ({0: 100, 1: 100, 2: 100_000, 4: 1}, 3, 'perhaps marks'),  # painted by mistake
        (range(34), 20, 'Cityscapes'),
        (dict.fromkeys(range(9), 9000) | {76: 10, 255: 3000}, 10, 'gaps'),  # painted by mistake, and class 9 is absent
        ({0: 90_000, 1: 90_000, 100: 10}, 3, 'grey levels'),
    ],
)
def test_causes_that_would_be_wrong_are_not_the_first(values, num_classes, not_said):
    assert not_said not in first_cause(values, num_classes)


def test_one_class_is_never_told_to_reduce_zero_label():
    for values in ((0, 1), (1,), (0, 255), (0, 1, 2)):
        causes = likely_causes(evidence(values, 1, ignore_index=-100))
        assert not any('set reduce_zero_label=True' in cause for cause in causes)


@pytest.mark.parametrize('values', [{math.inf: 5}, {-math.inf: 5}, {0: 3, math.inf: 5, -math.inf: 1}, {2**62: 1}])
def test_values_that_a_device_counts_together_have_a_cause(values):
    causes = likely_causes(evidence(values, 150))

    assert causes
    assert all(causes)


@given(
    counts=st.dictionaries(
        st.integers(-5, 300) | st.sampled_from((math.inf, -math.inf, 2**40)), st.integers(1, 10**9), min_size=1
    ),
    num_classes=st.integers(1, 300),
    ignore_index=st.sampled_from((255, 0, -1, -100, 299)),
    reduce_zero_label=st.sampled_from((None, True, False)),
)
@examples(200)
def test_any_values_have_a_cause_or_are_legal(counts, num_classes, ignore_index, reduce_zero_label):
    found = LabelEvidence(counts, num_classes, ignore_index, reduce_zero_label)
    assume(found.bad)

    causes = likely_causes(found)

    assert 1 <= len(causes) <= 3
    assert all(isinstance(cause, str) and '\n' not in cause and 'inf' not in cause for cause in causes)


def test_there_are_at_most_three_causes_and_no_two_are_equal():
    for num_classes in (1, 2, 3, 19, 150):
        for values in ((0, 1, 254, 255), (3, 254), (-1, 0, 400), range(-3, 300)):
            causes = likely_causes(evidence(values, num_classes))
            assert 1 <= len(causes) <= 3
            assert len(set(causes)) == len(causes)


def test_long_tables_are_shortened():
    advice = mapping_advice({i: i + 1 for i in range(100)})

    assert advice.endswith('39: 40, ...})')


def test_the_mapping_of_coco_ids():
    ids = sorted({*range(1, 91)} - COCO_HAS_NOT)

    expression = re.search(r'mapping=(\{.*\})\), where', first_cause([0, *ids], 80))[1]

    assert eval(expression) == {0: 255} | {value: i for i, value in enumerate(ids)}


def test_values_that_a_device_counted_together_are_told_by_the_first():
    findings = LabelFindings({0: 9, -math.inf: 3}, -7, (0, 0), (3, 4), 3, 255)
    above = LabelFindings({0: 5, 1: 5, 2: 5, math.inf: 3}, 65535, (0, 0), (3, 4), 3, 255)

    assert 'mapping={-7: 255}' in likely_causes(findings.evidence)[0]
    assert 'mapping={65535: 255}' in likely_causes(above.evidence)[0]
    assert (findings.bad_counts, findings.num_bad) == ({-math.inf: 3}, 3)


def test_infinities_are_no_example_of_interpolated_values():
    counts = {0: 3, 1: 1, -1: 1, 2: 1, -2: 1, 3: 1, 8: 1, 9: 3, math.inf: 1, -math.inf: 1}

    causes = likely_causes(LabelEvidence(counts, 1, 255, None))

    assert 'which makes values such as -2, -1, 1: ' in causes[0]
