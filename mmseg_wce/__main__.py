"""python -m mmseg_wce: the configs and tools that come with the package, and what a bug report needs."""

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
    compare_losses='train configs with several losses, and report what each does to every class',
    benchmark='time and memory of the loss step',
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; by default those of this process.

    Returns:
        Exit status: 0, or 2 with a line that says why.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in TOOLS:
        return _run_tool(*arguments)
    started_as = 'python -m mmseg_wce' if Path(sys.argv[0]).name == '__main__.py' else 'mmseg_wce'
    parser = argparse.ArgumentParser(started_as, description=__doc__.split(': ', 1)[1].capitalize())
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.add_parser('env', help='versions, back ends, GPUs and threads: paste it into a bug report')
    of_configs = commands.add_parser('configs', help='list the configs, or copy one')
    of_configs.add_argument('name', nargs='?', help='of the config to copy, or enough of it to be the only one')
    of_configs.add_argument('--out', type=Path, help='folder to copy it to [the current one]')
    for name, what in TOOLS.items():
        commands.add_parser(name, help=f'{what}: tools/{name}.py', add_help=False)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    if args.command == 'env':
        print(*(f'{name}: {found}' for name, found in collect_env().items()), sep='\n')
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
    """As if it had been started by its path: its own folder is where it imports from."""
    tool = resources.ROOT / 'tools' / f'{name}.py'
    sys.path.insert(0, str(tool.parent))
    sys.argv = [str(tool), *arguments]
    runpy.run_path(str(tool), run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main())
