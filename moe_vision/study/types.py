"""Defines what a study file declares, in plain Python: it is checked without importing jax.

An arm is one config, a cell one arm × one seed, a comparison two arms paired by seed. Accuracies
and gaps are in percentage points (pp).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Verdict = Literal['positive', 'negative', 'equivalent', 'inconclusive']
Outcome = Literal[  # the verdict on a gap says both where the gap is small and differs from zero
    'positive',
    'negative',
    'positive, within the margin',
    'negative, within the margin',
    'equivalent',
    'inconclusive',
]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One config: a file, and the keys that differ from it ({'model.moe.k': 1})."""

    config: str  # a path as for --config, relative to the repository
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed_offset: int = 0  # added to each seed: the same config again, with other seeds


@dataclasses.dataclass(frozen=True)
class Comparison:
    """accuracy(arm) - accuracy(baseline), paired by seed: one row of the table of verdicts."""

    arm: str
    baseline: str
    expected: Verdict | Literal['none'] = 'none'  # by the hypothesis, before any run
    primary: bool = False  # in the family that the correction covers; else exploratory


@dataclasses.dataclass(frozen=True)
class Trend:
    """How a gap changes along ρ: each seed gives one line, fitted to its gaps by least squares.

    What is judged is the change of the line from the lowest to the highest ρ, in pp: its slope
    times the range of ρ. So the margin of the study applies to it.

    Attributes:
      comparisons: two or more of the study, in the order of their ρ.
      x: the ρ of each comparison's arm, as its rows give it.
    """

    comparisons: tuple[str, ...]
    x: Literal['rho_place', 'rho_active'] = 'rho_place'
    expected: Verdict | Literal['none'] = 'none'
    primary: bool = False


@dataclasses.dataclass(frozen=True)
class FamilyDifference:
    """Whether two families have the same gap at the same ρ: the mean over pairs of comparisons.

    For each seed, the gap of the first comparison of a pair minus that of the second, averaged over
    the pairs. Only `equivalent` says that the family does not matter; a large p does not.

    Attributes:
      pairs: of comparisons whose arms have the same ρ, such as (('standard_3', 'depthwise_3'),).
    """

    pairs: tuple[tuple[str, str], ...]
    expected: Verdict | Literal['none'] = 'none'
    primary: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the report.

    kind, and what `series` maps names to:
      gap_against_rho: comparisons, one curve per family, x is rho_place of the arm. The line of a
        family is its trend, if one is registered over comparisons that are all in it.
      k_ablation: comparisons in order of k, one line per seed.
      soft_axis: comparisons, one curve per axis, x is E * slots per expert of the arm.
      traces: arms; temperature, gate entropy and validation accuracy over training.
      wall_clock: arms; accuracy against latency and throughput at the timed batch sizes.
    """

    kind: Literal['gap_against_rho', 'k_ablation', 'soft_axis', 'traces', 'wall_clock']
    title: str
    series: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A stage before the study: the same grid for each tuned arm, judged on validation.

    Attributes:
      grid: config key -> values to try, such as {'train.learning_rate': (3e-3, 1e-2, 3e-2)}; all
        combinations are tried.
      arms: tuned arm -> the arms that take its setting, such as {'k2': ('random', 'frozen')}. An
        arm that is named nowhere keeps its own values.
      seeds: of the stage; none of the study's.
    """

    grid: Mapping[str, tuple[Any, ...]]
    arms: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and what is fixed before the first run.

    Attributes:
      name: the study's name in its record and report, such as `digits_top_k`.
      question: one sentence.
      hypotheses: sentences, each with its direction; `patterns` makes them machine-readable.
      arms: name -> Arm; names are [a-z0-9_]+.
      seeds: seeds of the reported runs, the same for every arm.
      comparisons: name -> Comparison.
      trends, family_differences: name -> what combines comparisons, seed by seed. It is judged like
        a comparison and, if it is primary, belongs to the same family.
      margin: gaps within ± this many pp count as equivalent.
      seed_mode: 'one_by_one' trains the seeds of an arm one after another with the same compiled
        program, 'together' as one program.
      patterns: name -> primary comparisons, trends and family differences that must all come out
        as expected.
      metric: what comparisons compare, with the weights after the last step. A gate, or whatever
        something is chosen by, takes validation.
      tuning: how hyperparameters were chosen: grid, split, seeds (disjoint from `seeds`).
      tune: the stage that chooses them, where the study does it itself (`study.tuning`).
      reads: neighbouring studies: folders beside this one, or others as seen from there, such as
        '../gate/underfit'. Where an arm of theirs equals one of this study, or of its tuning, to
        the last key, its rows serve here, too, and are not run again.
      exclusion: the rule for runs that fail.
      stopping: the rule for adding seeds.
      mechanism: whether to probe trained cells (interventions, specialisation, router gradients).
      latency_arms, latency_batches: what `study time` measures.
    """

    name: str
    question: str
    hypotheses: tuple[str, ...]
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...]
    comparisons: Mapping[str, Comparison]
    margin: float
    alpha: float = 0.05
    correction: Literal['holm'] = 'holm'
    metric: Literal['test_accuracy', 'validation_accuracy'] = 'test_accuracy'
    seed_mode: Literal['one_by_one', 'together'] = 'one_by_one'
    patterns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    tuning: str = ''
    tune: Tuning | None = None
    reads: tuple[str, ...] = ()
    exclusion: str = (
        'None. A run whose loss is not finite scores chance; the report shows every '
        'number with and without such runs.'
    )
    stopping: str = 'No seed is added after a result was seen.'
    mechanism: bool = True
    latency_arms: tuple[str, ...] = ()
    latency_batches: tuple[int, ...] = (1, 8, 64, 512)
    trends: Mapping[str, Trend] = dataclasses.field(default_factory=dict)
    family_differences: Mapping[str, FamilyDifference] = dataclasses.field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
