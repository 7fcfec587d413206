"""Decode heads of mmseg that compute losses and predictions without full-size logits."""

from mmseg_wce.fused_heads.loss_hook import FusedLossHook, fuse_decode_heads
from mmseg_wce.fused_heads.predict_hook import FusedPredictHook, fuse_predict

__all__ = ['FusedLossHook', 'FusedPredictHook', 'fuse_decode_heads', 'fuse_predict']
