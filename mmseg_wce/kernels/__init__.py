"""The operations on logits that every cross-entropy here is made of. Knows neither mmseg nor mmengine."""

from mmseg_wce.kernels.binary import pixel_bce
from mmseg_wce.kernels.op import PixelMaps, PixelSums, check_shapes, pixel_maps, pixel_nll

__all__ = ['PixelMaps', 'PixelSums', 'check_shapes', 'pixel_bce', 'pixel_maps', 'pixel_nll']
