"""A whole study to time: two arms of `top_k.py:digits` with its eight seeds, without probes.

Run: python -m moe_vision.study run --study=benchmarks/whole_study.py:together --workdir=W
"""

import dataclasses
from typing import Literal

from configs.studies import top_k
from moe_vision.study.types import Study


def get_study(seed_mode: Literal['one_by_one', 'together']) -> Study:
    whole = top_k.get_study('digits')
    name = 'k2_minus_dense'
    return dataclasses.replace(
        whole,
        name=f'whole_{seed_mode}',
        seed_mode=seed_mode,
        arms={n: whole.arms[n] for n in ('k2', 'dense')},
        comparisons={name: whole.comparisons[name]},
        patterns={},
        figures=(),
        latency_arms=(),
        mechanism=False,
    )
