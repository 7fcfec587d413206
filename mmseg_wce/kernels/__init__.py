"""The one operation on logits that every weighted cross-entropy is made of. Knows neither mmseg nor mmengine."""

from mmseg_wce.kernels.op import check_shapes, pixel_nll

__all__ = ['check_shapes', 'pixel_nll']
