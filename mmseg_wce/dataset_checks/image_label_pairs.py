"""Whether every label has an image of its size, and the other way round."""

from __future__ import annotations

import io
import os.path as osp
from collections.abc import Iterable, Sequence

from mmengine import fileio
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.label_files import LabelFiles
from PIL import Image

__all__ = ['check_pairs', 'list_pairs']

_EXIF_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def list_pairs(parts: Sequence[LabelFiles]) -> list[tuple[LabelFiles, str, str]]:
    """Every label with its image, for :func:`check_pairs`."""
    return [(part, file, image) for part in parts for file, image in zip(part.files, part.images, strict=False)]


def check_pairs(parts: Sequence[LabelFiles], pairs: Iterable[tuple[LabelFiles, str, str]]) -> list[Finding]:
    """Whether each label has an image of its size, and the other way round. Reads the files' headers.

    Args:
        parts: all label files.
        pairs: of :func:`list_pairs`, perhaps wrapped into a progress bar.

    Returns:
        What does not fit; empty where all does.
    """
    differ, missing, turned, unknown = (_Files() for _ in range(4))
    for part, label, image in pairs:
        backend_args = getattr(part.load, 'backend_args', None)
        try:
            size = _size(label, backend_args)[0]
        except Exception:  # the scan has named it
            continue
        try:
            image_size, is_turned = _size(image, backend_args)
        except FileNotFoundError:
            missing.add(image)
        except Exception:  # a format that Pillow does not know
            unknown.add(image)
        else:
            shown = image_size[::-1] if is_turned else image_size
            if size != shown:
                (turned if size == image_size else differ).add(f'{label} {_by(size)}, {image} {_by(shown)}')
    found = [
        differ.finding(
            Severity.ERROR,
            'image and label differ in size (width x height)',
            'make the labels at the size of the images',
        ),
        turned.finding(
            Severity.ERROR,
            'EXIF turns the image when it is read, but not its label',
            "store the images upright, or set color_type='color_ignore_orientation' in LoadImageFromFile",
        ),
        missing.finding(
            Severity.ERROR, 'labels have no image', 'their suffix or folder is wrong, or remove these labels'
        ),
        unknown.finding(Severity.NOTE, 'sizes of images are not known', 'Pillow cannot read them; nothing else was'),
        *(_without_image(part) for part in parts),
    ]
    return [finding for finding in found if finding]


class _Files:
    """How many, and the first."""

    def __init__(self) -> None:
        self.number, self.first = 0, ''

    def add(self, file: str) -> None:
        self.number, self.first = self.number + 1, self.first or file

    def finding(self, severity: Severity, what: str, change: str) -> Finding | None:
        return Finding(severity, what, change, self.number, self.first) if self.number else None


def _size(path: str, backend_args: dict | None) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether EXIF swaps them."""
    local = osp.isfile(path)
    with Image.open(path if local else io.BytesIO(fileio.get(path, backend_args=backend_args))) as image:
        return image.size, image.getexif().get(_EXIF_ORIENTATION) in _TURNED


def _by(size: tuple[int, int]) -> str:
    return f'{size[0]} x {size[1]}'


def _without_image(part: LabelFiles) -> Finding | None:
    if part.folder is None or not part.images:
        return None
    known, suffix = set(part.files), part.suffix
    names = fileio.list_dir_or_file(part.folder, list_dir=False, recursive=True, suffix=suffix)
    alone = sorted(path for name in names if (path := osp.join(part.folder, name)) not in known)
    if not alone:
        return None
    change = 'these labels are not used: img_suffix or img_path is wrong, or their images are missing'
    return Finding(Severity.WARNING, 'labels have no image', change, len(alone), alone[0])
