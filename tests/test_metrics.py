"""mmseg's IoUMetric is the oracle of what the two have in common; the confusion matrix is counted by hand."""

import json

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample
from mmseg_wce.metrics import ClassIoUMetric, confusion_matrix

CLASSES = ('wall', 'floor', 'sky', 'never')


def sample(prediction, label, **metainfo) -> dict:
    data = dict(pred_sem_seg=PixelData(data=prediction[None]), gt_sem_seg=PixelData(data=label[None]))
    return SegDataSample(metainfo=dict(img_path='a.jpg', seg_map_path='a.png', **metainfo), **data).to_dict()


def samples(images: int = 5) -> list[dict]:
    """Without the last class, and with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(images):
        prediction, label = (torch.randint(0, 3, (6, 7), generator=generator) for _ in range(2))
        label[torch.rand(label.shape, generator=generator) < 0.2] = 255
        found.append(sample(prediction, label))
    return found


def evaluated(metric, data: list[dict]) -> dict:
    metric.dataset_meta = dict(classes=CLASSES)
    for one in data:
        metric.process({}, [one])
    return metric.evaluate(len(data))


def test_confusion_matrix_counts_each_pixel_that_is_not_ignored():
    data = samples()
    expected = np.zeros((4, 4), int)
    for one in data:
        prediction, label = one['pred_sem_seg']['data'].flatten(), one['gt_sem_seg']['data'].flatten()
        for p, y in zip(prediction.tolist(), label.tolist(), strict=True):
            if y != 255:
                expected[y, p] += 1

    found = sum(confusion_matrix(one['pred_sem_seg']['data'], one['gt_sem_seg']['data'], 4) for one in data)

    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize('label_dtype', [torch.uint8, torch.int32, torch.int64])
def test_confusion_matrix_of_many_classes_does_not_overflow_small_integers(label_dtype):
    label = torch.tensor([200, 255, 199], dtype=label_dtype)
    prediction = torch.tensor([199, 0, 199], dtype=torch.uint8)

    found = confusion_matrix(prediction, label, 201)

    assert found.nonzero().tolist() == [[199, 199], [200, 199]]


@pytest.mark.parametrize('options', [dict(), dict(iou_metrics=['mIoU', 'mFscore']), dict(nan_to_num=0)])
def test_means_are_mmsegs_and_every_class_is_there(options):
    data = samples()
    theirs = evaluated(IoUMetric(**options), data)
    pairs = [(one['pred_sem_seg']['data'], one['gt_sem_seg']['data']) for one in data]
    areas = zip(*(IoUMetric.intersect_and_union(*pair, 4, 255) for pair in pairs), strict=True)
    of_classes = IoUMetric.total_area_to_metrics(*map(sum, areas), options.get('iou_metrics', ['mIoU']))

    found = evaluated(ClassIoUMetric(**options), data)

    means = {key: value for key, value in found.items() if '/' not in key}
    assert means == pytest.approx(theirs, abs=0.0101)  # they divide in float32, and both round to two digits
    for key, values in of_classes.items():
        if key != 'aAcc':
            expected = np.nan_to_num(values, nan=0) if 'nan_to_num' in options else values
            mine = [found[f'{key}/{name}'] for name in CLASSES]
            np.testing.assert_allclose(mine, np.round(100 * expected, 2), atol=0.0101)


def test_confusion_file(tmp_path):
    file = tmp_path / 'deep' / 'confusion.json'

    evaluated(ClassIoUMetric(confusion_file=str(file)), samples())

    content = json.loads(file.read_text())
    assert content['classes'] == list(CLASSES)
    expected = sum(confusion_matrix(one['pred_sem_seg']['data'], one['gt_sem_seg']['data'], 4) for one in samples())
    assert content['confusion'] == expected.tolist()


def test_a_label_that_is_no_class_is_refused_and_its_file_named():
    label = torch.tensor([[0, 77]])

    with pytest.raises(ValueError, match=r"77 at index \(0, 0, 1\), of 'a.png'"):
        evaluated(ClassIoUMetric(), [sample(torch.zeros_like(label), label)])


@pytest.mark.parametrize('wrong', [-1, 4, 300])
def test_a_prediction_that_is_no_class_is_not_counted_as_another(wrong):
    prediction, label = torch.tensor([[0, wrong, 1]]), torch.tensor([[0, 0, 1]])

    with pytest.raises(
        ValueError,
        match=rf'in \[0, 4\), got {min(0, wrong)} to {max(1, wrong)}: check that the decode head has no more',
    ):
        evaluated(ClassIoUMetric(), [sample(prediction, label)])
    label[0, 1] = 255  # where nothing counts anything may be predicted
    assert evaluated(ClassIoUMetric(), [sample(prediction, label)])['aAcc'] == 100


def test_format_only_writes_predictions_and_counts_nothing(tmp_path):
    metric = ClassIoUMetric(format_only=True, output_dir=str(tmp_path), prefix='x')

    assert evaluated(metric, samples(1)) == {}
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_configs_can_name_it():
    assert METRICS.build(dict(type='ClassIoUMetric', iou_metrics=['mIoU'])).metrics == ['mIoU']
