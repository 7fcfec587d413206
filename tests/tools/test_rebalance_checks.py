from types import SimpleNamespace

import pytest
from mmseg_wce.class_weights import LabelEncoding, LabelStatistics
from mmseg_wce.training.preflight import PreflightError

CLASSES = 'sky', 'traffic light', 'tree'


@pytest.fixture
def check_classes(import_tool):
    """Compare the classes of statistics with those of images; return the notes."""
    module = import_tool('rebalance_checks')

    def check(*classes: str) -> list[str]:
        dataset, notes = SimpleNamespace(metainfo=dict(classes=CLASSES)), []
        statistics = LabelStatistics.empty('demo', classes, LabelEncoding())
        assert module.check_classes(statistics, [dataset], notes.append) == CLASSES
        return notes

    return check


def test_case_and_separators_do_not_count(check_classes):
    assert check_classes('SKY', 'traffic_light', 'tree') == []


def test_other_names_are_noted(check_classes):
    assert check_classes('sky', 'lamp', 'tree') == [
        "classes have other names: class 1 is 'traffic light' in the images, and 'lamp' in the statistics. Check that "
        'they mean the same'
    ]


def test_another_order_and_another_number_are_errors(check_classes):
    with pytest.raises(PreflightError, match="the classes are in another order: class 0 is 'sky' in the images"):
        check_classes('tree', 'sky', 'traffic light')
    with pytest.raises(PreflightError, match='the images have 3 classes, the statistics 2'):
        check_classes('sky', 'tree')
