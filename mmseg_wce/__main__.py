"""python -m mmseg_wce: configs and tools of the package, and the environment for a bug report."""

import argparse
import runpy
import sys
from pathlib import Path

from mmseg_wce import resources
from mmseg_wce.collect_env import collect_env

TOOLS = dict(
    train='train a segmentor',
    test='test a segmentor',
    convert_config='write the weighted version of a config',
    class_weights='compute class weights from labels',
    check_labels='check labels, and draw some',
    demo='train with the built-in loss and with ours, and compare',
    rebalance='move a trained segmentor between rare and common classes',
    compare_losses='train configs with several losses, and report the figures of every class',
    benchmark='time and memory of the loss step',
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: command-line arguments; by default those of this process.

    Returns:
        Exit status: 0, or 2 with an error message.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in TOOLS:
        return _run_tool(*arguments)
    prog = 'python -m mmseg_wce' if Path(sys.argv[0]).name == '__main__.py' else 'mmseg_wce'
    parser = argparse.ArgumentParser(prog, description=__doc__.split(': ', 1)[1].capitalize())
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.add_parser('env', help='versions, back ends, GPUs and threads: paste it into a bug report')
    configs_parser = commands.add_parser('configs', help='list the configs, or copy one')
    configs_parser.add_argument('name', nargs='?', help='name of the config to copy, or a unique part of it')
    configs_parser.add_argument('--out', type=Path, help='folder to copy it to [the current folder]')
    for name, description in TOOLS.items():
        commands.add_parser(name, help=f'{description}: tools/{name}.py', add_help=False)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    if args.command == 'env':
        print(*(f'{name}: {value}' for name, value in collect_env().items()), sep='\n')
        return 0
    return _configs(parser, args)


def _configs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.name is None:
        if args.out is not None:
            parser.error('--out: which config? Give a NAME')
        print(*resources.configs(), sep='\n')
        return 0
    try:
        copied = resources.copy_config(resources.find_config(args.name), args.out or Path())
    except (LookupError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(*copied, sep='\n')
    return 0


def _run_tool(name: str, *arguments: str) -> int:
    """Run a tool as if started by its path, with its folder first in ``sys.path``."""
    tool = resources.ROOT / 'tools' / f'{name}.py'
    sys.path.insert(0, str(tool.parent))
    sys.argv = [str(tool), *arguments]
    runpy.run_path(str(tool), run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main())
