"""The kinds of surgery by name, and their arguments, as dataclasses without jax.

To add a kind, write its file in `moe_vision/surgery`, its arguments here and its line in `SURGERY`.
"""

import dataclasses
from typing import Literal

from moe_vision.common.errors import UserError, positive, unread
from moe_vision.config.registry import Entry


@dataclasses.dataclass(frozen=True)
class ImportArgs:
    head: Literal['keep', 'new'] = 'keep'  # new: begin with another classifier
    classes: str = ''  # a file with the class names of the classifier there, one in each line
    mean: tuple[float, ...] = ()  # of the channels, scaled to 0 to 1, as the network there got them
    std: tuple[float, ...] = ()  # the same; () where images were normalised as they are here

    def __post_init__(self) -> None:
        if bool(self.mean) != bool(self.std):
            raise UserError(f'mean is {self.mean} and std is {self.std}; give both or neither.')
        if self.std:
            positive(self, 'std')


@dataclasses.dataclass(frozen=True)
class UpcycleArgs:
    noise: float = 0.0  # on the copies: its deviation, as a share of that of the copied array
    router_scale: float = 1.0  # factor of the routers' initial values
    seed: int = 0  # of the noise
    optimizer: Literal['fresh', 'carried'] = 'fresh'  # carried: moments are copied like weights

    def __post_init__(self) -> None:
        _not_negative(self, 'noise', 'router_scale', 'seed')


@dataclasses.dataclass(frozen=True)
class SplitArgs:
    # which hidden units go together; coactivation: those that fire together on samples
    by: Literal['weights', 'coactivation', 'order', 'random'] = 'weights'
    copies: int = 1  # experts are the parts of so many copies of the block
    # routers' initial columns: drawn, or the mean input for which the units of a part fire
    router: Literal['drawn', 'inputs'] = 'drawn'
    router_scale: float = 1.0  # factor of the routers' initial values
    samples: int = 256  # images on which the network is run to see what fires
    samples_of: Literal['train', 'validation'] = 'train'  # whose images these are
    seed: int = 0  # of the clusters, or of the random parts
    optimizer: Literal['fresh', 'carried'] = 'fresh'  # carried: moments are cut like weights

    def __post_init__(self) -> None:
        positive(self, 'copies', 'samples')
        _not_negative(self, 'router_scale', 'seed')
        for name in ('samples', 'samples_of'):
            unread(self, name, self.looks, "by is not 'coactivation' and router not 'inputs'")
        if self.router == 'inputs' and self.copies > 1:
            raise UserError(
                f"router is 'inputs' and copies is {self.copies}, but the parts of a copy begin "
                "with one column; take router='drawn', or one copy."
            )

    @property
    def looks(self) -> bool:
        """Whether the network is run on samples."""
        return self.by == 'coactivation' or self.router == 'inputs'


@dataclasses.dataclass(frozen=True)
class MergeArgs:
    # which experts are alike; router_logits: those that samples choose for the same reasons
    by: Literal['weights', 'router', 'router_logits', 'random'] = 'weights'
    budget: int = 0  # for all layers together; 0: the config says how many experts each layer keeps
    budget_of: Literal['experts', 'parameters'] = 'experts'  # parameters: those of the network
    samples: int = 256  # images on which the network is run to see its routes
    samples_of: Literal['train', 'validation'] = 'train'  # whose images these are
    seed: int = 0  # of random groups
    optimizer: Literal['fresh', 'carried'] = 'fresh'  # carried: moments are averaged like weights

    def __post_init__(self) -> None:
        positive(self, 'samples')
        _not_negative(self, 'budget', 'seed')
        unread(self, 'budget_of', self.budget > 0, 'budget is 0')
        for name in ('samples', 'samples_of'):
            unread(self, name, self.by == 'router_logits', "by is not 'router_logits'")


@dataclasses.dataclass(frozen=True)
class ExpandArgs:
    new: Literal['copy', 'fresh'] = 'copy'  # what new experts are: copies of the old ones in turn
    noise: float = 0.0  # on the copies: its deviation, as a share of that of the copied array
    seed: int = 0  # of the noise
    frozen: bool = False  # whether the old experts stand still from then on
    optimizer: Literal['fresh', 'carried'] = 'fresh'  # carried: moments are copied like weights

    def __post_init__(self) -> None:
        _not_negative(self, 'noise', 'seed')
        unread(self, 'noise', self.new == 'copy', "new is 'fresh'")


@dataclasses.dataclass(frozen=True)
class AverageArgs:
    last: int = 1  # checkpoints of each run, the newest ones

    def __post_init__(self) -> None:
        positive(self, 'last')


@dataclasses.dataclass(frozen=True)
class PruneArgs:
    by: Literal['load', 'ablation'] = 'load'  # share of choices, or accuracy lost without it
    optimizer: Literal['fresh', 'carried'] = 'fresh'  # carried: moments are cut like weights


@dataclasses.dataclass(frozen=True)
class CompressArgs:
    # which hidden units keep what a low rank leaves out: those that the loss is sensitive to on
    # samples, or those where it is most
    importance: Literal['sensitivity', 'magnitude'] = 'sensitivity'
    samples: int = 256  # labelled images on which the loss is taken
    samples_of: Literal['train', 'validation'] = 'train'  # whose images these are

    def __post_init__(self) -> None:
        positive(self, 'samples')
        for name in ('samples', 'samples_of'):
            unread(self, name, self.importance == 'sensitivity', "importance is 'magnitude'")


def _not_negative(args: object, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 0:
            raise UserError(f'{name} is {getattr(args, name)}; it must not be negative.')


# What makes a run's folder from that of another run, from several runs, or from a file.
SURGERY = {
    'import': Entry('moe_vision.surgery.import_weights:Import', ImportArgs, needs=('file',)),
    'upcycle': Entry('moe_vision.surgery.upcycle:Upcycle', UpcycleArgs),
    'split': Entry('moe_vision.surgery.split:Split', SplitArgs),
    'merge': Entry('moe_vision.surgery.merge:Merge', MergeArgs),
    'expand': Entry('moe_vision.surgery.expand:Expand', ExpandArgs),
    'average': Entry('moe_vision.surgery.average:Average', AverageArgs, needs=('runs',)),
    'prune': Entry('moe_vision.surgery.prune:Prune', PruneArgs),
    'compress': Entry('moe_vision.surgery.compress:Compress', CompressArgs),
}
