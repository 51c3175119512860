"""A small network from configs/base.py with keys set as on a command line, and wrong commands."""

from pathlib import Path

import input_pipeline
from moe_vision.config import check as config_lib
from moe_vision.config import source
from moe_vision.config.schema import Config
from moe_vision.leverage import Leverage, measure

ROOT = Path(__file__).resolve().parent.parent.parent

# digits are 8x8x1 in 10 classes; widths 8 and 16, one block each: a map of 8x8, then of 4x4
SMALL = {
    'model.args': {'widths': (8, 16), 'depth': 1},
    'model.moe.num_experts': 4,
    'model.moe.group_size': 16,
}


def make(**changes) -> Config:
    """The checked small config; `__` in a name is a dot."""
    values = {**SMALL, **{k.replace('__', '.'): v for k, v in changes.items()}}
    common, opened, _ = source.take_overrides(
        [f'--config.{key}={value}' for key, value in values.items()]
    )
    return config_lib.check(source.load(str(ROOT / 'configs' / 'base.py'), common, opened))


def found(**changes) -> Leverage:
    config = make(**changes)
    return measure(config, input_pipeline.info(config.dataset))


def block(leverage: Leverage, name: str):
    return next(b for b in leverage.blocks if b.name == name)


WRONG = [  # arguments, and parts of the error
    ([], ['--config is missing', 'configs/digits_k2.py']),
    (['--config=configs/digits_k3.py'], ['does not exist', 'configs/digits_k2.py']),
    (['--config=configs/base.py', '--swep=a=1'], ["unknown flag '--swep'", '--sweep']),
    (['--config=configs/base.py', '--sweep=model.moe.hidden'], ['--sweep is', 'its values']),
    (['--config=configs/base.py', '--sweep=model.moe.hiden=1,2'], ['model.moe.hidden']),
    (['--config=configs/base.py', '--sweep=model.moe.hidden=8,x'], ["'x'", 'an int']),
    (['--config=configs/base.py', '--solve=model.moe.hidden'], ['--target_rho is missing']),
    (['--config=configs/base.py', '--target_rho=0.2'], ['--solve=KEY is missing']),
    (['--config=configs/base.py', '--solve=', '--target_rho=0.2'], ["--solve is ''", 'hidden']),
    (['--config=configs/base.py', '--sweep=model.moe.k=1', '--out='], ["--out is ''"]),
    (['--config=configs/base.py', '--sweep=model.moe.k=1', '--out=/proc/x'], ["'/proc/x'"]),
    (
        ['--config=configs/base.py', '--solve=model.moe.hidden', '--target_rho=20'],
        ["--target_rho is '20'", 'above 0 and below 1'],
    ),
    (
        ['--config=configs/base.py', '--solve=model.moe.router', '--target_rho=0.2'],
        ["holds 'top_k'", 'a key that holds an int'],
    ),
    (['--config=configs/base.py', '--solve=model.args.depht', '--target_rho=0.2'], ['depth']),
    (
        ['--config=configs/base.py', '--solve=model.moe.k', '--target_rho=0.2', '--rho=rho'],
        ["--rho is 'rho'", 'rho_place, rho_active, rho_executed'],
    ),
    (
        ['--config=configs/base.py', '--solve=model.moe.k', '--target_rho=.2', '--sweep=seed=1'],
        ['--sweep and --solve are both given'],
    ),
    (['--config=configs/base.py', '--rho=rho_active'], ['--rho is set but is not read']),
    (['--config=configs/base.py', '--out=x'], ['--out is set but is not read']),
    (['--config=configs/base.py', '--multiple_of=8'], ['--multiple_of is set', 'to --solve.']),
    *[
        (
            ['--config=configs/base.py', '--solve=model.moe.hidden', '--target_rho=0.2', flag],
            [f"--multiple_of is '{flag.partition('=')[2]}'", 'an int from 1'],
        )
        for flag in ('--multiple_of=0', '--multiple_of=x', '--multiple_of=8.0')
    ],
    (
        ['--config=configs/base.py', '--sweep=model.moe.k=1', '--out=configs/base.py/x'],
        ["--out is 'configs/base.py/x'", 'a folder of your own'],
    ),
    (['--config=configs/base.py', 'stray'], ["unexpected argument 'stray'"]),
    (['--config=configs/base.py', '--config.model.moe.k=9'], ['k can be 1 to 8']),
    (['--config=configs/base.py', '--json=1'], ['--json']),
]
