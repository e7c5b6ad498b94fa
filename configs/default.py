"""Every key there is, with its unit and meaning. Other configs start from here.

    from sprout_jax.configs import default
    config = default.get_config(method="sprout", variant="paper")
    config.num_epochs = 30

A config holds values only. The keys are locked: a misspelt one raises and names the nearest. Change
a value on the command line with --config.KEY=VALUE, e.g. --config.method.draw=mean. Values are
checked, before anything is compiled, in `sprout_jax.launcher.configuration`. The keys of the
methods and penalties are in `configs/methods.py`, those of the evaluations in
`configs/evaluation.py`.
"""

import ml_collections

from sprout_jax.configs import evaluation
from sprout_jax.configs import methods


def get_config(method="sprout", variant="paper", penalty="none"):
  """The default values; the arguments select what is below config.method and config.penalty."""
  config = ml_collections.ConfigDict()

  config.seed = 0  # of initialisation, order of the examples and every random draw
  config.num_epochs = 10  # passes over the training set; its remainder of a batch is dropped
  config.batch_size = 64  # examples of one step, over all devices together
  config.parallelism = (
    "jit"  # "jit": over a mesh, batch norm sees the whole batch; "pmap": per device
  )
  config.log_every = 50  # steps between records in metrics.jsonl
  # Of the moving average of weights and batch statistics, per step; 0 = off. Where there is one,
  # the best checkpoint is the one whose average is best on the validation split.
  config.ema_decay = 0.0
  # Adversarial weight perturbation: relative size of the weights' perturbation against the loss
  # whose gradient is then taken; costs one more gradient; 0 = off. Wu et al. 2020: 0.005 for TRADES
  # (after 10 epochs without); reproductions with PGD have 0.01.
  config.awp_gamma = 0.0
  # A workdir whose selected weights (as chosen by its own evaluation.checkpoint and .use_ema) this
  # run starts from; "" = random.
  config.init_from = ""

  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = (
    "digits"  # "digits" (embedded) or the name of a TFDS image-classification set
  )
  config.dataset.data_dir = ""  # where TFDS sets live; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets
  config.dataset.cache_dir = (
    ""  # for decoded images; "" = $XDG_CACHE_HOME/sprout_jax or ~/.cache/...
  )
  config.dataset.train_split = "train"  # a TFDS split expression; "digits" has "train" and "test"
  config.dataset.test_split = "test"  # a TFDS split expression
  config.dataset.validation_fraction = 0.1  # of the training set, held out to select a checkpoint
  config.dataset.crop_padding = 0  # pixels of zero padding around a random crop; 0 = no crop
  config.dataset.flip = False  # random horizontal flip

  config.model = ml_collections.ConfigDict()
  config.model.name = "small_cnn"  # a key of sprout_jax.models.MODELS, or wrn_DEPTH_WIDTH
  config.model.activation = "relu"  # "relu" | "gelu" | "silu" | "softplus"
  config.model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; weights are float32
  config.model.mean = (0.0,)  # normalisation (x - mean) / std inside the model, in pixel units;
  config.model.std = (1.0,)  # one value, or one per channel
  # Gradients compute each block's inside again instead of keeping it: less memory, more time.
  config.model.remat = False

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "sgd"  # "sgd" | "adamw"
  config.optimizer.learning_rate = 0.1  # peak, per applied update
  config.optimizer.momentum = 0.9  # sgd: heavy ball; adamw: decay of the first moment
  config.optimizer.nesterov = False  # sgd: Nesterov's form of the momentum
  config.optimizer.weight_decay = (
    5e-4  # of all weights; sgd: added to the gradient; adamw: decoupled
  )
  config.optimizer.gradient_clip = 0.0  # global L2 norm of the gradient; 0 = no clipping
  config.optimizer.schedule = "cosine"  # "constant" | "piecewise" | "cosine" (to 0 at the end)
  config.optimizer.boundaries = ()  # epochs at which "piecewise" multiplies by decay_factor
  config.optimizer.decay_factor = 0.1  # of "piecewise"
  config.optimizer.warmup_epochs = 0.0  # linear from 0
  config.optimizer.accumulate_steps = 1  # minibatches per applied update

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every_epochs = 1  # validate and save
  config.checkpoint.every_steps = 0  # save (without validation) also within an epoch; 0 = never
  config.checkpoint.keep = 3  # the last few; the best on the validation split is kept as well

  # What selects the best checkpoint: accuracy on the validation split under PGD (one uniform
  # start).
  config.validation = ml_collections.ConfigDict()
  config.validation.epsilon = 0.0  # radius in Linf, pixel units; 0 = clean accuracy
  config.validation.step_size = 2 / 255  # in pixel units
  config.validation.num_steps = 10  # gradient steps of PGD

  config.evaluation = evaluation.get_config()
  config.method = methods.build(methods.METHOD_OPTIONS, "method", method, variant)
  config.penalty = methods.build(methods.PENALTY_OPTIONS, "penalty", penalty)
  return config.lock()
