"""Hooks of a training, registered with mmseg."""

from mmseg_wce.hooks.loss_monitor import LossMonitorHook

__all__ = ['LossMonitorHook']
