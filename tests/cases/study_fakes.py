"""Small studies, and a trainer that only writes files, so that tests of the runner take seconds.

As a program, `python study_fakes.py run --study=... --workdir=...` is the study command with that
trainer in place of the real one. It needs no jax.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import types as python_types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 4
FLOPS = 6_000

STUDY = """
from moe_vision.study.types import Arm, Comparison, FamilyDifference, Figure, Study, Trend

SMALL = {'model.args.widths': (8, 16), 'model.args.depth': 1, 'model.moe.num_experts': 4,
         'train.batch_size': 64, 'train.steps': 4, 'train.warmup_steps': 1}

def get_study():
    return Study(
        name='tiny', question='Is k = 1 enough?', hypotheses=('k = 2 gains.',),
        arms={'dense': Arm('configs/digits_k2.py', {**SMALL, 'model.twin': 'same_width'}),
              'k1': Arm('configs/digits_k2.py', {**SMALL, 'model.moe.k': 1}),
              'k2': Arm('configs/digits_k2.py', SMALL),
              'again': Arm('configs/digits_k2.py', SMALL, seed_offset=100)},
        seeds=(0, 1, 2),
        comparisons={'k1': Comparison('k1', 'dense'),
                     'k2': Comparison('k2', 'dense', 'positive', primary=True)},
        margin=0.3, patterns={'gain': ('k2',)}, latency_arms=('dense', 'k1'),
        figures=(Figure('k_ablation', 'by k', {'conv': ('k1', 'k2')}),
                 Figure('traces', 'over time', {'conv': ('k1',)})))
"""


def write_study(folder: Path, *changes: tuple[str, str]) -> str:
    """Writes the study above with some strings replaced; returns the file."""
    source = STUDY
    for old, new in changes:
        assert source.count(old) >= 1, old
        source = source.replace(old, new)
    (folder / 'tiny.py').write_text(source)
    return str(folder / 'tiny.py')


def fake_train_arm(configs, folders, mode, probe, done, begin=lambda number: True, stop=None):
    """Sleeps in each step and then saves a checkpoint; the result depends on the config alone.

    Environment variables: FAKE_SECONDS, of a step; FAKE_DIVERGES and FAKE_FAILS, 'k:seed' of a run.
    """
    for number, (config, folder) in enumerate(zip(configs, map(Path, folders), strict=True)):
        if mode == 'one_by_one' and not begin(number):
            continue
        me = f'{config.model.moe.k}:{config.seed}'
        for step in range(_newest(folder) + 1, STEPS + 1):
            time.sleep(float(os.environ.get('FAKE_SECONDS', 0)))
            if me == os.environ.get('FAKE_FAILS'):
                raise ValueError('a worker\ndied')
            _write_config(folder, config)
            row = {
                'step': step,
                'epoch': step / 20,
                'split': 'validation',
                'loss': 1 / step,
                'accuracy': _number(config, step),
                'layers': {},
                'timing': {'seconds': time.time()},
            }
            _write(folder / 'metrics' / f'until-{step:09d}.jsonl', json.dumps(row))
            (folder / 'checkpoints' / 'latest' / str(step)).mkdir(parents=True)
            _log(folder, f'{me} step {step}')
        error = None
        if me == os.environ.get('FAKE_DIVERGES'):
            error = 'loss is not finite at step 4; no checkpoint yet.'
        else:
            accuracy = _number(config, 0)
            _write(
                folder / 'evaluation.json',
                json.dumps(
                    {
                        'correct': 'AA==',
                        'layers': {'head': {'drop_rate': 0.1, 'expert_by_class': []}},
                    }
                ),
            )
            _write(
                folder / 'result.json',
                json.dumps(
                    {'test_accuracy': accuracy, 'flops': 10, 'images_per_second': time.time()}
                ),
            )
        done(number, error)


def finished_study(folder: Path):
    """(loaded study, its record, its hash) after every cell has been trained in `folder`."""
    from moe_vision.study import registration, row_of_run, rows
    from moe_vision.study.load import load

    loaded = load(write_study(folder), [f'--config.dataset.data_dir={folder}'])
    record, digest = registration.register(loaded, str(folder))
    for arm in loaded.configs:
        seeds = loaded.study.seeds
        runs = [str(folder / 'runs' / arm / f'seed_{s}') for s in seeds]
        fake_train_arm(
            [loaded.config(arm, s) for s in seeds], runs, 'one_by_one', False, lambda i, error: None
        )
        for seed, run in zip(seeds, runs, strict=True):
            row = row_of_run.collect(run, 'tiny', arm, seed, digest)
            rows.write(str(folder), row, {'seconds': 1.0})
    return loaded, record, digest


def _write_config(folder, config):
    from moe_vision.config import check as config_lib

    facts = (
        'params_total',
        'params_active',
        'rho_place',
        'rho_active',
        'rho_executed',
        'flops',
        'flops_executed',
    )
    _write(
        folder / 'config.json',
        json.dumps(
            {
                'config': config_lib.to_dict(config),
                'versions': {'jax': '0'},
                'git_commit': 'abc',
                'device': 'fake',
                'dataset': {'num_classes': 10, 'split_sizes': {'test': 360, 'validation': 143}},
                'preflight': dict.fromkeys(facts, 10) | {'blocks': []},
            }
        ),
    )


def _newest(folder: Path) -> int:
    return max((int(p.name) for p in (folder / 'checkpoints' / 'latest').glob('*')), default=0)


def _number(config, step: int) -> float:
    name = f'{config.seed} {config.model.moe.k} {config.model.twin} {step}'
    return int(hashlib.sha256(name.encode()).hexdigest()[:6], 16) / 16**6


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}')
    part.write_text(text)
    part.replace(path)


def _log(folder: Path, line: str) -> None:
    with open(folder.parent.parent.parent / 'log.txt', 'a') as f:
        f.write(f'{folder.parent.name} {line}\n')


def read_metrics(folder: str) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted((Path(folder) / 'metrics').glob('u*.jsonl'))]


def pretend(modules=None) -> None:
    """Replaces the trainer, and whatever else needs jax, with fakes."""
    from moe_vision.study.run import plan, runner

    modules = sys.modules if modules is None else modules
    cells = python_types.ModuleType('moe_vision.study.run.cells')
    cells.train_arm = fake_train_arm
    metrics = python_types.ModuleType('moe_vision.run_folder.metrics')
    metrics.read = read_metrics
    modules['moe_vision.study.run.cells'] = cells
    modules['moe_vision.run_folder.metrics'] = metrics
    plan.training_flops = lambda config: FLOPS
    plan.this_device = lambda: {'device': 'fake', 'host_cores': 2}
    runner.WAIT = 0.05


def tables(workdir) -> dict[str, bytes]:
    """The contents of each file of W/rows, by path."""
    root = Path(workdir) / 'rows'
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob('*.json'))}


def clean(workdir) -> None:
    shutil.rmtree(workdir, ignore_errors=True)


if __name__ == '__main__':
    os.environ['JAX_PLATFORMS'] = 'cpu'
    sys.path.insert(0, str(ROOT))
    pretend()
    from moe_vision.study.__main__ import main

    sys.exit(main(sys.argv[1:]))
