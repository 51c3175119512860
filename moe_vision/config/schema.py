"""Every common key of a config: its name, type, default, meaning and range, each stated once.

`Config` and the sections it is made of are also what a checked config is: plain frozen dataclasses,
which every module but `config` works with. The rest is read from here: `configs/base.py`, the
checks of `config.check` and `config.rules`, and the defaults of studies that were registered before
a key was there. The keys of the section `dataset` stand in `input_pipeline.types.DatasetConfig`,
because `input_pipeline` works without this package.

    >>> Config().model.moe.k, defaults()['train']['batch_size']
    (2, 128)

To add a key, write its line here, say whether it may change when a run goes on in its folder
(`changes`), and remake the file that people read:
`python -m moe_vision.config.base_file > configs/base.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from input_pipeline import DatasetConfig
from moe_vision.common import limits
from moe_vision.config.key import key
from moe_vision.config.kinds import Kind

LARGEST_SEED = 2**32 - 1  # initial values derive from 32 bits of it
Schedule = Literal['uniform', 'descending', 'ascending', 'pyramid_up', 'pyramid_down', 'wave']
DROPPING = ('same_drops', 'same_measured_drops')  # twins that drop tokens


@dataclasses.dataclass(frozen=True)
class AtLayer:
    """What one routed layer has instead of the values of `model.moe`; None: it has those."""

    num_experts: int | None = None
    k: int | None = None
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None
    hidden: int | None = None
    shared_hidden: int | None = None


@dataclasses.dataclass(frozen=True)
class Moe:
    """The routed places: what routes, what is routed to, and how many tokens find room."""

    placement: str = key(
        'last_1',
        'none, head, pure_head (without a shortcut around it), last_N, every_N, or block numbers '
        "such as '1,3'",
    )
    router: str = key('top_k', 'a name in ROUTERS, or package.module:Class')
    # `config.check` puts the dataclass that the method names for its arguments in place of a dict
    router_args: Any = key({'noise': 'gaussian'}, 'arguments of the router; `load` needs noise')
    num_experts: int = key(8, 'E, experts at each routed place', positive=True, at_most=100_000)
    schedule: Schedule = key(
        'uniform',
        'how num_experts varies over the routed layers, whose sum stays the same: uniform, '
        'descending, ascending, pyramid_up (most in the middle), pyramid_down, wave',
    )
    schedule_least: int = key(
        0, 'experts where the schedule is lowest; 0 is half of num_experts', at_most=100_000
    )
    k: int = key(2, 'experts that each token chooses', positive=True)
    capacity_factor: float = key(
        1.25,
        'slots per expert: ceil(capacity_factor * k * T / E), at most T; inf gives room for all',
        positive=True,
        infinite=True,
    )
    eval_capacity_factor: float = key(2.0, 'the same in evaluation', positive=True, infinite=True)
    capacity_multiple: int = key(
        1, 'round the slots per expert up to a multiple of this', positive=True, at_most=10_000
    )
    group_size: int = key(
        64, 'T, tokens that share capacity: patches in vit, else images', positive=True
    )
    priority: Literal['token', 'gate', 'random'] = key(
        'token', 'who gets slots first: token (in order), gate (largest), random'
    )
    # `config.check` replaces '' by the name of the expert that copies the block
    expert: str = key('', "a name in EXPERTS; '' copies the block that experts replace")
    expert_args: Any = key({}, 'arguments of the expert')
    hidden: int = key(
        0, 'hidden width of one expert; 0 is that of the block it replaces', at_most=1_000_000
    )
    splits: int = key(1, 'parts of the channels, each routed by itself', positive=True)
    kinds: tuple[Kind, ...] = key(
        (),
        "experts that differ: ({'count': 4}, {'count': 2, 'divide': 16}, {'expert': 'skip'}), also "
        'with hidden and args. Twins copy the first kind; skip, a null expert, is no part of '
        'num_experts',
    )
    losses: dict[str, float] = key(
        {'importance': 0.005, 'load': 0.005}, 'weights, by their names in LOSSES'
    )
    # `config.check` puts the dataclass that a loss names for its arguments in place of each dict
    loss_args: dict[str, Any] = key({}, "arguments of losses, such as {'erc': {'alpha': 0.5}}")
    shared_hidden: int = key(
        0,
        'hidden width of a shared expert, which every token takes besides; 0 for none',
        at_most=1_000_000,
    )
    bank: str = key(
        'own',
        'whose experts a routed layer has: own, stage (those of its stage), or a number N of '
        'neighbouring layers that share num_experts experts',
    )
    layers: dict[str, AtLayer] = key(
        {},
        'what single routed layers have instead, by their number from 0 on: '
        "{'0': {'num_experts': 4}, '-1': {'k': 1}}; also capacity_factor, eval_capacity_factor, "
        'hidden and shared_hidden',
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    name: str = key('conv', 'a name in BACKBONES, or package.module:Class')
    args: Any = key({}, 'arguments of the backbone')
    dtype: Literal['float32', 'bfloat16'] = key(
        'float32', 'compute type: float32, bfloat16; weights and routers stay float32'
    )
    remat: bool = key(
        False,
        'recompute blocks in the backward pass to save memory (not on a CPU)',
        changes='freely',
    )
    twin: Literal[
        'none',
        'same_width',
        'same_active_flops',
        'same_executed_flops',
        'same_params',
        'same_drops',
        'same_measured_drops',
        'ensemble',
    ] = key(
        'none',
        'none trains the routed network. The others train a dense twin of it, with one block at '
        'each routed place:\n'
        '  same_width: a block as large as one expert\n'
        '  same_active_flops: a block with the FLOPs of the experts that a token takes\n'
        '  same_executed_flops: a block with the FLOPs of the buffers that training fills\n'
        '  same_params: a block with the parameters of the router and all experts\n'
        '  same_drops: same_width, which drops as many tokens as a random router would\n'
        '  same_measured_drops: same_width, which drops at random what `measured_drops` says\n'
        '  ensemble: k blocks as large as one expert, and the mean of their outputs',
    )
    measured_drops: tuple[float, ...] = key(
        (),
        'of twin same_measured_drops: the share of the choices that are dropped, at equally spaced '
        'moments from the first to the last step, and then in evaluation',
        share=True,
    )
    moe: Moe = dataclasses.field(default_factory=Moe)


@dataclasses.dataclass(frozen=True)
class Train:
    """Training: its length, optimizer and regularisation."""

    epochs: float = key(30.0, 'how long to train', changes='upward')
    steps: int = key(0, 'the same in optimizer steps', changes='upward')
    batch_size: int = key(128, 'images per optimizer step, over all devices', positive=True)
    micro_batches: int = key(
        1, 'gradient accumulation: batch_size is split into this many parts', positive=True
    )
    optimizer: str = key('adamw', 'a name in OPTIMIZERS')
    optimizer_args: Any = key({}, 'arguments of the optimizer')
    learning_rate: float = key(
        1e-3, 'peak: reached by linear warm-up, then a cosine to 0', positive=True
    )
    warmup_epochs: float = key(1.0, 'how long the learning rate rises')
    warmup_steps: int = key(0, 'the same in optimizer steps')
    weight_decay: float = key(1e-4, 'on matrices and filters; never on biases, norms, routers')
    label_smoothing: float = key(
        0.0, 'share of the target that is spread evenly over all classes', below_one=True
    )
    clip_norm: float = key(1.0, 'clip the global norm of the gradient to this; 0 does not clip')
    ema_decay: float = key(
        0.0,
        'decay per step of averaged weights to evaluate (less while steps are few); 0 does not '
        'average',
        below_one=True,
    )
    mixup: float = key(0.0, "a of mixup's Beta(a, a); partners share a routing group; 0 is off")
    cutmix: float = key(0.0, 'the same for CutMix; with both on, each group flips a coin')
    trainable: str = key(
        '.*',
        'regular expression of the paths to train; the rest stands still, statistics included',
    )
    # `config.check` puts the dataclass of each method in place of its dict
    transforms: dict[str, Any] = key(
        {},
        'what happens to updates after the optimizer: names in TRANSFORMS, each with its '
        "arguments, such as {'freeze_router': {'fraction': 0.5}}",
    )
    skip_nonfinite: int = key(
        0,
        'skip up to N consecutive steps with a non-finite gradient; 0 stops at the first',
        changes='freely',  # without it such a step would end the run
    )


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation, while training and with --mode=eval."""

    split: Literal['train', 'validation', 'test'] = key(
        'test', 'what --mode=eval and --mode=probe score: train, validation, test', changes='freely'
    )
    batch_size: int = key(
        256,
        'images per step, rounded up to whole groups; changes no result',
        positive=True,
        at_most=100_000,
        changes='freely',
    )
    every_epochs: float = key(1.0, 'how often to score validation while training', changes='freely')
    every_steps: int = key(0, 'the same in optimizer steps', changes='freely')
    capacity_factors: tuple[float, ...] = key(
        (),
        'at the end of training, and with --mode=eval, also score at each of these capacity '
        'factors, such as 1,2,inf',
        positive=True,
        infinite=True,
        changes='freely',
    )
    train_images: int = key(
        0,
        'at the end of training, also score this many training images, without augmentation; 0 '
        'scores none',
        changes='freely',
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How devices share the work."""

    expert: int = key(
        1,
        'size of the expert axis: devices that share one copy of the experts',
        positive=True,
        changes='freely',
    )
    shard_optimizer: bool = key(
        False, "spread optimizer state over the data axis (not the experts')", changes='freely'
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is saved to resume from."""

    every_epochs: float = key(5.0, 'how often to save', changes='freely')
    every_steps: int = key(0, 'the same in optimizer steps', changes='freely')
    keep: int = key(
        2,
        'keep this many of the newest, besides the best on validation',
        positive=True,
        changes='freely',
    )


@dataclasses.dataclass(frozen=True)
class Log:
    """Metrics and warnings."""

    every_steps: int = key(
        20, 'write a metrics row and a progress line this often', positive=True, changes='freely'
    )
    warn_drop_rate: float = key(
        limits.DROPS,
        'warn when more than this share of the choices is dropped',
        share=True,
        changes='freely',
    )
    warn_max_over_mean: float = key(
        3.0,
        'warn when one expert has this many times the mean load',
        positive=True,
        changes='freely',
    )
    trackers: tuple[str, ...] = key(
        (),
        'who else gets the rows of metrics and the result: wandb, mlflow, or package.module:Class',
        changes='freely',
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole config."""

    seed: int = key(
        0,
        'initial values, data order, augmentation and router noise derive from it; below 2^32',
        at_most=LARGEST_SEED,
    )
    init_from: str = key(
        '',
        'start from the scored weights of the run in this folder; other classes get a new head',
        path=True,
    )
    init_kind: str = key(
        '', "what makes the weights of those in init_from: a name in SURGERY, or '' to take them"
    )
    # `config.check` puts the dataclass that the kind names for its arguments in place of a dict
    init_args: Any = key({}, 'arguments of init_kind')
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    model: Model = dataclasses.field(default_factory=Model)
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)


def keys(section: Any, prefix: str = '') -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(dotted path, value, what `key` was given) for every key of a config.

    What `DatasetConfig` gives lacks the ranges: they are checked beside it.
    """
    for field in dataclasses.fields(section):
        path, value = f'{prefix}{field.name}', getattr(section, field.name)
        if field.metadata:
            yield path, value, field.metadata
        else:
            yield from keys(value, f'{path}.')


def defaults() -> dict[str, Any]:
    """The default of every key, in new nested dictionaries that the caller may change."""
    return dataclasses.asdict(Config())
