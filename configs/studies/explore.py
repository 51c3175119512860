"""Where does the answer of `confirm` hold: longer training, other networks, fewer images?

The exploratory record of the Fashion-MNIST campaign. Its argument is the part; the most valuable
come first. Each comparison is judged by itself, so nothing here is confirmed.

  length: the gate's networks after 8, 24 and 72 epochs, now on test images. Nothing is trained: the
    cells are the gate's, whose seeds also chose the learning rates.
  wider: twice the channels. A larger network underfits less: is its gap smaller?
  vit: a second family, which routes patches. It tunes its own learning rates.
  controls: what of a gap is due to drops, to the scale of gates, or to what the router learned.
  data: a quarter of the images, in as many steps.
  groups: images share slots 64 at a time instead of 256, and batches of 64.
  trunk: a routed share that is small because the rest of the network costs more, not because its
    experts are narrow.
  soft: Soft MoE that mixes images, gates that are even, and an ensemble.
  family: a depthwise network at the routed shares of three widths of the standard one.
  places: a head without a shortcut, and every block.
  experts: 2, 4 and 16 experts instead of 8, with gates of one scale.
  widest: four times the channels.

The parts but `length` and `vit` take the cells that `confirm` has run: run it first, in a folder of
that name beside theirs, and the parts in folders of their names. `experts` also reads `controls`.
Networks that `confirm` does not have take the learning rate of its nearest: of the same k, and in
`family` of the same routed share. Only `vit` tunes.

Run: python -m moe_vision.study run --study=configs/studies/explore.py:controls \
         --workdir=results/fashion_mnist_14/controls
"""

from typing import Any

from configs.studies import gate
from configs.studies.beside_confirm import (
    FOUR,
    GAPS,
    at_equal_share,
    four_beside_confirm,
    gaps,
    lent,
    rate_of,
    study,
    tuned,
)
from configs.studies.campaign import (
    CHOSEN,
    GATE_SEEDS,
    K1,
    K1_DROPS,
    scored,
)
from configs.studies.common import CONTROLS, DENSE_AGAIN
from configs.studies.confirm import PER_SAMPLE, SAME_C, hidden
from configs.studies.data_set import Overrides
from moe_vision.config import source
from moe_vision.study.types import Arm, FamilyDifference, Study, Tuning


def get_study(part: str = '') -> Study:
    parts = (
        length,
        wider,
        vit,
        controls,
        data,
        groups,
        trunk,
        soft,
        family,
        places,
        experts,
        widest,
    )
    return source.chosen('part', part, {p.__name__: p for p in parts})()


def length() -> Study:
    of_gate = gate.length()
    return study(
        'length',
        'How do the gaps on test images change with the length of training?',
        of_gate.arms,
        of_gate.comparisons,
        family_differences={
            name: FamilyDifference(of.pairs) for name, of in of_gate.family_differences.items()
        },
        seeds=GATE_SEEDS,
        tuning=of_gate.tuning,
        reads=('../gate/length', '../gate/underfit'),
    )


def wider() -> Study:
    return four_beside_confirm(
        'wider',
        'Are the gaps smaller in networks of twice the width, which underfit less?',
        {'model.args': {'widths': (8, 16), 'depth': 1}},
    )


def vit() -> Study:
    network: Overrides = {
        'model.name': 'vit',
        'model.args': {'width': 16, 'depth': 2, 'heads': 2, 'patch_size': 4},
        'dataset.image_size': 16,  # 16 patches; those of 16 images share capacity
        'model.moe.expert_args': {},
    }
    return study(
        'vit',
        'Do experts help where patches are routed, and not whole images?',
        {name: scored(network, kind) for name, kind in FOUR.items()},
        gaps(*GAPS),
        tune=Tuning(
            {'train.learning_rate': (1e-3, 3e-3, 1e-2)},
            {name: () for name in FOUR},
            seeds=GATE_SEEDS[:2],
        ),
        tuning='The stage before this study.',
        reads=(),
    )


def controls() -> Study:
    room = float('inf')
    unbounded = {'model.moe.capacity_factor': room, 'model.moe.eval_capacity_factor': room}

    def router(**args: Any) -> Overrides:
        return {'model.moe.router_args': {'noise': 'gaussian', **args}}  # noise as in all arms

    arms = {
        'random': tuned('k2', CONTROLS['random']),
        'k1_unbounded': tuned('k1', unbounded),
        # By E / k: gates begin near 1 and not 1/E.
        'k1_scaled': tuned('k1', router(gate_scale=8.0)),
        'k1_plus_random': tuned('k2', router(second_choice='random_expert')),
        'frozen_random': tuned('k2', CONTROLS['frozen_random']),
        'k2_scaled': tuned('k2', router(gate_scale=4.0)),
        'k2_unbounded': tuned('k2', unbounded),
        # What a second expert is worth, at equal slots and gates that begin equal.
        'k2_h4_scaled': scored(rate_of('k2_h4'), hidden(4), router(gate_scale=4.0)),
        'k1_same_c_scaled': scored(rate_of('k1_same_c'), K1, SAME_C, router(gate_scale=8.0)),
        'shuffled': tuned('k2', CONTROLS['shuffled']),
        'dense_again': tuned('dense', seed_offset=DENSE_AGAIN),
    }
    pairs = [
        *(('k2', control) for control in CONTROLS),
        *((control, 'dense_active') for control in CONTROLS),
        *((f'k1_{kind}', other) for kind in ('unbounded', 'scaled') for other in ('k1', 'dense')),
        ('k1_plus_random', 'k1'),
        ('k2', 'k1_plus_random'),
        ('k2_scaled', 'k2'),
        ('k2_unbounded', 'k2'),
        ('k2_h4_scaled', 'k1_same_c_scaled'),
        ('dense_again', 'dense'),
    ]
    if K1_DROPS:
        twin = {'model.twin': 'same_measured_drops', 'model.measured_drops': K1_DROPS}
        arms['dense_drops_k1'] = tuned('dense', K1, twin)
        pairs += [('dense_drops_k1', 'dense'), ('k1', 'dense_drops_k1')]
    return study(
        'controls',
        'What of the gaps is due to drops, to the scale of gates, or to what the router learned?',
        arms | lent(*FOUR),
        gaps(*pairs),
        mechanism=True,
    )


def data() -> Study:
    return four_beside_confirm(
        'data',
        'Are the gaps others with a quarter of the images, in as many steps?',
        {
            'dataset.train_images': 14_250,
            'train.epochs': 96.0,
            'train.warmup_epochs': 4.0,
            'eval.every_epochs': 16.0,
        },
    )


def groups() -> Study:
    small: Overrides = {'model.moe.group_size': 64}
    batch: Overrides = {**small, 'train.batch_size': 64}
    arms = {
        'k2_groups': tuned('k2', small),
        'k1_groups': tuned('k1', small),
        **{f'{network}_batch': tuned(network, batch) for network in FOUR},
    }
    return study(
        'groups',
        'Do the gaps depend on how many images share slots, or on the size of a batch?',
        arms | lent(*FOUR),
        gaps(
            ('k2_groups', 'k2'),
            ('k1_groups', 'k1'),
            *((f'{a}_batch', f'{b}_batch') for a, b in GAPS),
            *GAPS,
        ),
    )


def trunk() -> Study:
    return at_equal_share(
        'trunk',
        'Does the routed share predict the gap, however it is reached?',
        {
            h: (f'trunk_{width}', {'model.args': {'widths': (width, 8), 'depth': 1}})
            for h, width in {4: 6, 2: 9}.items()  # channels of the first stage
        },
        rates=('k2', 'dense_active'),  # whose routed blocks are these
    )


def family() -> Study:
    return at_equal_share(
        'family',
        'Does a depthwise network have the gap of a standard one with the same routed share?',
        {
            h: (f'depthwise_{width}', {'model.name': 'depthwise', **hidden(width)})
            for h, width in {2: 8, 8: 45, 32: 193}.items()
        },
    )


def soft() -> Study:
    def mixing(experts: int, **args: Any) -> Arm:
        return scored(
            PER_SAMPLE,
            {
                'train.learning_rate': CHOSEN['per_sample_4'],
                'model.moe.num_experts': experts,
                'model.moe.router_args': args,
            },
        )

    return study(
        'soft',
        'Does Soft MoE lose where its slots mix images, and what do gates add where none do?',
        {
            'batch_4x1': mixing(4, axis='batch', slots_per_expert=1),
            'batch_8x4': mixing(8, axis='batch', slots_per_expert=4),
            'per_sample_even': mixing(4, axis='none', gate='even'),
            'ensemble': tuned('dense', {'model.twin': 'ensemble'}),
            **lent('per_sample_4', 'dense', 'dense_active', 'dense_h32', 'k2'),
        },
        gaps(
            ('batch_4x1', 'dense'),
            ('batch_8x4', 'dense'),
            ('per_sample_4', 'batch_4x1'),
            ('per_sample_4', 'per_sample_even'),
            ('per_sample_even', 'dense_h32'),
            ('ensemble', 'dense_active'),
            ('k2', 'ensemble'),
        ),
    )


def places() -> Study:
    head: Overrides = {'model.moe.placement': 'pure_head', 'model.moe.expert_args': {}}
    every: Overrides = {'model.moe.placement': 'every_1'}
    return study(
        'places',
        'What are the gaps where the head alone is routed, or every block?',
        {
            'head_k2': tuned('k2', head),
            'head_k1': tuned('k1', head),
            'head_dense': tuned('dense', head),
            'head_active': tuned('dense_active', head),
            'every_k2': tuned('k2', every),
            'every_active': tuned('dense_active', every),
            **lent('k2', 'dense_active'),
        },
        gaps(
            ('head_k2', 'head_active'),
            ('head_k2', 'head_dense'),
            ('head_k1', 'head_dense'),
            ('every_k2', 'every_active'),
            ('k2', 'dense_active'),
        ),
    )


def experts() -> Study:
    # Gates of the softmax over E experts begin near 1/E, so they are scaled by E / k in all.
    some = {
        f'of_{n}': tuned(
            'k2',
            {
                'model.moe.num_experts': n,
                'model.moe.router_args': {'noise': 'gaussian', 'gate_scale': n / 2},
            },
        )
        for n in (2, 4, 8, 16)
    }
    return study(
        'experts',
        'How does the gain of two experts depend on how many there are to choose from?',
        some | lent('dense_active'),
        gaps(*((arm, 'dense_active') for arm in some), ('of_16', 'of_8'), ('of_8', 'of_2')),
        reads=('confirm', 'controls'),
    )


def widest() -> Study:
    return four_beside_confirm(
        'widest',
        'Are the gaps smaller in networks of four times the width?',
        {'model.args': {'widths': (16, 32), 'depth': 1}},
    )
