"""CamVid (Brostow, Fauqueur & Cipolla 2009) with the 11 classes of SegNet, stored in the convention of ADE20K."""

from __future__ import annotations

from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid: ``images/<split>/*.jpg`` and ``annotations/<split>/*.png`` with raw 0 = void and 1..11 = classes.

    ``reduce_zero_label=True`` by default maps these to 255 and 0..10; the pipeline's ``LoadAnnotations`` must have the
    same value.

    Args:
        img_suffix: suffix of the images.
        seg_map_suffix: suffix of the labels.
        reduce_zero_label: if True, raw 0 is ignored and raw k is class k - 1.
        **kwargs: arguments of mmseg's ``BaseSegDataset``.

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

    def __init__(
        self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', reduce_zero_label: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(
            img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label, **kwargs
        )
