"""Drawing of label maps in the colours of their classes, with ignored pixels hatched."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from PIL import Image

matplotlib.use('Agg')  # needs no display
IGNORED = 255
MAX_NAMES = 40  # classes that a picture names: the rarest
STYLE = {'font.family': 'DejaVu Sans', 'hatch.color': '0.75', 'hatch.linewidth': 0.8}


def colors_from_palette(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the RGB of each label, (256, 3); white for labels that are no class."""
    colors = np.full((256, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    return colors


def show_row(
    axes: Sequence[Axes], image: np.ndarray, label: np.ndarray, predictions: Iterable[np.ndarray], colors: np.ndarray
) -> None:
    """Draw an image, its label and predictions; ignored pixels are hatched: nothing is right or wrong there."""
    axes[0].imshow(image)
    ignored = label == IGNORED
    for axis, labels in zip(axes[1:], [label, *predictions], strict=True):
        axis.imshow(colors[np.where(ignored, IGNORED, labels)], interpolation='nearest')
        if ignored.any():
            axis.contourf(ignored, levels=[0.5, 1.5], colors='none', hatches=['////'])
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color('0.8')


def patches(classes: Sequence[str], colors: np.ndarray, order: Sequence[int]) -> list[Patch]:
    """Return the entries of a legend: classes in the given order, then ignored pixels."""
    class_patches = [Patch(color=colors[c] / 255, label=plain(classes[c])) for c in order]
    return [*class_patches, Patch(facecolor='white', edgecolor='0.6', hatch='////', label='other (ignored)')]


def plain(text: str) -> str:
    """Escape dollar signs, which start formulas in matplotlib."""
    return text.replace('$', r'\$')


def save(figure: plt.Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as PNG, and free its memory."""
    figure.savefig(path, dpi=dpi, facecolor='white')
    plt.close(figure)


def shrink(path: Path) -> None:
    """Reduce a PNG to 256 colours, a third of its size."""
    with Image.open(path) as picture:
        quantized = picture.convert('RGB').quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    quantized.save(path, optimize=True)
