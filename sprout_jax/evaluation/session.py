"""Evaluations of one model, one after the other, kept in a workdir."""

import dataclasses
import importlib.metadata
import pathlib
import platform
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import sprout_jax
from sprout_jax.attacks import convolutions
from sprout_jax.errors import UserError
from sprout_jax.evaluation import preflight
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation import table
from sprout_jax.evaluation.subject import Source
from sprout_jax.evaluation.subject import Subject
from sprout_jax.progress import format_seconds
from sprout_jax.results import numbers
from sprout_jax.results import summary
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement
from sprout_jax.results.store import Store
from sprout_jax.results.summary import Results

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "chex",
  "orbax-checkpoint",
  "numpy",
  "scipy",
  "ml_collections",
  "tensorflow-datasets",
)
TIMED = 8  # images whose gradient is timed to choose between convolutions
# What `evaluate` measures unless it is told otherwise; "transfer" needs other models.
USUAL = (
  "pgd",
  "auto_attack",
  "noise",
  "strength",
  "sanity",
  "binarization",
  "invariance",
  "corruptions",
  "calibration",
  "landscape",
  "examples",
  "smoothing",
)


def versions() -> dict[str, str]:
  """Versions of packages and Python, the devices, and the settings of JAX that change numbers."""
  found = {"sprout_jax": sprout_jax.__version__, "python": platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "not installed"
  numerics = subject_lib.numerics()
  found["devices"] = f"{jax.device_count()} x {numerics.pop('device')}"
  return found | numerics


def run(
  subject: Subject,
  names: Collection[str],
  settings: Mapping[str, Any],
  *,
  workdir: pathlib.Path | str,
  identity: Any,
  about: Mapping[str, Any],
  say: Callable[[str], None],
) -> tuple[Results, dict[str, str]]:
  """Runs evaluations as far as they are not stored, and writes results.json after each.

  Args:
    subject: the model.
    names: rows of `EVALUATIONS`.
    settings: options as `table.defaults` has them.
    workdir: where the results lie.
    identity: what the numbers depend on besides the evaluations: weights, data.
    about: the entries `summary.ABOUT` of results.json.
    say: called with a line for the user.

  Returns:
    The results, and {evaluation: why it could not be measured}.
  """
  if settings["loss"] == "dlr" and subject.num_classes < 3:
    raise UserError(
      f"the loss is 'dlr', which needs 3 classes; there are {subject.num_classes}: use 'margin'"
    )
  is_first = jax.process_index() == 0
  identity = {"subject": identity, "numerics": subject_lib.numerics()}
  store = Store(workdir, identity, versions(), is_first, wait_for_all)
  clean = store.fetch("clean", 1, {}, lambda memo: _clean(subject)).numbers.first()
  refused: dict[str, str] = {}

  def options(name):
    chosen, depends = table.choose(name, settings), table.EVALUATIONS[name].depends
    return chosen, chosen if depends is None else chosen | {"depends": depends(subject, chosen)}

  def collect():
    stored = []
    for name, row in table.EVALUATIONS.items():
      try:
        stored.append(store.read(name, row.version, options(name)[1]))
      except UserError:  # a source that is gone: what was measured with it cannot be found
        continue
    found = [one for one in stored if one is not None]
    results = summary.collect(workdir, about, clean, found, refused)
    if is_first and summary.write(results):
      say("the earlier results.json is now results_previous.json")
    return results

  for number, name in enumerate(names, 1):
    row = table.EVALUATIONS[name]
    try:
      chosen, key = options(name)
      if store.read(name, row.version, key) is not None:
        say(f"{name}: is there already")
        continue
      say(f"{name} ({number} of {len(names)}): {row.title}")
      found = store.fetch(
        name,
        row.version,
        key,
        lambda memo, row=row, chosen=chosen: row.function(subject.start(memo), **chosen),
      )
    except UserError as error:  # the others can be measured all the same
      if jax.process_count() > 1:  # where not all processes may have met it
        raise
      refused[name] = str(error)
      say(f"{name} was not measured: {error}")
      continue
    say(f"{name}: {format_seconds(found.seconds)}")
    collect()  # so that a kill leaves what is known
  return collect(), refused


def _clean(subject):
  """The accuracy on the test set. It is stored: findings can be derived without the model."""
  return Measurement(Numbers([numbers.accuracy(subject.correct, np.arange(len(subject.labels)))]))


def evaluate(
  predict: Callable,
  images: Any,
  labels: Any,
  *,
  workdir: pathlib.Path | str,
  evaluations: Collection[str] = USUAL,
  epsilon: float = 8 / 255,
  norm: str = "linf",
  num_steps: int = 50,
  num_restarts: int = 5,
  step_size: float | None = None,
  epsilons: Collection[float] | None = None,
  name: str | None = None,
  class_names: Collection[str] | None = None,
  features: Callable | None = None,
  sources: Mapping[str, Callable] | None = None,
  batch_size: int = 256,
  fast_convolutions: bool = True,
  progress: bool = True,
  **options: Any,
) -> Results:
  """Measures how robust a JAX model is, checks the numbers, and writes a report.

  The model is any function of images: a Flax, NNX, Haiku, Equinox or Keras model, or a plain
  function. What is measured is kept in `workdir`: the same call after a kill continues, and nothing
  is measured twice. The page is `workdir`/report/report.html.

  Example:
    >>> results = evaluate(predict, images, labels, workdir="runs/mine", epsilon=8/255)
    >>> results.numbers.first(evaluation="auto_attack", stage=None).value

  Args:
    predict: images [batch, height, width, channels] in [0, 1] -> logits [batch, classes], in
      evaluation mode, with normalisation inside.
    images: test images, [n, height, width, channels], uint8 or floats in [0, 1].
    labels: int [n], the classes.
    workdir: folder for the results.
    evaluations: rows of `EVALUATIONS`, in the order in which they run.
    epsilon: perturbation budget in pixel units.
    norm: "linf" or "l2".
    num_steps, num_restarts: of PGD.
    step_size: of PGD, in pixel units; default epsilon / 4.
    epsilons: budgets of the curve; default 0, 1/2, 1, 3/2 and 2 times epsilon.
    name: of the model, for the report; default the workdir's.
    class_names: default "0", "1", ...
    features: images -> [batch, features], the input of the model's last layer, for the binarisation
      test; default its logits.
    sources: {name: predict} of other models; with them, "transfer" is measured as well.
    batch_size: images of one compiled call, over all devices.
    fast_convolutions: whether plain convolutions of the model may be exchanged for equal ones with
      faster gradients, where a quick timing says that it pays (`attacks.convolutions`; on a CPU).
    progress: whether lines and bars are shown.
    **options: other options: shared ones (`num_examples=1000`, `seed=1`), or a dictionary for one
      evaluation (`auto_attack={"version": "plus"}`). See `EVALUATIONS`.

  Returns:
    The `Results`: numbers with typed keys, findings of the checks.

  Raises:
    UserError: wrong input; the message says what to change.
  """
  from sprout_jax import report

  if sources and "transfer" not in evaluations:
    evaluations = (*evaluations, "transfer")
  table.check_names("evaluations", evaluations)
  images, labels = preflight.check_data(images, labels)
  settings = _settings(options) | {
    "epsilon": epsilon,
    "norm": norm,
    "num_steps": num_steps,
    "num_restarts": num_restarts,
    "step_size": epsilon / 4 if step_size is None else step_size,
    "epsilons": tuple(k * epsilon / 2 for k in range(5)) if epsilons is None else tuple(epsilons),
  }
  settings["transfer"]["sources"] = tuple(sources or ())
  table.check_settings("evaluate", settings)
  workdir = pathlib.Path(workdir).expanduser()
  others = {key: _source(key, other, images.shape[1:]) for key, other in (sources or {}).items()}
  model = subject_lib.as_pytree(predict)
  subject = Subject(
    model,
    images,
    labels,
    tuple(map(str, class_names or ())),
    batch_size=batch_size,
    features=None if features is None else subject_lib.as_pytree(features),
    find_source=others.__getitem__ if others else None,
    shows_progress=progress,
  )
  say = _say if progress else lambda text: None
  preflight.check_subject(subject)
  names = class_names or [str(number) for number in range(subject.num_classes)]
  if len(names) != subject.num_classes:
    raise UserError(f"there are {len(names)} class_names for {subject.num_classes} classes")
  digest = subject_lib.digest(model, images.shape[1:])
  if fast_convolutions:
    faster = convolutions.fastest(subject.predict, subject_lib.to_float(images[:TIMED]))
    subject = dataclasses.replace(subject, predict=faster, programs={})
  data = subject_lib.data_digest(images, labels)
  extra = [] if features is None else [subject_lib.digest(subject.features, images.shape[1:])]
  about = {
    "parameters_sha256": digest,
    "config": {},
    "versions": versions(),
    "label": {"name": name or workdir.name},
    "data": {
      "name": "",
      "fingerprint": data,
      "provenance": "given as arrays",
      "class_names": [str(one) for one in names],
      "count": len(labels),
    },
    "checkpoint": None,
    "training": None,
  }
  workdir.mkdir(parents=True, exist_ok=True)
  results, _ = run(
    subject,
    evaluations,
    settings,
    workdir=workdir,
    identity=[digest, data, *extra],
    about=about,
    say=say,
  )
  if jax.process_index() == 0:
    say(report.summarize(workdir))
    report.compare([workdir])
  return results


def _settings(options):
  """The defaults with the options that a call gives."""
  settings = table.defaults()
  for key, value in options.items():
    if key not in settings:
      raise UserError(
        f"evaluate has no option {key!r}; shared options and evaluations with options are: "
        + ", ".join(settings)
      )
    if isinstance(settings[key], dict):
      if not isinstance(value, Mapping):
        raise UserError(
          f"the options of the evaluation {key!r} are {value!r}; expected a dictionary with some "
          "of: " + ", ".join(settings[key])
        )
      unknown = value.keys() - settings[key].keys()
      if unknown:
        raise UserError(
          f"the evaluation {key!r} has no option {', '.join(sorted(unknown))}; its options are: "
          + ", ".join(settings[key])
        )
      settings[key] = settings[key] | value
    else:
      settings[key] = value
  return settings


def _source(name, predict, image_shape):
  predict = subject_lib.place(subject_lib.as_pytree(predict))
  return Source(name, subject_lib.digest(predict, image_shape), predict)


def wait_for_all(name: str) -> None:
  """Returns when all processes have called it with this name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _say(text):
  if jax.process_index() == 0:
    print(text, flush=True)
