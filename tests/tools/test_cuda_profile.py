import pytest
import torch


@pytest.fixture
def tool(import_tool):
    return import_tool('cuda_profile')


def span(category: str, name: str, start: float, duration: float, **arguments) -> dict:
    return dict(ph='X', cat=category, name=name, ts=start, dur=duration, args=arguments)


def trace() -> list[dict]:
    """Two steps, whose kernels run after the processor has launched all of them."""
    events = [dict(ph='M', name='process_name')]
    for step in (0, 1):
        t = 100 * step
        events += [
            span('user_annotation', 'forward', t, 40),
            span('user_annotation', 'backward', t + 50, 40),
            span('cuda_driver', 'cuLaunchKernelEx', t + 10, 5, correlation=10 * step + 1),
            span('cuda_runtime', 'cudaLaunchKernel', t + 20, 5, correlation=10 * step + 2),
            span('cuda_runtime', 'cudaLaunchKernel', t + 30, 5, correlation=10 * step + 3),
            span('cuda_driver', 'cuLaunchKernelEx', t + 60, 5, correlation=10 * step + 4),
            span('gpu_user_annotation', 'forward', 1000 + t, 90),
            span('kernel', 'measure', 1000 + t, 30 + step, correlation=10 * step + 1, **{'registers per thread': 64}),
            span('kernel', 'fill', 1040 + t, 1, correlation=10 * step + 2),
            span('kernel', 'fill', 1050 + t, 1, correlation=10 * step + 3),
            span('kernel', 'fill', 1060 + t, 2, correlation=10 * step + 4),
        ]
    return [*events, span('gpu_memcpy', 'Memcpy DtoH', 1300, 4, correlation=77)]


def test_kernels_of_a_step_are_the_mean_of_its_trace(tool):
    measure, fill, backward, copy = tool.kernels_of_trace(trace(), steps=2)

    assert measure == dict(part='forward', name='measure', launches=1, microseconds=30.5, registers=64)
    assert (fill['part'], fill['launches'], fill['microseconds']) == ('forward', 2, 2)
    assert (backward['part'], backward['name'], backward['microseconds']) == ('backward', 'fill', 2)
    assert (copy['part'], copy['launches'], copy['microseconds']) == ('', 0.5, 2)


def test_no_kernels_where_nothing_ran_on_a_device(tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(tool, 'ACTIVITIES', tool.ACTIVITIES[:1])
    calls = []

    kernels = tool.profile_kernels(lambda: calls.append('forward'), lambda: calls.append('backward'), steps=2)

    assert kernels == []
    assert calls == ['forward', 'backward'] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_the_kernels_of_both_parts_are_seen(tool):
    a = torch.randn(512, 512, device='cuda')

    kernels = tool.profile_kernels(lambda: a @ a, a.exp)

    assert {kernel['part'] for kernel in kernels} == {'forward', 'backward'}
    assert all(kernel['microseconds'] > 0 for kernel in kernels)
