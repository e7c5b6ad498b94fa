"""The three modes of the launcher: train (and evaluate), evaluate, report.

`train` first checks everything that needs no compilation: config, method, workdir, devices, data,
model. Then it claims the workdir, trains, evaluates the selected weights, and writes the report.
Nothing is written before the checks.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from sprout_jax import data
from sprout_jax import methods
from sprout_jax import models
from sprout_jax import report
from sprout_jax import sharding
from sprout_jax.data import array_cache
from sprout_jax.errors import UserError
from sprout_jax.evaluation import pgd as pgd_lib
from sprout_jax.evaluation import preflight
from sprout_jax.evaluation import session
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation.subject import BatchFunction
from sprout_jax.evaluation.subject import Source
from sprout_jax.evaluation.subject import Subject
from sprout_jax.launcher import configuration
from sprout_jax.launcher import published
from sprout_jax.launcher import trained as trained_lib
from sprout_jax.results import commands
from sprout_jax.results import workdir as workdir_lib
from sprout_jax.training import agreement
from sprout_jax.training import loop
from sprout_jax.training import stopping


def train(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, *, typed: Collection[str] = ()
) -> bool:
  """Trains, evaluates and reports. It continues what a workdir already has.

  Args:
    config: the config.
    workdir: the folder of the run.
    typed: keys that were set by flags, see `published`; for a start from a file of weights.

  Returns:
    True if the run is complete; False after a signal, with everything saved.

  Raises:
    UserError: wrong input; nothing is compiled or written then.
    TrainingDiverged: the loss became NaN or infinite.
  """
  configuration.validate(config)
  models.check_name(config.model.name)
  cache_compilations()
  method = methods.create(config.method.name, configuration.options(config.method))
  penalty = methods.create_penalty(config.penalty.name, configuration.options(config.penalty))
  _check_owner(workdir, config)
  mesh = _mesh(config)
  dataset = _load(config)
  model = trained_lib.create_model(config, dataset.num_classes, dataset.image_shape)
  loop.prepare(config, dataset, model, method, penalty, mesh)  # checks the shapes
  initial = _initial_variables(config, workdir, dataset, typed)
  with _alone(workdir, "trains"):
    if jax.process_index() == 0:
      facts = _facts(dataset)
      workdir_lib.claim(workdir, config.to_dict(), session.versions(), facts)
    with agreement.agreed():
      _check_shared(workdir)
    _say(
      f"{_method(config)} | {config.model.name} | {dataset.name} "
      f"({_some(dataset.class_names)}): "
      f"{len(dataset.train)} training, {len(dataset.validation.labels)} validation, "
      f"{len(dataset.test.labels)} test images | {jax.device_count()} device(s) | {workdir}"
    )
    finished = loop.train(
      config,
      workdir,
      dataset,
      model,
      method,
      penalty,
      mesh,
      validate=validation(config, dataset.validation, model),
      initial_variables=initial,
    )
    if not finished:  # a signal ended it; the loop has printed what is saved
      return False
    _evaluate(config, workdir, dataset, config.evaluation.after_training)
  _say(
    f"next: {commands.evaluate(workdir)} (more evaluations); {commands.report(workdir)} (a page)"
  )
  return True


def evaluate(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  *,
  weights: str = "",
  typed: Collection[str] = (),
) -> None:
  """Measures `config.evaluation.evaluations` of a trained run, as far as they are not stored.

  Args:
    config: the config of the run; keys of `config.evaluation` can be changed.
    workdir: the folder of the run.
    weights: a file of published weights in the place of the run, see `published.parse`; "" in the
      workdir of a run, or where the file is known from an earlier call.
    typed: keys that were set by flags, for a file of weights.

  Raises:
    UserError: wrong input, or the workdir has no trained model.
  """
  file = published.parse("--weights", weights) if weights else published.known(workdir)
  if file is not None:
    _evaluate_file(config, workdir, file, typed)
    return
  trained_lib.read_config(workdir)  # raises where there is none
  _check_owner(workdir, config)
  configuration.validate(config)
  cache_compilations()
  dataset = _load(config)
  with _alone(workdir, "evaluates"):
    _evaluate(config, workdir, dataset, config.evaluation.evaluations)


def _evaluate_file(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  file: published.File,
  typed: Collection[str],
) -> None:
  """Measures the evaluations of a file of published weights; arguments as in `evaluate`."""
  published.check_flags(config, typed)
  config = published.whole_config(published.sections(config))
  configuration.validate(config)
  models.check_name(config.model.name)
  cache_compilations()
  is_known = workdir_lib.is_run(workdir) and workdir_lib.read_weights(workdir) is not None
  if is_known and trained_lib.read_config(workdir).model == config.model:
    typed = [*typed, *published.STATED]  # they were set in an earlier call
  dataset = _load(config)
  found, config = published.load(file, config, dataset.num_classes, dataset.image_shape, typed)
  published.check_owner(workdir, config, file, found.file_sha256)
  facts = _facts(dataset)
  if is_known and (workdir / "data.json").exists():
    _check_data(workdir, workdir_lib.read_data(workdir), dataset, "evaluated")
  record = published.record(file, found)
  trained = trained_lib.from_file(workdir, config, facts, found, record)
  with _alone(workdir, "evaluates"):
    if jax.process_index() == 0:
      part = published.sections(config)
      workdir_lib.claim(workdir, part, session.versions(), facts, weights=record)
    _say(
      f"{file.path.name} ({found.form}, SHA-256 {found.file_sha256[:16]}) | {config.model.name}, "
      f"normalisation {found.normalisation} | {dataset.name}: {len(dataset.test.labels)} test "
      f"images | {jax.device_count()} device(s) | {workdir}"
    )
    _evaluate(config, workdir, dataset, config.evaluation.evaluations, trained)


@contextlib.contextmanager
def _alone(workdir: pathlib.Path, doing: str) -> Iterator[None]:
  """Keeps a workdir for this command, see `results.workdir.lock`. All processes enter it."""
  with contextlib.ExitStack() as stack:
    with agreement.agreed():
      if jax.process_index() == 0:
        stack.enter_context(workdir_lib.lock(workdir, doing))
    yield


def show_report(workdirs: Sequence[pathlib.Path]) -> None:
  """Writes one page about several runs into the first workdir, and prints the headline.

  Raises:
    UserError: a workdir has no results.
  """
  print(report.compare(workdirs), flush=True)


def validation(
  config: ml_collections.ConfigDict, split: data.Split, model: Any
) -> Callable[[Any], dict[str, float]]:
  """Makes the function that measures accuracy on the validation split.

  Args:
    config: the config; `config.validation` has the attack.
    split: the validation split; it can be empty.
    model: the Flax module.

  Returns:
    variables -> {"accuracy"}, and "robust_accuracy" where `config.validation` has an attack; {} for
    an empty split.
  """
  options = config.validation
  programs: dict[BatchFunction, Callable[..., Any]] = {}
  pgd = pgd_lib.Pgd("linf", options.num_steps, options.step_size, 1, "cross_entropy", config.seed)
  attack = pgd_lib.attack_fn(pgd.attack, pgd.norm, pgd.seed)
  predict, _ = trained_lib.functions(model)

  def validate(variables: Any) -> dict[str, float]:
    if not len(split.labels):
      return {}
    subject = Subject(
      subject_lib.as_pytree(jax.tree_util.Partial(predict, variables)),
      split.images,
      split.labels,
      batch_size=config.evaluation.batch_size,
      shows_progress=False,
      programs=programs,
    )
    found = {"accuracy": float(subject.correct.mean())}
    if options.epsilon:
      images = subject.select(0)
      robust = pgd_lib.outcomes(subject, images, attack, options.epsilon, name=pgd.name)
      found["robust_accuracy"] = float(robust.mean())
    return found

  return validate


def selection(config: ml_collections.ConfigDict) -> str:
  """Returns the criterion that selects the best checkpoint, in words."""
  options = config.validation
  if not options.epsilon:
    return "clean validation accuracy"
  return (
    f"validation accuracy under PGD-{options.num_steps}, Linf, epsilon {options.epsilon:g}, steps "
    f"of {options.step_size:g}, one restart"
  )


def cache_compilations() -> None:
  """Stores compiled programs in the user's cache folder, unless JAX has another setting.

  JAX_COMPILATION_CACHE_DIR sets another folder. JAX_ENABLE_COMPILATION_CACHE=false turns the cache
  off.
  """
  settings: Any = jax.config  # JAX defines the attributes at run time
  if settings.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(array_cache.directory() / "xla"))


def _evaluate(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
  names: Sequence[str],
  trained: trained_lib.Trained | None = None,
) -> None:
  """Measures evaluations of the selected checkpoint, as far as they are not stored, and reports.

  Args:
    config: the config.
    workdir: the folder of the run.
    dataset: the data set.
    names: the evaluations.
    trained: a model that stands in the place of the selected checkpoint.

  Raises:
    UserError: an evaluation could not be measured; the others were measured before.
  """
  evaluation = config.evaluation
  if trained is None:
    trained = trained_lib.load_as(workdir, config, evaluation.checkpoint)
    _check_data(workdir, trained.data, dataset, "trained")
  subject = Subject(
    subject_lib.as_pytree(trained.predict),
    dataset.test.images,
    dataset.test.labels,
    dataset.class_names,
    batch_size=evaluation.batch_size,
    features=None if trained.features is None else subject_lib.as_pytree(trained.features),
    beta=trained.beta,
    find_source=functools.cache(lambda name: _source(name, dataset)),
    find_corrupted=functools.partial(_corrupted, config),
  )
  preflight.check_subject(subject, _say)
  digest = trained.sha256
  model = configuration.flatten(config.model)
  beta = None if trained.beta is None else [float(value) for value in trained.beta]
  with _ends_at_signals(workdir):
    _, refused, failed = session.measure(
      subject,
      names,
      evaluation.to_dict(),
      workdir=workdir,
      identity={"weights": digest, "model": model, "data": dataset.fingerprint, "beta": beta},
      about=_about(config, workdir, dataset, trained, digest),
      say=_say,
    )
  if jax.process_index() == 0:
    print(report.summarize(workdir), flush=True)
  session.raise_if_failed(failed, workdir)
  if refused:
    listed = "; ".join(f"{name} was not measured: {reason}" for name, reason in refused.items())
    raise UserError(listed)


@contextlib.contextmanager
def _ends_at_signals(workdir: pathlib.Path) -> Iterator[None]:
  """Runs a measurement that SIGTERM, SIGHUP and Ctrl-C end at once, with a line.

  Every finished piece is stored, so nothing needs to be saved. With several processes, a signal
  ends its process, and the others lose it.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_count() == 1:
      stop = stack.enter_context(stopping.requests())
      farewell = f"What was measured is stored in {workdir}. The same command continues."
      stack.enter_context(stop.nothing_to_save(farewell))
    yield


def _about(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
  trained: trained_lib.Trained,
  digest: str,
) -> dict[str, Any]:
  """Returns the entries of results.json that describe the run."""
  about: dict[str, Any] = {
    "parameters_sha256": digest,
    "versions": session.versions(),
    "data": _facts(dataset) | {"count": len(dataset.test.labels)},
  }
  if trained.file is not None:
    kept = ("entry", "sha256", "form", "normalisation", "mean", "std")
    return about | {
      "config": published.sections(config),
      "label": _label_of_file(trained),
      "checkpoint": {
        "file": pathlib.Path(trained.file["path"]).name,
        **{key: trained.file[key] for key in kept},
      },
      "training": None,
    }
  history = workdir_lib.read_metrics(workdir)
  seconds = [record for record in history if "seconds" in record]
  # The median, because the first record includes compilation and others include a checkpoint.
  per_step = [record["seconds"] / record["steps"] for record in seconds]
  per_epoch = loop.steps_per_epoch(config, dataset)
  return about | {
    "config": config.to_dict(),
    "label": {
      "method": _method(config),
      "model": config.model.name,
      "data": dataset.name,
      "seed": config.seed,
    },
    "checkpoint": {
      "which": config.evaluation.checkpoint if trained.validated else "last",
      "step": trained.step,
      "selected_by": selection(config) if trained.validated else "",
      "weights": "ema" if config.evaluation.use_ema else "raw",
    },
    "training": {
      "devices": workdir_lib.read_versions(workdir).get("devices", ""),
      "seconds": sum(record["seconds"] for record in seconds),
      "steps": max((record["step"] for record in history), default=trained.step),
      "seconds_per_epoch": float(np.median(per_step)) * per_epoch if per_step else None,
      "peak_memory_bytes": max((r.get("peak_memory_bytes", 0) for r in history), default=0),
      "planned_steps": config.num_epochs * per_epoch,
    },
  }


def _label_of_file(trained: trained_lib.Trained) -> dict[str, Any]:
  """Returns the names of a model from a file of weights."""
  file = trained.file or {}
  name = pathlib.Path(file["path"]).name + (f":{file['entry']}" if file["entry"] else "")
  return {"name": name, "model": trained.config.model.name, "data": trained.data["name"]}


def _facts(dataset: data.Dataset) -> dict[str, Any]:
  """Returns the content of data.json."""
  return {
    "name": dataset.name,
    "fingerprint": dataset.fingerprint,
    "provenance": dataset.provenance,
    "class_names": list(dataset.class_names),
    "image_shape": list(dataset.image_shape),
  }


def _method(config: ml_collections.ConfigDict) -> str:
  """Returns the name of a run's method, with SPROUT's variant, the penalty and AWP."""
  method = config.method
  variant = [str(method[key]) for key in ("concentration", "draw") if key in method]
  added = [config.penalty.name] * (config.penalty.name != "none")
  added += [f"AWP {config.awp_gamma:g}"] * bool(config.awp_gamma)
  return " + ".join([" ".join([method.name, *variant]), *added])


def _source(name: str, dataset: data.Dataset) -> Source:
  """Loads the selected weights of another run on the same data, for transferred attacks."""
  where = f"config.evaluation.transfer.sources: {name}"
  other = trained_lib.load(name)
  if other.data["fingerprint"] != dataset.fingerprint:
    raise UserError(
      f"{where} has the data {other.data['name']}, but this run has {dataset.name}; give a run "
      "with the same data"
    )
  predict = subject_lib.place(subject_lib.as_pytree(other.predict))
  label = f"{_method(other.config)}, {other.config.model.name}, seed {other.config.seed}"
  if other.file is not None:
    label = f"{_label_of_file(other)['name']}, {other.config.model.name}"
  return Source(label, other.sha256, predict)


def _corrupted(
  config: ml_collections.ConfigDict, corruption: str, severity: int
) -> tuple[np.ndarray, np.ndarray]:
  """Loads a prepared set of corrupted test images."""
  request = dataclasses.replace(
    configuration.data_request(config),
    name=f"{config.dataset.name}_corrupted/{corruption}_{severity}",
    test_split="test",
  )
  split = data.load_test(request)
  return split.images, split.labels


def _check_owner(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Raises UserError if the workdir belongs to a config that trains different parameters."""
  if workdir_lib.read_weights(workdir) is not None:
    raise UserError(
      f"{workdir} belongs to a file of weights, which is evaluated and not trained; choose another "
      "--workdir"
    )
  if workdir_lib.is_run(workdir):
    found = configuration.differences(trained_lib.read_config(workdir), config)
    if found:
      raise UserError(
        f"{workdir} belongs to another config:\n  "
        + "\n  ".join(found)
        + "\nChoose another --workdir, or give the config of this workdir."
      )
  elif workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir {workdir} is a file; name a folder")


def _check_data(
  workdir: pathlib.Path, known: Mapping[str, Any], dataset: data.Dataset, what: str
) -> None:
  """Raises UserError unless a workdir was trained or evaluated (`what`) on this data set."""
  if known["fingerprint"] != dataset.fingerprint:
    raise UserError(
      f"{workdir} was {what} on another version of {known['name']}: the digests of the data "
      "differ. Give the same data, or choose another --workdir"
    )


def _check_shared(workdir: pathlib.Path) -> None:
  """Checks that this process sees the workdir that process 0 has claimed."""
  end = time.monotonic() + SHARED_SECONDS
  while not workdir_lib.is_run(workdir):
    if time.monotonic() > end:
      raise UserError(
        f"--workdir {workdir} is not the folder of process 0; give all processes the same folder, "
        "on a file system that they share"
      )
    time.sleep(0.2)


def _some(names: Sequence[str]) -> str:
  """The number of classes and the first names."""
  more = ", ..." if len(names) > SHOWN_CLASSES else ""
  return f"{len(names)} classes: {', '.join(names[:SHOWN_CLASSES])}{more}"


def _mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
  mesh = sharding.make_mesh(parameter_shards=config.parameter_shards)
  sharding.check_batch("config.batch_size", config.batch_size, mesh)
  return mesh


def _load(config: ml_collections.ConfigDict) -> data.Dataset:
  """Loads the data set, and checks that all processes were started alike."""
  with agreement.agreed():
    dataset = data.load_as(configuration.data_request(config), config.dataset.validation_fraction)
  local = ("dataset.data_dir", "dataset.cache_dir", "dataset.workers")  # of each machine
  values = {
    f"config.{key}": value
    for key, value in configuration.flatten(config.to_dict()).items()
    if key not in local
  }
  data_set = {"the digest of the data": dataset.fingerprint}
  agreement.check_same({**values, **session.versions(), **data_set})
  return dataset


SHARED_SECONDS = 90.0  # NFS can hide for a minute what process 0 has written
SHOWN_CLASSES = 4  # names in the first line of a training
# Keys of config.model that change neither the weights nor what they mean.
NOT_WEIGHTS = ("dtype", "remat")


def _initial_variables(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  dataset: data.Dataset,
  typed: Collection[str],
) -> Callable[[], Any] | None:
  """Returns a function that loads the weights of `config.init_from`; None for random weights.

  A run with checkpoints of its own does not need `config.init_from` any more.
  """
  own = (workdir / "checkpoints").glob("*")
  if not config.init_from or any(path.name.isdigit() for path in own):
    return None
  where = pathlib.Path(config.init_from).expanduser()
  start = f"config.init_from {config.init_from}"
  if workdir_lib.is_run(where):
    data_there = workdir_lib.read_data(where)
    here, there = (configuration.flatten(c.model) for c in (config, trained_lib.read_config(where)))
    different = [
      f"model.{key} is {there.get(key)!r} in config.init_from, {here[key]!r} in this config"
      for key in here
      if here[key] != there.get(key) and key not in NOT_WEIGHTS
    ]
    sizes = (
      ("classes", len(data_there["class_names"]), dataset.num_classes),
      ("channels", data_there["image_shape"][-1], dataset.image_shape[-1]),
    )
    different += [
      f"it has {old} {what}, the data of this config have {new}"
      for what, old, new in sizes
      if old != new
    ]
    get = lambda: trained_lib.load(where).variables
  else:
    file = published.parse("config.init_from", config.init_from)
    if not file.path.is_file():
      raise UserError(
        f"{start} is neither the workdir of a run nor a file of weights; train a run there "
        "first, or give another workdir or file"
      )
    found, _ = published.load(file, config, dataset.num_classes, dataset.image_shape, typed)
    different = published.differences(found, config.model)
    get = lambda: trained_lib.replicate(found.variables)
  if different:
    raise UserError(
      f"{start} has another model than this config: {'; '.join(different)}. Give the same values "
      "in this config, or another config.init_from"
    )
  # Now, because a missing checkpoint is an error before anything is written. The training takes the
  # only reference, so that the devices do not keep a copy.
  held = [get()]
  return held.pop


def _say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)
