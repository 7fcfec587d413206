"""Exact weighted cross-entropy for semantic segmentation.

Importing this package registers the loss, hooks, data sets and metric with mmseg where mmseg is installed. Without it,
:class:`WeightedCrossEntropyLoss`, :mod:`mmseg_wce.functional` and :mod:`mmseg_wce.kernels` work in plain PyTorch.
"""

import importlib.util
import warnings

from mmseg_wce import deprecated, functional, kernels, losses
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.version import __version__

__all__ = ['WeightedCrossEntropyLoss', '__version__', 'functional', 'kernels', 'losses', 'why_not_registered']

__getattr__ = deprecated.old_module
deprecated.install()
why_not_registered: str | None = 'mmseg is not installed'
if importlib.util.find_spec('mmseg') is not None:
    try:
        from mmseg_wce import compat

        compat.apply()
        from mmseg.registry import MODELS

        MODELS.register_module(module=WeightedCrossEntropyLoss)
        from mmseg_wce import datasets, fused_heads, hooks, metrics, rebalancing, validation_loss

        __all__ += ['datasets', 'fused_heads', 'hooks', 'metrics', 'rebalancing', 'validation_loss']
        why_not_registered = None
    except Exception as error:  # mmseg asserts versions; a broken torchvision or CUDA library raises anything
        why_not_registered = f'{type(error).__name__}: {error}'
        warnings.warn(
            'mmseg is installed but cannot be imported, so mmseg_wce registered nothing with it; '
            'WeightedCrossEntropyLoss, mmseg_wce.functional and mmseg_wce.kernels work in plain PyTorch. The cause: '
            f'{why_not_registered}',
            stacklevel=2,
        )
