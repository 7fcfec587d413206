"""What ``tools/rebalance.py`` does to models and checkpoints: see ``docs/rebalancing.md``."""

from mmseg_wce.rebalancing.checkpoints import write_rebalanced
from mmseg_wce.rebalancing.output_layer import OutputBiasHook, find_output_layer
from mmseg_wce.rebalancing.scores import RebalancedScores

__all__ = ['OutputBiasHook', 'RebalancedScores', 'find_output_layer', 'write_rebalanced']
