"""What a router, a loss or an expert may know of the place where it stands, without jax."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Place:
    """A routed place of a network. Nothing of it changes while a program runs."""

    num_experts: int  # E, true experts; of a pool that layers share, all of the pool
    k: int  # experts that each token chooses
    group_size: int = 1  # T, tokens that share capacity
    layer: int = 0  # number of this routed layer, from 0
    layers: int = 1  # routed layers of the network
    tokens_per_image: int = 1  # patches of an image where patches are routed
    pool_layer: int = 0  # number of this layer among those that share its experts
    pool_layers: int = 1  # how many layers share its experts
    kinds: tuple[int, ...] = ()  # of experts that differ: the number of each one's kind, by id
    skips: int = 0  # null experts that any router may choose; their ids follow those of true ones
