"""Writes the text of a study file that asks the project's question of any set of images."""

import dataclasses
from string import Template

from input_pipeline import DatasetInfo
from moe_vision.study.design import EXPERTS, RATES, Sizes


@dataclasses.dataclass(frozen=True)
class Choices:
    """The numbers of a study file.

    Attributes:
      name: of the study; [a-z0-9_]+.
      data_dir: where the prepared set lies; '' is the default.
      validation_fraction: as `dataset.validation_fraction`.
      resident: as `dataset.resident`.
      seeds: how many the answer reports.
      steps: of every run.
      margin: of equivalence, pp.
      length: in words, how seeds and steps follow from the budget.
    """

    name: str
    dataset: str
    data_dir: str
    backbone: str
    sizes: Sizes
    validation_fraction: float
    resident: bool
    seeds: int
    steps: int
    margin: float = 0.5
    length: str = 'Seeds and length were chosen by hand.'


def text(choices: Choices, info: DatasetInfo) -> str:
    """The study file. It passes `load` with the arguments 'gate' and 'answer'."""
    sizes, rates = choices.sizes, RATES[choices.backbone]
    images = info.split_sizes['train']
    vit = choices.backbone == 'vit'
    rest = ''
    if not vit:  # a small network's widths are not multiples of the usual 8
        rest += "\n    c.model.moe.expert_args = {'norm_groups': 2}  # must divide the widths"
    scored = min(images, max(info.split_sizes['validation'], 2_000))
    rest += (
        '\n    # At the end, score this many training images, too: does the network underfit?'
        f'\n    c.eval.train_images = {scored}'
    )
    return _FILE.substitute(
        name=choices.name,
        length=choices.length,
        dataset=repr(choices.dataset),
        data_dir=repr(choices.data_dir),
        fraction=choices.validation_fraction,
        size=sizes.image_size,
        resident=choices.resident,
        images=f'{images:,}',
        validation=f'{info.split_sizes["validation"]:,}',
        test=f'{info.split_sizes["test"]:,}',
        classes=f'{info.num_classes:,}',
        backbone=repr(choices.backbone),
        network=sizes.network,
        smaller='a smaller width' if vit else 'smaller widths',
        experts=EXPERTS,
        group=sizes.group_size,
        tokens='patches' if vit else 'images',
        rest=rest,
        steps=choices.steps,
        epochs=f'{choices.steps * sizes.batch_size / images:.1f}',
        batch=sizes.batch_size,
        warmup=choices.steps // 20,
        every=choices.steps // 5,
        rates=rates,
        middle=rates[len(rates) // 2],
        first=_FIRST,
        last=_FIRST + choices.seeds,
        seeds=choices.seeds,
        margin=choices.margin,
    )


_FIRST = 1000  # reported seed
_FILE = Template('''\
"""Do sparse experts help on these images, and at what cost?

$length

Two parts, in this order (FILE is this file, W a folder of your own; more in docs/your_images.md):

  python -m moe_vision.study run --study=FILE:gate --workdir=W/gate
  python -m moe_vision.study run --study=FILE:answer --workdir=W/answer  # first tunes, in W/answer
  python -m moe_vision.study report --workdir=W

Change what you like before the first run of a part: from then on it is registered, and another
question needs another folder. `python main.py --mode=summary --config=FILE` shows the network.
"""

from ml_collections import ConfigDict

from moe_vision.config import defaults, source
from moe_vision.study.types import Arm, Comparison, Figure, Study, Tuning

# Reported runs have seeds of their own, so that nothing that was tried out is reported. Seeds that
# all have one sign: 6 are sure at 0.05 (p = 0.03), 7 also as the first of three comparisons.
SEEDS = tuple(range($first, $last))  # $seeds for each arm
EARLY = tuple(range(100, 106))  # 6 for the gate, which must show a sign, too
TUNING = EARLY[:2]  # 2 are enough: rates three times apart differ by more than seeds do
RATES = $rates  # peak learning rates to choose from, each about three times the last
MARGIN = $margin  # pp; set it before you run: a smaller gap would not change what you do


def get_config() -> ConfigDict:
    """k2: two of $experts experts for each token. All other arms change a key of it."""
    c = defaults()

    # $images images to train on, $validation for validation, $test for the test; $classes classes.
    c.dataset.name = $dataset
    c.dataset.data_dir = $data_dir  # `--config.dataset.data_dir=D` overrides it
    # Held out of the training images if the set has no validation images of its own. A small set
    # gives a fifth, because a gate and a learning rate are judged by them.
    c.dataset.validation_fraction = $fraction
    c.dataset.image_size = $size  # side in pixels; twice the side takes four times as long
    c.dataset.augment = 'pad_crop'  # 'pad_crop_flip' if a mirrored image has the same class
    c.dataset.resident = $resident  # decode once and keep all images in memory, in every process

    c.model.name = $backbone
    # The network is small, so that its dense form lacks capacity: that is what experts can supply.
    # If the gate fails because training is far above validation, take $smaller.
    c.model.args = $network
    c.model.moe.placement = 'last_1'  # the last block is routed
    c.model.moe.num_experts = $experts  # a usual number
    c.model.moe.k = 2  # experts for each token
    c.model.moe.group_size = $group  # $tokens that share capacity; small groups drop more
    c.model.moe.capacity_factor = 1.25  # a quarter more slots than an even load needs
    c.model.moe.eval_capacity_factor = 2.0  # room in evaluation: few choices are dropped$rest

    # Length: experts learn slowly, and after short runs they look worse than they are.
    c.train.steps = $steps  # optimizer steps; $epochs passes over the training images
    c.train.warmup_steps = $warmup  # a twentieth
    c.train.batch_size = $batch  # images of a step: a thirty-second of the set, from 64 to 256
    c.train.learning_rate = $middle  # the middle of RATES: of the gate; the answer tunes its own
    c.eval.every_steps = $every  # five validations
    c.checkpoint.every_steps = $every  # what an interruption can cost
    c.log.every_steps = 100  # rows of metrics
    return c


DENSE = {'model.twin': 'same_width'}  # the block that one expert copies: the FLOPs of k = 1
DENSE_ACTIVE = {'model.twin': 'same_active_flops'}  # widened to the FLOPs of two experts
SAME_PARAMS = {'model.twin': 'same_params'}  # widened to the parameters of all experts
K1 = {'model.moe.k': 1}
RANDOM = {  # routes are drawn anew; only the gates are learned
    'model.moe.router': 'random',
    'model.moe.router_args': {'gate': 'softmax'},
    'model.moe.losses': {},
}
FROZEN = {'model.moe.router': 'frozen_random'}  # routes depend on the image, but never learn
SHUFFLED = {'model.moe.router': 'shuffled'}  # learned routes are dealt to other images
OTHER_SEEDS = 1000  # moves the seeds of the dense twin's second set past the first


def arm(changes: dict | None = None, seed_offset: int = 0) -> Arm:
    return Arm(__file__, changes or {}, seed_offset)


def get_study(part: str = '') -> Study:
    return source.chosen('part', part, {'gate': gate, 'answer': answer})()


def gate() -> Study:
    """Is there room for experts? Go on if both hold, on validation:

    1. The dense twin underfits: its accuracy on training images is less than 1 pp above validation
       (section 'Underfit' of the report). Otherwise it lacks images and not capacity.
    2. A dense block with the parameters of all experts gains 1 pp or more, and the verdict is
       positive.
    """
    return Study(
        name='${name}_gate',
        question='Does the dense network lack capacity on these images?',
        hypotheses=('A dense network with the parameters of all experts gains over the twin.',),
        arms={'dense': arm(DENSE), 'same_params': arm(SAME_PARAMS)},
        seeds=EARLY,
        comparisons={
            'same_params_minus_dense': Comparison('same_params', 'dense', 'positive', primary=True)
        },
        margin=1.0,  # pp; less is no room for experts
        metric='validation_accuracy',
        tuning='None: the middle learning rate of the grid.',
        mechanism=False,
    )


def answer() -> Study:
    """What do two experts, and one, gain over the dense twin, and over one of equal FLOPs?"""
    return Study(
        name='$name',
        question='Do sparse experts help on these images, and at what cost?',
        hypotheses=('Two experts per token gain over the dense twin of one expert.',),
        arms={
            'dense': arm(DENSE),
            'dense_active': arm(DENSE_ACTIVE),
            'k1': arm(K1),
            'k2': arm(),
            'random': arm(RANDOM),
            'frozen_random': arm(FROZEN),
            'shuffled': arm(SHUFFLED),
            'dense_again': arm(DENSE, seed_offset=OTHER_SEEDS),
        },
        seeds=SEEDS,
        comparisons={
            'k2_minus_dense': Comparison('k2', 'dense', 'positive', primary=True),
            'k2_minus_dense_active': Comparison('k2', 'dense_active', primary=True),
            'k1_minus_dense': Comparison('k1', 'dense', primary=True),
            # If k2 does not beat these, its routes have learned nothing that helps.
            'k2_minus_random': Comparison('k2', 'random'),
            'k2_minus_frozen_random': Comparison('k2', 'frozen_random'),
            'k2_minus_shuffled': Comparison('k2', 'shuffled'),
            # What two sets of seeds differ by: a gap of this size is nothing.
            'dense_again_minus_dense': Comparison('dense_again', 'dense'),
        },
        margin=MARGIN,
        # Each of the four networks is tuned, on validation; controls take the setting of k2.
        tune=Tuning(
            {'train.learning_rate': RATES},
            {
                'dense': ('dense_again',),
                'dense_active': (),
                'k1': (),
                'k2': ('random', 'frozen_random', 'shuffled'),
            },
            seeds=TUNING,
        ),
        mechanism=False,  # True probes what each trained route is worth; it takes longer
        latency_arms=('dense', 'dense_active', 'k1', 'k2'),  # for `python -m moe_vision.study time`
        latency_batches=(1, 64),  # one image at a time, and many
        figures=(
            Figure(
                'k_ablation',
                'Gap to the dense twin',
                {$backbone: ('k1_minus_dense', 'k2_minus_dense')},
            ),
        ),
    )
''')
