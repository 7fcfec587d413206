"""Training in half precision: what autocast and a GradScaler see of the loss, on whole models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.functional import weighted_cross_entropy
from mmseg_wce.fused_heads import fuse_decode_heads
from torch import nn

WEIGHTS = [0.1, 3.0, 1.0, 0.3, 2.0]
SCALE = 4096.0  # of a GradScaler: without one, float16 has no digits for gradients this small

every_device = pytest.mark.parametrize(
    'device',
    ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))],
)


def labels(images=2, size=(32, 40)) -> torch.Tensor:
    label = torch.randint(0, 5, (images, *size), generator=torch.Generator().manual_seed(0))
    label[:, :9] = 255
    return label


class Segmentor(nn.Module):
    """A convolution and one of mmseg's heads."""

    def __init__(self, **options) -> None:
        super().__init__()
        init_default_scope('mmseg')
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 6, 4, stride=4)
        loss = dict(type='WeightedCrossEntropyLoss', class_weight=WEIGHTS, **options)
        head = dict(num_classes=5, in_channels=6, channels=8, dropout_ratio=0, align_corners=False, loss_decode=loss)
        self.decode_head = MODELS.build(dict(type='FCNHead', norm_cfg=None, **head))

    def forward(self, images: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=y[None])) for y in label]
        return self.decode_head.loss([self.backbone(images).relu()], samples, {})['loss_ce']


@every_device
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('options', [dict(), dict(label_smoothing=0.1), dict(use_sigmoid=True)])
def test_under_autocast_only_the_gradient_is_rounded_and_only_once(device, dtype, fused, options):
    """Against PyTorch in float32 on the logits that the loss got: half a unit in the last place, and float32's own."""
    model, label = Segmentor(**options).to(device), labels().to(device)
    images = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(1)).to(device)
    got = []
    head = model.decode_head
    if fused:
        fuse_decode_heads(model)
        head.conv_seg.register_forward_hook(lambda _, arguments, logits: got.append(logits))
    else:
        head.loss_decode.register_forward_pre_hook(lambda _, arguments: got.append(arguments[0]))

    with torch.autocast(device, dtype):
        loss = model(images, label)
    (logits,), weights = got, list(model.parameters())
    gradient, *of_weights = torch.autograd.grad(SCALE * loss, [logits, *weights], retain_graph=True)

    z = logits.detach().float().requires_grad_()
    resized = F.interpolate(z, size=label.shape[1:], mode='bilinear') if fused else z
    weight = torch.tensor(WEIGHTS, device=device)
    if options.get('use_sigmoid'):
        one_hot = torch.stack([label == c for c in range(5)], 1).float()
        pos_weight = weight.view(5, 1, 1)
        elements = F.binary_cross_entropy_with_logits(resized, one_hot, pos_weight=pos_weight, reduction='none')
        expected = elements.movedim(1, -1)[label != 255].mean()
    else:
        expected = F.cross_entropy(resized, label, weight, ignore_index=255, **options)
    (exact,) = torch.autograd.grad(SCALE * expected, z)
    expected_of_weights = torch.autograd.grad(logits, weights, exact.to(dtype))

    assert logits.dtype == gradient.dtype == dtype
    assert logits.shape[2:] == ((8, 10) if fused else (32, 40))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    half = torch.finfo(dtype)
    smallest = half.smallest_normal * half.eps / 2
    atol = smallest + 2e-6 * exact.abs().max().item()
    torch.testing.assert_close(gradient.float(), exact, rtol=0.501 * half.eps, atol=atol)
    for found, theirs in zip(of_weights, expected_of_weights, strict=True):
        torch.testing.assert_close(found, theirs, rtol=half.eps, atol=half.eps * theirs.abs().max().item())


class Training:
    """Steps of a small convolutional network in float16 whose loss a GradScaler scales."""

    def __init__(self, loss, device: str, upsampled: bool, init_scale: float) -> None:
        torch.manual_seed(0)
        last = nn.Upsample(scale_factor=4, mode='bilinear') if upsampled else nn.Identity()
        self.model = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU(), nn.Conv2d(6, 5, 1), last).to(device)
        self.loss, self.device = loss, device
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.9)
        self.scaler = torch.amp.GradScaler(device, init_scale=init_scale)
        self.images = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(1)).to(device)
        self.label, self.weight = labels().to(device), torch.tensor(WEIGHTS, device=device)

    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def continue_from(self, other: 'Training') -> None:
        """Take the weights, momentum and scale of another training."""
        for part in ('model', 'optimizer', 'scaler'):
            getattr(self, part).load_state_dict(copy.deepcopy(getattr(other, part).state_dict()))

    def step(self) -> tuple[float, float, list[torch.Tensor]]:
        """Loss, scale of the next step, weights after this one."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.float16):
            loss = self.loss(self.model(self.images), self.label, self.weight)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item(), self.scaler.get_scale(), self.weights()


def pytorchs(logits, label, weight):
    return F.cross_entropy(
        F.interpolate(logits.float(), size=label.shape[1:], mode='bilinear'), label, weight, ignore_index=255
    )


@every_device
@pytest.mark.parametrize('upsampled', [False, True])
def test_steps_that_overflow_are_skipped_and_the_others_are_those_of_pytorchs_loss(device, upsampled):
    largest, steps = 2.0**24, 20
    ours, theirs = (Training(loss, device, upsampled, largest) for loss in (weighted_cross_entropy, pytorchs))
    weights, results = [ours.weights()], []
    for _ in range(steps):
        theirs.continue_from(ours)  # else float16 rounding of one step grows in those that follow
        results.append((*ours.step(), *theirs.step()))
    losses, scales, after, their_losses, their_scales, their_weights = zip(*results, strict=True)
    weights += after

    assert scales[0] == largest / 2
    assert scales == their_scales
    assert scales[-1] == scales[steps // 2]  # the second half of the steps are taken
    for before, now, scale, used in zip(weights, weights[1:], scales, (largest, *scales), strict=False):
        assert all(w.isfinite().all() for w in now)
        assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True)) == (scale < used)
    assert losses[-1] < 0.9 * losses[0]
    assert losses == pytest.approx(their_losses, rel=1e-4)
    torch.testing.assert_close(weights[1:], list(their_weights), rtol=1e-3, atol=2e-4)
