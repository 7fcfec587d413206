"""Number of times that each image is drawn, so that rare classes are seen more often (Hoyer et al. 2022)."""

from __future__ import annotations

import numpy as np

__all__ = ['draws_per_epoch']


def draws_per_epoch(class_pixels: np.ndarray, temperature: float, max_repeats: float) -> np.ndarray:
    """Return how often each image is drawn, on average, in as many draws as there are images.

    Rare class sampling of DAFormer (Hoyer et al. 2022, https://arxiv.org/abs/2111.14887, equations 8 and 9) draws a
    class c with probability proportional to exp((1 - f_c) / T), f_c being its share of the pixels, and then one of the
    images that contain it. (There an image needs many pixels of the class, and crops without it are drawn again.) Here
    ``max_repeats`` bounds the draws of an image; what is cut off is divided among the other images in proportion to
    their draws.

    Args:
        class_pixels: (N, C), pixels of each class in each image.
        temperature: T > 0: the smaller, the more often the rarest classes are drawn.
        max_repeats: at least 1.

    Returns:
        (N,), float64, in [0, max_repeats], with sum N. An image without any class is never drawn, unless the others
        reach ``max_repeats``.

    Raises:
        ValueError: no image has a class.

    Example:
        >>> import numpy as np
        >>> from mmseg_wce.class_weights.rare_class_sampling import draws_per_epoch
        >>> class_pixels = np.array([[100, 0], [100, 0], [90, 10]])  # the last image has the rare class
        >>> draws_per_epoch(class_pixels, temperature=0.5, max_repeats=3).round(2)
        array([0.13, 0.13, 2.73])
    """
    number = len(class_pixels)
    contains = class_pixels > 0
    images = contains.sum(0)
    present = images > 0
    if not present.any():
        raise ValueError('no label file has a class, so no image can be chosen for one')
    share = class_pixels.sum(0)[present] / class_pixels.sum()
    logits = (1 - share) / temperature
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    draws = number * (contains[:, present] / images[present]) @ probability
    return _bounded(draws, max_repeats)


def _bounded(draws: np.ndarray, most: float) -> np.ndarray:
    """Scale numbers so that none is above ``most`` and their sum is how many there are."""
    number, at_most = len(draws), np.zeros(len(draws), bool)
    while True:
        rest = draws[~at_most].sum()
        free = number - most * at_most.sum()
        if rest <= 0:  # images without a class share what is left
            return np.where(at_most, most, free / max((~at_most).sum(), 1))
        scaled = np.where(at_most, most, draws / rest * free)
        above = scaled > most * (1 + 1e-12)
        if not above.any():
            return np.minimum(scaled, most)
        at_most |= above
