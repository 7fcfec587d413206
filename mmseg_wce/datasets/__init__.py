"""Data sets in the label convention of ADE20K, a label transform and a sampler, registered with mmseg."""

from mmseg_wce.datasets.camvid import CamVidDataset
from mmseg_wce.datasets.demo_scenes import DemoScenesDataset
from mmseg_wce.datasets.rare_class_sampler import RareClassSampler
from mmseg_wce.datasets.transforms import MapLabels

__all__ = ['CamVidDataset', 'DemoScenesDataset', 'MapLabels', 'RareClassSampler']
