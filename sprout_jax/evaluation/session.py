"""Measurement of several evaluations of one model, stored in a workdir."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import math
import os
import pathlib
import platform
import traceback
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sprout_jax
from sprout_jax import attacks
from sprout_jax.attacks import convolutions
from sprout_jax.errors import EvaluationFailed
from sprout_jax.errors import ProcessLost
from sprout_jax.errors import UserError
from sprout_jax.errors import did_you_mean
from sprout_jax.evaluation import options as options_lib
from sprout_jax.evaluation import preflight
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation import table
from sprout_jax.evaluation.subject import Predict
from sprout_jax.evaluation.subject import Source
from sprout_jax.evaluation.subject import Subject
from sprout_jax.progress import format_seconds
from sprout_jax.results import comparison
from sprout_jax.results import numbers
from sprout_jax.results import summary
from sprout_jax.results import workdir as workdir_lib
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.store import Measurement
from sprout_jax.results.store import Memo
from sprout_jax.results.store import Store
from sprout_jax.results.summary import Results

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "scipy",
  "ml_collections",
  "tensorflow-datasets",
)
TIMED = 8  # images whose gradient is timed, to choose between convolutions
# The evaluations that `evaluate` measures by default. "transfer" needs other models.
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
  """Returns versions of packages and Python, the devices, and JAX settings that change numbers."""
  found = {"sprout_jax": sprout_jax.__version__, "python": platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "not installed"
  numerics = subject_lib.numerics()
  found["devices"] = f"{jax.device_count()} x {numerics.pop('device')}"
  return found | numerics


def measure(
  subject: Subject,
  names: Collection[str],
  settings: Mapping[str, Any],
  *,
  workdir: pathlib.Path | str,
  identity: Any,
  about: Mapping[str, Any],
  say: Callable[[str], None],
) -> tuple[Results, dict[str, str], dict[str, str]]:
  """Measures the evaluations that are not stored yet, and writes results.json after each.

  An evaluation that ends in an error is left out, and the others are measured. Give its errors to
  `raise_if_failed` at the end.

  Args:
    subject: the model.
    names: rows of `EVALUATIONS`.
    settings: the options, in the form of `table.defaults`.
    workdir: the folder of the results.
    identity: JSON that determines the numbers besides the evaluations: weights, data.
    about: the entries `summary.ABOUT` of results.json.
    say: called with each line for the user.

  Returns:
    The results; {evaluation: why it could not be measured}, of wrong input; and {evaluation: the
    error}, of all other errors.

  Raises:
    UserError: the loss does not fit the number of classes.
    ProcessLost: another process does not answer.
    Exception: with several processes, any error of an evaluation: it may be in this process only.
  """
  if settings["loss"] == "dlr" and subject.num_classes < 3:
    raise UserError(
      f"the loss 'dlr' needs at least 3 classes; there are {subject.num_classes}: use 'margin'"
    )
  is_first = jax.process_index() == 0
  identity = {"subject": identity, "numerics": subject_lib.numerics()}
  store = Store(workdir, identity, versions(), is_first, wait_for_all)
  subject = dataclasses.replace(subject, folder=pathlib.Path(workdir), about=_about(about))
  (clean,) = store.fetch("clean", 1, {}, lambda memo: _clean(subject)).numbers
  refused: dict[str, str] = {}
  failed: dict[str, str] = {}

  def options(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns an evaluation's options, and the same with what else determines its numbers."""
    chosen, depends = table.choose(name, settings), table.EVALUATIONS[name].depends
    more = None if depends is None else depends(subject, chosen)
    return chosen, chosen if more is None else chosen | {"depends": more}

  # Comparisons of runs need to know whether the images are the same, given in whatever form.
  test_set = {"test_sha256": comparison.test_set_digest(subject.images, subject.labels)}
  told = {**about, "data": {**(about["data"] or {}), **test_set}}

  def collect() -> Results:
    """Collects all evaluations of this subject, whatever options they were measured with.

    A measurement with the current options counts, else the newest (`Store.current`). So a call with
    other options loses no numbers.
    """
    found, outdated = [], {}
    for name, row in table.EVALUATIONS.items():
      try:
        current = options(name)[1]
      except UserError:  # a source is gone: the options cannot be known
        current = None
      one, why = store.current(name, row.version, current)
      if one is not None:
        found.append(one)
      elif why:
        outdated[name] = why
    results = summary.collect(workdir, told, clean, found, {**outdated, **refused, **failed})
    if is_first and summary.write(results):
      say("the earlier results.json is now results_previous.json")
    return results

  for number, name in enumerate(names, 1):
    row = table.EVALUATIONS[name]
    try:
      chosen, key = options(name)
      if store.read(name, row.version, key) is not None:
        say(f"{name}: already measured")
        continue
      say(f"{name} ({number} of {len(names)}): {row.title}")
      found = store.fetch(name, row.version, key, functools.partial(_compute, row, subject, chosen))
    except UserError as error:  # the other evaluations can still be measured
      if jax.process_count() > 1 or isinstance(error, ProcessLost):
        raise  # the error may be in this process only
      refused[name] = str(error)
      say(f"{name} was not measured: {error}")
      continue
    except Exception as error:  # out of memory, or a defect of this evaluation
      if jax.process_count() > 1:
        raise
      traceback.print_exc()  # the error is not kept: its frames hold arrays
      failed[name] = _reason(error)
      say(f"{name} was not measured: {failed[name]}")
      collect()
      continue
    say(f"{name}: {format_seconds(found.seconds)}")
    collect()  # a kill during the next evaluation then leaves a results.json
  return collect(), refused, failed


def _about(about: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a bundle says about the model, from the entries `summary.ABOUT`."""
  label, data = about["label"] or {}, about["data"] or {}
  return {
    "name": label.get("name") or " ".join(str(label[key]) for key in label),
    "sha256": about["parameters_sha256"],
    "data": data.get("name") or label.get("data"),
    "architecture": label.get("model"),
  }


def _reason(error: Exception) -> str:
  text = (str(error).strip().splitlines() or [""])[0][:300]
  advice = ". Give a smaller batch_size" if "RESOURCE_EXHAUSTED" in str(error) else ""
  return f"{type(error).__name__}: {text}{advice}"


def raise_if_failed(failed: Mapping[str, str], workdir: pathlib.Path | str) -> None:
  """Raises EvaluationFailed if evaluations ended in errors, see `measure`."""
  if failed:
    listed = "; ".join(f"{name} was not measured ({reason})" for name, reason in failed.items())
    raise EvaluationFailed(
      f"{listed}. The other results are in {workdir}. The same call measures the failed "
      "evaluations again"
    )


def _compute(
  row: table.Evaluation, subject: Subject, options: dict[str, Any], memo: Memo
) -> Measurement:
  return row.function(subject.start(memo), **options)


def _clean(subject: Subject) -> Measurement:
  """Measures the clean accuracy. It is stored, so that findings need no model."""
  return Measurement(Numbers([numbers.accuracy(subject.correct, np.arange(len(subject.labels)))]))


def _check_diameter(epsilon: Any, norm: str, shape: tuple[int, ...]) -> None:
  """Raises UserError for an L2 or L1 budget that takes any image to any other."""
  pixels = math.prod(shape)
  largest = {"l2": pixels**0.5, "l1": pixels}.get(norm, math.inf)
  if epsilon >= largest:
    raise UserError(
      f"evaluate: epsilon is {epsilon:g}, but images of shape {shape} in [0, 1] differ by at most "
      f"{largest:.4g} in {norm}; did you mean {epsilon:g}/255?"
    )


def evaluate(
  predict: Predict,
  images: Any,
  labels: Any,
  *,
  workdir: pathlib.Path | str,
  evaluations: Collection[str] | str = USUAL,
  epsilon: float | None = None,
  norm: str = "linf",
  num_steps: int = 50,
  num_restarts: int = 5,
  step_size: float | None = None,
  epsilons: Collection[float] | None = None,
  name: str | None = None,
  class_names: Collection[str] | None = None,
  features: Predict | None = None,
  sources: Mapping[str, Predict] | None = None,
  batch_size: int = 256,
  fast_convolutions: bool = True,
  progress: bool = True,
  **options: Any,
) -> Results:
  """Measures the robustness of a JAX model, checks the numbers, and writes a report.

  The model is any function of images: a Flax, NNX, Haiku, Equinox or Keras model, or a plain
  function. Every measurement is stored in `workdir`. The same call continues after a kill and
  measures nothing twice. The report is `workdir`/report/report.html.

  Example::

      results = evaluate(predict, images, labels, workdir="runs/mine", epsilon=8/255)
      results.numbers.first(evaluation="auto_attack", stage=None).value

  Args:
    predict: images [batch, height, width, channels] in [0, 1] -> logits [batch, classes]. The model
      is in evaluation mode and normalises its input itself. A model that draws random numbers is
      given as `attacks.averaged(predict, draws)`; then "redraws" is measured as well.
    images: test images [n, height, width, channels], uint8 or floats in [0, 1].
    labels: int [n], the classes.
    workdir: the folder for the results.
    evaluations: rows of `EVALUATIONS`, in the order of measurement; a single one can be a string.
    epsilon: perturbation budget, in pixel units (images in [0, 1]); default: 8/255 in Linf. The
      other norms have no default.
    norm: the norm of the perturbation, a key of `attacks.NORMS`.
    num_steps: gradient steps of PGD.
    num_restarts: random restarts of PGD.
    step_size: step size of PGD, in pixel units; default: epsilon / 4.
    epsilons: budgets of the accuracy curve; default: 0, 1/2, 1, 3/2 and 2 times epsilon.
    name: the model's name in the report; default: the name of the workdir.
    class_names: the classes' names; default: "0", "1", ...
    features: images -> [batch, features], the input of the model's last layer, for the binarisation
      test; default: the logits.
    sources: {name: predict} of other models. With them, "transfer" is measured as well.
    batch_size: images per compiled call, over all devices.
    fast_convolutions: whether plain convolutions of the model may be replaced by equivalent ones
      with faster gradients, where a short timing shows a gain (`attacks.convolutions`; on a CPU).
    progress: whether to show lines and progress bars.
    **options: further options: shared ones (`num_examples=1000`, `seed=1`), or a dictionary for one
      evaluation (`auto_attack={"version": "plus"}`). See `EVALUATIONS`.

  Returns:
    The `Results`: numbers with typed keys, and the findings of the checks.

  Raises:
    UserError: wrong input; the message says what to change.
    EvaluationFailed: evaluations ended in errors, such as too little memory. The others were
      measured, and the report is written.
  """
  from sprout_jax import report

  if not isinstance(workdir, str | os.PathLike):
    raise UserError(f"evaluate: workdir is {workdir!r}; expected the path of a folder")
  evaluations = (evaluations,) if isinstance(evaluations, str) else tuple(evaluations)
  if sources and "transfer" not in evaluations:
    evaluations = (*evaluations, "transfer")
  table.check_names("evaluations", evaluations)
  images, labels = preflight.check_data(images, labels)
  if epsilon is None and norm != "linf":
    raise UserError(
      f"evaluate: norm is {norm!r}, but epsilon is not given; type epsilon=VALUE, a budget in this "
      "norm, such as 0.5 in L2 for CIFAR-10"
    )
  epsilon = 8 / 255 if epsilon is None else epsilon
  options_lib.check("evaluate.epsilon", epsilon, options_lib.Epsilon)
  _check_diameter(epsilon, norm, images.shape[1:])
  epsilon = options_lib.convert(epsilon, options_lib.Epsilon)
  settings = _settings(options) | {
    "epsilon": epsilon,
    "norm": norm,
    "num_steps": num_steps,
    "num_restarts": num_restarts,
    "step_size": 0.0 if step_size is None else step_size,  # 0 fits epsilon, see `choose`
    "epsilons": options_lib.around(epsilon, norm) if epsilons is None else tuple(epsilons),
  }
  settings["transfer"]["sources"] = tuple(sources or ())
  table.check_settings("evaluate", settings)
  workdir = pathlib.Path(workdir).expanduser()
  shape = images.shape[1:]
  model = subject_lib.as_pytree(predict, shape)
  subject = Subject(
    model,
    images,
    labels,
    tuple(map(str, class_names or ())),
    batch_size=batch_size,
    shows_progress=progress,
  )
  say: Callable[[str], None] = _say if progress else lambda text: None
  preflight.check_subject(subject)
  names = class_names or [str(number) for number in range(subject.num_classes)]
  if len(names) != subject.num_classes:
    raise UserError(
      f"class_names has {len(names)} entries; expected one for each of the {subject.num_classes} "
      "classes"
    )
  digest = subject_lib.digest(model, shape)
  if isinstance(predict, attacks.Averaged):
    subject = dataclasses.replace(subject, redraw=_redraw(predict))
    evaluations = (*evaluations, *({"redraws"} - set(evaluations)))
  if features is not None:
    known = _checked("features", features, shape)
    subject = dataclasses.replace(
      subject, features=known, features_sha256=subject_lib.digest(known, shape)
    )
  if sources:
    others = {key: _source(key, other, shape) for key, other in sources.items()}
    subject = dataclasses.replace(subject, find_source=others.__getitem__)
  if fast_convolutions:
    timed = jnp.asarray(subject_lib.to_float(images[:TIMED]))
    faster = convolutions.fastest(subject.predict, timed)
    subject = dataclasses.replace(subject, predict=faster, programs={})
  data = subject_lib.data_digest(images, labels)
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
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      stack.enter_context(workdir_lib.lock(workdir, "evaluates"))
    results, _, failed = measure(
      subject,
      evaluations,
      settings,
      workdir=workdir,
      identity=[digest, data],
      about=about,
      say=say,
    )
  if jax.process_index() == 0:
    say(report.summarize(workdir))
    report.compare([workdir])
    say(f"report: {workdir / 'report' / 'report.html'}")
  raise_if_failed(failed, workdir)
  return results


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the default options, changed by those of a call."""
  settings = table.defaults()
  arguments = inspect.signature(evaluate).parameters
  for key, value in options.items():
    if key not in settings:
      raise UserError(
        f"evaluate has no option {key!r}; the options, and the evaluations with options, are: "
        + ", ".join(settings)
        + _nearest(key, [*settings, *arguments])
      )
    if isinstance(settings[key], dict):
      if not isinstance(value, Mapping):
        raise UserError(
          f"the options of the evaluation {key!r} are {value!r}; expected a dictionary with keys "
          "from: " + ", ".join(settings[key])
        )
      unknown = value.keys() - settings[key].keys()
      if unknown:
        raise UserError(
          f"the evaluation {key!r} has no option {', '.join(sorted(unknown))}; its options are: "
          + ", ".join(settings[key])
          + _nearest(min(unknown), settings[key])
        )
      settings[key] = settings[key] | value
    else:
      settings[key] = value
  return settings


def _nearest(name: str, names: Collection[str]) -> str:
  """Returns a question for the nearest of the names, to end a message; "" if none is near."""
  ends = [other for other in names if other.endswith(f"_{name}")]  # num_steps for steps
  question = did_you_mean(ends[0] if ends else name, names)
  return question and f".{question}"


def _redraw(model: attacks.Averaged) -> Callable[[jax.Array], Predict]:
  """Returns the function key -> the model with the draws of this key."""
  pure = dataclasses.replace(model, predict=subject_lib.as_pytree(model.predict))
  return lambda key: pure.redrawn(key)


def _source(name: str, predict: Predict, image_shape: tuple[int, ...]) -> Source:
  model = _checked(f"sources[{name!r}]", predict, image_shape)
  return Source(name, subject_lib.digest(model, image_shape), subject_lib.place(model))


def _checked(name: str, predict: Predict, image_shape: tuple[int, ...]) -> Predict:
  """Returns a model from `as_pytree` that JAX can trace."""
  model = subject_lib.as_pytree(predict, image_shape)
  preflight.check_trace(name, model, image_shape)
  return model


def wait_for_all(name: str) -> None:
  """Waits until all processes have called it with this name."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)
