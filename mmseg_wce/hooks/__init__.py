"""Hooks for mmengine's Runner, registered with mmseg."""

from mmseg_wce.hooks.label_check import LabelCheckHook

__all__ = ['LabelCheckHook']
