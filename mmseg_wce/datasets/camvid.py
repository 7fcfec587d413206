"""CamVid (Brostow, Fauqueur & Cipolla 2009) with the 11 classes of SegNet, stored in the convention of ADE20K."""

from __future__ import annotations

from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class CamVidDataset(ADE20KDataset):
    """CamVid: ``images/<split>/*.jpg`` and ``annotations/<split>/*.png`` with raw 0 = void and 1..11 = classes.

    As in mmseg's ``ADE20KDataset``, whose arguments it has, ``reduce_zero_label=True`` by default maps these to 255 and
    0..10; the pipeline's ``LoadAnnotations`` must have the same value.

    Example:
        >>> from mmseg_wce.datasets import CamVidDataset
        >>> CamVidDataset.METAINFO['classes'][:3]
        ('sky', 'building', 'pole')
    """

    METAINFO = dict(
        classes=(
            'sky',
            'building',
            'pole',
            'road',
            'pavement',
            'tree',
            'sign_symbol',
            'fence',
            'car',
            'pedestrian',
            'bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )
