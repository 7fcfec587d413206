"""Label transforms, registered with mmseg."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

__all__ = ['MapLabels']


@TRANSFORMS.register_module()
class MapLabels(BaseTransform):
    """Replace label values, such as grey levels or ids with gaps by class indices, or an unknown value by 255.

    Place it directly after ``LoadAnnotations``, so after ``reduce_zero_label``, in the training, validation and test
    pipelines::

        dict(type='LoadAnnotations'),
        dict(type='MapLabels', mapping={0: 0, 127: 1, 254: 2}),

    Args:
        mapping: new value for each old value, integers. All are replaced at once, so two values can be swapped.
        other: new value for all labels that are not in ``mapping``; by default these are unchanged.

    Raises:
        TypeError: ``mapping`` is not a dict of integers, or ``other`` is not an integer.

    Example:
        >>> import numpy as np
        >>> from mmseg_wce.datasets import MapLabels
        >>> mask = np.array([[0, 255], [255, 0]], np.uint8)
        >>> MapLabels({255: 1})(dict(gt_seg_map=mask))['gt_seg_map']
        array([[0, 1],
               [1, 0]], dtype=uint8)
    """

    def __init__(self, mapping: Mapping[int, int], other: int | None = None) -> None:
        if not isinstance(mapping, Mapping) or not mapping:
            raise TypeError(f'MapLabels: mapping must be a dict such as {{127: 1, 254: 2}}, got {mapping!r}')
        for value in (*mapping.keys(), *mapping.values(), *(() if other is None else (other,))):
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f'MapLabels: labels must be integers, got {value!r} in mapping={mapping!r}, {other=}')
        self.mapping = {int(old): int(new) for old, new in mapping.items()}
        self.other = other

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace ``results['gt_seg_map']``, any shape and dtype; the original array is not modified.

        Raises:
            KeyError: no earlier transform has loaded labels.
        """
        if 'gt_seg_map' not in results:
            raise KeyError('MapLabels: there is no gt_seg_map; place MapLabels after LoadAnnotations in the pipeline')
        labels = results['gt_seg_map']
        new_values = [*self.mapping.values()] + ([] if self.other is None else [self.other])
        fits_dtype = all(np.can_cast(np.min_scalar_type(value), labels.dtype) for value in new_values)
        mapped = labels.astype(labels.dtype if fits_dtype else np.int64)
        if self.other is not None:
            mapped[...] = self.other
        for old, new in self.mapping.items():
            mapped[labels == old] = new
        results['gt_seg_map'] = mapped
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(mapping={self.mapping}, other={self.other})'
