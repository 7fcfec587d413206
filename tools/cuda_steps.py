"""Loss steps of the benchmark on CUDA: the implementations, and what is measured of one of them."""

from collections.abc import Callable
from importlib.util import find_spec

import mmseg_wce
import torch
from benchmark_cases import Case
from benchmark_implementations import built_in, built_in_written_out, compiled, liger, ours, plain
from cuda_profile import profile_kernels
from cuda_timing import DeviceTimer, device_timer, peak_megabytes
from mmseg_wce.targets import raise_pending
from timing import seconds, summary
from torch import Tensor

# in the order in which they are prepared: torch.compile takes longest, and may not fit into the time there is
IMPLEMENTATIONS: dict[str, Callable] = {
    'mmseg_wce': ours,
    'eager': plain,
    'built-in': built_in,
    'built-in, written out': built_in_written_out,
    'liger': liger,
    'compiled': compiled,
}


def why_left_out(name: str, case: Case) -> str | None:
    """Return why an implementation cannot be measured in a case; None if it can."""
    if name.startswith('built-in') and case.label_smoothing:
        return "mmseg's loss has no label smoothing"
    if name == 'built-in' and mmseg_wce.why_not_registered is not None:
        return mmseg_wce.why_not_registered
    if name == 'built-in' and case.weighted:
        return "mmseg's loss indexes class weights with the ignored label, which ends a process on CUDA"
    if name == 'built-in, written out' and why_left_out('built-in', case) is None:
        return 'the built-in loss is'
    if name == 'liger' and find_spec('liger_kernel') is None:
        return 'liger_kernel is not installed'
    return None


class CudaStep:
    """A loss step: upsampling, loss, accuracy, and the gradient of the logits.

    The gradient is returned, not accumulated: a leaf's ``.grad`` belongs to a stream, and hinders capturing.
    """

    def __init__(self, name: str, case: Case, tensors: tuple[Tensor, Tensor, Tensor | None]) -> None:
        self.function, self.case = IMPLEMENTATIONS[name], case
        self.logits, self.target, self.weight = tensors
        self.timer: DeviceTimer | None = None
        self.clear()

    def clear(self) -> None:
        self.loss = self.accuracy = self.gradient = None

    def forward(self) -> None:
        self.clear()
        # the built-in loss takes no weights
        options = () if self.weight is None else (self.weight,)
        self.loss, self.accuracy = self.function(self.logits, self.target, self.case, *options)

    def backward(self) -> None:
        (self.gradient,) = torch.autograd.grad(self.loss, self.logits)

    def run(self) -> None:
        self.forward()
        self.backward()

    def run_and_clear(self) -> None:
        """Run the step, and keep nothing of it: a graph must not leave tensors behind that live in its memory."""
        self.run()
        self.clear()

    def prepare(self) -> dict:
        """Run the step until everything is compiled; return its loss, its peak memory, and how it is going to be timed.

        Raises:
            ValueError: the gradient is not finite.
        """
        self.run()
        raise_pending()
        if not self.gradient.isfinite().all():
            raise ValueError('the gradient is not finite')
        result = dict(loss=self.loss.item(), megabytes=peak_megabytes(self.run, self.clear))
        self.clear()
        self.timer = device_timer(self.run_and_clear)
        return dict(result, method=self.timer.method, why_events=self.timer.why_events, calls=self.timer.calls)

    def profile(self) -> list[dict]:
        """Return the kernels of a step, as :func:`profile_kernels`."""
        return profile_kernels(self.forward, self.backward)

    def wall_seconds(self) -> float:
        """Return the seconds of one call, until the device has finished."""
        return seconds(self.run_and_clear, 'cuda')


def sample_in_turn(steps: dict[str, CudaStep], rounds: int, fail: Callable[[str, Exception], None]) -> dict[str, dict]:
    """Return median and range of the seconds on the device and on the wall for steps that have been prepared.

    Args:
        steps: by the name of the implementation.
        rounds: number of rounds, in each of which all steps run in turn.
        fail: called with the name and the error of a step that fails, which is left out from then on.

    Returns:
        'device' and 'wall' of every step that did not fail.
    """
    samples: dict[str, dict[str, list[float]]] = {name: dict(device=[], wall=[]) for name in steps}
    for _ in range(rounds):
        for name in list(samples):
            try:
                samples[name]['device'].append(steps[name].timer.sample())
                samples[name]['wall'].append(steps[name].wall_seconds())
            except Exception as error:
                del samples[name]
                fail(name, error)
    return {name: {key: summary(values) for key, values in found.items()} for name, found in samples.items()}
