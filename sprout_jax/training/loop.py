"""The training loop."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import TextIO

import jax
import numpy as np

from sprout_jax import sharding
from sprout_jax.data import Dataset
from sprout_jax.data import Split
from sprout_jax.errors import TrainingDiverged
from sprout_jax.errors import UserError
from sprout_jax.methods import Method
from sprout_jax.methods.method import Penalty
from sprout_jax.progress import Progress
from sprout_jax.training import agreement
from sprout_jax.training import checkpoints as checkpoints_lib
from sprout_jax.training import feed as feed_lib
from sprout_jax.training import metrics as metrics_lib
from sprout_jax.training import parallel
from sprout_jax.training import replicas as replicas_lib
from sprout_jax.training import state as state_lib
from sprout_jax.training import step as step_lib
from sprout_jax.training import stopping

if TYPE_CHECKING:
  import ml_collections


INPUT_SHARE = 0.2  # a larger share of the time spent waiting for images is told to the user


def steps_per_epoch(config: "ml_collections.ConfigDict", dataset: Dataset) -> int:
  """Returns the number of whole minibatches in the training set.

  Raises:
    UserError: the training set is smaller than a minibatch.
  """
  count = len(dataset.train) // config.batch_size
  if not count:
    raise UserError(
      f"config.batch_size is {config.batch_size}, but there are only {len(dataset.train)} "
      "training images; set a smaller --config.batch_size"
    )
  return count


def prepare(
  config: "ml_collections.ConfigDict",
  dataset: Dataset,
  model: Any,
  method: Method,
  penalty: Penalty | None,
  mesh: jax.sharding.Mesh,
) -> tuple[state_lib.Recipe, Any]:
  """Returns the recipe and the abstract state (shapes, types, shardings), without compilation."""
  is_streamed = not isinstance(dataset.train, Split)
  parallel.check(config.parallelism, config.parameter_shards, is_streamed)
  recipe = state_lib.make_recipe(
    config, model, method, penalty, dataset.num_classes, steps_per_epoch(config, dataset)
  )
  if is_streamed and config.parallelism != "jit":
    state_lib.check_adversary(recipe, dataset.image_shape)
  shapes = jax.eval_shape(lambda: state_lib.create(recipe, dataset.image_shape))
  abstract = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
    sharding.of_state(mesh, shapes),
  )
  return recipe, abstract


def train(
  config: "ml_collections.ConfigDict",
  workdir: pathlib.Path,
  dataset: Dataset,
  model: Any,
  method: Method,
  penalty: Penalty | None,
  mesh: jax.sharding.Mesh,
  *,
  validate: Callable[[Any], Mapping[str, float]],
  initial_variables: Callable[[], Any] | None = None,
) -> bool:
  """Trains until the config's last epoch, or until SIGTERM, SIGHUP or Ctrl-C.

  It continues from the newest undamaged checkpoint of the workdir, if there is one. The result is
  then bitwise equal to that of an uninterrupted run.

  Args:
    config: the validated config.
    workdir: the claimed workdir.
    dataset: the data set.
    model: the Flax module.
    method: from `methods.create`.
    penalty: from `methods.create_penalty`.
    mesh: the mesh of devices.
    validate: variables -> {"accuracy"} on the validation split, with "robust_accuracy" where an
      attack selects the best checkpoint; {} without a validation split. It gets the moving average
      of the weights where the config has one.
    initial_variables: a function that loads {"params", "batch_stats"} to start from, called only if
      the workdir has no checkpoint; None for random weights.

  Returns:
    True if the run is complete; False after a signal. Everything is then saved, and a line on
    standard output says so.

  Raises:
    TrainingDiverged: a value became NaN or infinite.
    UserError: a checkpoint or a record cannot be written, the workdir is gone, a process does not
      answer, or the devices hold different copies of the state. All processes end.
  """
  recipe, abstract = prepare(config, dataset, model, method, penalty, mesh)
  state_sharding = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  per_epoch = steps_per_epoch(config, dataset)
  last_step = config.num_epochs * per_epoch
  with contextlib.ExitStack() as stack:
    stack.enter_context(agreement.reached())
    stop = stack.enter_context(stopping.requests())
    starting = stack.enter_context(contextlib.ExitStack())  # until the first call is compiled
    starting.enter_context(
      stop.nothing_to_save("Nothing was trained in this call. The same command continues.")
    )
    checkpoints = checkpoints_lib.Checkpoints(workdir, config.checkpoint.keep)
    stack.callback(checkpoints.close)
    state = checkpoints.restore_latest(abstract)
    if state is None:
      state = jax.jit(
        lambda: state_lib.create(recipe, dataset.image_shape),
        out_shardings=state_sharding,
      )()
      if initial_variables is not None:
        state = state_lib.start_from(state, initial_variables())
    done = int(state.step)
    if done >= last_step:
      return True
    _say(
      f"continuing after step {done} of {last_step}" if done else "compiling the training step",
      sys.stderr,
    )
    with agreement.agreed():
      log = Log(config, workdir, done, last_step, per_epoch, recipe)
      stack.callback(log.close)

    def step_fn(*args: Any, **kwargs: Any) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
      return step_lib.train_step(recipe, *args, **kwargs)

    feed = feed_lib.create(step_fn, config, dataset.train, mesh, state_sharding, last_step)
    stack.callback(feed.close)
    replicas = replicas_lib.Replicas(mesh, state_sharding)
    while done < last_step:
      end = next_stop(config, done, per_epoch, last_step)
      state, history = feed.run(state, done, end)
      starting.close()
      with agreement.agreed():
        log.add(history, done, end, feed.seconds_waited())  # reads the metrics of the call before
        checkpoints.check()
      done = end
      signal = stop.first()
      is_validated = is_epoch_save(config, done, per_epoch, last_step)
      if is_validated or signal or is_step_save(config, done):
        with agreement.agreed():
          log.flush()  # raises on values that are not finite, before anything is saved
        replicas.check(state, done)
        whole = sharding.gather(state)
        found = validate(whole.variables(use_ema=bool(config.ema_decay))) if is_validated else {}
        with agreement.agreed():
          if found:
            log.validation(done, found)
          checkpoints.save(whole, min(found.values(), default=None))
      if signal:
        break
    with agreement.agreed():
      checkpoints.wait()
    signal = signal or stop.first()  # a signal during the last validation counts as well
    if signal:
      _say(
        f"Stopped by {signal} after step {done} of {last_step}; the state is saved in "
        f"{checkpoints.directory / str(done)}. The same command continues from there.",
        sys.stdout,
      )
    return not signal


def _say(text: str, file: TextIO) -> None:
  if jax.process_index() == 0:
    print(text, file=file, flush=True)


def is_epoch_save(
  config: "ml_collections.ConfigDict", done: int, per_epoch: int, last_step: int
) -> bool:
  """Returns whether the state is validated and saved after `done` steps."""
  return done == last_step or done % (config.checkpoint.every_epochs * per_epoch) == 0


def is_step_save(config: "ml_collections.ConfigDict", done: int) -> bool:
  """Returns whether the state is saved, without validation, after `done` steps."""
  return bool(config.checkpoint.every_steps) and done % config.checkpoint.every_steps == 0


def next_stop(
  config: "ml_collections.ConfigDict", done: int, per_epoch: int, last_step: int
) -> int:
  """Returns the step at which the compiled call after `done` steps ends: a record or a save."""
  periods = (
    config.log_every,
    config.checkpoint.every_epochs * per_epoch,
    config.checkpoint.every_steps or last_step,
  )
  return min(last_step, *((done // period + 1) * period for period in periods))


class Log:
  """Shows, writes and checks the metrics of each call, after the next call is dispatched."""

  def __init__(
    self,
    config: "ml_collections.ConfigDict",
    workdir: pathlib.Path,
    done: int,
    last_step: int,
    per_epoch: int,
    recipe: state_lib.Recipe,
  ) -> None:
    self._config, self._per_epoch, self._recipe = config, per_epoch, recipe
    self._pending: tuple[Any, int, int, float] | None = None
    self._told = False  # whether the user knows that the input is the bottleneck
    self._read_at = time.monotonic()
    is_first = jax.process_index() == 0
    self._files = metrics_lib.MetricsLog(workdir, done) if is_first else None
    self._progress = Progress(last_step, done, "steps", "training", enabled=is_first)

  def add(self, history: Any, start: int, end: int, waited: float) -> None:
    """Takes the metrics of the steps start + 1 ... end, and reads those of the call before.

    Args:
      history: for each metric, rows for the steps.
      start: the steps before.
      end: the last of the steps.
      waited: seconds for which the host has waited for images.
    """
    self.flush()
    self._pending = history, start, end, waited

  def flush(self) -> None:
    """Reads the metrics of the last call.

    Raises:
      TrainingDiverged: a value is not finite.
    """
    if self._pending is None:
      return
    (history, start, end, waited), self._pending = self._pending, None
    history = {
      name: np.stack(values) if isinstance(values, list) else np.asarray(values)[: end - start]
      for name, values in history.items()
    }
    loss, accuracy, grad_norm = (history.pop(name) for name in ("loss", "accuracy", "grad_norm"))
    seconds, self._read_at = time.monotonic() - self._read_at, time.monotonic()
    is_finite = np.isfinite(loss) & np.isfinite(grad_norm)
    for values in history.values():
      is_finite &= np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not is_finite.all():
      bad = int(np.argmin(is_finite))
      raise TrainingDiverged(
        f"training diverged at step {start + bad + 1} (of steps {start + 1} to {end}): the loss is "
        f"{loss[bad]}, the gradient norm {grad_norm[bad]}. The last good checkpoint, if there is "
        "one, is kept. Try a smaller --config.optimizer.learning_rate, or "
        "--config.optimizer.gradient_clip=1, in a new --workdir, because the config changes"
      )
    speed = (end - start) * self._config.batch_size / seconds
    if waited > INPUT_SHARE * seconds and not self._told:
      self._told = True
      _say(
        f"the input is the bottleneck: the devices waited for images during "
        f"{100 * waited / seconds:.0f} % of steps {start + 1} to {end}. More processes that read "
        "images can help: set --config.dataset.workers",
        sys.stderr,
      )
    if self._files:
      self._files.write(
        end,
        "train",
        {
          "epoch": end / self._per_epoch,
          "steps": end - start,
          "loss": float(loss.mean()),
          "accuracy": float(accuracy.mean()),
          "grad_norm": float(grad_norm.mean()),
          "learning_rate": float(self._recipe.learning_rate(end - 1)),
          "images_per_second": speed,
          "seconds": seconds,
          "seconds_waited": waited,
          "peak_memory_bytes": metrics_lib.peak_memory(),
          **{
            name: values.mean().item() if values.ndim == 1 else values[-1].tolist()
            for name, values in history.items()
          },
        },
      )
    self._progress.update(
      end,
      f"epoch {end / self._per_epoch:.1f}  loss {loss.mean():.4f}  "
      f"accuracy {accuracy.mean():.4f}  {speed:,.0f} images/s",
    )

  def validation(self, step: int, found: Mapping[str, float]) -> None:
    """Writes the accuracies on the validation split; their time is not training time."""
    if self._files:
      self._files.write(step, "validation", {"epoch": step / self._per_epoch, **found})
    self._read_at = time.monotonic()

  def close(self) -> None:
    """Closes the progress bar and the files."""
    self._progress.close()
    if self._files:
      self._files.close()
