"""Hooks for mmengine's Runner, registered with mmseg."""

from mmseg_wce.hooks.label_check import LabelCheckHook
from mmseg_wce.hooks.loss_monitor import LossMonitorHook

__all__ = ['LabelCheckHook', 'LossMonitorHook']
