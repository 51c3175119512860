"""Checks what a study declares, apart from the configs of its arms: names, seeds and numbers."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

from moe_vision.common.errors import UserError, unknown
from moe_vision.config import typed
from moe_vision.config.schema import LARGEST_SEED
from moe_vision.study.types import Arm, Comparison, FamilyDifference, Figure, Study, Trend, Tuning

_SUPPORTED = ('positive', 'negative', 'equivalent')  # expectations that a pattern may have
_BATCH = 100_000  # images in memory at once, as for eval.batch_size
_PARTS = ('arms', 'comparisons', 'trends', 'family_differences', 'figures', 'tune')
_ARM_FIGURES = ('traces', 'wall_clock')  # figures whose series name arms, not comparisons


def checked(study: Study) -> Study:
    """The study with fields converted to their declared types; refuses names that do not exist.

    Raises:
      UserError: the first thing that is wrong.
    """
    study = _typed(study, 'study')
    arms = _each(study.arms, Arm, 'arm')
    comparisons = _each(study.comparisons, Comparison, 'comparison')
    trends = _each(study.trends, Trend, 'trend')
    differences = _each(study.family_differences, FamilyDifference, 'family_difference')
    judged = {**comparisons, **trends, **differences}
    figures = tuple(
        _typed(f, 'figure') for _, f in _items(dict(enumerate(study.figures)), Figure, 'figures')
    )
    for kind, names in (
        ('study', [study.name]),
        ('arm', arms),
        ('comparison', comparisons),
        ('trend', trends),
        ('family_difference', differences),
    ):
        for name in names:
            if not re.fullmatch('[a-z0-9_]+', str(name)):
                raise UserError(f"{kind} name '{name}': use only the letters a-z, digits and _.")
    if not arms:
        raise UserError('the study has no arms; give at least one.')
    least = 2 if comparisons else 1  # one seed has no spread, but can be timed
    if (
        len(set(study.seeds)) != len(study.seeds)
        or len(study.seeds) < least
        or not 0 <= min(study.seeds) <= max(study.seeds) <= LARGEST_SEED
    ):
        raise UserError(
            f'seeds are {study.seeds}; give {("one", "two")[least - 1]} or more, all '
            f'different, from 0 to {LARGEST_SEED:,}.'
        )
    if not 0 < study.alpha < 1 or not 0 < study.margin < 100:
        raise UserError(
            f'alpha is {study.alpha} and margin {study.margin}; allowed: 0 < alpha < 1 '
            'and 0 < margin < 100 percentage points.'
        )
    for name, arm in arms.items():
        again = sorted({s + arm.seed_offset for s in study.seeds} & set(study.seeds))
        if (
            (arm.seed_offset and again)
            or arm.seed_offset < 0
            or max(study.seeds) + arm.seed_offset > LARGEST_SEED
        ):
            raise UserError(
                f"arm '{name}': seed_offset is {arm.seed_offset}; it must move the "
                f'seeds past all those of the study, such as {max(study.seeds) + 1}, and no seed '
                f'past {LARGEST_SEED:,}.'
            )
    for name, c in comparisons.items():
        for side in (c.arm, c.baseline):
            if side not in arms:
                raise UserError(f"comparison '{name}': {unknown('arm', side, arms)}")
        if c.arm == c.baseline:
            raise UserError(f"comparison '{name}': '{c.arm}' is compared with itself.")
    _check_combined(trends, differences, comparisons)
    if study.tune is not None:
        study = dataclasses.replace(study, tune=_checked_tune(study.tune, study, arms))
    for name in study.reads:
        if not re.fullmatch(r'(\.\./)*([a-z0-9_]+/)?[a-z0-9_]+', name):
            raise UserError(
                f"reads: '{name}'; give the folder of a study as seen from the one that holds this "
                "study's, such as first or ../gate/first, of the letters a-z, digits and _."
            )
    primary = [n for n, c in judged.items() if c.primary]
    if study.hypotheses and not primary:
        raise UserError(
            'the study has hypotheses but no primary comparison; set primary=True '
            'on the comparisons that test them.'
        )
    for name, members in study.patterns.items():
        if not members:
            raise UserError(
                f"pattern '{name}' has no members; name one or more of the primary "
                f'comparisons: {", ".join(primary)}.'
            )
        for member in members:
            if member not in primary:
                raise UserError(
                    f"pattern '{name}': {unknown('primary comparison', member, primary)}"
                )
            if judged[member].expected not in _SUPPORTED:
                raise UserError(
                    f"pattern '{name}': '{member}' has expected="
                    f"'{judged[member].expected}', which no result can support; "
                    f'allowed in a pattern: {", ".join(_SUPPORTED)}.'
                )
    for figure in figures:
        known = arms if figure.kind in _ARM_FIGURES else comparisons
        for series, members in figure.series.items():
            for member in members:
                if member not in known:
                    kind = 'arm' if figure.kind in _ARM_FIGURES else 'comparison'
                    raise UserError(
                        f"figure '{figure.title}', series '{series}': "
                        f'{unknown(kind, member, known)}'
                    )
    if not all(1 <= n <= _BATCH for n in study.latency_batches):
        raise UserError(
            f'latency_batches is {study.latency_batches}; each must be from 1 to {_BATCH:,} images.'
        )
    for name in study.latency_arms:
        if name not in arms:
            raise UserError(f'latency_arms: {unknown("arm", name, arms)}')
    return dataclasses.replace(
        study,
        arms=arms,
        comparisons=comparisons,
        figures=figures,
        trends=trends,
        family_differences=differences,
    )


def _check_combined(
    trends: Mapping[str, Trend],
    differences: Mapping[str, FamilyDifference],
    comparisons: Mapping[str, Comparison],
) -> None:
    """Refuses a trend or a family difference that names no comparisons to combine."""
    members = {
        **{f"family_difference '{n}'": sum(d.pairs, ()) for n, d in differences.items()},
        **{f"trend '{n}'": t.comparisons for n, t in trends.items()},
    }
    for name in {**trends, **differences}:
        if [name in of for of in (comparisons, trends, differences)].count(True) > 1:
            raise UserError(
                f"'{name}' names two of the study's comparisons, trends and family_differences; "
                'give each a name of its own.'
            )
    for what, names in members.items():
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(
                f'{what} combines {", ".join(names) or "nothing"}; name two comparisons or more, '
                'each once.'
            )
        for name in names:
            if name not in comparisons:
                raise UserError(f'{what}: {unknown("comparison", name, comparisons)}')


def _checked_tune(tune: Any, study: Study, arms: Mapping[str, Arm]) -> Tuning:
    if not isinstance(tune, Tuning):
        raise UserError(f'tune is {tune!r}; it must be a moe_vision.study.types.Tuning, or None.')
    tune = _typed(tune, 'tune')
    named = [*tune.arms, *(name for followers in tune.arms.values() for name in followers)]
    for name in named:
        if name not in arms:
            raise UserError(f'tune: {unknown("arm", name, arms)}')
        if named.count(name) > 1:
            raise UserError(f"tune: arm '{name}' is named twice; it can take one setting.")
    if not tune.arms or not tune.grid or not all(tune.grid.values()):
        raise UserError('tune: give one arm or more, and one value or more of one key or more.')
    apart = set(tune.seeds).isdisjoint(study.seeds) and len(set(tune.seeds)) == len(tune.seeds)
    if not (tune.seeds and apart and all(0 <= s <= LARGEST_SEED for s in tune.seeds)):
        raise UserError(
            f'tune: seeds are {tune.seeds}; give one or more from 0 to {LARGEST_SEED:,}, all '
            f'different, and none that the study reports ({study.seeds[0]} to {study.seeds[-1]}).'
        )
    return tune


def _each(mapping: Any, cls: type, what: str) -> dict[str, Any]:
    """The named parts of a study, each with its fields converted to their declared types."""
    return {n: _typed(v, f"{what} '{n}'") for n, v in _items(mapping, cls, f'{what}s')}


def _items(mapping: Any, cls: type, where: str) -> list[tuple[Any, Any]]:
    if not isinstance(mapping, Mapping):
        raise UserError(f'{where} is {mapping!r}; it must map names to {cls.__name__}.')
    for name, value in mapping.items():
        if not isinstance(value, cls):
            raise UserError(f"{where}: '{name}' is {value!r}; it must be a {cls.__name__}.")
    return list(mapping.items())


def _typed(value: Any, what: str) -> Any:
    """The dataclass with its fields converted to their declared types, except nested ones."""
    changed: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(type(value)).items():
        inner = typing.get_args(kind)
        if name in _PARTS and isinstance(value, Study):
            continue
        if typing.get_origin(kind) is Mapping:
            kind = dict[inner[0], inner[1]]  # type: ignore[valid-type]
        try:
            changed[name] = typed.convert(getattr(value, name), kind, name)
        except UserError as e:
            raise UserError(f'{what}: {e}') from e
    return dataclasses.replace(value, **changed)
