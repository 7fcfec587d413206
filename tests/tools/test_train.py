"""tools/train.py and tools/test.py as a user runs them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from stacks import FORK

WEIGHTED = 'configs/demo/fast_scnn_1xb4-wce-400_demo-192x256.py'
SMALL = [
    'train_dataloader.batch_size=2',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
    # resuming is exact without dropout only: mmengine stores no random state
    'model.decode_head.dropout_ratio=0',
    'model.auxiliary_head.0.dropout_ratio=0',
    'model.auxiliary_head.1.dropout_ratio=0',
]


def command(root, tool: str, *arguments: str, options: list[str] = ()) -> list[str]:
    return [sys.executable, str(root / 'tools' / tool), *arguments, '--cfg-options', *SMALL, *options]


def run(arguments: list[str], fails: bool = False) -> str:
    process = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert (process.returncode != 0) == fails, process.stdout[-4000:]
    return process.stdout


CHECKPOINT = dict(meta=dict(iter=5, epoch=0), state_dict={}, message_hub={}, optimizer={}, param_schedulers=[])


def losses(work_dir) -> dict[int, float]:
    """Loss of each iteration in the newest log of a work dir."""
    file = max(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


ITERATIONS, INTERVAL = 12, 3
TRAINING = [
    f'train_cfg.max_iters={ITERATIONS}',
    f'train_cfg.val_interval={ITERATIONS}',
    f'default_hooks.checkpoint.interval={INTERVAL}',
    'default_hooks.checkpoint.max_keep_ckpts=-1',
]


@pytest.mark.heavy
def test_a_training_is_killed_resumed_tested_and_goes_back_to_finite_weights(
    root, demo_folder, import_tool, monkeypatch
):
    """One training, since each of these takes some: every command is one that a user types, or that a message names."""
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    hooks = "[dict(type='FusedLossHook'), dict(type='LossMonitorHook', interval=1)]"
    evaluator = "[_base_.test_evaluator, dict(type='ValidationLoss')]"
    text = f"_base_ = '{root / WEIGHTED}'\ncustom_hooks = {hooks}\ntest_evaluator = {evaluator}\n"
    (demo_folder / 'config.py').write_text(text)
    options = [*TRAINING, *(import_tool('faults').WITHOUT_RANDOM_PIXELS if FORK else [])]
    run(command(root, 'train.py', 'config.py', '--work-dir', 'unbroken', options=options))
    killed = command(root, 'train.py', 'config.py', '--work-dir', 'killed', options=options)
    last = kill_after_a_checkpoint(killed, 'killed')
    assert last < ITERATIONS

    output = run([*killed, '--resume'])

    assert f'resumed epoch: 0, iter: {last}' in output
    resumed, unbroken = losses(demo_folder / 'killed'), losses(demo_folder / 'unbroken')
    assert sorted(resumed) == list(range(last + 1, ITERATIONS + 1))
    assert resumed == {step: unbroken[step] for step in resumed}

    arguments = ['config.py', f'killed/iter_{ITERATIONS}.pth', '--work-dir', 'tested', '--out', 'predictions']
    arguments += ['--show-dir', 'painted']
    output = run(command(root, 'test.py', *arguments, options=['default_hooks.visualization.interval=1']))

    assert 'mIoU' in output
    assert 'val/loss_ce' in output
    assert len(list((demo_folder / 'painted').rglob('*.png'))) == 2
    predictions = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (demo_folder / 'predictions').glob('*.png')]
    assert len(predictions) == 2
    assert set(np.unique(predictions)) <= set(range(1, 11))  # the files' convention: classes start at 1

    # the message of LossMonitorHook names the command that goes back to finite weights, and the command works
    last = torch.load(f'unbroken/iter_{ITERATIONS}.pth', weights_only=True)
    for tensor in last['state_dict'].values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    torch.save(last, f'unbroken/iter_{ITERATIONS}.pth')
    longer = [f'train_cfg.max_iters={ITERATIONS + 2}', *options[1:]]

    arguments = ['config.py', '--work-dir', 'unbroken', '--resume']
    output = run(command(root, 'train.py', *arguments, options=longer), fails=True)

    (advice,) = {line.split('Go on from it: ')[1] for line in output.splitlines() if 'Go on from it: ' in line}
    good = ITERATIONS - INTERVAL
    # the config that was written down has all options in it
    assert advice == f'python tools/train.py unbroken/config.py --resume-from unbroken/iter_{good}.pth'

    _, tool, *arguments = shlex.split(advice)
    output = run([sys.executable, str(root / tool), *arguments])

    assert f'resumed epoch: 0, iter: {good}' in output
    last = torch.load(f'unbroken/iter_{ITERATIONS + 2}.pth', weights_only=True)
    assert last['meta']['iter'] == ITERATIONS + 2


def kill_after_a_checkpoint(arguments: list[str], work_dir: str, name: str = 'iter_') -> int:
    """Kill a training once it has written a checkpoint of this name; returns the iteration of the last one."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pointer = Path(work_dir, 'last_checkpoint')
    while not pointer.exists() or name not in pointer.read_text():
        assert process.poll() is None, 'the training ended before it could be killed'
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return int(pointer.read_text().rsplit('_', 1)[1].removesuffix('.pth'))


without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA devices')


@without_cuda
def test_two_processes_on_cpu(root, demo_folder, import_tool, monkeypatch):
    monkeypatch.setenv('PORT', str(import_tool('subprocess_runner').free_port()))
    monkeypatch.setenv('PYTHON', sys.executable)
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    config, tools = str(root / WEIGHTED), root / 'tools'

    output = run([tools / 'dist_train.sh', config, '2', '--work-dir', 'two', '--cfg-options', *SMALL, *options])

    assert 'SyncBN does not exist on CPU' in output
    assert sorted(losses(demo_folder / 'two')) == [1, 2]


def test_dist_test_starts_the_tool_in_a_process_for_each_gpu(root, tmp_path, monkeypatch):
    """A slow test of compare_losses.py runs it."""
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv('PYTHON', str(python))

    command = run([root / 'tools/dist_test.sh', 'config.py', 'iter_2.pth', '2', '--work-dir', 'tested'])

    assert command.startswith('-m torch.distributed.run --nnodes 1 ')
    assert ' --nproc_per_node 2 ' in command
    assert command.endswith('/tools/test.py config.py iter_2.pth --work-dir tested --launcher pytorch\n')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['dist_train.sh', 'config.py'], 'usage: '),
        (['dist_test.sh', 'config.py', 'iter_3.pth'], 'usage: '),
        (['dist_train.sh', 'config.py', '--resume'], "error: the number of GPUs must be a number, got '--resume'"),
        (['dist_run.sh'], 'usage: '),
    ],
)
def test_number_of_gpus_left_out(root, tmp_path, arguments, words):
    link = tmp_path / 'link.sh'
    link.symlink_to(root / 'tools' / arguments[0])

    process = subprocess.run([link, *arguments[1:]], capture_output=True, text=True, check=False)

    assert process.returncode == 2
    assert process.stderr.startswith(words)
    assert 'GPU' in process.stderr


@pytest.mark.parametrize(
    ('tool', 'arguments', 'words'),
    [
        ('train', ['nowhere.py'], "config file 'nowhere.py' does not exist"),
        (
            'train',
            [WEIGHTED, '--cfg-options', 'train_dataloader.dataset.data_root=no'],
            "data_root 'no' does not exist",
        ),
        ('train', [WEIGHTED, '--launcher', 'pytorch'], 'needs torchrun'),
        ('train', [WEIGHTED, '--cfg-options', 'load_from=nowhere.pth'], "checkpoint 'nowhere.pth' does not exist"),
        (
            'train',
            [WEIGHTED, '--cfg-options', 'model.decode_head.loss_decode.class_weight=no.json'],
            "class_weight file 'no.json' cannot be read",
        ),
        ('train', [WEIGHTED, '--work-dir', 'file'], "--work-dir 'file' is a file"),
        pytest.param('train', [WEIGHTED, '--amp'], '--amp needs an accelerator', marks=without_cuda),
        ('test', [WEIGHTED, 'file.pth', '--tta'], '--tta needs tta_pipeline'),
        ('test', [WEIGHTED, 'file'], "checkpoint 'file' cannot be read"),
        ('test', [WEIGHTED, 'nowhere.pth'], "checkpoint 'nowhere.pth' does not exist"),
        ('test', ['nowhere.py', 'nowhere.pth'], "config file 'nowhere.py' does not exist"),
    ],
)
def test_errors_before_a_run_are_one_line(root, demo_folder, import_tool, monkeypatch, tool, arguments, words):
    arguments = [str(root / a) if a == WEIGHTED else a for a in arguments]
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *arguments])
    monkeypatch.delenv('RANK', raising=False)
    (demo_folder / 'file').touch()
    torch.save({}, demo_folder / 'file.pth')

    with pytest.raises(SystemExit) as caught:
        import_tool(tool).main()

    assert caught.value.code.startswith('error: ')
    assert words in caught.value.code
    assert '\n' not in caught.value.code


def test_option_without_a_value_is_a_usage_error(root, demo_folder, import_tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train.py', str(root / WEIGHTED), '--cfg-options', 'train_cfg.max_iters'])

    with pytest.raises(SystemExit, match='2'):
        import_tool('train').main()

    assert "'train_cfg.max_iters' is not key=value" in capsys.readouterr().err


@pytest.fixture
def resumed(root, demo_folder, import_tool, monkeypatch):
    """Return the checkpoint that --resume finds in a folder, and its message."""
    train, said = import_tool('train'), []
    monkeypatch.setattr(train, 'print_log', lambda message, *_: said.append(message))

    def resume(*options: str, config=root / WEIGHTED, arguments=('--resume',)) -> str | None:
        options = ['--cfg-options', *options] if options else []
        monkeypatch.setattr(sys, 'argv', ['train.py', str(config), *arguments, '--work-dir', 'new', *options])
        config = train.build_config(train.parse_args())
        return config.load_from if config.resume else None

    (demo_folder / 'new').mkdir()
    for step in (5, 10):
        torch.save(CHECKPOINT, demo_folder / f'new/iter_{step}.pth')
    (demo_folder / 'new/last_checkpoint').write_text('new/iter_10.pth')
    return resume, said


def test_resumes_from_the_checkpoint_before_a_damaged_one(resumed, demo_folder):
    resume, said = resumed
    os.truncate(demo_folder / 'new/iter_10.pth', 200)

    assert resume() == 'new/iter_5.pth'
    assert said[0].startswith("--resume: damaged, and left alone: 'new/iter_10.pth': it is damaged")
    assert said[0].endswith("Training goes on from 'new/iter_5.pth'")


def test_resumes_from_the_work_dir_and_not_from_what_the_config_starts_with(resumed, root, demo_folder):
    resume, said = resumed
    torch.save({}, demo_folder / 'pretrained.pth')
    config = demo_folder / 'config.py'
    config.write_text(f"_base_ = '{root / WEIGHTED}'\nload_from = 'pretrained.pth'\n")

    assert resume(config=config) == 'new/iter_10.pth'
    assert said == [
        "--resume: training goes on from 'new/iter_10.pth'; load_from='pretrained.pth' was for its beginning"
    ]
    for file in demo_folder.glob('new/*'):
        file.unlink()
    assert resume(config=config) is None
    assert said[1].endswith("training starts from the beginning, with the weights in 'pretrained.pth'")


def test_a_checkpoint_on_the_command_line_counts_more_than_the_newest(resumed, demo_folder):
    resume, said = resumed

    assert resume('load_from=new/iter_5.pth') == 'new/iter_5.pth'
    assert resume(arguments=['--resume-from', 'new/iter_5.pth']) == 'new/iter_5.pth'
    assert resume('load_from=new/iter_5.pth', arguments=['--resume-from', 'new/iter_5.pth']) == 'new/iter_5.pth'
    assert said == [
        "--resume with load_from on the command line: training goes on from 'new/iter_5.pth'",
        "--resume-from: training goes on from 'new/iter_5.pth'",
        "--resume-from: training goes on from 'new/iter_5.pth'",
    ]


def test_checkpoints_that_cannot_be_chosen(resumed, demo_folder):
    resume, _ = resumed
    os.truncate(demo_folder / 'new/iter_5.pth', 200)

    with pytest.raises(Exception, match=r"checkpoint 'new/iter_5.pth' cannot be read: it is damaged"):
        resume(arguments=['--resume-from', 'new/iter_5.pth'])
    with pytest.raises(Exception, match=r"checkpoint 'nowhere.pth' does not exist"):
        resume('load_from=nowhere.pth')
    assert resume('load_from=./new/iter_10.pth', arguments=['--resume-from', 'new/iter_10.pth']) == 'new/iter_10.pth'
    with pytest.raises(Exception, match=r"--resume-from 'new/iter_10.pth' contradicts load_from='other.pth'"):
        resume('load_from=other.pth', arguments=['--resume-from', 'new/iter_10.pth'])
    with pytest.raises(SystemExit, match='2'):
        resume(arguments=['--resume', '--resume-from', 'new/iter_10.pth'])


def test_weights_that_are_gone_do_not_keep_a_training_from_going_on(resumed, root, demo_folder):
    resume, _ = resumed
    config = demo_folder / 'config.py'
    config.write_text(f"_base_ = '{root / WEIGHTED}'\nload_from = 'gone.pth'\ndefault_hooks = None\n")

    assert resume(config=config) == 'new/iter_10.pth'


def test_does_not_start_anew_over_damaged_checkpoints(resumed, demo_folder):
    resume, _ = resumed
    for file in demo_folder.glob('new/*.pth'):
        os.truncate(file, 200)

    with pytest.raises(Exception, match=r'no checkpoint can be read: .*iter_5.*leave out --resume'):
        resume()


def test_a_failed_training_ends_with_how_to_go_on(import_tool, monkeypatch, tmp_path):
    train, said = import_tool('train'), []
    monkeypatch.setattr(train, 'print_log', lambda message, *_: said.append(message))
    monkeypatch.setattr(train, 'parse_args', lambda: None)
    config = Config(dict(work_dir=str(tmp_path)))
    monkeypatch.setattr(train, 'build_config', lambda _: config)
    monkeypatch.setattr(train, 'check_parameters', lambda *_: None)
    torch.save({}, tmp_path / 'iter_99.pth')  # of an earlier training
    os.utime(tmp_path / 'iter_99.pth', (99, 99))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_99.pth'))

    class Failing:
        model = None

        def __init__(self, *steps: int) -> None:
            self.steps = steps

        def train(self):
            for step in self.steps:
                time.sleep(0.02)  # the clock of files is coarser
                torch.save({}, tmp_path / f'iter_{step}.pth')
                (tmp_path / 'last_checkpoint').write_text(str(tmp_path / f'iter_{step}.pth'))
            if self.steps:
                os.truncate(tmp_path / f'iter_{self.steps[-1]}.pth', 200)
            raise OSError(28, 'No space left on device')

    for steps, resume in (((), False), ((5, 10), False), ((), True)):
        monkeypatch.setattr(train, 'build_runner', lambda _, steps=steps: Failing(*steps))
        config.update(resume=resume, load_from=str(tmp_path / 'iter_5.pth'))
        with pytest.raises(OSError, match='No space'):
            train.main()

    assert said[0].splitlines() == [
        'OSError: [Errno 28] No space left on device',
        'The training stopped. No checkpoint had been written: it has to start anew.',
    ]
    assert said[1].splitlines()[1] == (
        f"The training stopped. '{tmp_path}/iter_10.pth' was not written completely. The last whole checkpoint is "
        f"'{tmp_path}/iter_5.pth': --resume goes on from there."
    )
    assert said[2].splitlines()[1] == (
        f"The training stopped. It had written no checkpoint since it went on from '{tmp_path}/iter_5.pth'."
    )


def test_nothing_to_resume_from_is_said(resumed, demo_folder):
    resume, said = resumed
    for file in demo_folder.glob('new/*'):
        file.unlink()

    assert resume() is None
    assert said == ["--resume: no checkpoint in 'new': training starts from the beginning"]


@pytest.mark.slow
def test_a_killed_training_on_camvid_validates_as_without_the_predict_hook(root, shared_data, tmp_path, monkeypatch):
    """Both hooks, killed after the first of three validations and resumed; the oracle has FusedLossHook alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMSEG_WCE_DATA', str(shared_data))
    text = f"""
_base_ = '{root}/configs/camvid/fast_scnn_1xb8-2k_camvid-176x240.py'
model = _base_.model
for head in (model.decode_head, *model.auxiliary_head):
    head.loss_decode = dict(type='WeightedCrossEntropyLoss', loss_weight=head.loss_decode.get('loss_weight', 1.0))
    head.dropout_ratio = 0
del head
custom_hooks = [dict(type='FusedLossHook')]
default_hooks = dict(
    _delete_=True,  # the base's has the other hook
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10),
)
randomness = dict(seed=0)
param_scheduler = []
train_cfg = dict(max_iters=60, val_interval=20)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=12))
"""
    (tmp_path / 'without.py').write_text(text)
    (tmp_path / 'with.py').write_text(
        text.replace('custom_hooks = [', "custom_hooks = [dict(type='FusedPredictHook'), ")
    )
    train = [sys.executable, str(root / 'tools/train.py')]
    run([*train, 'without.py', '--work-dir', 'without'])
    kill_after_a_checkpoint([*train, 'with.py', '--work-dir', 'with'], 'with', 'iter_30')
    output = run([*train, 'with.py', '--work-dir', 'with', '--resume'])

    assert 'full-size logits are not built' in output
    expected, found = validations('without'), validations('with')
    assert list(expected) == [20, 40, 60]
    assert found == expected
    assert expected[60] > 1.5 * expected[20]


def validations(work_dir: str) -> dict[int, float]:
    """Mean IoU of every validation, of all parts of a training."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {line['step']: line['mIoU'] for line in lines if 'mIoU' in line}
