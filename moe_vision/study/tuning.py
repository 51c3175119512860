"""Tunes the arms of a study on validation, before the study is registered.

A study that has `tune` begins with a stage of its own in the folder `W/tuning`: a registration,
rows and a report like those of any study. Every tuned arm is trained at every point of one grid,
with seeds that the study does not report. The point with the highest mean validation accuracy
after the last step becomes part of the arm. The whole table becomes part of the study's
registration, so that a reader sees what was tried and by how much it won.
"""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from moe_vision.common.errors import UserError
from moe_vision.common.json_values import plain
from moe_vision.study import lent, registration
from moe_vision.study.analysis.pairs import VALIDATION, accuracy, scored
from moe_vision.study.load import Loaded, of_study
from moe_vision.study.types import Arm, Study, Tuning

Point = dict[str, Any]  # config key -> value


class Unfinished(UserError):
    """The stage has cells left to train."""


def folder(workdir: str) -> str:
    """Where the stage of a study lies."""
    return os.path.join(workdir, 'tuning')


def points(tune: Tuning) -> list[Point]:
    """All combinations of the grid's values, the last key fastest."""
    keys = list(tune.grid)
    combinations = itertools.product(*tune.grid.values())
    return [dict(zip(keys, values, strict=True)) for values in combinations]


def stage(loaded: Loaded) -> Loaded:
    """The study that tries every point with every tuned arm.

    Raises:
      UserError: two points would be the same arm.
    """
    study, tune = loaded.study, _tune(loaded.study)
    arms, point_of = dict[str, Arm](), dict[str, Point]()
    for arm, point in itertools.product(tune.arms, points(tune)):
        name = _name(arm, point)
        if name in arms:
            raise UserError(
                f"tune: the points {point_of[name]} and {point} would both be arm '{name}', as "
                'names have only letters, digits and _; leave one of them out.'
            )
        overrides = {**study.arms[arm].overrides, **point}
        arms[name], point_of[name] = Arm(study.arms[arm].config, overrides), point
    _check_followers(loaded)
    keys = ' and '.join(tune.grid)
    return of_study(
        Study(
            name=f'{study.name}_tuning',
            question=f'Which {keys} suits each arm of {study.name} on validation?',
            hypotheses=(),
            arms=arms,
            seeds=tune.seeds,
            comparisons={},
            margin=study.margin,
            seed_mode=study.seed_mode,
            mechanism=False,
            metric='validation_accuracy',
            reads=tuple(f'../{name}' for name in study.reads),  # one folder further away
        ),
        loaded.overrides,
    )


def _check_followers(loaded: Loaded) -> None:
    """Raises UserError if an arm cannot take a point that the arm which it follows may be given."""
    study, tune = loaded.study, _tune(loaded.study)
    for arm, followers in tune.arms.items():
        for name in followers:
            own = study.arms[name].overrides
            others = study.arms[arm].overrides
            if odd := [k for k in tune.grid if k in own and own[k] != others.get(k)]:
                raise UserError(
                    f"tune: arm '{name}' takes {odd[0]} from what '{arm}' is given, but sets it "
                    'itself; leave one of them out.'
                )
            for point in points(tune):
                arm_there = dataclasses.replace(study.arms[name], overrides={**own, **point})
                alone = dataclasses.replace(study, arms={name: arm_there}, comparisons={})
                of_study(alone, loaded.overrides)


def choose(loaded: Loaded, workdir: str) -> dict[str, Any]:
    """What the finished stage chose, as it stands in the registration.

    Returns:
      {'registration': hash of the stage, 'arms': {arm: {'chosen': point, 'scores': [{'point',
      'validation_accuracy': mean in percent, 'seeds': one each}]}}, 'common': the point with the
      highest mean over all tuned arms}. A diverged run scores chance. The first of equal points
      wins.

    Raises:
      Unfinished: the stage is not finished.
    """
    tune, where = _tune(loaded.study), folder(workdir)
    if not registration.exists(where):
        raise Unfinished(_unfinished(loaded, workdir, 'has not begun'))
    record, digest = registration.register(stage(loaded), where)
    found, _ = lent.read(where, record, digest)
    lacking = sum(seed not in found[arm] for arm in record['arms'] for seed in tune.seeds)
    if lacking:
        raise Unfinished(_unfinished(loaded, workdir, f'lacks {lacking} cells'))
    arms: dict[str, Any] = {}
    for arm in tune.arms:
        scores = []
        for point in points(tune):
            each = [_score(found[_name(arm, point)][seed]) for seed in tune.seeds]
            mean = round(math.fsum(each) / len(each), 4)
            scores.append({'point': point, 'validation_accuracy': mean, 'seeds': each})
        arms[arm] = {'chosen': _best(scores)['point'], 'scores': scores}
    together = [
        {'point': point, 'validation_accuracy': math.fsum(s['validation_accuracy'] for s in column)}
        for point, column in zip(
            points(tune), zip(*(a['scores'] for a in arms.values()), strict=True), strict=True
        )
    ]
    return {'registration': digest, 'arms': arms, 'common': _best(together)['point']}


def tuned(loaded: Loaded, workdir: str) -> Loaded:
    """The study with what its finished stage chose; a study without a stage is returned as it is.

    Raises:
      Unfinished: the stage is not finished.
    """
    if loaded.study.tune is None:
        return loaded
    if registration.exists(workdir):
        chosen = registration.read(workdir)[0].get('tuned') or {}
    else:
        chosen = choose(loaded, workdir)
    try:
        return _with(loaded, chosen)
    except (LookupError, TypeError, AttributeError) as e:
        raise UserError(
            f"'{workdir}' holds a registration without a point of this study's grid for each tuned "
            'arm; restore the study file, or use a new --workdir.'
        ) from e


def _with(loaded: Loaded, chosen: dict[str, Any]) -> Loaded:
    """The study with these points. A registration is data, and what it says could name code to
    import, so each point is taken from the grid of the study file."""
    arms, tune = dict(loaded.study.arms), _tune(loaded.study)
    for arm, followers in tune.arms.items():
        wanted = plain(chosen['arms'][arm]['chosen'])
        point = next((p for p in points(tune) if plain(p) == wanted), None)
        if point is None:
            raise LookupError(arm)
        for name in (arm, *followers):
            overrides = {**arms[name].overrides, **point}
            arms[name] = dataclasses.replace(arms[name], overrides=overrides)
    study = dataclasses.replace(loaded.study, arms=arms)
    return dataclasses.replace(of_study(study, loaded.overrides), tuned=chosen)


def _tune(study: Study) -> Tuning:
    assert study.tune is not None
    return study.tune


def _name(arm: str, point: Point) -> str:
    """Such as `k2_learning_rate_0_01`."""
    parts = [f'{key.rsplit(".", 1)[-1]}_{value}' for key, value in point.items()]
    return re.sub('[^a-z0-9]+', '_', '_'.join([arm, *parts]).lower()).strip('_')


def _score(row: Mapping[str, Any]) -> float:
    """Validation accuracy after the last step, percent; chance for a diverged run."""
    return round(float(accuracy(scored(dict(row), VALIDATION))), 4)


def _best(scores: list[dict[str, Any]]) -> dict[str, Any]:
    return max(scores, key=lambda score: score['validation_accuracy'])  # the first of equals


def _unfinished(loaded: Loaded, workdir: str, why: str) -> str:
    return (
        f"the tuning of study '{loaded.study.name}' in '{folder(workdir)}' {why}, and the study "
        'is registered with what it chose: train it first, with `python -m moe_vision.study tune '
        f'--study=... --workdir={workdir}`.'
    )
