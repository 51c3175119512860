"""A script for two processes with four virtual devices each: does what one process cannot show.

    python two_processes.py PORT PROCESS DATA_DIR FOLDER

FOLDER/one holds a run on one device, FOLDER/half the same up to its first checkpoint. Prints a line
of JSON.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import jax
import train_cases

import input_pipeline
from moe_vision.common.errors import UserError
from moe_vision.processes import peers
from moe_vision.processes.stop import Stopped
from moe_vision.run_folder import checkpoint_folder, checkpoints
from moe_vision.training import loop, mesh

SAME = {
    'model.args': {'widths': (8,), 'depth': 1},
    'model.moe.num_experts': 4,
    'model.moe.group_size': 8,
    'train.batch_size': 64,
    'train.steps': 10,
    'train.warmup_steps': 0,
    'train.learning_rate': 0.1,
    'train.optimizer': 'sgd',  # Adam would amplify rounding errors
    'train.clip_norm': 0.0,
    'train.ema_decay': 0.0,
    'model.moe.router_args': {'bias_rate': 1e-3, 'renormalize': True},
    'eval.every_steps': 5,
    'eval.batch_size': 64,
    'checkpoint.every_steps': 5,
    'log.every_steps': 2,
}

SCORED = {'split': 'validation', 'batch_size': 100, 'capacity_factors': (1.0, float('inf'))}
SWEPT = ('images', 'accuracy', 'loss', 'at_another_batch_size', 'capacity_sweep')


def indices(config) -> list[tuple[int, int]]:
    """(place in the run, image) for each row of an epoch that this process loads."""
    grid = mesh.make(config.mesh.expert)
    rows = mesh.rows_of_process(config.train.batch_size, grid)
    size = input_pipeline.info(config.dataset).split_sizes['train']
    steps = -(-size // config.train.batch_size)
    with input_pipeline.train_batches(
        config.dataset,
        seed=3,
        batch_size=config.train.batch_size,
        rows=rows,
        start_step=0,
        num_steps=steps,
    ) as batches:
        return [
            (step * config.train.batch_size + row, int(image))
            for step, batch in enumerate(batches)
            for row, image in zip(rows, batch['index'], strict=True)
        ]


def without_room(setup, folder: str, full: bool) -> list[list[int]]:
    """The steps that are saved after each of saves 1 to 4.

    If the disk is `full`, which it is for one process only, the second save finds no room and the
    third cannot write at all.
    """
    error = mock.Mock(side_effect=OSError(28, 'No space left on device'))
    state, steps = setup.fresh_state(0), []
    with checkpoints.Checkpoints(f'{folder}/full', 2) as saved:
        for step, patch in enumerate(
            (
                contextlib.nullcontext(),
                mock.patch.object(
                    checkpoint_folder.shutil, 'disk_usage', lambda path: mock.Mock(free=1000)
                ),
                mock.patch.object(type(saved._latest.path), 'write_text', error),
                contextlib.nullcontext(),
            ),
            1,
        ):
            with patch if full else contextlib.nullcontext():
                saved.save(step, state)
                steps.append(saved.steps())
    return steps


def main(port: str, process: str, data_dir: str, folder: str) -> None:
    peers.start(peers.Given(f'127.0.0.1:{port}', 2, int(process)))
    config = {n: train_cases.make(data_dir, SAME | {'mesh.expert': n}) for n in (1, 2, 4)}
    seen = {
        'devices': [jax.local_device_count(), jax.device_count()],
        'indices': indices(config[4]),
        'refused': [],
    }
    loop.train(config[4], f'{folder}/expert_4')
    loop.train(config[2], f'{folder}/half')
    for expert, step in ((1, 4), (2, 7)):
        with contextlib.suppress(Stopped):
            loop.train(config[expert], f'{folder}/moved', stop=train_cases.StopAt(step))
    scores = loop.evaluate(
        dataclasses.replace(config[4], eval=dataclasses.replace(config[4].eval, **SCORED)),
        f'{folder}/one',
    )
    seen['validation'] = {n: scores[n] for n in SWEPT}
    if process == '1':
        shutil.copytree(f'{folder}/expert_4', f'{folder}/damaged')
        for file in Path(folder).glob('damaged/checkpoints/latest/10/default/d/*'):
            file.write_bytes(file.read_bytes()[:100])
    peers.barrier('damaged')
    setup = loop.Setup(config[4])
    with checkpoints.Checkpoints(f'{folder}/damaged', 2) as saved:
        seen['fallback'] = saved.restore_newest(setup.abstract)[0]
    seen['full'] = without_room(setup, folder, process == '1')
    for changed in ({'seed': int(process)}, {}):
        own = folder if changed else f'{folder}/only_{process}'
        try:
            loop.train(dataclasses.replace(config[2], **changed), f'{own}/refused')
        except UserError as e:
            seen['refused'].append(str(e))
    print(json.dumps(seen))
    peers.done()


if __name__ == '__main__':
    main(*sys.argv[1:])
