import re


def test_prints_what_the_hook_costs(import_tool, capsys):
    import_tool('monitor_overhead').main(['--rounds', '2', '--crop', '64', '--interval', '3'])

    output = capsys.readouterr().out
    ratio = re.search(r'with it ([0-9.]+) \(quartiles ', output)
    share = re.search(r'([0-9.]+) % of a step', output)
    assert 0.1 < float(ratio[1]) < 10
    assert float(share[1]) > 0
