"""Makes records and rows for tests of the analysis, from how many test images were right."""

import base64
import dataclasses
import json

import numpy as np

from moe_vision.study import types

HASH = 'a' * 64
IMAGES = 1000  # so that one image is 0.1 pp
VERSIONS = {'jax': '0.10.2', 'numpy': '2.4.6'}


def study(comparisons, arms=('moe', 'dense'), seeds=(0, 1, 2), margin=1.0, patterns=None, **more):
    """The record: comparisons are name -> (arm, baseline, expected, primary)."""
    declared = types.Study(
        name='made_up',
        question='?',
        hypotheses=(),
        seeds=seeds,
        margin=margin,
        arms={name: types.Arm('configs/x.py') for name in arms},
        comparisons={n: types.Comparison(*c) for n, c in comparisons.items()},
        patterns=patterns or {},
        **more,
    )
    return json.loads(json.dumps(dataclasses.asdict(declared)))


def row(count, right=None, **changes):
    """A row with `count` test images right, the first ones; or those in `right` [I]."""
    right = np.arange(IMAGES) < count if right is None else right
    result = {
        'test_accuracy': float(right.mean()),
        'test_accuracy_selected': None,
        'flops': 100,
        'test_accuracy_unbounded': 0.5,
        'flops_executed': 120,
        'params_total': 10,
        'params_active': 10,
        'rho_place': 0.25,
        'rho_active': 0.0,
        'rho_executed': 0.0,
        'drop_rate': 0.0,
        'orphan_rate': 0.0,
        'effective_experts': None,
        'dead_experts': 0,
        'collapsed': False,
    }
    result |= changes.pop('result', {})
    return {
        'status': 'done',
        'error': '',
        'preregistration': HASH,
        'versions': VERSIONS,
        'git_commit': 'c' * 40,
        'device': 'cpu',
        'num_classes': 10,
        'images': IMAGES,
        'result': result,
        'correct': base64.b64encode(np.packbits(right).tobytes()).decode(),
        'layers': {},
        'curve': [],
        'mechanism': None,
        'config': {'k': 1},
    } | changes


def diverged(**changes):
    return row(0, status='diverged', correct='', result={'test_accuracy': None}) | changes


def cells(**arms):
    """arm -> seed -> row, from a count (or a row) per seed."""
    return {
        arm: {s: v if isinstance(v, dict) else row(v) for s, v in enumerate(values)}
        for arm, values in arms.items()
    }
