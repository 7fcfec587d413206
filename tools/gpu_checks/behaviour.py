"""Check how a loss step behaves: same bits, CUDA graphs, torch.compile, no synchronization, errors of labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from mmseg_wce.functional import weighted_cross_entropy
from mmseg_wce.targets import raise_pending
from torch import Tensor

from gpu_checks.correctness import Problem, make_problem
from gpu_checks.results import CheckRun, Outcome, one_line

MOST_LAUNCHES = 25
_COMPILED_TOLERANCE = 1e-5  # of the loss, and of the largest gradient: the compiler may add up in another order
_SMALL, _LARGE = (24, 40), (96, 160)
WARM_UP_FIRST = 'run one step with these shapes before the capture'


def training_step(logits: Tensor, target: Tensor, weight: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of the logits."""
    logits = logits if logits.requires_grad else logits.detach().requires_grad_()
    loss = weighted_cross_entropy(logits, target, weight, **options)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def same_bits(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Outcome:
    """Return whether two results have the same bits, and how far they are apart if not."""
    names = [name for name, a, b in zip(('loss', 'gradient'), first, second, strict=True) if not torch.equal(a, b)]
    apart = [float((a.double() - b.double()).abs().max()) for a, b in zip(first, second, strict=True)]
    found = 'the same bits' if not names else f'another {" and ".join(names)}: {apart[0]:.1e}, {apart[1]:.1e} apart'
    return found, not names, dict(loss_difference=apart[0], gradient_difference=apart[1])


def problems(device: str) -> dict[str, Problem]:
    """Return a problem where logits are resized and one where they are not."""
    return {
        'resized': make_problem(device, 19, _SMALL, _LARGE),
        'same size': make_problem(device, 19, _LARGE, _LARGE),
        'resized, bfloat16': make_problem(device, 19, _SMALL, _LARGE, torch.bfloat16),
    }


def deterministic(run: CheckRun) -> None:
    """Check the bits of two runs, without and with PyTorch's deterministic algorithms."""
    for title, problem in problems(run.device).items():
        torch.use_deterministic_algorithms(False)
        usual = training_step(*problem, label_smoothing=0.1)

        def again(problem: Problem = problem, usual: tuple[Tensor, Tensor] = usual) -> Outcome:
            return same_bits(usual, training_step(*problem, label_smoothing=0.1))

        run.attempt(f'two runs, {title}', 'the same bits', again)
        torch.use_deterministic_algorithms(True)
        run.attempt(f'deterministic mode, {title}', 'the same bits', again)


def matmul_precision(run: CheckRun) -> None:
    """Check that PyTorch's switch for TF32 in matrix products changes no bit."""
    for title, problem in problems(run.device).items():
        results = []
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            results.append(training_step(*problem))
        run.attempt(f'allow_tf32 off and on, {title}', 'the same bits', lambda pair=results: same_bits(*pair))


def no_synchronization(run: CheckRun) -> None:
    """Check that loss steps never wait for the device."""
    for title, problem in problems(run.device).items():
        logits, target, weight = (x.detach() for x in problem)
        for _ in range(3):
            training_step(logits, target, weight, label_smoothing=0.1)
        torch.cuda.synchronize()

        def steps(problem: Problem = (logits, target, weight)) -> Outcome:
            torch.cuda.set_sync_debug_mode('error')
            try:
                for _ in range(3):
                    training_step(*problem, label_smoothing=0.1)
            finally:
                torch.cuda.set_sync_debug_mode('default')
            return 'no synchronization in 3 steps', True, {}

        run.attempt(f'synchronization, {title}', 'none', steps)


def bad_label(run: CheckRun) -> None:
    """Check that an invalid label raises an error with value and place, and leaves the device usable."""
    logits, target, weight = make_problem(run.device, 19, _SMALL, _LARGE)
    wrong = target.clone()
    wrong[1, 5, 7] = 77
    expected = 'names 77 and (1, 5, 7)'

    def message(in_later_call: bool) -> Outcome:
        try:
            training_step(logits, wrong, weight)
            if run.device == 'cuda':
                torch.cuda.synchronize()
            for _ in range(3 * in_later_call):
                training_step(logits, target, weight)
            if not in_later_call:
                raise_pending()
        except ValueError as error:
            return one_line(error), '77' in str(error) and '(1, 5, 7)' in str(error), {}
        return 'no error', False, {}

    run.attempt('bad label, raise_pending()', expected, lambda: message(False))
    run.attempt('bad label, later call', expected, lambda: message(True))

    def afterwards() -> Outcome:
        loss, _ = training_step(logits, target, weight)
        raise_pending()
        return f'finite: {bool(loss.isfinite())}', bool(loss.isfinite()), {}

    run.attempt('the step after a bad label', 'finite: True', afterwards)


def graph(run: CheckRun, before: str) -> None:
    """Capture forward and backward in a CUDA graph; replay it with other inputs.

    Args:
        run: the running check.
        before: what runs before the capture: 'nothing', 'other shapes' or 'warm-up'.
    """
    logits, target, weight = make_problem(run.device, 19, _SMALL, _LARGE)
    logits.requires_grad_()
    second, second_target, _ = make_problem(run.device, 19, _SMALL, _LARGE, seed=1)
    if before == 'other shapes':
        training_step(*make_problem(run.device, 7, (9, 16), (54, 96)))
    if before == 'warm-up':
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                training_step(logits, target, weight)
        torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()

    def capture() -> Outcome:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            results = training_step(logits, target, weight)
        outcomes = []
        for _ in range(2):  # with the inputs of the capture, then with others
            captured.replay()
            torch.cuda.synchronize()
            replayed = results[0].clone(), results[1].clone()
            outcomes.append(same_bits(replayed, training_step(logits.detach().clone(), target.clone(), weight)))
            with torch.no_grad():
                logits.copy_(second)
                target.copy_(second_target)
        return next((outcome for outcome in outcomes if not outcome[1]), outcomes[0])

    advice = '' if before == 'warm-up' else WARM_UP_FIRST
    run.attempt(f'CUDA graph, {before} before', 'the same bits', capture, advice)


def compiled(run: CheckRun) -> None:
    """Check torch.compile(mode='reduce-overhead') against the loss without it."""
    logits, target, weight = make_problem(run.device, 19, _SMALL, _LARGE)
    logits.requires_grad_()

    def function(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return weighted_cross_entropy(z, y, w, label_smoothing=0.1)

    def steps() -> Outcome:
        fast, largest = torch.compile(function, mode='reduce-overhead'), (0.0, 0.0)
        loss, gradient = training_step(logits, target, weight, label_smoothing=0.1)
        for _ in range(4):  # the first ones record
            torch.compiler.cudagraph_mark_step_begin()
            found = fast(logits, target, weight)
            (found_gradient,) = torch.autograd.grad(found, logits)
            errors = (
                (found.detach() - loss).abs() / loss,
                (found_gradient - gradient).abs().max() / gradient.abs().max(),
            )
            largest = max(largest[0], float(errors[0])), max(largest[1], float(errors[1]))
        text, raw = f'loss {largest[0]:.1e}, gradient {largest[1]:.1e}', dict(errors=largest)
        return text, max(largest) <= _COMPILED_TOLERANCE, raw

    expected = f'loss {_COMPILED_TOLERANCE:.1e}, gradient {_COMPILED_TOLERANCE:.1e}'
    advice = 'needs a C compiler; leave the loss out with torch.compiler.disable'
    run.attempt("torch.compile(mode='reduce-overhead')", expected, steps, advice)


def launches(run: CheckRun) -> None:
    """Count the kernels of a loss step."""
    for title, problem in problems(run.device).items():

        def count(problem: Problem = problem) -> Outcome:
            training_step(*problem)
            profiled_events(problem)  # the first profile of a process may miss events
            raw = profiled_events(problem)
            kernels, calls = (sum(raw[name].values()) for name in ('kernels', 'launch_calls'))
            if not kernels and not calls:
                return 'the profiler saw no kernel', None, raw
            return f'{kernels or calls}', (kernels or calls) <= MOST_LAUNCHES, raw

        advice = 'the JSON file names the kernels; MMSEG_WCE_BACKEND must not be set'
        run.attempt(f'kernel launches, {title}', f'<= {MOST_LAUNCHES}', count, advice)


def profiled_events(problem: Problem) -> dict[str, dict[str, int]]:
    """Return how often a step runs each kernel, each copy or fill, and each function that launches kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    wait = torch.cuda.synchronize if problem[0].is_cuda else lambda: None
    wait()  # or kernels from before would count
    with torch.profiler.profile(activities=activities) as profiler:
        training_step(*problem)
        wait()
    on_device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profiler.events() if event.device_type == on_device]
    calls = [event.name for event in profiler.events() if 'LaunchKernel' in event.name]
    other = [name for name in names if name.startswith(('Memcpy', 'Memset'))]
    kernels = [name for name in names if name not in other]
    counted = dict(kernels=kernels, copies_and_fills=other, launch_calls=calls)
    return {name: dict(Counter(found)) for name, found in counted.items()}  # asdict() cannot copy a Counter


def small_step(run: CheckRun) -> None:
    """Run a small step, for compute-sanitizer: resized and not, with an invalid label among the labels."""
    for small in ((5, 9), (20, 36)):
        logits, target, weight = make_problem(run.device, 7, small, (20, 36))
        training_step(logits, target, weight, label_smoothing=0.1)
        target[0, 3, 4] = 77
        try:
            training_step(logits, target, weight)
            raise_pending()
        except ValueError as error:
            run.add(f'a small step, {small[0]} rows', 'an error of the label', one_line(error), '77' in str(error))
