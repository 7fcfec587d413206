"""Interrupt short trainings with the faults that long ones meet, resume them, and compare with an uninterrupted one.

A training on generated scenes is killed at random moments and while it writes a checkpoint; its checkpoints are cut;
its disk is full; an image and a label become unreadable; one of two processes on CamVid is killed.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import cv2
import mmseg_wce  # noqa: F401  (its fixes let checkpoints load)
import torch
from marked_tables import markdown, replace_table
from mmengine.fileio.backends import LocalBackend
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
from mmseg_wce.training.checkpoints import checkpoints_in
from rich.progress import Progress
from semantics_table import mmseg_name
from subprocess_runner import free_port

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'reliability.md'
CONFIG = ROOT / 'configs' / 'demo' / 'fast_scnn_1xb4-wce-400_demo-192x256.py'
CAMVID_CONFIG = ROOT / 'configs' / 'camvid' / 'fast_scnn_1xb8-wce-4k_camvid-352x480.py'
INTERVAL, ITERATIONS = 5, 30
# mmengine stores no random state: a resumed training is the same if only the augmentation is random, so no dropout
OPTIONS = [
    f'train_cfg.max_iters={ITERATIONS}',
    f'train_cfg.val_interval={ITERATIONS}',
    f'default_hooks.checkpoint.interval={INTERVAL}',
    'default_hooks.logger.interval=1',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    *(f'model.{head}.dropout_ratio=0' for head in ('decode_head', 'auxiliary_head.0', 'auxiliary_head.1')),
]
DEMO_OPTIONS = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=1']
# the fork's mmengine resumes at the right images, but repeats the random augmentation of the first iterations
WITHOUT_RANDOM_PIXELS = [
    f'train_dataloader.dataset.pipeline.{i}.{setting}'
    for i, setting in ((2, 'prob=0.0'), (3, 'type=RandomFlip'), (3, 'prob=0.0'))
]
# between level and message of an error the logger prints the line of source code
LAST_ERROR = re.compile(r'ERROR - (?:.* - print_log - \d+ - )?(.*)\n(The training stopped\..*)')
SLOW_DISK = 'slow-disk'
SLOW_CHUNK, SLOW_PAUSE = 100_000, 0.02  # bytes, seconds


@dataclass
class Training:
    """A work dir, and the commands that train in it."""

    command: list[str]
    folder: Path
    options: list[str]
    iterations: int = ITERATIONS

    @property
    def log(self) -> Path:
        return self.folder / 'output.txt'

    def start(self, resume: bool = False, slow_disk: bool = False) -> subprocess.Popen:
        """Start the training in a process group of its own."""
        self.folder.mkdir(exist_ok=True)
        command = [*self.command, '--work-dir', str(self.folder), *(['--resume'] if resume else [])]
        if slow_disk:
            command[1:2] = [__file__, SLOW_DISK, command[1]]
        with self.log.open('w') as log:
            return subprocess.Popen(
                [*command, '--cfg-options', *self.options],
                cwd=self.folder.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(os.environ, PORT=str(free_port()), PYTHON=sys.executable, OMP_NUM_THREADS='1'),
            )

    def run(self, resume: bool = False) -> str:
        """Train to the end, and return the log; raise RuntimeError if the training fails."""
        process = self.start(resume)
        if process.wait() != 0:
            raise RuntimeError(f'the training failed, see {self.log}:\n{self.log.read_text()[-2000:]}')
        return self.log.read_text()

    def checkpoint(self, step: int) -> Path:
        return self.folder / f'iter_{step}.pth'

    def last_step(self) -> int:
        """Return the iteration of the checkpoint that a resumed training starts from; 0 without one."""
        usable = checkpoints_in(str(self.folder)).usable
        return int(Path(usable).stem.split('_')[1]) if usable else 0

    def step_reached(self) -> int:
        """Return the last iteration in the log."""
        steps = re.findall(r'Iter\(train\) \[ *(\d+)/', self.log.read_text())
        return int(steps[-1]) if steps else 0

    def lost(self) -> int:
        """Return the number of iterations that a resumed training repeats."""
        return self.step_reached() - self.last_step()

    def result(self) -> dict:
        """Return weights, optimizer and schedules of the last checkpoint."""
        state = torch.load(self.checkpoint(self.iterations), weights_only=True)
        return dict(weights=state['state_dict'], optimizer=state['optimizer'], schedules=state['param_schedulers'])


@dataclass
class Outcome:
    """Row of the table: fault, number of times, log message, lost iterations, and whether the result is the same."""

    fault: str
    times: int
    message: str
    lost: int
    is_same: bool

    def row(self) -> list[str]:
        lost = f'{self.lost} iteration{"s" * (self.lost != 1)}' if self.lost else 'nothing'
        result = 'the same bits' if self.is_same else '**another result**'
        return [self.fault, str(self.times), self.message, lost, result]


def kill(process: subprocess.Popen) -> None:
    """Kill the process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(process: subprocess.Popen, condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until a condition holds or the process ends; kill it and raise TimeoutError if neither happens in time."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        if time.monotonic() > end:
            kill(process)
            raise TimeoutError('a training did not come as far as it should have')
        time.sleep(0.002)


def same(a, b) -> bool:
    """Return True if two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def train_on_a_slow_disk(arguments: list[str]) -> None:
    """Run tools/train.py with slow writes, so that it can be killed while it writes a checkpoint."""

    def put(self, content, path) -> None:
        with open(path, 'wb') as file:
            for begin in range(0, len(content), SLOW_CHUNK):
                file.write(content[begin : begin + SLOW_CHUNK])
                file.flush()
                time.sleep(SLOW_PAUSE)

    LocalBackend.put = put
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name='__main__')


class FaultTests:
    """Generated scenes, an uninterrupted training on them, and a method for each fault."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.data = folder / 'data/demo_scenes'  # data_root of the config
        generate_demo_scenes(self.data, num_training=8, num_validation=2)
        (self.data / 'class_weight.json').write_text(json.dumps([0.5 + c for c in range(10)]))
        start = time.monotonic()
        unbroken = self.training('unbroken')
        unbroken.run()
        self.seconds, self.expected = time.monotonic() - start, unbroken.result()

    def training(self, name: str) -> Training:
        """Return a training on the same data in a new folder."""
        options = [*OPTIONS, *DEMO_OPTIONS, *(WITHOUT_RANDOM_PIXELS if 'onedl' in mmseg_name() else [])]
        command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(CONFIG)]
        return Training(command, self.folder / name, options)

    def resume(self, fault: str, training: Training, message: str | None = None) -> Outcome:
        """Resume a training, and compare its result with that of the uninterrupted one.

        Without a message, the one about damaged checkpoints on resuming is shown.
        """
        lost = training.lost()
        output = training.run(resume=True)
        if message is None:
            message = ''.join(re.findall(r'--resume: damaged, and left alone: (.*)', output)[-1:])
        return Outcome(fault, 1, self._shorten(message), lost, same(training.result(), self.expected))

    def _shorten(self, message: str) -> str:
        """Remove the folders of this machine and the text of PyTorch's errors."""
        for root in (self.folder, ROOT):
            message = message.replace(f'{root}/', '')
        return re.sub(r'\((\S+ bytes); .*?\)', r'(\1; ...)', message)

    def killed_at_random(self, times: int, tick: Callable[[], None]) -> Outcome:
        """Kill and resume a training until it ends, and begin further trainings until there were ``times`` kills."""
        kills, lost, all_same = 0, 0, True
        while kills < times:
            training, ended = self.training(f'killed_{kills}'), False
            while kills < times and not ended:
                process = training.start(resume=training.log.exists())
                try:
                    process.wait(self.random.uniform(0, self.seconds))
                    ended = True
                except subprocess.TimeoutExpired:
                    kill(process)
                    lost = max(lost, training.lost())
                    kills += 1
                    tick()
            if not ended:
                training.run(resume=True)
            all_same &= same(training.result(), self.expected)
            shutil.rmtree(training.folder)
        return Outcome('SIGKILL at a random moment', times, '', lost, all_same)

    def killed_while_writing(self) -> Outcome:
        """Kill a training when half of the third checkpoint is written."""
        training = self.training('writing')
        step = 3 * INTERVAL
        size = (self.folder / 'unbroken' / f'iter_{ITERATIONS}.pth').stat().st_size
        process = training.start(slow_disk=True)
        path = training.checkpoint(step)
        wait_until(process, lambda: path.exists() and path.stat().st_size > size // 2)
        kill(process)
        return self.resume('SIGKILL while a checkpoint is written', training)

    def stopped(self, name: str, fault: str, damage: Callable[[Path], object]) -> Outcome:
        """Kill a training some iterations after its second checkpoint, damage its last checkpoint, and resume it."""
        training = self.training(name)
        process = training.start()
        wait_until(process, (training.folder / 'last_checkpoint').exists)
        wait_until(process, lambda: training.step_reached() > 2 * INTERVAL)
        kill(process)
        damage(training.checkpoint(training.last_step()))
        return self.resume(fault, training)

    def truncated(self) -> Outcome:
        return self.stopped('truncated', 'the last checkpoint cut off', lambda path: os.truncate(path, 10_000))

    def flipped_bit(self) -> Outcome:
        def flip(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)

        return self.stopped('flipped', 'a bit of the last checkpoint flipped', flip)

    def no_pointer(self) -> Outcome:
        fault = "killed while mmengine's `last_checkpoint` is written: it is empty"
        return self.stopped('pointer', fault, lambda path: path.with_name('last_checkpoint').write_text(''))

    def failing(self, name: str, fault: str, inject: Callable, repair: Callable = lambda: None) -> Outcome:
        """Inject a fault after the second checkpoint; when the training has ended by itself, repair it and resume."""
        training = self.training(name)
        process = training.start()
        wait_until(process, lambda: training.checkpoint(2 * INTERVAL).exists() and training.last_step() >= 2 * INTERVAL)
        inject(process)
        wait_until(process, lambda: process.poll() is not None)
        if process.wait() == 0:
            raise RuntimeError(f'{name}: the training did not fail')
        repair()
        reason, advice = LAST_ERROR.findall(training.log.read_text())[-1]
        return self.resume(fault, training, f'{reason.strip()}. {advice}'.replace('.. ', '. '))

    def disk_full(self) -> Outcome:
        fault, limits = 'disk full (RLIMIT_FSIZE) while a checkpoint is written', (100_000, 100_000)
        return self.failing('disk', fault, lambda process: resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits))

    def unreadable_image(self) -> Outcome:
        return self._damage('images', 'an image cut off in the middle of an epoch', lambda file: os.truncate(file, 40))

    def bad_label(self) -> Outcome:
        def write_bad_label(file: Path) -> None:
            label = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            label[100, 50:60] = 77
            cv2.imwrite(str(file), label)

        return self._damage('annotations', 'a label that is no class in the middle of an epoch', write_bad_label)

    def _damage(self, kind: str, fault: str, damage: Callable[[Path], None]) -> Outcome:
        file = sorted((self.data / kind / 'training').iterdir())[3]
        content = file.read_bytes()
        return self.failing(kind, fault, lambda _: damage(file), repair=lambda: file.write_bytes(content))


def killed_rank(folder: Path, camvid: Path) -> Outcome:
    """Kill one of two processes on CamVid, started by tools/dist_train.sh; the launcher ends the other one."""
    options = [*OPTIONS, *(f'{split}_dataloader.dataset.data_root={camvid}' for split in ('train', 'val'))]
    options += ['train_cfg.max_iters=9', 'default_hooks.checkpoint.interval=3', 'train_dataloader.batch_size=2']
    options += ['train_cfg.val_interval=100', 'train_dataloader.num_workers=1', 'randomness.seed=0']

    def training(name: str) -> Training:
        command = [str(ROOT / 'tools' / 'dist_train.sh'), str(CAMVID_CONFIG), '2']
        return Training(command, folder / name, options, iterations=9)

    unbroken, killed = training('camvid_unbroken'), training('camvid_killed')
    unbroken.run()
    process = killed.start()
    wait_until(process, lambda: killed.last_step() >= 3 and killed.step_reached() >= 4)
    ranks = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    process.wait()
    lost = killed.lost()
    codes = [int(code) for code in re.findall(r'exitcode *: (-?\d+)', killed.log.read_text())]
    killed.run(resume=True)
    return Outcome(
        'SIGKILL of one of two processes (`tools/dist_train.sh`, CamVid)',
        1,
        'the launcher ends the other one and reports exit code -9' if -9 in codes else f'exit codes {codes}',
        lost,
        same(killed.result(), unbroken.result()),
    )


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, or 1 if a resumed training has another result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20, help='number of kills at random moments [%(default)s]')
    parser.add_argument('--seed', type=int, default=0, help='seed of the random moments [%(default)s]')
    parser.add_argument('--camvid', type=Path, help='folder of CamVid, for the training on two processes')
    parser.add_argument('--write', action='store_true', help=f'write the table into {PAGE.relative_to(ROOT)}')
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix='faults_') as name, Progress() as progress:
        folder = Path(name)
        task = progress.add_task('Training without faults', total=args.kills + 8)
        tests, tick = FaultTests(folder, args.seed), partial(progress.advance, task)
        progress.update(task, description='Killing at random moments')
        outcomes = [tests.killed_at_random(args.kills, tick)]
        for fault in (
            tests.killed_while_writing,
            tests.truncated,
            tests.flipped_bit,
            tests.no_pointer,
            tests.disk_full,
            tests.unreadable_image,
            tests.bad_label,
        ):
            progress.update(task, description=fault.__name__.replace('_', ' ').capitalize())
            outcomes.append(fault())
            tick()
        if args.camvid is not None:
            progress.update(task, description='Two processes')
            outcomes.append(killed_rank(folder, args.camvid.resolve()))
        tick()
    header = ['fault', 'times', 'what the training, or the resumed one, said', 'lost at most', 'resumed training']
    lines = markdown(header, [outcome.row() for outcome in outcomes])
    print(*lines, sep='\n')
    if args.write:
        versions = f'{date.today()}, torch {torch.__version__}, Python {platform.python_version()}'
        replace_table(PAGE, 'faults', [*lines, '', f'({versions}, {args.kills} kills with seed {args.seed})'])
    return 0 if all(outcome.is_same for outcome in outcomes) else 1


if __name__ == '__main__':
    if sys.argv[1:2] == [SLOW_DISK]:
        train_on_a_slow_disk(sys.argv[2:])
    else:
        sys.exit(main())
