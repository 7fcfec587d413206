"""Losses and images of the iterations since all was last known to be finite, and what to say when it is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from shlex import quote

import torch
from mmseg_wce.training.checkpoints import checkpoint_before, is_whole_and_finite
from torch import Tensor, nn

__all__ = ['Findings', 'FiniteWatch', 'explain', 'finite_flags']

_MOST_IMAGES = 20


@dataclass(frozen=True)
class Findings:
    """What a rank knows of the iterations since the last check.

    Attributes:
        rank: of the process.
        first_bad: the first iteration whose loss was not finite, and that loss; None where all were.
        images: of each iteration.
        bad_parameters: names of those that are not finite.
    """

    rank: int
    first_bad: tuple[int, float] | None
    images: dict[int, list[str]]
    bad_parameters: list[str]


class FiniteWatch:
    """Remembers losses where they are; never waits for the device until it is asked for findings."""

    def __init__(self) -> None:
        self._losses: dict[int, Tensor] = {}
        self._images: dict[int, list[str]] = {}

    def record(self, iteration: int, loss: Tensor | float | None, images: list[str]) -> None:
        """Remember an iteration.

        Args:
            iteration: its number, from 1.
            loss: the total, one element; None where the model reports none.
            images: paths of its images.
        """
        self._images[iteration] = images
        if loss is not None:
            self._losses[iteration] = torch.as_tensor(loss).detach().reshape(())

    def num_bad(self, device: torch.device) -> Tensor:
        """Number of losses that are not finite, 0-d, on the device, without waiting for it."""
        if not self._losses:
            return torch.zeros((), dtype=torch.int64, device=device)
        return torch.stack(list(self._losses.values())).to(device).isfinite().logical_not().count_nonzero()

    def findings(self, rank: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> Findings:
        """All that is known, for the case that something is not finite; waits for the device."""
        losses = {iteration: loss.item() for iteration, loss in self._losses.items()}
        first = next(((i, value) for i, value in losses.items() if not math.isfinite(value)), None)
        names = [name for name, p in parameters if not finite_flags([p]).all()]
        return Findings(rank, first, dict(self._images), names)

    def clear(self) -> None:
        """All was finite: forget the iterations."""
        self._losses.clear()
        self._images.clear()


def finite_flags(parameters: Iterable[Tensor]) -> Tensor:
    """(number of parameters,), bool: whether all elements of each are finite. Without waiting for the device."""
    # the part of a sharded parameter that is here
    local = (p.to_local() if hasattr(p, 'to_local') else p for p in parameters)
    return torch.stack([p.detach().isfinite().all() for p in local])


def explain(
    findings: Sequence[Findings],
    last_checkpoint: str | None,
    resumed_from: str | None = None,
    config_file: str | None = None,
) -> str:
    """Message for a training that has to stop: where it began, on which images, the likely causes, where to go on.

    Args:
        findings: of every rank.
        last_checkpoint: the last that was written while all was finite; None where there is none.
        resumed_from: local checkpoint that the training went on from; None where it began anew.
        config_file: with all settings of the training, as mmengine wrote it into the work dir; None where it did not.

    Returns:
        One paragraph, of at most 40 images.
    """
    bad = [(f, *f.first_bad) for f in findings if f.first_bad]
    suspects: Sequence[Findings]
    if bad:
        iteration = min(i for _, i, _ in bad)
        suspects = [f for f, i, _ in bad if i == iteration]
        values = ', '.join(f'{loss} on rank {f.rank}' for f, i, loss in bad if i == iteration)
        what = f'The loss of iteration {iteration} is not finite: {values}. Its images: '
    else:
        iteration = max(max(f.images, default=0) for f in findings)
        suspects = findings
        names = list(dict.fromkeys(name for f in findings for name in f.bad_parameters))
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        what = (
            f'Parameters are not finite after iteration {iteration}, though every loss was: '
            f'{", ".join(names[:3])}{more}. The images of that iteration: '
        )
    first = [image for f in suspects for image in f.images.get(iteration, [])]
    # an update made of an earlier iteration may have done it, the later the likelier; what came after is innocent
    order = sorted({i for f in findings for i in f.images}, key=lambda i: (i > iteration, -i))
    rest = [image for i in order for f in findings for image in f.images.get(i, [])]
    rest = [image for image in dict.fromkeys(rest) if image not in first]
    where = _where_to_go_on(last_checkpoint, resumed_from, config_file or 'CONFIG', len(findings))
    return (
        f'{what}{_listed(first)}. Other images since the last check, iteration {iteration} backwards: {_listed(rest)}. '
        f'Likely causes: a learning rate that is too high, or no warm-up; an image or label that cannot be right; '
        f'float16, which overflows at 65504 (bfloat16 does not). No checkpoint was written since; {where}'
    )


def _where_to_go_on(last_checkpoint: str | None, resumed_from: str | None, config_file: str, num_processes: int) -> str:
    """Name the last good checkpoint, and the command that goes on from it."""
    good, where = last_checkpoint, f'the last good one is {last_checkpoint}'
    if last_checkpoint is None:
        where = 'this run had written none before'
        if resumed_from and is_whole_and_finite(resumed_from):
            good = resumed_from
            where += f', but it went on from {good}, whose weights are finite'
        elif resumed_from and (good := checkpoint_before(resumed_from)):
            where += f': it went on from {resumed_from}, and the one before that with finite weights is {good}'
    if good is None:
        return f'{where}.'
    command = f'python tools/train.py {quote(config_file)}'
    if num_processes > 1:
        command = f'tools/dist_train.sh {quote(config_file)} {num_processes}'
    return f'{where}. Go on from it: {command} --resume-from {quote(good)}'


def _listed(images: Sequence[str]) -> str:
    more = f' and {len(images) - _MOST_IMAGES} more' if len(images) > _MOST_IMAGES else ''
    return (', '.join(images[:_MOST_IMAGES]) or 'none') + more
