"""Scores and checkpoints of a model whose logits are moved between rare and common classes, after its training."""

from mmseg_wce.rebalancing.checkpoints import write_rebalanced
from mmseg_wce.rebalancing.output_layer import OutputBiasHook, find_output_layer
from mmseg_wce.rebalancing.scores import RebalancedScores

__all__ = ['OutputBiasHook', 'RebalancedScores', 'find_output_layer', 'write_rebalanced']
