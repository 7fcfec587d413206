"""Record losses and images since the last check for non-finite values, and explain a non-finite value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from shlex import quote

import torch
from mmseg_wce.training.checkpoints import checkpoint_before, is_whole_and_finite
from torch import Tensor, nn

__all__ = ['Findings', 'LossHistory', 'explain', 'finite_flags']

_MAX_IMAGES = 20


@dataclass(frozen=True)
class Findings:
    """Records of one rank since the last check.

    Attributes:
        rank: rank of the process.
        first_bad: the first iteration with a non-finite loss, and that loss; None if all losses were finite.
        images: image paths of each iteration.
        bad_parameters: names of the parameters that are not finite.
    """

    rank: int
    first_bad: tuple[int, float] | None
    images: dict[int, list[str]]
    bad_parameters: list[str]


class LossHistory:
    """Losses and images since the last check. Losses stay on their device; only :meth:`findings` waits for it."""

    def __init__(self) -> None:
        self._losses: dict[int, Tensor] = {}
        self._images: dict[int, list[str]] = {}

    def record(self, iteration: int, loss: Tensor | float | None, images: list[str]) -> None:
        """Add an iteration, counted from 1, with its total loss (None if the model reports none) and image paths."""
        self._images[iteration] = images
        if loss is not None:
            self._losses[iteration] = torch.as_tensor(loss).detach().reshape(())

    def num_bad(self, device: torch.device) -> Tensor:
        """Return the number of non-finite losses, 0-d, on ``device``, without waiting for it."""
        if not self._losses:
            return torch.zeros((), dtype=torch.int64, device=device)
        return torch.stack(list(self._losses.values())).to(device).isfinite().logical_not().count_nonzero()

    def findings(self, rank: int, parameters: Iterable[tuple[str, nn.Parameter]]) -> Findings:
        """Return the records of this rank, to explain a non-finite value; waits for the device."""
        losses = {iteration: loss.item() for iteration, loss in self._losses.items()}
        first = next(((i, value) for i, value in losses.items() if not math.isfinite(value)), None)
        names = [name for name, p in parameters if not finite_flags([p]).all()]
        return Findings(rank, first, dict(self._images), names)

    def clear(self) -> None:
        """Remove all iterations, after a check that found only finite values."""
        self._losses.clear()
        self._images.clear()


def finite_flags(parameters: Iterable[Tensor]) -> Tensor:
    """Return a flag for each parameter, True if all its elements are finite; (number of parameters,) bool.

    Does not wait for the device. Of a sharded parameter only the local shard is checked.
    """
    local = (p.to_local() if hasattr(p, 'to_local') else p for p in parameters)
    return torch.stack([p.detach().isfinite().all() for p in local])


def explain(
    findings: Sequence[Findings],
    last_checkpoint: str | None,
    resumed_from: str | None = None,
    config_file: str | None = None,
) -> str:
    """Explain why a training stops: first bad iteration, its images, likely causes, and how to resume.

    Args:
        findings: records of every rank.
        last_checkpoint: the last checkpoint written while all values were finite; None if there is none.
        resumed_from: local checkpoint that the training was resumed from; None if it was not resumed.
        config_file: config with all settings, which mmengine writes into the work dir; None if it did not.

    Returns:
        One paragraph, with at most 40 images.
    """
    bad = [(f, *f.first_bad) for f in findings if f.first_bad]
    suspects: Sequence[Findings]
    if bad:
        iteration = min(i for _, i, _ in bad)
        suspects = [f for f, i, _ in bad if i == iteration]
        values = ', '.join(f'{loss} on rank {f.rank}' for f, i, loss in bad if i == iteration)
        problem = f'The loss of iteration {iteration} is not finite: {values}. Its images: '
    else:
        iteration = max(max(f.images, default=0) for f in findings)
        suspects = findings
        names = list(dict.fromkeys(name for f in findings for name in f.bad_parameters))
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        problem = (
            f'Parameters are not finite after iteration {iteration}, though every loss was: '
            f'{", ".join(names[:3])}{more}. The images of that iteration: '
        )
    first_images = [image for f in suspects for image in f.images.get(iteration, [])]
    # an earlier iteration may be the cause, a recent one more likely; later iterations cannot be, and come last
    order = sorted({i for f in findings for i in f.images}, key=lambda i: (i > iteration, -i))
    others = [image for i in order for f in findings for image in f.images.get(i, [])]
    others = [image for image in dict.fromkeys(others) if image not in first_images]
    advice = _resume_advice(last_checkpoint, resumed_from, config_file or 'CONFIG', len(findings))
    return (
        f'{problem}{_join_images(first_images)}. Other images since the last check, '
        f'iteration {iteration} backwards: {_join_images(others)}. '
        f'Likely causes: a learning rate that is too high, or no warm-up; an invalid image or label; '
        f'float16, which overflows at 65504 (bfloat16 does not). No checkpoint was written since; {advice}'
    )


def _resume_advice(last_checkpoint: str | None, resumed_from: str | None, config_file: str, num_processes: int) -> str:
    """Name the last good checkpoint and the command that resumes from it."""
    good, advice = last_checkpoint, f'the last good one is {last_checkpoint}'
    if last_checkpoint is None:
        advice = 'this run had written none before'
        if resumed_from and is_whole_and_finite(resumed_from):
            good = resumed_from
            advice += f', but it was resumed from {good}, whose weights are finite'
        elif resumed_from and (good := checkpoint_before(resumed_from)):
            advice += (
                f': it was resumed from {resumed_from}, and the last checkpoint before it with finite weights is {good}'
            )
    if good is None:
        return f'{advice}.'
    command = f'python tools/train.py {quote(config_file)}'
    if num_processes > 1:
        command = f'tools/dist_train.sh {quote(config_file)} {num_processes}'
    return f'{advice}. Go on from it: {command} --resume-from {quote(good)}'


def _join_images(images: Sequence[str]) -> str:
    more = f' and {len(images) - _MAX_IMAGES} more' if len(images) > _MAX_IMAGES else ''
    return (', '.join(images[:_MAX_IMAGES]) or 'none') + more
