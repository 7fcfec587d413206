import pytest


@pytest.fixture
def report(import_tool):
    return import_tool('cuda_report')


def way(seconds: float, **others) -> dict:
    times = dict(median=seconds, min=seconds / 2, max=2 * seconds)
    found = dict(device=times, wall=times, method='graph', why_events=None, megabytes=12.3, loss=1.5)
    return dict(found, **others)


def result() -> dict:
    kernels = [
        dict(part='forward', name='first', launches=1.0, microseconds=100.0, registers=64),
        dict(part='backward', name='second', launches=2.0, microseconds=300.0),
    ]
    return dict(
        case='a case',
        sizes='small',
        pairs=10**9,
        fits_in_l2=False,
        floor=dict(
            seconds=0.2e-3,
            seconds_of=dict(exponentials=0.1e-3, bytes=0.2e-3),
            exponentials=10**8,
            bytes=dict(forward=dict(logits=10**8), backward=dict(logits=10**8, gradient=2 * 10**8)),
        ),
        ways={
            'mmseg_wce': way(0.5e-3, kernels=kernels),
            'eager': way(5e-3, method='events', why_events='it waits for the device', kernels=[]),
            'liger': dict(not_measured='liger_kernel is not installed'),
        },
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split('  ') if cell.strip()]


def test_a_case_says_what_was_measured_and_what_was_not(report):
    lines = report.case_tables(result()).splitlines()

    (ours,) = [line for line in lines if line.startswith('mmseg_wce ')]
    expected = [
        'mmseg_wce',
        '0.500',
        '0.250 to 1.000',
        'graph',
        '0.500',
        '0.400',
        '3',
        '2.5 x',
        '0.10',
        '12',
        '1.50000',
    ]
    assert cells(ours) == expected
    assert 'eager: timed with events, it waits for the device' in lines
    assert 'eager: kernels not measured: the profiler saw none' in lines
    assert 'liger: not measured: liger_kernel is not installed' in lines
    assert 'floor 0.200 ms: 1e+08 exponentials take 0.100 ms, 400 MB to move take 0.200 ms' in lines


def test_rates_are_those_of_the_forward_and_the_backward(report):
    lines = [cells(line) for line in report.case_tables(result()).splitlines()]

    assert ['forward', 'first', '1', '100.0', '25 %', '64'] in lines
    assert ['forward', 'together', '1', '100.0', '25 %', '10000', '1000'] in lines  # 1e9 pairs, 1e8 bytes in 1e-4 s
    assert ['backward', 'together', '2', '300.0', '75 %', '3333', '1000'] in lines


def test_the_overview_compares_with_ours(report):
    skipped = dict(case='another', sizes='large', not_measured='out of memory')

    header, _, first, second = map(cells, report.overview([result(), skipped]).splitlines())

    assert header == ['case', 'mmseg_wce ms', 'floor ms', 'time / floor', 'eager', 'liger']
    assert first == ['a case', '0.500', '0.200', '2.5 x', '10.0 x', 'not measured']
    assert second == ['another', *['not measured'] * 3]
    assert report.case_tables(skipped) == '== another: large\nnot measured: out of memory\n'
