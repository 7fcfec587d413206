"""Test images of a comparison that show the rarest classes, with labels and predictions, whole and enlarged."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import cv2
import matplotlib.pyplot as plt
import numpy as np
from drawing import STYLE, colors_from_palette, patches, plain, save, show_row
from matplotlib.patches import Rectangle
from mmseg_wce.dataset_checks import from_config

from compare.results import ConfigResults
from compare.runs import Comparison, Run

NUM_RAREST = 4
MAX_WIDTH = 3.2  # of an image, in inches


@dataclass(frozen=True)
class Scene:
    """An image of the test set that shows a rare class."""

    image: str
    label: np.ndarray  # (H, W), as the loss gets it
    rare: int  # index of that class
    window: tuple[slice, slice]  # rows and columns around the largest region of the class
    is_shifted: bool  # class k is k + 1 in the label files, and then in mmseg's predictions, too

    @property
    def name(self) -> str:
        return Path(self.image).stem


def scenes(comparison: Comparison, pixels: Sequence[float]) -> list[Scene]:
    """Select a test image for each of the rarest classes.

    Three quarters of the images that show the class have fewer pixels of it: the one with the most would be the
    easiest. Only labels decide, not predictions.
    """
    (part,) = from_config(comparison.config, 'test')
    rarest = [c for c in np.argsort(pixels, kind='stable') if pixels[c] > 0][:NUM_RAREST]
    labels = (part.labels(i) for i in range(len(part)))
    counts = np.array([[(label == c).sum() for c in rarest] for label in labels])
    selected = []
    for c, count in reversed(list(zip(rarest, counts.T, strict=True))):
        candidates = np.argsort(count, kind='stable')[(count == 0).sum() :]
        if len(candidates):
            i = int(candidates[3 * (len(candidates) - 1) // 4])
            image, label = part.samples[i].image, part.labels(i)
            selected.append(Scene(image, label, c, _window(label == c), part.convention.reduce_zero_label))
    return selected


def _window(region: np.ndarray) -> tuple[slice, slice]:
    """Return a square around the centre of the largest connected part, with a margin, at most half the image."""
    _, _, parts, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    left, top, width, height, _ = max(parts[1:], key=lambda part: part[cv2.CC_STAT_AREA])
    max_side = max(64, min(region.shape) // 2)
    side = int(min(max(2 * max(width, height), 64), max_side, *region.shape))
    y = int(np.clip(top + height / 2 - side / 2, 0, region.shape[0] - side))
    x = int(np.clip(left + width / 2 - side / 2, 0, region.shape[1] - side))
    return slice(y, y + side), slice(x, x + side)


def keep_predictions(run: Run, chosen: Sequence[Scene]) -> None:
    """Copy the predictions for some images from a run's work dir to its results, if they exist."""
    for scene in chosen:
        source, target = run.predictions / f'{scene.name}.png', _prediction_file(run, scene)
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _prediction_file(run: Run, scene: Scene) -> Path:
    return run.result_file.with_suffix('') / f'{scene.name}.png'


def draw_scenes(path: Path, zoomed: bool, runs: Sequence[Run], chosen: Sequence[Scene], results: ConfigResults) -> bool:
    """Draw a row for each scene with image, label, and the prediction of each run; return False without predictions."""
    runs = [run for run in runs if all(_prediction_file(run, scene).exists() for scene in chosen)]
    if not (runs and chosen):
        return False
    (part,) = from_config(runs[0].comparison.config, 'test')
    colors = colors_from_palette(part.palette)
    plt.rcParams.update({**STYLE, 'font.size': 9})
    columns = 2 + len(runs)
    ratio = 1 if zoomed else chosen[0].label.shape[0] / chosen[0].label.shape[1]
    width = min(16 / columns, MAX_WIDTH)
    figure, axes = plt.subplots(
        len(chosen),
        columns,
        figsize=(columns * width, 0.9 + width * ratio * len(chosen)),
        squeeze=False,
        layout='constrained',
    )
    for row, scene in zip(axes, chosen, strict=True):
        window = scene.window if zoomed else (slice(None), slice(None))
        predictions = [_prediction(run, scene)[window] for run in runs]
        show_row(row, cv2.imread(scene.image)[..., ::-1][window], scene.label[window], predictions, colors)
        row[0].set_ylabel(plain(results.classes[scene.rare]))
        if not zoomed:
            rows, cols = scene.window
            corner, size = (cols.start, rows.start), cols.stop - cols.start
            row[0].add_patch(Rectangle(corner, size, size, fill=False, color='white', linewidth=1.5))
    for axis, title in zip(axes[0], ['image', 'label', *(run.loss.replace('_', ' ') for run in runs)], strict=True):
        axis.set_title(fill(title, 16), fontsize=9)
    shown = set(np.unique(np.concatenate([scene.label.ravel() for scene in chosen])).tolist())
    handles = patches(results.classes, colors, [c for c in results.order if c in shown])
    figure.legend(handles=handles, loc='outside lower center', ncols=12, frameon=False, handlelength=1.2)
    save(figure, path)
    return True


def _prediction(run: Run, scene: Scene) -> np.ndarray:
    """Return the predicted class indices, (H, W); mmseg writes them encoded as the label files."""
    raw = cv2.imread(str(_prediction_file(run, scene)), cv2.IMREAD_UNCHANGED)
    return raw - 1 if scene.is_shifted else raw
