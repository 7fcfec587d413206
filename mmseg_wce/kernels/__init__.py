"""The one operation on logits that every weighted cross-entropy is made of. Knows neither mmseg nor mmengine."""

from mmseg_wce.kernels.op import pixel_nll

__all__ = ['pixel_nll']
