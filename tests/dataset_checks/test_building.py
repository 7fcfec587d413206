import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.decode_heads import FCNHead
from mmseg_wce.dataset_checks import check_config, from_config
from mmseg_wce.dataset_checks.building import build_dataset
from mmseg_wce.dataset_checks.pipeline_steps import UnbuiltTransform
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.training.preflight import check_data, check_model
from three_classes import ThreeClasses, dataset_config


class NotRegistered:
    """A transform that is named by its class and cannot be built."""

    def __init__(self):
        raise ImportError('no such package')


def test_types_may_be_classes_instead_of_names(data):
    steps = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
    dataset = dataset_config(data, type=ThreeClasses, pipeline=steps)
    head = dict(type=FCNHead, in_channels=4, channels=4, num_classes=3, loss_decode=dict(type=WeightedCrossEntropyLoss))
    model = dict(data_preprocessor=dict(type=SegDataPreProcessor, seg_pad_val=255), decode_head=head)
    config = Config(dict(model=model, train_dataloader=dict(dataset=dataset)))

    check_data(config, 'train')
    check_model(config)
    (part,) = from_config(config)

    assert check_config(config) == []
    assert part.statistics().num_images == 6
    assert part.reads_raw_values
    config.train_dataloader.dataset.pipeline[1].reduce_zero_label = False
    assert 'its LoadAnnotations False' in check_config(config)[0].what


@pytest.mark.parametrize('step', [dict(type=NotRegistered), dict(type='NotRegisteredAnywhere')])
def test_transforms_that_cannot_be_built_are_replaced(data, step):
    config = dataset_config(data)
    config['pipeline'].insert(2, step)

    third = build_dataset(config).pipeline.transforms[2]

    assert isinstance(third, UnbuiltTransform)
    assert third.name in ('NotRegistered', 'NotRegisteredAnywhere')
    with pytest.raises(ValueError, match=f'transform {third.name} cannot be built'):
        third({})


def test_other_failures_are_raised_as_they_are(data):
    with pytest.raises(TypeError, match='no_such_argument'):
        build_dataset(dataset_config(data, no_such_argument=1))
