import pytest
from mmseg_wce.kernels import slabs
from ways import SLABS, assert_equal_to_pytorch


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('nodes', [(2, 2), (24, 30), (50, 70)])
def test_a_slab_holds_few_numbers_or_one_row(nodes, align_corners, monkeypatch):
    """Also of logits so coarse that the rows between two of theirs are half of the image."""
    classes, pixels, limit = 5, (50, 70), 1500
    monkeypatch.setattr(slabs, '_NUMBERS_IN_A_SLAB', limit)
    logits, target, weight = SLABS.problem(classes, nodes, pixels)

    sizes = [slab.z.numel() for slab in slabs._slabs(logits, target.shape[1:], align_corners)]

    assert sum(sizes) == classes * target.numel()
    assert max(sizes) <= limit
    assert_equal_to_pytorch(SLABS, logits, target, weight, align_corners)
