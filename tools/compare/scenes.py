"""Test images of a comparison, with labels and predictions; the rarest classes from near."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
from drawing import IGNORED, STYLE, colors_of, frame, patches, plain, show_labels
from matplotlib.patches import Rectangle
from mmseg_wce.dataset_checks import from_config

from compare.results import ConfigResults
from compare.runs import Comparison, Run

RAREST = 4
WIDEST = 3.2  # inches of an image


@dataclass(frozen=True)
class Scene:
    """An image of the test set that shows a rare class.

    Attributes:
        image: file.
        label: (H, W), as the loss would get it.
        rare: the class.
        window: rows and columns around the largest region of it.
        shifted: whether the files count from 1, as mmseg's predictions then do.
    """

    image: str
    label: np.ndarray
    rare: int
    window: tuple[slice, slice]
    shifted: bool

    @property
    def name(self) -> str:
        return Path(self.image).stem


def scenes(comparison: Comparison, pixels: Sequence[float]) -> list[Scene]:
    """For each of the rarest classes a test image: of those that show it, the one at three quarters by its pixels.

    Chosen by labels, not by what a model does; the largest would be the easiest.

    Args:
        comparison: its config names the test set.
        pixels: (C,), of the classes in the training labels, or their shares; what never occurs cannot be learned.
    """
    (part,) = from_config(comparison.config, 'test')
    rarest = [c for c in np.argsort(pixels, kind='stable') if pixels[c] > 0][:RAREST]
    labels = (part.labels(i) for i in range(len(part)))
    counts = np.array([[(label == c).sum() for c in rarest] for label in labels])
    found = []
    for c, count in reversed(list(zip(rarest, counts.T, strict=True))):
        shown = np.argsort(count, kind='stable')[(count == 0).sum() :]
        if len(shown):
            i = int(shown[3 * (len(shown) - 1) // 4])
            image, label = part.samples[i].image, part.labels(i)
            found.append(Scene(image, label, c, _window(label == c), part.convention.reduce_zero_label))
    return found


def _window(region: np.ndarray) -> tuple[slice, slice]:
    """A square on the largest connected part, with some of what is beside it; the middle of what is very long."""
    _, _, parts, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    left, top, width, height, _ = max(parts[1:], key=lambda part: part[cv2.CC_STAT_AREA])
    most = max(64, min(region.shape) // 2)
    side = int(min(max(2 * max(width, height), 64), most, *region.shape))
    y = int(np.clip(top + height / 2 - side / 2, 0, region.shape[0] - side))
    x = int(np.clip(left + width / 2 - side / 2, 0, region.shape[1] - side))
    return slice(y, y + side), slice(x, x + side)


def keep_predictions(run: Run, chosen: Sequence[Scene]) -> None:
    """Copy those of the chosen images from the work dir of a run that is done."""
    for scene in chosen:
        source, target = run.predictions / f'{scene.name}.png', _kept(run, scene)
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _kept(run: Run, scene: Scene) -> Path:
    return run.result_file.with_suffix('') / f'{scene.name}.png'


def draw_scenes(path: Path, zoomed: bool, runs: Sequence[Run], chosen: Sequence[Scene], results: ConfigResults) -> bool:
    """Write the picture: a row for each scene with image, label, and the prediction of each run.

    Args:
        path: of the PNG.
        zoomed: the windows alone.
        runs: those whose predictions were kept are shown.
        chosen: scenes.
        results: for the names of the classes.

    Returns:
        Whether there was anything to draw.
    """
    runs = [run for run in runs if all(_kept(run, scene).exists() for scene in chosen)]
    if not (runs and chosen):
        return False
    (part,) = from_config(runs[0].comparison.config, 'test')
    colors = colors_of(part.palette)
    plt.rcParams.update({**STYLE, 'font.size': 9})
    columns = 2 + len(runs)
    ratio = 1 if zoomed else chosen[0].label.shape[0] / chosen[0].label.shape[1]
    width = min(16 / columns, WIDEST)
    figure, axes = plt.subplots(
        len(chosen),
        columns,
        figsize=(columns * width, 0.9 + width * ratio * len(chosen)),
        squeeze=False,
        layout='constrained',
    )
    for row, scene in zip(axes, chosen, strict=True):
        part = scene.window if zoomed else (slice(None), slice(None))
        row[0].imshow(cv2.imread(scene.image)[..., ::-1][part])
        row[0].set_ylabel(plain(results.classes[scene.rare]))
        for axis, labels in zip(row[1:], [scene.label, *(_prediction(run, scene) for run in runs)], strict=True):
            show_labels(axis, labels[part], scene.label[part] == IGNORED, colors)
        for axis in row:
            frame(axis)
        if not zoomed:
            rows, cols = scene.window
            corner, size = (cols.start, rows.start), cols.stop - cols.start
            row[0].add_patch(Rectangle(corner, size, size, fill=False, color='white', linewidth=1.5))
    for axis, title in zip(axes[0], ['image', 'label', *(run.loss.replace('_', ' ') for run in runs)], strict=True):
        axis.set_title(title, fontsize=9, wrap=True)
    shown = set(np.unique(np.concatenate([scene.label.ravel() for scene in chosen])).tolist())
    handles = patches(results.classes, colors, [c for c in results.order if c in shown])
    figure.legend(handles=handles, loc='outside lower center', ncols=12, frameon=False, handlelength=1.2)
    figure.savefig(path, dpi=110, facecolor='white')
    plt.close(figure)
    return True


def _prediction(run: Run, scene: Scene) -> np.ndarray:
    """(H, W), class indices: mmseg writes them as the label files count."""
    raw = cv2.imread(str(_kept(run, scene)), cv2.IMREAD_UNCHANGED)
    return raw - 1 if scene.shifted else raw
