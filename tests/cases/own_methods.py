"""Methods of a user's own: right ones, and each mistake that must be told in one line."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from own_helper import Fails

from moe_vision.config.backbone_args import ConvNetArgs
from moe_vision.layers import DenseBlock, ExpertBank, MoE, Shared
from moe_vision.layers.experts import Expert, Mlp
from moe_vision.layers.moe import make_expert
from moe_vision.models.branch import Infos, run_branch
from moe_vision.models.conv import ConvNet
from moe_vision.models.vit import Vit
from moe_vision.routing.router import Router
from moe_vision.routing.routers.bias_balanced import BiasBalanced
from moe_vision.routing.routers.soft import Soft
from moe_vision.routing.routers.top_k import TopK
from moe_vision.routing.types import pick, top_k_ids
from moe_vision.transforms.freeze_router import FreezeRouter
from moe_vision.transforms.types import Transform, bank_of, by_path


def with_field(name, change, base=TopK):
    """A router whose choice has one field changed."""

    class Changed(base):
        def choose(self, params, state, features, context):
            routing = super().choose(params, state, features, context)
            return dataclasses.replace(routing, **{name: change(getattr(routing, name))})

    return Changed


Right = TopK
GateOfWrongRank = with_field('gate', lambda a: a[..., 0])
GateOfWrongType = with_field('gate', lambda a: a.astype(jnp.bfloat16))
IdsOfWrongRank = with_field('expert_of_choice', lambda a: a[..., 0])
IdsAreFloats = with_field('expert_of_choice', lambda a: a.astype(jnp.float32))
ActiveOfOneChoice = with_field('active', lambda a: a[..., :1])
ProbsOfTooFew = with_field('probs', lambda a: a[..., 1:])
NoLogits = with_field('logits', lambda a: None)
CarryOfTokens = with_field('carry', lambda a: jnp.zeros(3))
ScalarCombine = with_field('combine', lambda a: a.sum(), Soft)
IgnoresValid = with_field('active', jnp.ones_like)
IgnoresValidSoftly = with_field('dispatch', lambda a: jnp.ones_like(a) / a.shape[1], Soft)
SeesOtherGroups = with_field('gate', lambda a: a + a.mean())
IdsBeyondAll = with_field('expert_of_choice', lambda a: a + 100)
NoProbabilities = with_field('probs', lambda a: 2 * a)


class DrawsForAllGroups(TopK):
    """Draws with the layer's key instead of one key for each group."""

    draws = True

    def choose(self, params, state, features, context):
        routing = super().choose(params, state, features, context)
        drawn = jax.random.uniform(context.key, routing.gate.shape)
        return dataclasses.replace(routing, gate=drawn)


class ReadsExperts(TopK):
    """Autonomy of experts: those whose first matrix finds most in a token take it."""

    needs = ('bank',)

    def choose(self, params, state, features, context):
        view = context.view
        found = jnp.einsum('gtd,edf->gtef', features, view.expert.first_matrix(view.bank))
        logits = jnp.sqrt(jnp.square(found).sum(-1) + 1e-6)
        ids = top_k_ids(logits, self.k)
        return self.routing(context, logits, ids, pick(jax.nn.softmax(logits), ids))


class Residual(TopK):
    """Adds the logits of the layer before, which the first layer has none of."""

    def params(self, width):
        own = super().params(width)
        square = ((self.num_ids, self.num_ids), jax.nn.initializers.zeros)
        return own | ({'residual': square} if self.place.layer else {})

    def choose(self, params, state, features, context):
        logits = features @ params['kernel']
        if context.carry is not None:
            logits += context.carry @ params['residual']
        ids = top_k_ids(logits, self.k)
        gate = pick(jax.nn.softmax(logits), ids)
        return self.routing(context, logits, ids, gate, carry=logits)


class ForgetsTheSecondLayer(Residual):
    def params(self, width):
        return TopK.params(self, width)


class MutableArgs(TopK):
    @dataclasses.dataclass
    class Args:
        temperature: float = 1.0


class ChoosesTwice(TopK):
    def choose(self, params, state, features, context):
        routing = super().choose(params, state, features, context)
        first = routing.expert_of_choice[..., :1]
        return dataclasses.replace(routing, expert_of_choice=jnp.concatenate([first, first], -1))


class DrawsWhenSettled(TopK):
    def choose(self, params, state, features, context):
        routing = super().choose(params, state, features, context)
        draw = jax.vmap(lambda key: jax.random.uniform(key, routing.gate.shape[1:]))
        return dataclasses.replace(routing, gate=draw(context.keys(0)))


class ObservesPadding(TopK):
    def observe(self, routing, context):
        return {'sure': routing.probs.max(-1).sum(1)}


class ObservesANumber(TopK):
    def observe(self, routing, context):
        return {'sure': routing.probs.mean()}


class TakesTheLength(TopK):
    def choose(self, params, state, features, context):
        each = [features[g : g + 1] for g in range(len(features))]
        return super().choose(params, state, jnp.concatenate(each), context)


class KeepsAnArray(TopK):
    def choose(self, params, state, features, context):
        self.last = getattr(self, 'last', 0.0) + features.mean()
        return super().choose(params, state, features + 0 * self.last, context)


class BranchesOnAValue(TopK):
    def choose(self, params, state, features, context):
        if context.fraction > 0.5:
            features = 2 * features
        return super().choose(params, state, features, context)


class LacksArgs(Router):
    def choose(self, params, state, features, context):
        return features / self.args.temperature


class LacksTheState(Router):
    def choose(self, params, features, context):
        raise NotImplementedError


class ParamsWithoutInitializer(TopK):
    def params(self, width):
        return {'kernel': (width, self.num_ids)}


class ParamsOfAList(TopK):
    def params(self, width):
        return [width]


class FailsElsewhere(Fails):
    pass


class LoopOfUnknownLength(TopK):
    def choose(self, params, state, features, context):
        def more(kernel):
            return jnp.abs(kernel).sum() > 1.0

        kernel = jax.lax.stop_gradient(params['kernel'])
        small = jax.lax.while_loop(more, lambda w: w @ jnp.eye(w.shape[1]) / 2, kernel)
        return super().choose({'kernel': small}, state, features, context)


class ReturnsNone(TopK):
    def choose(self, params, state, features, context):
        super().choose(params, state, features, context)


class Raises(TopK):
    def choose(self, params, state, features, context):
        return params['kernle']


class StateGrows(BiasBalanced):
    def update_state(self, state, sums):
        return {'bias': jnp.concatenate([state['bias'], state['bias']])}


class StateOfOtherType(BiasBalanced):
    def update_state(self, state, sums):
        return {'bias': sums['chosen'].astype(jnp.int32)}


class StateForgotten(BiasBalanced):
    def update_state(self, state, sums):
        state['bias'] + sums['chosen']


class StateOfOtherNames(BiasBalanced):
    def update_state(self, state, sums):
        return state | {'more': sums['chosen']}


class PlainArgs(Router):
    class Args:
        temperature = 1.0


class ArgsWithWrongAnnotation(Router):
    @dataclasses.dataclass(frozen=True)
    class Args:
        temperature: 'Tensor' = 1.0  # noqa: F821


class NoRouter:
    pass


def l1(routing, context, view):
    """A right loss: mean |logit| of the valid tokens."""
    each = jnp.where(context.valid, jnp.abs(routing.logits).mean(-1), 0.0)
    return each.sum(1) / jnp.maximum(context.valid.sum(1), 1)


def draws(routing, context, view):
    """A right loss that draws at random, for each group by itself."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, ()))(context.keys(0))
    return l1(routing, context, view) * noise


def of_labels(routing, context, view):
    """A right loss that reads labels, in training alone."""
    del view
    if context.labels is None:
        return jnp.zeros(routing.probs.shape[0])
    first = jax.nn.log_softmax(routing.logits)[..., 0]
    return jnp.where(context.valid & (context.labels == 0), -first, 0.0).sum(1)


of_labels.needs = ('labels',)


def two_arguments(routing, view):
    return jnp.zeros(routing.probs.shape[0])


def reads_experts_unasked(routing, context, view):
    return jnp.zeros(routing.probs.shape[0]) + view.bank['in_kernel'].sum()


def needs_what_nobody_has(routing, context, view):
    return jnp.zeros(routing.probs.shape[0])


needs_what_nobody_has.needs = ('banks',)


def scalar(routing, context, view):
    return jnp.abs(routing.logits).mean()


def per_token(routing, context, view):
    return jnp.abs(routing.logits).mean(-1)


def integer(routing, context, view):
    return context.valid.sum(-1)


def nothing(routing, context, view):
    l1(routing, context, view)


def counts_padding(routing, context, view):
    return jnp.abs(routing.logits).mean((1, 2))


def over_groups(routing, context, view):
    return jnp.broadcast_to(l1(routing, context, view).mean(), context.valid.shape[:1])


def not_finite(routing, context, view):
    return jnp.where(context.valid, routing.logits.sum(-1), 0.0).sum(1) / context.valid.sum(1)


not_callable = 3.0


class Doubled(Mlp):
    """Overrides `apply_stacked` alone."""

    def apply_stacked(self, params, x):
        return 2 * super().apply_stacked(params, x)


class Nothing(Expert):
    """An expert without parameters, which copies its tokens."""

    needs = ('vector', 'map')

    def shapes(self):
        return {}

    def apply(self, params, x):
        return x


class ShapesWithoutInitializer(Expert):
    def shapes(self):
        return {'w': (self.width, self.width)}

    def apply(self, params, x):
        return x @ params['w']


class Scaled(Mlp):
    """Overrides `apply` alone, with a parameter that the stacked form of its base cannot read."""

    def shapes(self):
        return super().shapes() | {'scale': ((self.width,), jax.nn.initializers.normal())}

    def apply(self, params, x):
        return super().apply({n: p for n, p in params.items() if n != 'scale'}, x) * params[
            'scale'
        ].astype(x.dtype)


class Ranked(Expert):
    """Its hidden width goes up in steps of `step`, which has no default."""

    @dataclasses.dataclass(frozen=True)
    class Args:
        step: int

    def shapes(self):
        rank = -(-self.hidden // self.args.step) * self.args.step
        draw = jax.nn.initializers.lecun_normal()
        return {'down': ((self.width, rank), draw), 'up': ((rank, self.width), draw)}

    def apply(self, params, x):
        return x @ params['down'].astype(x.dtype) @ params['up'].astype(x.dtype)


class Square(Expert):
    """It has no hidden width, and does not say so."""

    def shapes(self):
        return {'kernel': ((self.width, self.width), jax.nn.initializers.lecun_normal())}

    def apply(self, params, x):
        return x @ params['kernel'].astype(x.dtype)


class StackedOnly(Expert):
    """Defines `apply_stacked` and no `apply`."""

    def shapes(self):
        return {'kernel': ((self.width, self.width), jax.nn.initializers.lecun_normal())}

    def apply_stacked(self, params, x):
        return jnp.einsum('end,edf->enf', x, params['kernel'].astype(x.dtype))


class AppliesOtherwise(StackedOnly):
    """Defines both, and they disagree."""

    def apply(self, params, x):
        return 1 + x @ params['kernel'].astype(x.dtype)

    def apply_stacked(self, params, x):
        return super().apply_stacked(params, x)


class MixesExperts(StackedOnly):
    def apply_stacked(self, params, x):
        return jnp.einsum('end,df->enf', x, params['kernel'].mean(0).astype(x.dtype))


class WrongWidth(StackedOnly):
    def apply(self, params, x):
        return (x @ params['kernel'].astype(x.dtype))[..., 1:]


class InFloat32(StackedOnly):
    def apply(self, params, x):
        return x.astype(jnp.float32) @ params['kernel']


class MixesTokens(StackedOnly):
    def apply(self, params, x):
        return (x - x.mean(0)) @ params['kernel'].astype(x.dtype)


class SubConv(ConvNet):
    """A right backbone: it runs the one it derives from, and takes arguments and unit from it."""

    @nn.compact
    def __call__(self, images, step):
        return super().__call__(images, step)


class SubVit(Vit):
    @nn.compact
    def __call__(self, images, step):
        logits, infos = super().__call__(images, step)
        return 2 * logits, infos


class LogitsAlone(ConvNet):
    @nn.compact
    def __call__(self, images, step):
        return super().__call__(images, step)[0]


class LogitsInHalf(ConvNet):
    @nn.compact
    def __call__(self, images, step):
        logits, infos = super().__call__(images, step)
        return logits.astype(jnp.bfloat16), infos


class TooManyLogits(ConvNet):
    @nn.compact
    def __call__(self, images, step):
        logits, infos = super().__call__(images, step)
        return jnp.concatenate([logits, logits], -1), infos


class ForgetsReports(ConvNet):
    @nn.compact
    def __call__(self, images, step):
        return super().__call__(images, step)[0], {}


class OddUnit(ConvNet):
    unit = 'patches'


class NoTokens(ConvNet):
    unit = 'patch'


class Pool(nn.Module):
    """A right backbone whose two routed layers share a pool of experts; each has its own k."""

    model: object
    num_classes: int
    mesh: object = None

    unit = 'image'
    expert = 'mlp'

    @nn.compact
    def __call__(self, images, step):
        moe, infos = self.model.moe, Infos()
        x = nn.Dense(16, name='stem')(images.reshape(len(images), -1))
        pool = ExpertBank(make_expert('mlp', None, 16, 32), moe.num_experts, name='pool')()
        shared = Shared(bank=pool, bank_path='pool')
        for i in range(2):
            name = f'block_{i}'
            if self.model.twin == 'none':
                branch = MoE(moe.num_experts, moe.k, moe.group_size, 32, layer=i, name=name)
            else:
                branch = DenseBlock(make_expert('mlp', None, 16, 32), name=name)
            x = x + run_branch(branch, x, step, infos, shared=shared)
        return nn.Dense(self.num_classes, name='classifier')(x), infos.by_layer


class Wrapped(nn.Module):
    """A network of the table behind a product of its own."""

    model: object
    num_classes: int
    mesh: object = None
    Args, unit, expert, supplies = ConvNetArgs, 'image', 'conv', ('map', 'image')

    @nn.compact
    def __call__(self, images, step):
        images = nn.Dense(3, name='mix')(images)
        return ConvNet(self.model, self.num_classes, self.mesh, name='body')(images, step)


class SeesLoads(Transform):
    """A right transform that notes the routed layers and the number of their experts."""

    seen: list = []

    def init(self, params):
        return {}

    def observe(self, routes, params, *, step, state):
        self.seen.extend((layer, len(given['load'])) for layer, given in routes.items())
        return state


class Damps(Transform):
    """A right transform: steps of banks shrink as they repeat; it keeps a sum for each expert."""

    @dataclasses.dataclass(frozen=True)
    class Args:
        rate: float = 0.5

    def init(self, params):
        return by_path(lambda path, p: jnp.zeros(p.shape[:1] if bank_of(path) else ()), params)

    def update(self, updates, params, *, step, state):
        def damp(path, u, s):
            return u / (1 + self.args.rate * s.reshape(-1, *[1] * (u.ndim - 1))) if s.ndim else u

        def add(path, u, s):
            return s + jnp.abs(u).sum(range(1, u.ndim)) if s.ndim else s

        return by_path(damp, updates, state), by_path(add, updates, state)


class Mixes(Transform):
    """A right transform with products: the update of each router times a matrix of ones, [D, D]."""

    def update(self, updates, params, *, step, state):
        def mix(path, u):
            return jnp.ones((len(u), len(u))) @ u if path.endswith('router/kernel') else u

        return by_path(mix, updates), state


class ZShakes(Transform):
    """A right transform that moves everything, last of all by its name."""

    def update(self, updates, params, *, step, state):
        return jax.tree.map(lambda u: u + 0.1, updates), state


class UpdatesOfWrongShape(Transform):
    def update(self, updates, params, *, step, state):
        return jax.tree.map(lambda u: u.sum(), updates), state


class UpdatesOfWrongType(Transform):
    def update(self, updates, params, *, step, state):
        return jax.tree.map(lambda u: u.astype(jnp.bfloat16), updates), state


class ForgetsAnUpdate(Transform):
    def update(self, updates, params, *, step, state):
        return updates | {'stem': {}, 'block_0': {}}, state


class ForgetsTheState(Damps):
    def update(self, updates, params, *, step, state):
        return super().update(updates, params, step=step, state=state)[0]


class TransformStateGrows(Transform):
    def init(self, params):
        return {'seen': jnp.zeros(1)}

    def update(self, updates, params, *, step, state):
        return updates, {'seen': jnp.zeros(2)}


class StateOfBools(Transform):
    def init(self, params):
        return {'done': jnp.zeros((), bool)}


class MovesOfWrongShape(Transform):
    def moves(self, path, param, *, step, state):
        return jnp.ones(7, bool)


class MovesByHalf(Transform):
    def moves(self, path, param, *, step, state):
        return 0.5 * jnp.ones(param.shape)


class MovesForgotten(Transform):
    def moves(self, path, param, *, step, state):
        self.steps + step


class BranchesOnTheStep(Transform):
    def moves(self, path, param, *, step, state):
        return True if step > 3 else False


class TakesNoState(Transform):
    def update(self, updates, params, step):
        return updates


class Unsettles(FreezeRouter):
    def settled(self, *, step, state):
        return step % 2 == 0


class SettlesByLayer(Transform):
    def settled(self, *, step, state):
        return jnp.ones(2, bool)


class NotFiniteUpdate(Transform):
    def update(self, updates, params, *, step, state):
        return jax.tree.map(lambda u: u / step, updates), state
