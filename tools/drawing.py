"""Label maps in the colours of their classes; what is ignored is hatched."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from PIL import Image

IGNORED = 255
STYLE = {'font.family': 'DejaVu Sans', 'hatch.color': '0.75', 'hatch.linewidth': 0.8}


def colors_of(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """(256, 3): RGB of each label; white for what is no class."""
    colors = np.full((256, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    return colors


def show_labels(axis: Axes, labels: np.ndarray, ignored: np.ndarray, colors: np.ndarray) -> None:
    """Nothing can be right or wrong where pixels are ignored: they are hatched in predictions too."""
    axis.imshow(colors[np.where(ignored, IGNORED, labels)], interpolation='nearest')
    if ignored.any():
        axis.contourf(ignored, levels=[0.5, 1.5], colors='none', hatches=['////'])


def frame(axis: Axes) -> None:
    """Without ticks, with a thin line around."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color('0.8')


def patches(classes: Sequence[str], colors: np.ndarray, order: Sequence[int]) -> list[Patch]:
    """For a legend."""
    of_classes = [Patch(color=colors[c] / 255, label=plain(classes[c])) for c in order]
    return [*of_classes, Patch(facecolor='white', edgecolor='0.6', hatch='////', label='other (ignored)')]


def plain(text: str) -> str:
    """As matplotlib has to get it, which reads formulas between dollars."""
    return text.replace('$', r'\$')


def shrink(path: Path) -> None:
    """Leave 256 colours to a PNG: a third of its size, and hardly to be seen."""
    with Image.open(path) as picture:
        few = picture.convert('RGB').quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(path, optimize=True)
