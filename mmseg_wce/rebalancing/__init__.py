"""Move a trained model between rare and common classes: one number a class, added to the logits or to a bias."""

from mmseg_wce.rebalancing.offsets import ClassCounts, class_offsets

__all__ = ['ClassCounts', 'class_offsets']
