import mmseg.datasets  # noqa: F401  (registers its transforms)
import pytest
from mmcv.transforms import TRANSFORMS as TRANSFORMS_OF_MMCV
from mmcv.transforms import LoadAnnotations as AnnotationsOfMmcv
from mmseg.datasets.transforms import LoadAnnotations, LoadBiomedicalData, PackSegInputs, RandomCrop, Resize
from mmseg.registry import TRANSFORMS
from mmseg_wce.dataset_checks import known_transforms
from mmseg_wce.dataset_checks.known_transforms import (
    Effect,
    effect_of,
    is_loader,
    is_resize,
    reads_as_load_annotations,
)
from mmseg_wce.datasets import MapLabels


def test_every_transform_of_the_stack_is_in_the_table():
    registered = {*TRANSFORMS.module_dict.values(), *TRANSFORMS_OF_MMCV.module_dict.values()}
    of_the_stack = {kind.__name__ for kind in registered if kind.__module__.startswith(('mmcv.', 'mmseg.'))}

    assert len(of_the_stack) > 40
    assert of_the_stack - set(known_transforms._EFFECT_OF_NAME) == set()


class MyCrop(RandomCrop):
    """A project's own, which may do anything."""


class Pad:
    """A project's own, of a name that mmcv has."""


@pytest.mark.parametrize(
    ('transform', 'effect'),
    [
        (Resize, Effect.MOVES),
        (Resize(scale=(4, 4)), Effect.MOVES),
        (PackSegInputs(), Effect.NONE),
        (LoadAnnotations(), Effect.LABELS),
        (AnnotationsOfMmcv(with_seg=True), Effect.LABELS),
        (AnnotationsOfMmcv(with_seg=False), Effect.NONE),
        (LoadBiomedicalData(with_seg=True), Effect.LABELS),
        (LoadBiomedicalData(with_seg=False), Effect.LOADS_IMAGE),
        (MyCrop(crop_size=(4, 4)), Effect.LABELS),
        (MapLabels({1: 0}), Effect.LABELS),
        (Pad, Effect.LABELS),
        (lambda results: results, Effect.LABELS),
    ],
)
def test_effect_of_each_transform(transform, effect):
    assert effect_of(transform) is effect


def test_only_resize_is_a_resize():
    assert is_resize(Resize(scale=(4, 4)))
    assert not is_resize(RandomCrop(crop_size=(4, 4)))
    assert not is_resize(MyCrop(crop_size=(4, 4)))


class ReadsAlike(LoadAnnotations):
    """Inherits all of the reading."""


class ReadsOtherFiles(LoadAnnotations):
    """Reads in a way of its own."""

    def _load_seg_map(self, results):
        results['gt_seg_map'] = None


@pytest.mark.parametrize(
    ('kind', 'alike'),
    [
        (LoadAnnotations, True),
        (AnnotationsOfMmcv, True),
        (ReadsAlike, True),
        (ReadsOtherFiles, False),
        (Resize, False),
        ('LoadAnnotations', False),
        (None, False),
    ],
)
def test_what_reads_as_load_annotations(kind, alike):
    assert reads_as_load_annotations(kind) is alike


def test_only_loaders_of_labels_are_loaders():
    assert is_loader(LoadAnnotations())
    assert is_loader(LoadBiomedicalData)
    assert not is_loader(ReadsOtherFiles)
    assert not is_loader(Resize)
