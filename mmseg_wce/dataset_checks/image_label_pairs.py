"""Check for labels without an image. Image and label sizes are compared while the labels are read."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

from mmengine import fileio
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.label_files import LabelFiles

__all__ = ['check_unused_labels']


def check_unused_labels(parts: Sequence[LabelFiles], others: Sequence[LabelFiles] = ()) -> list[Finding]:
    """Find label files in the folders of data sets that belong to no image.

    Args:
        parts: all label files.
        others: label files of other splits, which may have files in the same folders.

    Returns:
        Findings on unused labels; empty if there are none.
    """
    known = {file for part in (*parts, *others) for file in part.files}
    findings = []
    for part in parts:
        if part.folder is None or not part.has_images or not part.suffix:
            continue
        names = fileio.list_dir_or_file(part.folder, list_dir=False, recursive=True, suffix=part.suffix)
        unused = sorted(path for name in names if (path := osp.join(part.folder, name)) not in known)
        if unused:
            change = (
                'these labels are not used: they belong to another split, or img_suffix or img_path is wrong, or their '
                'images are missing'
            )
            findings.append(Finding(Severity.WARNING, 'labels have no image', change, len(unused), unused[0]))
    return findings
