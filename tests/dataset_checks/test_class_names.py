import pytest
from mmseg_wce.dataset_checks.class_names import find_difference, normalize


@pytest.mark.parametrize('name', ['traffic light', ' Traffic_Light ', 'traffic-light', 'TRAFFIC \t light'])
def test_case_and_separators_do_not_count(name):
    assert normalize(name) == 'traffic light'


def test_names_that_mean_the_same_do_not_differ():
    assert find_difference(('Road', 'traffic-light'), ('road', 'traffic light')) is None
    assert find_difference((), ()) is None


def test_another_order_is_told_from_other_names():
    names = 'road', 'sky', 'tree'
    assert find_difference(names, ('road', 'tree', 'sky')) == (1, True)
    assert find_difference(names, ('road', 'sky', 'bush')) == (2, False)


def test_a_name_that_stands_twice_is_not_another_order():
    assert find_difference(('road', 'sky', 'sky'), ('road', 'road', 'sky')) == (1, False)


def test_numbers_of_names_must_be_the_same():
    with pytest.raises(ValueError, match='shorter'):
        find_difference(('road',), ())
