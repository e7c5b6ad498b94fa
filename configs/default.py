"""The default config: every key, with its unit and meaning. Other configs start from it.

    from sprout_jax.configs import default
    config = default.get_config(method="sprout", variant="paper")
    config.num_epochs = 30

A config holds values only. Its keys are locked: a misspelt key raises and names the nearest one.
Change a value on the command line with --config.KEY=VALUE, e.g. --config.method.draw=mean. All
values are checked before anything is compiled (`sprout_jax.launcher.configuration`). The keys of
the methods and penalties are in `configs/methods.py`, those of the evaluations in
`configs/evaluation.py`.
"""

import ml_collections

from sprout_jax.configs import evaluation
from sprout_jax.configs import methods


def get_config(
  method: str = "sprout", variant: str = "paper", penalty: str = "none"
) -> ml_collections.ConfigDict:
  """Returns the default config.

  Args:
    method: the method, a key of METHOD_OPTIONS. Its options become config.method.
    variant: the variant of SPROUT; "paper" for other methods.
    penalty: the penalty, a key of PENALTY_OPTIONS. Its options become config.penalty.
  """
  config = ml_collections.ConfigDict()

  # Seed of the initial weights, of the order of the examples, and of all random draws.
  config.seed = 0
  # Passes over the training set. The last, incomplete minibatch of a pass is dropped.
  config.num_epochs = 10
  config.batch_size = 64  # Examples of a minibatch, over all devices.
  # "jit": one program for all devices; batch norm averages over the minibatch. "shard_map": one
  # program per device; batch norm averages on each device. "pmap": the same in a single process.
  config.parallelism = "jit"
  # Devices over which the parameters and the state of their optimizer are split (fully-sharded data
  # parallel), for models that do not fit one device; 1 = each device has all of them.
  config.parameter_shards = 1
  config.log_every = 50  # Steps between two records in metrics.jsonl.
  # Decay per update of the moving average of weights and batch statistics; 0 = no average. With an
  # average, the best checkpoint is the one whose average is best on the validation split.
  config.ema_decay = 0.0
  # Size of the adversarial weight perturbation, relative to the norm of the weights; 0 = none. It
  # costs one more gradient per step. Wu et al. 2020 use 0.005 for TRADES, after 10 epochs without
  # it. Reproductions with PGD use 0.01.
  config.awp_gamma = 0.0
  # Start of the training: the workdir of a trained run, whose evaluation.checkpoint and
  # evaluation.use_ema select the weights; or a file of published weights, as FILE or
  # FILE:entry=NAME,ignore=PATTERN. Its model must be config.model. "" = random weights.
  config.init_from = ""

  # The training, validation and test images.
  config.dataset = ml_collections.ConfigDict()
  # "digits" (embedded), "folder" (a folder of images), "npz" (a file of arrays), or the name of a
  # TFDS image-classification set, such as "cifar10".
  config.dataset.name = "digits"
  # The folder of images, or the .npz file. For TFDS sets, their folder; "" = $TFDS_DATA_DIR, or
  # ~/tensorflow_datasets.
  config.dataset.data_dir = ""
  # Folder for decoded images; "" = sprout_jax in $XDG_CACHE_HOME or ~/.cache.
  config.dataset.cache_dir = ""
  # Training split: a TFDS split expression such as "train[:80%]", or the name of a folder in the
  # folder of images; for "digits" only "train".
  config.dataset.train_split = "train"
  # Test split: a TFDS split expression, or the name of a folder. "test" also finds the folders
  # "val" and "validation". For "digits" only "test".
  config.dataset.test_split = "test"
  # Share of each class that becomes the test split, above 0 and below 1, where a folder or an .npz
  # file has no test split of its own.
  config.dataset.test_fraction = 0.2
  # Height and width to which images are resized, e.g. (224, 224); () = as stored, in one size.
  config.dataset.image_size = ()
  # Share of the shorter side that the centre crop keeps, after resizing; 0.875 is usual for
  # ImageNet.
  config.dataset.crop_fraction = 1.0
  # Largest training split that is held in memory, in GiB of pixels; a larger one is streamed.
  # 0 = always streamed.
  config.dataset.in_memory_gib = 4.0
  # Smallest share of the area of a random crop that is resized to image_size, e.g. 0.08; 0 = no
  # such crop. The training split is then streamed.
  config.dataset.random_resized_crop = 0.0
  config.dataset.workers = 0  # Processes that decode a streamed training split; 0 = threads.
  # Share of the training set that is held out to select the best checkpoint; 0 = none.
  config.dataset.validation_fraction = 0.1
  config.dataset.crop_padding = 0  # Zero padding of the random crop, in pixels; 0 = no crop.
  # Whether images are flipped at random, left to right; on the device, also if they are streamed.
  config.dataset.flip = False

  # The network.
  config.model = ml_collections.ConfigDict()
  # Architecture: a key of sprout_jax.models.MODELS, or wrn_DEPTH_WIDTH, such as wrn_28_10.
  config.model.name = "small_cnn"
  config.model.activation = "relu"  # Activation: "relu", "gelu", "silu" or "softplus".
  # Type of the computation: "float32" or "bfloat16". Weights are always float32.
  config.model.dtype = "float32"
  # Mean of the normalisation (x - mean) / std inside the model, in pixel units: one value, or one
  # per channel.
  config.model.mean = (0.0,)
  # Standard deviation of the normalisation, in pixel units: one value, or one per channel.
  config.model.std = (1.0,)
  # Whether gradients recompute the activations of each block; needs less memory, more time.
  config.model.remat = False

  # The optimizer of the model's weights.
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "sgd"  # Optimizer: "sgd" or "adamw".
  config.optimizer.learning_rate = 0.1  # Peak learning rate, above 0.
  # Momentum of "sgd"; decay of the first moment of "adamw".
  config.optimizer.momentum = 0.9
  config.optimizer.nesterov = False  # Whether to use Nesterov momentum.
  # Weight decay of all weights. "sgd" adds it to the gradient, "adamw" decouples it.
  config.optimizer.weight_decay = 5e-4
  config.optimizer.gradient_clip = 0.0  # Largest global L2 norm of the gradient; 0 = no clipping.
  # Schedule of the learning rate: "constant", "piecewise", or "cosine" (to 0 at the end).
  config.optimizer.schedule = "cosine"
  # Epochs at which "piecewise" multiplies the rate by decay_factor; () for other schedules.
  config.optimizer.boundaries = ()
  config.optimizer.decay_factor = 0.1  # Factor of "piecewise" at each boundary.
  # Epochs of a linear rise of the learning rate from 0; from 0 to num_epochs.
  config.optimizer.warmup_epochs = 0.0
  config.optimizer.accumulate_steps = 1  # Minibatches whose gradients are averaged for one update.

  # When checkpoints are saved, and how many are kept.
  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every_epochs = 1  # Epochs between two validations, each with a checkpoint.
  # Steps between two checkpoints without validation, within an epoch; 0 = none.
  config.checkpoint.every_steps = 0
  config.checkpoint.keep = 3  # Number of last checkpoints to keep, besides the best one.

  # The attack on the validation split that selects the best checkpoint: PGD with one random start.
  config.validation = ml_collections.ConfigDict()
  # Perturbation budget in Linf, in pixel units; 0 = no attack, so clean accuracy selects.
  config.validation.epsilon = 0.0
  config.validation.step_size = 2 / 255  # Step size of PGD, in pixel units.
  config.validation.num_steps = 10  # Gradient steps of PGD.

  config.evaluation = evaluation.get_config()
  config.method = methods.build(methods.METHOD_OPTIONS, "method", method, variant)
  config.penalty = methods.build(methods.PENALTY_OPTIONS, "penalty", penalty)
  return config.lock()
