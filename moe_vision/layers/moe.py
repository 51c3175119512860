"""The routed layer as a Linen module. It holds parameters and state; `routing` has the arithmetic.

Axes: B tokens given (images, or patches), G groups, T tokens of a group, E experts, K choices,
D width, `*` payload of a token ([D], or [H, W, D] for a feature map), N tokens of a sequence.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh as DeviceMesh

from moe_vision.common.errors import UserError
from moe_vision.common.place import Place
from moe_vision.config import registry, typed
from moe_vision.config.kinds import as_kinds, kind_of_id, skips, true_kinds
from moe_vision.layers import sequences
from moe_vision.layers.banks import ExpertBank, Shared
from moe_vision.layers.exchange import run_plan, spans
from moe_vision.layers.experts import Expert
from moe_vision.layers.mixed import Mixed
from moe_vision.layers.route import Step, elsewhere, loss_key, make_plan, route_groups
from moe_vision.layers.router_variables import RouterVariables
from moe_vision.routing.router import Router
from moe_vision.routing.types import View, expect

Array = jax.Array
_RANKS = {2: '[B, D] or [B, N, D]', 4: '[B, H, W, D]'}  # of tokens that are vectors, or maps
LAYER_LOSSES = 'layer_losses'  # the scope of what is computed once per micro-batch, not per token


class MoE(nn.Module):
    """A routed block: each token goes to k of E experts, which have a fixed number of slots.

    It returns the residual branch. Add it to the input, so that a token whose choices were all
    dropped keeps its features.

    Types: experts compute in `dtype`, and the result has it; None takes x's type. Parameters are
    float32, and so is all that the router computes, whatever x is.

    Attributes:
      num_experts, k: E and K.
      group_size: T, tokens that share capacity; it must divide the number of tokens given.
      hidden: F, hidden width of one expert.
      router, expert: names in the tables of `config.registry`, or 'module:Class'.
      router_args, expert_args: a dict, or the Args of that router or expert.
      capacity_factor, eval_capacity_factor: slots per expert in training and in evaluation, as a
        multiple of k T / E; `float('inf')` makes room for all tokens.
      capacity_multiple: the number of slots is rounded up to a multiple of this.
      priority: 'token', 'gate' or 'random': who gets the slots first.
      losses: name -> weight. loss_args: name -> arguments, a dict or the Args of that loss.
      mesh: a ('data', 'expert') mesh, or None on one device.
      layer: number of this routed layer in its network; random keys derive from it.
      layers, tokens_per_image: routed layers of the network, and patches of an image where patches
        are routed; for routers that ask.
      kinds: experts that differ: dictionaries or `Kind`s, as `config.kinds` explains; `num_experts`
        is how many true experts they are.
      pool_layer, pool_layers: number of this layer among those that share its experts, and how
        many they are; for routers that ask.
      dtype: the type to which x is cast, such as jnp.bfloat16.
    """

    num_experts: int
    k: int
    group_size: int
    hidden: int
    router: str = 'top_k'
    router_args: Any = None
    expert: str = 'mlp'
    expert_args: Any = None
    capacity_factor: float = 1.25
    eval_capacity_factor: float = 2.0
    capacity_multiple: int = 1
    priority: str = 'token'
    losses: Mapping[str, float] | None = None
    loss_args: Mapping[str, Any] | None = None
    mesh: DeviceMesh | None = None
    layer: int = 0
    layers: int = 1
    tokens_per_image: int = 1
    pool_layer: int = 0
    pool_layers: int = 1
    kinds: Sequence[Any] = ()
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        step: Step | None = None,
        *,
        carry: Any = None,
        extras: dict[str, Array] | None = None,
        shared: Shared | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """x [B, *, D] to (branch [B, *, D], info).

        Experts of vectors also take sequences, x [B, N, D], as `sequences` explains. `shared` holds
        the experts and the router's arrays that other layers have too.

        info: 'losses' {name: weighted scalar}; 'telemetry' sums as in `routing.telemetry.count`;
        'observed', sums of what the router observed; 'changed', as in `Routed`; 'place';
        'choices' per token, [B, K]: 'expert', 'gate', 'kept'; 'carry' for the next routed layer.

        Raises:
          ValueError: the sizes do not fit each other or x, or something draws at random and
            `step` has no key.
          UserError: there is no such method or argument, or a method of your own returns something
            else than it must.
        """
        step, place, given = step or Step(), self.place, jnp.shape(x)
        if len(given) == 3 and self._takes[1] == ('vector',):
            x, step, place = sequences.flat(x, step, place)
        router = make_router(self.router, self.router_args, place)
        self._check(router, x)
        x = x if self.dtype is None else x.astype(self.dtype)
        shared = shared or Shared()
        alone = not (shared.params or shared.state)
        params, state = RouterVariables(router, x.shape[-1], alone, name='router')()
        variables = params | shared.params, state | shared.state
        others = step.compared_at('/'.join(self.path), variables[0])
        pooled = [
            self._features(router, own, x, step, extras or {})
            for own in (variables[0], *others.values())
        ]
        expert = self.make_experts(x.shape[-1])
        arrays = shared.bank or ExpertBank(expert, self.num_experts, name='experts')()
        across = self.mesh is not None and spans(x.shape[0], self.group_size, self.mesh.shape)

        def on_groups(context, x, features, replicated, bank):
            (params, state), intervention, others = replicated
            if router.pool is None:
                # A token is routed by its mean over space (the vector itself where it has none).
                mean = x.astype(jnp.float32).mean(tuple(range(2, x.ndim - 1)))
                features = [mean] * len(features)
            whole = self.mesh is None or self.mesh.shape['expert'] == 1
            experts = {'bank': bank, 'expert': expert} if whole else {}
            view = View(place, params=params, state=state, tokens=x, **experts)
            reads = whole and 'bank' in router.needs

            def chosen(params, features):
                seen = context.with_view(dataclasses.replace(view, params=params), reads)
                return router(params, state, features, seen)

            with jax.named_scope('router'):
                routing = chosen(params, features[0])
                pairs = zip(others.items(), jax.lax.stop_gradient(features[1:]), strict=True)
                changed = {
                    name: elsewhere(routing, chosen(own, f), context) for (name, own), f in pairs
                }
            if intervention is not None:
                routing = intervention(routing, context, self.layer, self.num_experts)
            plan = make_plan(self, routing, context)
            y = run_plan(plan, x, expert, bank, self.num_experts, self.mesh, across, step.train)
            return y, routing, plan, view, changed

        of_groups, of_layer, loss_args = self._losses()
        routed = route_groups(
            self,
            on_groups,
            step,
            x.shape[0],
            x=x,
            shared=(variables, jax.tree.map(jnp.asarray, step.intervention), others),
            bank=arrays,
            losses=of_groups,
            loss_args=loss_args,
            router=router,
            features=pooled,
            carry=carry,
            extras=extras,
        )
        info = routed.info(of_groups, place)
        if step.train and of_layer:
            view = View(place, None, *variables, bank=arrays, expert=expert)
            info['losses'] |= self._of_layer(of_layer, loss_args, view, step)
        return sequences.whole(routed.y, info, given)

    @property
    def _takes(self) -> tuple[str, tuple[str, ...]]:
        """The name of the (first) expert, and what tokens it takes: 'vector' or 'map'."""
        kinds = true_kinds(as_kinds(self.kinds))
        name = kinds[0].expert or self.expert if kinds else self.expert
        return name, registry.entry('expert', registry.EXPERTS, name).needs

    @property
    def place(self) -> Place:
        """What the router and the losses may know of where this layer stands."""
        return Place(
            self.num_experts,
            self.k,
            self.group_size,
            self.layer,
            self.layers,
            self.tokens_per_image,
            self.pool_layer,
            self.pool_layers,
            kind_of_id(as_kinds(self.kinds)),
            skips(as_kinds(self.kinds)),
        )

    def make_experts(self, width: int) -> Expert:
        """What this layer runs on slots with D = width; its parameters have the name `experts`."""
        return make_experts(self.kinds, self.expert, self.expert_args, width, self.hidden)

    def _features(
        self, router: Router, params: Any, x: Array, step: Step, extras: dict[str, Array]
    ) -> Array | None:
        """[B, D'] as the router pools them; None if it takes the mean, where the groups are."""
        if router.pool is None:
            return None
        extras = step.extras | extras | ({} if step.images is None else {'image': step.images})
        if 'image' in router.needs and 'image' not in extras:
            raise UserError(
                f"router {type(router).__name__} needs 'image'; put it into Step.images."
            )
        with jax.named_scope('router'):
            features = router.pool(params, x, extras)
        shape = (x.shape[0], *getattr(features, 'shape', (0, 0))[1:2])
        expect(f'{type(router).__name__}.pool', features, shape, 'float32', "[B, D']")
        return features

    def _losses(self) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        """Weights of the losses of groups and of those of the layer, and the arguments of all."""
        weights: tuple[dict[str, float], dict[str, float]] = {}, {}
        args = {}
        for name, weight in (self.losses or {}).items():
            entry = registry.entry('loss', registry.LOSSES, name)
            if weight:
                weights[entry.of_layer][name] = weight
                args[name] = make_args('loss', name, entry, (self.loss_args or {}).get(name))
        return *weights, args

    def _of_layer(
        self, weights: Mapping[str, float], args: Mapping[str, Any], view: View, step: Step
    ) -> dict[str, Array]:
        """Weighted losses of the layer, each a scalar."""
        key = None if step.key is None else jax.random.fold_in(step.key, self.layer)
        losses = {}
        for name, weight in weights.items():
            fn = registry.load(registry.entry('loss', registry.LOSSES, name).path)
            with jax.named_scope(LAYER_LOSSES):
                value = fn(dataclasses.replace(view, args=args[name]), loss_key(key, name))
            expect(f"loss '{name}'", value, (), 'float32', 'one number')
            losses[name] = weight * value
        return losses

    def _check(self, router: Router, x: Array) -> None:
        """Raises ValueError for sizes that nothing else would refuse, or in words of its own."""
        for name in ('num_experts', 'k', 'group_size', 'hidden', 'capacity_multiple'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}; it must be at least 1')
        entry = registry.entry('router', registry.ROUTERS, self.router)
        if self.k > router.num_ids and 'k' not in entry.ignores:
            raise ValueError(
                f'k is {self.k} but num_experts is {self.num_experts}; k can be 1 to '
                f'{router.num_ids}'
            )
        kinds = true_kinds(as_kinds(self.kinds))
        if kinds and sum(k.count for k in kinds) != self.num_experts:
            raise ValueError(
                f'num_experts is {self.num_experts}, but kinds has '
                f'{sum(k.count for k in kinds)} true experts'
            )
        expert, needs = self._takes
        ranks = [n for kind, n in (('vector', 2), ('map', 4)) if kind in needs]
        if x.ndim < 2 or (ranks and x.ndim not in ranks):
            wanted = ' or '.join(_RANKS[n] for n in ranks or [2, 4])
            hint = (
                f'; a token is a row of the first axis, so reshape to [-1, {x.shape[-1]}] to route '
                'each vector'
                if x.ndim > 2 and 2 in ranks
                else ''
            )
            raise ValueError(
                f"x has shape {list(x.shape)} but expert '{expert}' takes tokens {wanted}" + hint
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f'x is {x.dtype}, but experts compute in the type of x; give floats')


def make_router(name: str, args: Any, place: Place) -> Router:
    """The router at a place, by a table name and its arguments (a dict, its Args or None).

    Raises UserError: there is no such router or argument.
    """
    entry = registry.entry('router', registry.ROUTERS, name)
    return registry.load(entry.path)(make_args('router', name, entry, args), place)


def make_expert(name: str, args: Any, width: int, hidden: int) -> Expert:
    """The expert that a table name and its arguments (a dict, its Args or None) describe.

    Raises UserError: there is no such expert or argument.
    """
    entry = registry.entry('expert', registry.EXPERTS, name)
    return registry.load(entry.path)(make_args('expert', name, entry, args), width, hidden)


def make_experts(kinds: Sequence[Any], name: str, args: Any, width: int, hidden: int) -> Expert:
    """The experts of a layer as one object: those of several kinds, or equal ones as `make_expert`.

    Args:
      kinds: as `MoE.kinds`; () for equal experts.
      name, args: of equal experts, and of kinds that name none.
      hidden: F, of kinds that have no other.

    Raises UserError: there is no such expert or argument.
    """
    made = []
    for kind in true_kinds(as_kinds(kinds)):
        named = (kind.expert or name, kind.args if kind.expert or kind.args else args)
        expert = make_expert(*named, width, kind.hidden or hidden)
        if kind.divide > 1:
            narrow = -(-expert.hidden // (kind.divide * expert.multiple)) * expert.multiple
            expert = make_expert(*named, width, narrow)
        made.append((expert, kind.count))
    return Mixed(made) if made else make_expert(name, args, width, hidden)


def make_args(kind: str, name: str, entry: registry.Entry, args: Any) -> Any:
    """The Args of a method from a dict, its Args or None.

    Raises UserError: there is no such argument.
    """
    if args is None or isinstance(args, Mapping):
        return typed.build(entry.args, args or {}, f'{kind}_args', f"argument of {kind} '{name}'")
    if not isinstance(args, entry.args):
        raise UserError(
            f"{kind}_args is a {type(args).__name__}; {kind} '{name}' takes a dictionary or "
            f'{entry.args.__name__}.'
        )
    return args
