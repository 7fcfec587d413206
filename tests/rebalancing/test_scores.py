import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg_wce.metrics import mean_scores
from mmseg_wce.rebalanced_argmax import RebalancedClasses
from mmseg_wce.rebalancing.scores import RebalancedScores

TAUS = [0.0, 0.25, 1.0]
CLASSES = tuple('abcd')


@pytest.fixture
def samples():
    """Three images with labels and a prediction for each tau; most pixels are predicted alike."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(3):
        size = 20 + i, 30
        label = torch.randint(0, 4, (1, *size), generator=generator)
        label[:, :3] = 255
        first = torch.randint(0, 4, size, generator=generator)
        moves = torch.rand(3, *size, generator=generator) < 0.2
        predictions = torch.where(moves, torch.randint(0, 4, (3, *size), generator=generator), first)
        moving = (predictions != predictions[0]).any(0).flatten().nonzero().flatten()
        classes = RebalancedClasses(predictions[0], moving, predictions.flatten(1)[:, moving])
        made.append(dict(rebalanced_classes=classes, gt_sem_seg=dict(data=label), img_path=f'{i}.jpg'))
    return made


def by_mmseg(samples, t):
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=CLASSES)
    maps = [dict(s, pred_sem_seg=dict(data=s['rebalanced_classes'].prediction(t)[None])) for s in samples]
    metric.process({}, maps)
    return metric.evaluate(len(samples))


def test_scores_are_mmsegs(samples):
    metric = RebalancedScores(TAUS)
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)

    found = metric.evaluate(len(samples))

    for t, tau in enumerate(TAUS):
        expected = by_mmseg(samples, t)
        for name in ('mIoU', 'mAcc', 'aAcc'):
            assert found[f'{name}/tau {tau:g}'] == pytest.approx(expected[name], abs=0.011)
            assert mean_scores(metric.areas.sum(0))[name][t] == pytest.approx(expected[name], abs=0.011)
    assert metric.areas.shape == (3, 3, 3, 4)
    valid = [int((sample['gt_sem_seg']['data'] != 255).sum()) for sample in samples]
    assert metric.areas[:, :, 1].sum(-1).tolist() == metric.areas[:, :, 2].sum(-1).tolist() == [[n] * 3 for n in valid]
    assert (metric.areas[:, :, 0] <= metric.areas[:, :, 1]).all()


def test_in_an_evaluator(samples):
    init_default_scope('mmseg')
    evaluator = Evaluator(dict(type='RebalancedScores', taus=TAUS, ignore_index=3))
    evaluator.dataset_meta = dict(classes=CLASSES)
    for sample in samples:
        label = sample['gt_sem_seg']['data']
        label[label == 255] = 3

    evaluator.process(samples, {})
    evaluator.evaluate(len(samples))

    assert evaluator.metrics[0].areas[:, :, 2, 3].sum() == 0
    assert np.array_equal(evaluator.metrics[0].areas[:, 0, 2], evaluator.metrics[0].areas[:, 1, 2])


def test_a_label_that_cannot_be_is_named(samples):
    metric = RebalancedScores(TAUS)
    metric.dataset_meta = dict(classes=CLASSES)
    samples[1]['gt_sem_seg']['data'][0, 5, 6] = 77

    with pytest.raises(ValueError, match=r'77[\s\S]*1\.jpg|1\.jpg[\s\S]*77'):
        metric.process({}, samples)


def test_labels_of_another_size(samples):
    metric = RebalancedScores(TAUS)
    metric.dataset_meta = dict(classes=CLASSES)
    samples[0]['gt_sem_seg']['data'] = torch.zeros(1, 9, 9, dtype=torch.long)

    with pytest.raises(ValueError, match=r'0\.jpg: its labels are \(9, 9\), the prediction \(20, 30\)'):
        metric.process({}, samples)


def test_an_image_without_labels(samples):
    metric = RebalancedScores(TAUS)
    metric.dataset_meta = dict(classes=CLASSES)
    del samples[2]['gt_sem_seg']

    with pytest.raises(ValueError, match=r'2\.jpg has no labels: LoadAnnotations must be in the pipeline'):
        metric.process({}, samples)
