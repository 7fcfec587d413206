"""Data sets in the label convention of ADE20K and a label transform, registered with mmseg."""

from mmseg_wce.datasets.camvid import CamVidDataset
from mmseg_wce.datasets.demo_scenes import DemoScenesDataset
from mmseg_wce.datasets.transforms import MapLabels

__all__ = ['CamVidDataset', 'DemoScenesDataset', 'MapLabels']
