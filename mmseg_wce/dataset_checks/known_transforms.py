"""Effects of the transforms of mmcv and mmseg on labels. Transforms that are not listed are run to find out."""

from __future__ import annotations

from enum import Enum
from typing import Any

from mmcv.transforms import LoadAnnotations as MMCVLoadAnnotations
from mmseg.datasets.transforms import LoadAnnotations

__all__ = ['Effect', 'effect_of', 'is_loader', 'is_resize', 'reads_as_load_annotations']


class Effect(Enum):
    """Effect of a transform on the meaning of labels."""

    LOADS_IMAGE = 'loads the image, which is decoded only if another transform needs it'
    LABELS = 'loads labels, or may change what they mean: it is run'
    MOVES = 'moves, crops, resizes or pads image and labels together: left out'
    NONE = 'changes the colours of the image, makes other data, or packs: left out'
    CONTAINER = 'holds other transforms'


_EFFECTS = {
    Effect.LOADS_IMAGE: {
        'InferencerLoader',
        'LoadBiomedicalImageFromFile',
        'LoadImageFromFile',
        'LoadImageFromNDArray',
        'LoadImageFromNpyFile',
        'LoadMultipleRSImageFromFile',
        'LoadSingleRSImageFromFile',
    },
    Effect.LABELS: {'LoadAnnotations', 'LoadBiomedicalAnnotation', 'LoadBiomedicalData'},
    Effect.MOVES: {
        'Albu',
        'BioMedical3DPad',
        'BioMedical3DRandomCrop',
        'BioMedical3DRandomFlip',
        'CenterCrop',
        'Pad',
        'RandomChoiceResize',
        'RandomCrop',
        'RandomCutOut',
        'RandomFlip',
        'RandomMosaic',
        'RandomResize',
        'RandomRotFlip',
        'RandomRotate',
        'Resize',
        'ResizeShortestEdge',
        'ResizeToMultiple',
        'SegRescale',
    },
    Effect.NONE: {
        'AdjustGamma',
        'BioMedicalGaussianBlur',
        'BioMedicalGaussianNoise',
        'BioMedicalRandomGamma',
        'CLAHE',
        'ConcatCDInput',
        'GenerateEdge',
        'ImageToTensor',
        'LoadDepthAnnotation',
        'Normalize',
        'PackSegInputs',
        'PhotoMetricDistortion',
        'RGB2Gray',
        'RandomDepthMix',
        'RandomGrayscale',
        'Rerange',
        'ToTensor',
    },
    Effect.CONTAINER: {
        'Compose',
        'KeyMapper',
        'MultiScaleFlipAug',
        'RandomApply',
        'RandomChoice',
        'TestTimeAug',
        'TransformBroadcaster',
    },
}
_EFFECT_OF_NAME = {name: effect for effect, names in _EFFECTS.items() for name in names}
_RESIZES = {'RandomChoiceResize', 'RandomResize', 'Resize', 'ResizeShortestEdge', 'ResizeToMultiple'}


def effect_of(transform: Any) -> Effect:
    """Return the effect of a transform, or its class: ``LABELS`` for all outside mmcv, mmengine and mmseg."""
    name = _known_name(transform)
    if name and getattr(transform, 'with_seg', True) is False:
        return Effect.LOADS_IMAGE if name == 'LoadBiomedicalData' else Effect.NONE
    return _EFFECT_OF_NAME.get(name, Effect.LABELS)


def _known_name(transform: Any) -> str:
    """Return the class name of a transform, or a class, of mmcv, mmengine or mmseg; an empty one for all others."""
    kind = transform if isinstance(transform, type) else type(transform)
    return kind.__name__ if kind.__module__.partition('.')[0] in ('mmcv', 'mmengine', 'mmseg') else ''


def is_loader(transform: Any) -> bool:
    """Return True for a transform of mmcv or mmseg that loads an image or labels."""
    return _known_name(transform) in _EFFECTS[Effect.LOADS_IMAGE] | _EFFECTS[Effect.LABELS]


def reads_as_load_annotations(kind: Any) -> bool:
    """Return True for ``LoadAnnotations`` of mmcv or mmseg, and for classes that inherit its methods for reading."""
    if not isinstance(kind, type) or not issubclass(kind, MMCVLoadAnnotations):
        return False
    methods = getattr(kind, '_load_seg_map', None), getattr(kind, 'transform', None)
    return methods in [(base._load_seg_map, base.transform) for base in (MMCVLoadAnnotations, LoadAnnotations)]


def is_resize(transform: Any) -> bool:
    """Return True for a transform that resizes image and labels independently of each other."""
    return _known_name(transform) in _RESIZES
