"""Random losses for the property-based tests, and PyTorch's answer to each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def examples(number: int) -> settings:
    """Return settings for ``number`` random examples; `make fuzz` multiplies it by ``MMSEG_WCE_FUZZ``."""
    return settings(max_examples=number * int(os.environ.get('MMSEG_WCE_FUZZ', '1')), deadline=None)


def value_and_gradient(loss, logits: Tensor, *args, **options) -> tuple[Tensor, Tensor]:
    """Return the loss, and the gradient of its sum for the logits."""
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *args, **options)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def assert_at_most_pytorchs_error(case: Case, loss, reduction: str, elements: int, probability: float) -> None:
    """Check a loss in the dtype of the logits: the truth is float64, and PyTorch's error in this dtype the measure.

    A mean of ``elements`` is rounded, and a softmax or sigmoid in float32 has ``probability`` epsilon of error before
    what comes of many pixels cancels.
    """

    def theirs(z: Tensor) -> Tensor:
        return case.oracle(z, reduction).sum()

    def error_of(found: Tensor, expected: Tensor) -> Tensor:
        """None is allowed to us where PyTorch's answer is not finite and the truth is: float16 overflows."""
        return (found - expected).abs().max() if found.isfinite().all() else expected.new_zeros(())

    truth, truth_gradient = value_and_gradient(theirs, case.logits.double())
    eager, eager_gradient = value_and_gradient(theirs, case.logits)
    ours, gradient = value_and_gradient(loss, case.logits, case.target, reduction=reduction, **case.options())
    ours = ours.sum()

    epsilon = torch.finfo(torch.float32).eps
    assert ours.dtype == torch.float32
    assert gradient.dtype == case.logits.dtype
    rounding = 4 * epsilon * truth.abs().clamp(min=1.0) * elements**0.5
    assert (ours - truth).abs() <= error_of(eager, truth) + rounding
    last_digit = torch.finfo(case.logits.dtype).eps * truth_gradient.abs().max()
    largest_weight = 1.0 if case.class_weight is None else case.class_weight.max()
    error = (gradient - truth_gradient).abs().max()
    allowed = error_of(eager_gradient, truth_gradient) + last_digit + probability * epsilon * largest_weight
    assert error <= allowed


@dataclass(frozen=True)
class Case:
    """One weighted cross-entropy: logits (N, C, h, w) or (N, C, ...), target (N, H, W) or (N, ...)."""

    recipe: Recipe
    logits: Tensor
    target: Tensor
    class_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    align_corners: bool

    def _repr_pretty_(self, printer, cycle) -> None:
        """What makes it again: Hypothesis prints it, to be pasted into a test."""
        printer.text(f'{self.recipe}.case()')

    @property
    def valid(self) -> Tensor:
        return self.target.long() != self.ignore_index

    def resized(self, logits: Tensor) -> Tensor:
        if logits.shape[2:] == self.target.shape[1:]:
            return logits
        return F.interpolate(logits, size=self.target.shape[1:], mode='bilinear', align_corners=self.align_corners)

    def oracle(self, logits: Tensor, reduction: str) -> Tensor:
        """``F.cross_entropy`` on upsampled logits."""
        return F.cross_entropy(
            self.resized(logits),
            self.target.long(),
            None if self.class_weight is None else self.class_weight.to(logits.dtype),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )

    def options(self) -> dict:
        return dict(
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
        )


@dataclass(frozen=True)
class BinaryCase(Case):
    """One weighted binary cross-entropy: one channel, where labels are 0 and 1, or C channels."""

    def _repr_pretty_(self, printer, cycle) -> None:
        printer.text(f'{self.recipe}.binary_case()')

    def one_hot(self) -> Tensor:
        """Label of every element, (N, C, ...); 0 where ignored."""
        labels = torch.arange(max(self.logits.shape[1], 2)).view(-1, *[1] * (self.target.dim() - 1))
        found = (self.target.long().unsqueeze(1) == labels) & self.valid.unsqueeze(1)
        return found[:, -self.logits.shape[1] :]

    def oracle(self, logits: Tensor, reduction: str) -> Tensor:
        """``F.binary_cross_entropy_with_logits`` on upsampled logits, of the elements of valid pixels."""
        z = self.resized(logits)
        one_hot, valid = self.one_hot().to(z.dtype), self.valid.unsqueeze(1)
        pos_weight, background = None, 1.0
        if self.class_weight is not None:
            *first, last = self.class_weight.to(z.dtype)
            pos_weight = self.class_weight.to(z.dtype).view(-1, *[1] * (z.dim() - 2))
            if z.shape[1] == 1:
                pos_weight, background = last, first[0] if first else 1.0
        loss = F.binary_cross_entropy_with_logits(z, one_hot, pos_weight=pos_weight, reduction='none')
        loss = torch.where(valid, torch.where(one_hot == 0, background * loss, loss), 0)
        if reduction == 'none':
            return loss.squeeze(1) if z.shape[1] == 1 else loss
        return loss.sum() / (1 if reduction == 'sum' else z.shape[1] * self.valid.sum())

    def options(self) -> dict:
        return dict(class_weight=self.class_weight, ignore_index=self.ignore_index, align_corners=self.align_corners)


@dataclass(frozen=True)
class Recipe:
    """The numbers that a :class:`Case` is made from, which Hypothesis prints and shrinks."""

    seed: int = 0
    batch: int = 1
    classes: int = 2
    size: tuple[int, ...] = ()
    target_size: tuple[int, ...] = ()
    ignore_index: int = 255
    integer: str = 'int64'
    dtype: str = 'float64'
    scale: float = 1.0
    ignored: float = 0.0
    special_weight: tuple[int, float] | None = None  # weights, and of which class a multiple
    layout: str = 'contiguous'
    label_smoothing: float = 0.0
    align_corners: bool = False
    one_weight: bool = False  # for all channels, or of label 1 of one channel

    def case(self) -> Case:
        """A softmax cross-entropy."""
        return self._made(Case)

    def binary_case(self) -> BinaryCase:
        """A binary cross-entropy."""
        return self._made(BinaryCase)

    def _made(self, kind: type[Case]) -> Case:
        labels = max(self.classes, 2)
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(self.batch, self.classes, *self.size, generator=generator, dtype=torch.float64)
        logits = (logits * self.scale).to(getattr(torch, self.dtype))
        target = torch.randint(0, labels, (self.batch, *self.target_size), generator=generator)
        target[torch.rand(target.shape, generator=generator) < self.ignored] = self.ignore_index
        weight = None
        if self.special_weight is not None:
            weight = torch.rand(labels, generator=generator) + 0.05
            weight[self.special_weight[0]] *= self.special_weight[1]
            weight = weight[:1] if self.one_weight else weight
        if self.layout == 'strided':
            logits = torch.stack([logits, logits], -1)[..., 0]
            target = torch.stack([target, target], -1)[..., 0]
        elif self.layout == 'channels_last' and logits.dim() == 4:
            logits = logits.to(memory_format=torch.channels_last)
        target = target.to(getattr(torch, self.integer))
        return kind(self, logits, target, weight, self.ignore_index, self.label_smoothing, self.align_corners)


@st.composite
def recipes(draw, dtypes, resize, scale, all_ignored, fewest_channels) -> Recipe:
    """Shapes, dtypes, ignored fractions (0, some, all), weights with zeros, smoothing, any layout in memory."""
    classes = draw(st.integers(fewest_channels, 7))
    labels = max(classes, 2)
    size = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=3)))
    target_size = size
    if resize and len(size) == 2 and draw(st.booleans()):
        target_size = tuple(draw(st.lists(st.integers(1, 13), min_size=2, max_size=2)))
    ignore_index = draw(st.sampled_from((255, -1, -100, 0, labels - 1)))
    weights = st.tuples(st.integers(0, labels - 1), st.sampled_from((0.0, 1.0, 100.0)))
    return Recipe(
        seed=draw(st.integers(0, 2**31)),
        batch=draw(st.integers(1, 3)),
        classes=classes,
        size=size,
        target_size=target_size,
        ignore_index=ignore_index,
        integer=_name(draw(st.sampled_from(INTEGERS if ignore_index >= 0 else INTEGERS[:3]))),
        dtype=_name(draw(st.sampled_from(dtypes))),
        scale=draw(st.sampled_from(scale)),
        ignored=draw(st.sampled_from((0.0, 0.3, 1.0) if all_ignored else (0.0, 0.3))),
        special_weight=draw(st.none() | weights),
        layout=draw(st.sampled_from(('contiguous', 'strided', 'channels_last'))),
        label_smoothing=draw(st.sampled_from((0.0, 0.0, 0.1, 1.0))),
        align_corners=draw(st.booleans()),
        one_weight=fewest_channels == 1 and draw(st.booleans()),
    )


def cases(dtypes=(torch.float64,), resize=True, scale=(0.1, 1.0, 20.0), all_ignored=True) -> st.SearchStrategy[Case]:
    """Softmax cross-entropies of two channels and more."""
    return recipes(dtypes, resize, scale, all_ignored, 2).map(Recipe.case)


def binary_cases(
    dtypes=(torch.float64,), resize=True, scale=(0.1, 1.0, 20.0), all_ignored=True
) -> st.SearchStrategy[BinaryCase]:
    """Binary cross-entropies of one channel and more."""
    return recipes(dtypes, resize, scale, all_ignored, 1).map(Recipe.binary_case)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
