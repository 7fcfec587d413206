import weakref

import pytest
import torch
from mmseg_wce.fused_heads.deferred_logits import DeferredLogits, SlidingWindows


@pytest.mark.parametrize(('stride', 'is_kept'), [(4, True), (1, False)])
def test_windows_are_kept_only_where_they_are_small(stride, is_kept):
    """Four windows that cover an image: at a quarter of its sides they are small, at its own they are added up."""
    windows = SlidingWindows(torch.zeros(1, 3, 32, 32), number=4)
    expected, kept = torch.zeros(1, 5, 32, 32), []
    for top in (0, 16):
        for left in (0, 16):
            logits = torch.randn(1, 5, 16 // stride, 16 // stride)
            kept.append(weakref.ref(logits))
            window = DeferredLogits(logits, (16, 16), align_corners=False)
            expected[:, :, top : top + 16, left : left + 16] = window.read(slice(0, 5))
            windows.add(window, top, left)
            del logits, window

    assert [reference() is not None for reference in kept] == [is_kept] * 4
    assert (windows.size, windows.num_channels) == ((32, 32), 5)
    found = torch.cat([windows.read(channels) for channels in windows.slices([])], 1)
    assert torch.equal(found, expected)
    assert torch.equal(windows.count, torch.ones(1, 1, 32, 32))
