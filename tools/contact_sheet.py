"""Contact sheet of images and labels as the loss gets them, with class names on the regions: off-by-one labels show."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib.patheffects as patheffects
import matplotlib.pyplot as plt
import numpy as np
from drawing import plain, save
from matplotlib.patches import Patch
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks import LabelFiles, evenly

IMAGES, COLUMNS, LONGEST = 8, 4, 640  # number of images, columns of the sheet, longest side in pixels
NO_CLASS = (255, 0, 255)  # labels that are neither a class nor ignored
OUTLINED = [patheffects.withStroke(linewidth=2.5, foreground='black')]


def draw_contact_sheet(path: Path, parts: list[LabelFiles], statistics: Sequence[LabelStatistics]) -> bool:
    """Draw files with labels that are no class, then others spread evenly; return False if there is nothing to draw."""
    cells = [cell for part, i in _select(parts, statistics) if (cell := _cell(part, i))][:IMAGES]
    if not cells:
        return False
    width = 2 if any(cell[2] is not None for cell in cells) else 1  # the label is next to its image
    rows = -(-len(cells) * width // COLUMNS)
    plt.rcParams.update({'font.size': 9, 'font.family': 'DejaVu Sans', 'hatch.color': 'white', 'hatch.linewidth': 0.7})
    figure = plt.figure(figsize=(16, 3.2 * rows + 0.9), layout='constrained')
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    pixels: Counter = Counter()
    for axis in axes:
        axis.set_axis_off()
    for k, (part, name, image, labels) in enumerate(cells):
        axis = axes[width * k]
        axis.set_title(plain(name), loc='left', fontsize=8)
        if width > 1:
            axis.imshow(np.zeros((*labels.shape, 3), np.uint8) if image is None else image)
        _draw_labels(axes[width * k + width - 1], part, image, labels)
        pixels.update({label: int((labels == label).sum()) for label in np.unique(labels).tolist()})
    _draw_legend(figure, parts[0], pixels)
    save(figure, path, dpi=100)
    return True


def _select(parts: list[LabelFiles], statistics: Sequence[LabelStatistics]) -> list[tuple[LabelFiles, int]]:
    tallies = [tally for s in statistics for tally in (*s.unexpected.values(), s.images_without_label) if tally]
    suspicious = {tally.example for tally in tallies}
    first = [(part, i) for part in parts for i, file in enumerate(part.files) if file in suspicious]
    others = [(part, i) for part, i in evenly(parts, 2 * IMAGES) if part.files[i] not in suspicious]
    return first[: IMAGES // 2] + others[: 2 * IMAGES : 2] + others[1::2]


def _cell(part: LabelFiles, i: int) -> tuple[LabelFiles, str, np.ndarray | None, np.ndarray] | None:
    """Return part, name, image (H, W, 3) in RGB or None, and labels (H, W); None if the labels cannot be read."""
    try:
        labels = part.labels(i)
    except Exception:  # reported by the scan
        return None
    scale = min(1, LONGEST / max(labels.shape))
    size = max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale))
    labels = cv2.resize(labels.astype(np.float64), size, interpolation=cv2.INTER_NEAREST).astype(np.int64)
    image = _image(part, i)
    return part, Path(part.files[i]).name, None if image is None else cv2.resize(image, size), labels


def _image(part: LabelFiles, i: int) -> np.ndarray | None:
    """Return the image in RGB; None if it is missing or has other than three channels."""
    if not part.has_images:
        return None
    try:
        image = part.reader.image(part.samples[i])
    except Exception:  # reported as a finding
        return None
    if image is None or image.ndim != 3 or image.shape[2] != 3:
        return None
    return np.clip(image, 0, 255).astype(np.uint8)[..., ::-1]


def _colors(part: LabelFiles, labels: np.ndarray) -> np.ndarray:
    """Return the colour of every label, (..., 3)."""
    number = len(part.classes)
    colors = np.full((number + 2, 3), NO_CLASS, np.uint8)
    hues = np.stack([np.arange(number) * 67 % 180, np.full(number, 190), 255 - np.arange(number) % 3 * 60], -1)
    colors[:number] = cv2.cvtColor(hues[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0]
    if len(part.palette) == number:
        colors[:number] = part.palette
    colors[number] = 90  # ignored
    is_class = (labels >= 0) & (labels < number)
    row = np.where(labels == part.convention.ignore_index, number, np.where(is_class, labels, number + 1))
    return colors[row]


def _draw_labels(axis, part: LabelFiles, image: np.ndarray | None, labels: np.ndarray) -> None:
    colors = _colors(part, labels)
    axis.imshow(colors if image is None else (0.65 * colors + 0.35 * image).astype(np.uint8))
    ignored = labels == part.convention.ignore_index
    if ignored.any():
        axis.contourf(ignored, levels=[0.5, 1.5], colors='none', hatches=['/////'])
    for label in np.unique(labels[~ignored]).tolist():
        _, regions, measures, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
        largest = 1 + int(measures[1:, cv2.CC_STAT_AREA].argmax())
        if measures[largest, cv2.CC_STAT_AREA] > 0.01 * labels.size or not 0 <= label < len(part.classes):
            # padded, so that the edge of the image is a border, too
            depth = cv2.distanceTransform(np.pad((regions == largest).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            style = dict(ha='center', va='center', fontsize=8, color='white', weight='bold', path_effects=OUTLINED)
            axis.text(x, y, _name(part, label), clip_on=True, **style)


def _name(part: LabelFiles, label: int) -> str:
    return plain(part.classes[label]) if 0 <= label < len(part.classes) else f'{label}: no class'


def _legend_name(part: LabelFiles, label: int) -> str:
    name = _name(part, label)
    return name[:28] if name.startswith(str(label)) else f'{label} {name}'[:28]


def _draw_legend(figure, part: LabelFiles, pixels: Counter) -> None:
    """Draw a legend of the visible labels, those with the most pixels first."""
    labels = [label for label, _ in pixels.most_common() if label != part.convention.ignore_index][:35]
    colors = _colors(part, np.array(labels, np.int64)) / 255
    patches = [Patch(color=c, label=_legend_name(part, label)) for c, label in zip(colors, labels, strict=True)]
    if part.convention.ignore_index in pixels:
        patches.append(Patch(facecolor='0.35', hatch='/////', label=f'{part.convention.ignore_index} ignored'))
    figure.legend(handles=patches, loc='outside lower center', ncols=9, frameon=False, fontsize=9, handlelength=1.2)
