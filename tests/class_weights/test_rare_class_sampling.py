import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.class_weights.rare_class_sampling import draws_per_epoch


def by_the_paper(class_pixels, temperature):
    """Probability of each image, by two nested loops over equations 8 and 9."""
    frequency = class_pixels.sum(0) / class_pixels.sum()
    classes = [c for c in range(class_pixels.shape[1]) if frequency[c] > 0]
    exponentials = {c: np.exp((1 - frequency[c]) / temperature) for c in classes}
    probability = np.zeros(len(class_pixels))
    for c in classes:
        images = [i for i in range(len(class_pixels)) if class_pixels[i, c] > 0]
        for i in images:
            probability[i] += exponentials[c] / sum(exponentials.values()) / len(images)
    return probability


@given(st.data(), st.sampled_from((0.05, 0.3, 2.0)))
def test_is_the_published_formula(data, temperature):
    shape = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    number = shape[0] * shape[1]
    pixels = data.draw(st.lists(st.sampled_from((0, 0, 1, 10, 300)), min_size=number, max_size=number))
    class_pixels = np.array(pixels).reshape(shape)
    class_pixels[0, 0] += 1

    draws = draws_per_epoch(class_pixels, temperature, max_repeats=1e9)

    np.testing.assert_allclose(draws, len(draws) * by_the_paper(class_pixels, temperature), rtol=1e-9)


@given(st.data(), st.floats(1, 4))
def test_no_image_is_drawn_more_often_than_max_repeats(data, max_repeats):
    number = data.draw(st.integers(1, 12))
    pixels = data.draw(st.lists(st.sampled_from((0, 1, 50)), min_size=3 * number, max_size=3 * number))
    class_pixels = np.array(pixels).reshape(number, 3)
    class_pixels[0, 0] += 1
    free = draws_per_epoch(class_pixels, 0.02, max_repeats=1e9)

    draws = draws_per_epoch(class_pixels, 0.02, max_repeats)

    assert draws.sum() == pytest.approx(number)
    assert (draws >= 0).all()
    assert draws.max() <= max_repeats
    # what is cut off is divided in proportion
    below = (draws < max_repeats * (1 - 1e-9)) & (free > 0)
    ratios = draws[below] / free[below]
    np.testing.assert_allclose(ratios, np.full(len(ratios), ratios[:1].sum()), rtol=1e-9)
    assert (ratios >= 1 - 1e-9).all()


def test_images_without_a_class_are_taken_where_the_others_may_not_be_repeated():
    class_pixels = np.array([[5, 1], [0, 0], [0, 0]])

    assert draws_per_epoch(class_pixels, 0.1, max_repeats=3).tolist() == [3, 0, 0]
    assert draws_per_epoch(class_pixels, 0.1, max_repeats=2).tolist() == [2, 0.5, 0.5]
    assert draws_per_epoch(class_pixels, 0.1, max_repeats=1).tolist() == [1, 1, 1]


def test_a_small_temperature_does_not_overflow():
    class_pixels = np.array([[1000, 0], [1000, 1]])

    np.testing.assert_allclose(draws_per_epoch(class_pixels, 1e-6, 2), [0, 2], atol=1e-12)


def test_nothing_but_ignored_pixels():
    with pytest.raises(ValueError, match='no label file has a class'):
        draws_per_epoch(np.zeros((3, 2), int), 0.01, 10)
