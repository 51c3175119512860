"""Every common key, once, with its meaning. Other configs start here and change what they must.

Durations come in pairs, `*_epochs` and `*_steps`: a `*_steps` that is not 0 wins.
Dictionaries that belong to one method (`*_args`, `losses`, `model.args`) are checked against that
method's own arguments and may be set from the command line key by key:
`--config.model.moe.router_args.noise=gaussian`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # initial values, data order, augmentation, router noise: all derive from it
    c.init_from = ''  # another run's workdir: start from its weights (new head if classes differ)

    c.dataset = ConfigDict()
    c.dataset.name = 'digits'  # a name in input_pipeline.DATASETS, or package.module:Builder
    c.dataset.data_dir = ''  # '' is tfds' default, ~/tensorflow_datasets
    c.dataset.validation_fraction = 0.1  # of train, where the set has no validation split
    c.dataset.image_size = 0  # side in pixels; 0 keeps the data set's own size
    c.dataset.augment = 'none'  # none, pad_crop, pad_crop_flip, random_resized_crop
    c.dataset.randaugment_layers = 0  # operations of RandAugment on each image; 0 is off
    c.dataset.randaugment_magnitude = 9.0  # their strength, 0 to 10
    c.dataset.workers = 0  # worker processes for reading and decoding; 0 uses threads
    c.dataset.cache = False  # keep decoded images in memory (small sets)
    c.dataset.resident = False  # keep them on the device and augment there; the same batches
    c.dataset.train_images = 0  # so many of train, the same for every seed; 0 is all

    c.model = ConfigDict()
    c.model.name = 'conv'  # a name in BACKBONES, or package.module:Class
    c.model.args = {}  # arguments of the backbone
    c.model.dtype = 'float32'  # or bfloat16: of the compute; parameters and routers stay float32
    c.model.remat = False  # compute blocks again in the backward pass: less memory (not on CPU)
    # its dense twin instead: same_width, same_active_flops, same_params; same_drops is same_width
    # that drops as many tokens as a random router would
    c.model.twin = 'none'

    c.model.moe = ConfigDict()
    c.model.moe.placement = 'last_1'  # none, head, last_N, every_N, or block numbers such as '1,3'
    c.model.moe.router = 'top_k'  # a name in ROUTERS, or package.module:Class
    c.model.moe.router_args = {'noise': 'gaussian'}  # arguments of the router; `load` needs noise
    c.model.moe.num_experts = 8  # E
    c.model.moe.k = 2  # choices per token
    c.model.moe.capacity_factor = 1.25  # slots per expert: ceil(this * k * T / E), at most T; inf
    c.model.moe.eval_capacity_factor = 2.0  # the same in evaluation
    c.model.moe.capacity_multiple = 1  # round the capacity up to a multiple of this
    c.model.moe.group_size = 64  # T: images that share capacity (conv, head), or patches (vit)
    c.model.moe.priority = 'token'  # who gets the slots first: token, gate, random
    c.model.moe.expert = ''  # a name in EXPERTS; '' copies the block it replaces
    c.model.moe.expert_args = {}  # arguments of the expert
    c.model.moe.hidden = 0  # hidden width of one expert; 0: as the block it replaces
    c.model.moe.losses = {'importance': 0.005, 'load': 0.005}  # name in LOSSES: weight

    c.train = ConfigDict()
    c.train.epochs = 30.0
    c.train.steps = 0
    c.train.batch_size = 128  # images per optimizer step, over all devices
    c.train.micro_batches = 1  # gradient accumulation: batch_size is split into this many parts
    c.train.optimizer = 'adamw'  # a name in OPTIMIZERS
    c.train.optimizer_args = {}  # arguments of the optimizer
    c.train.learning_rate = 1e-3  # peak; linear warm-up, then cosine to 0
    c.train.warmup_epochs = 1.0
    c.train.warmup_steps = 0
    c.train.weight_decay = 1e-4  # on matrices and filters; never on biases, norms, routers
    c.train.label_smoothing = 0.0
    c.train.clip_norm = 1.0  # global gradient norm; 0 does not clip
    c.train.ema_decay = 0.0  # evaluate an exponential moving average of the weights; 0: the weights
    c.train.mixup = 0.0  # Beta(a, a) of mixup, partners within a routing group; 0 is off
    c.train.cutmix = 0.0  # the same for CutMix; with both on each group flips a coin
    c.train.trainable = '.*'  # regular expression over parameter paths; others stay as they are
    c.train.skip_nonfinite = 0  # so many steps in a row may be skipped whose gradient is not finite

    c.eval = ConfigDict()
    c.eval.split = 'test'  # what --mode=eval scores: train, validation, test
    c.eval.batch_size = 256  # rounded up to whole routing groups; does not change any result
    c.eval.every_epochs = 1.0  # validation while training
    c.eval.every_steps = 0
    c.eval.capacity_factors = ()  # --mode=eval scores at each of these, too: 1,2,inf

    c.mesh = ConfigDict()
    c.mesh.expert = 1  # devices that share one copy of the experts; the rest is the data axis
    c.mesh.shard_optimizer = False  # its state over the data axis where it is not of experts

    c.checkpoint = ConfigDict()
    c.checkpoint.every_epochs = 5.0
    c.checkpoint.every_steps = 0
    c.checkpoint.keep = 2  # the newest so many, besides the best on validation

    c.log = ConfigDict()
    c.log.every_steps = 20  # a metrics row, a progress line
    c.log.warn_drop_rate = 0.2  # warn when more choices than this share are dropped
    c.log.warn_max_over_mean = 3.0  # warn when one expert has this many times the mean load
    return c
