"""The arguments of kinds of surgery, as dataclasses without jax, like those of `method_args`."""

import dataclasses
from typing import Literal

from moe_vision.common.errors import UserError, positive


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
