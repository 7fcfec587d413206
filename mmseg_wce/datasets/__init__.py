"""Data sets in ADE20K convention, registered with mmseg."""

from mmseg_wce.datasets.camvid import CamVidDataset
from mmseg_wce.datasets.demo_scenes import DemoScenesDataset

__all__ = ['CamVidDataset', 'DemoScenesDataset']
