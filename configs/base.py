"""Every common key, once, with its meaning. Other configs start here and change what they must.

This file is made from moe_vision/config/schema.py, where a key's type and range stand beside its
default and meaning: change that, then `python -m moe_vision.config.base_file > configs/base.py`.

Durations come in pairs, `*_epochs` and `*_steps`: a `*_steps` that is not 0 wins.
Dictionaries that belong to one method (`*_args`, `losses`, `model.args`) are checked against that
method's own arguments: method_args.py, router_args.py, loss_args.py and backbone_args.py in
moe_vision/config/ list them. The command line may set them key by key:
`--config.model.moe.router_args.noise=gaussian`.

A run that goes on in its folder can get longer (train.epochs, train.steps) and may change
dataset.data_dir, dataset.workers, dataset.cache, dataset.resident, model.remat,
train.skip_nonfinite, eval.*, mesh.*, checkpoint.*, log.*. Any other change makes another run, which
needs a folder of its own.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    # initial values, data order, augmentation and router noise derive from it; below 2^32
    c.seed = 0
    # start from the scored weights of the run in this folder; other classes get a new head
    c.init_from = ''
    # what makes the weights of those in init_from: a name in SURGERY, or '' to take them
    c.init_kind = ''
    c.init_args = {}  # arguments of init_kind

    c.dataset = ConfigDict()
    c.dataset.name = 'digits'  # a name in input_pipeline.DATASETS, or package.module:Builder
    c.dataset.data_dir = ''  # where prepared sets live; '' is tfds' ~/tensorflow_datasets
    # share of train held out, in [0, 1), if the set has no validation split; 0 holds out none
    c.dataset.validation_fraction = 0.1
    c.dataset.image_size = 0  # side of the square image in pixels; 0 keeps the set's own size
    c.dataset.augment = 'none'  # for training: none, pad_crop, pad_crop_flip, random_resized_crop
    c.dataset.randaugment_layers = 0  # RandAugment operations per image, after augment; 0 is off
    c.dataset.randaugment_magnitude = 9.0  # strength of RandAugment, from 0 to 10
    # worker processes that read and decode; 0 uses threads instead, and so does `cache`
    c.dataset.workers = 0
    c.dataset.cache = False  # decode once, keep uint8 images in memory, if half of it holds them
    # decode once, keep the images on the device and augment them there; gives the same batches (not
    # with random_resized_crop or RandAugment)
    c.dataset.resident = False
    # train on this many images, drawn after validation was held out and the same for every seed and
    # arm; 0 takes all
    c.dataset.train_images = 0
    # a test bed for routers: mark each image with one of this many domains, each with its own order
    # of the labels (input_pipeline/domains.py); 0 is off
    c.dataset.domains = 0

    c.model = ConfigDict()
    c.model.name = 'conv'  # a name in BACKBONES, or package.module:Class
    c.model.args = {}  # arguments of the backbone
    c.model.dtype = 'float32'  # compute type: float32, bfloat16; weights and routers stay float32
    c.model.remat = False  # recompute blocks in the backward pass to save memory (not on a CPU)
    # none trains the routed network. The others train a dense twin of it, with one block at each
    # routed place:
    #   same_width: a block as large as one expert
    #   same_active_flops: a block with the FLOPs of the experts that a token takes
    #   same_executed_flops: a block with the FLOPs of the buffers that training fills
    #   same_params: a block with the parameters of the router and all experts
    #   same_drops: same_width, which drops as many tokens as a random router would
    #   same_measured_drops: same_width, which drops at random what `measured_drops` says
    #   ensemble: k blocks as large as one expert, and the mean of their outputs
    c.model.twin = 'none'
    # of twin same_measured_drops: the share of the choices that are dropped, at equally spaced
    # moments from the first to the last step, and then in evaluation
    c.model.measured_drops = ()

    c.model.moe = ConfigDict()
    # none, head, pure_head (without a shortcut around it), last_N, every_N, or block numbers such
    # as '1,3'
    c.model.moe.placement = 'last_1'
    c.model.moe.router = 'top_k'  # a name in ROUTERS, or package.module:Class
    c.model.moe.router_args = {'noise': 'gaussian'}  # arguments of the router; `load` needs noise
    c.model.moe.num_experts = 8  # E, experts at each routed place
    # how num_experts varies over the routed layers, whose sum stays the same: uniform, descending,
    # ascending, pyramid_up (most in the middle), pyramid_down, wave
    c.model.moe.schedule = 'uniform'
    c.model.moe.schedule_least = 0  # experts where the schedule is lowest; 0 is half of num_experts
    c.model.moe.k = 2  # experts that each token chooses
    # slots per expert: ceil(capacity_factor * k * T / E), at most T; inf gives room for all
    c.model.moe.capacity_factor = 1.25
    c.model.moe.eval_capacity_factor = 2.0  # the same in evaluation
    c.model.moe.capacity_multiple = 1  # round the slots per expert up to a multiple of this
    c.model.moe.group_size = 64  # T, tokens that share capacity: patches in vit, else images
    c.model.moe.priority = 'token'  # who gets slots first: token (in order), gate (largest), random
    c.model.moe.expert = ''  # a name in EXPERTS; '' copies the block that experts replace
    c.model.moe.expert_args = {}  # arguments of the expert
    c.model.moe.hidden = 0  # hidden width of one expert; 0 is that of the block it replaces
    c.model.moe.splits = 1  # parts of the channels, each routed by itself
    # experts that differ: ({'count': 4}, {'count': 2, 'divide': 16}, {'expert': 'skip'}), also with
    # hidden and args. Twins copy the first kind; skip, a null expert, is no part of num_experts
    c.model.moe.kinds = ()
    c.model.moe.losses = {'importance': 0.005, 'load': 0.005}  # weights, by their names in LOSSES
    c.model.moe.loss_args = {}  # arguments of losses, such as {'erc': {'alpha': 0.5}}
    # hidden width of a shared expert, which every token takes besides; 0 for none
    c.model.moe.shared_hidden = 0
    # whose experts a routed layer has: own, stage (those of its stage), or a number N of
    # neighbouring layers that share num_experts experts
    c.model.moe.bank = 'own'
    # what single routed layers have instead, by their number from 0 on: {'0': {'num_experts': 4},
    # '-1': {'k': 1}}; also capacity_factor, eval_capacity_factor, hidden and shared_hidden
    c.model.moe.layers = {}

    c.train = ConfigDict()
    c.train.epochs = 30.0  # how long to train
    c.train.steps = 0  # the same in optimizer steps
    c.train.batch_size = 128  # images per optimizer step, over all devices
    c.train.micro_batches = 1  # gradient accumulation: batch_size is split into this many parts
    c.train.optimizer = 'adamw'  # a name in OPTIMIZERS
    c.train.optimizer_args = {}  # arguments of the optimizer
    c.train.learning_rate = 0.001  # peak: reached by linear warm-up, then a cosine to 0
    c.train.warmup_epochs = 1.0  # how long the learning rate rises
    c.train.warmup_steps = 0  # the same in optimizer steps
    c.train.weight_decay = 0.0001  # on matrices and filters; never on biases, norms, routers
    c.train.label_smoothing = 0.0  # share of the target that is spread evenly over all classes
    c.train.clip_norm = 1.0  # clip the global norm of the gradient to this; 0 does not clip
    # decay per step of averaged weights to evaluate (less while steps are few); 0 does not average
    c.train.ema_decay = 0.0
    c.train.mixup = 0.0  # a of mixup's Beta(a, a); partners share a routing group; 0 is off
    c.train.cutmix = 0.0  # the same for CutMix; with both on, each group flips a coin
    # regular expression of the paths to train; the rest stands still, statistics included
    c.train.trainable = '.*'
    # what happens to updates after the optimizer: names in TRANSFORMS, each with its arguments,
    # such as {'freeze_router': {'fraction': 0.5}}
    c.train.transforms = {}
    # skip up to N consecutive steps with a non-finite gradient; 0 stops at the first
    c.train.skip_nonfinite = 0

    c.eval = ConfigDict()
    c.eval.split = 'test'  # what --mode=eval and --mode=probe score: train, validation, test
    c.eval.batch_size = 256  # images per step, rounded up to whole groups; changes no result
    c.eval.every_epochs = 1.0  # how often to score validation while training
    c.eval.every_steps = 0  # the same in optimizer steps
    # at the end of training, and with --mode=eval, also score at each of these capacity factors,
    # such as 1,2,inf
    c.eval.capacity_factors = ()
    # at the end of training, also score this many training images, without augmentation; 0 scores
    # none
    c.eval.train_images = 0

    c.mesh = ConfigDict()
    c.mesh.expert = 1  # size of the expert axis: devices that share one copy of the experts
    c.mesh.shard_optimizer = False  # spread optimizer state over the data axis (not the experts')

    c.checkpoint = ConfigDict()
    c.checkpoint.every_epochs = 5.0  # how often to save
    c.checkpoint.every_steps = 0  # the same in optimizer steps
    c.checkpoint.keep = 2  # keep this many of the newest, besides the best on validation

    c.log = ConfigDict()
    c.log.every_steps = 20  # write a metrics row and a progress line this often
    c.log.warn_drop_rate = 0.2  # warn when more than this share of the choices is dropped
    c.log.warn_max_over_mean = 3.0  # warn when one expert has this many times the mean load
    # who else gets the rows of metrics and the result: wandb, mlflow, or package.module:Class
    c.log.trackers = ()
    return c
