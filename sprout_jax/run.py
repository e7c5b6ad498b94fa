"""The three modes of the launcher: train (and evaluate), evaluate, report.

Order of events in `train`: everything that can be checked without compiling (config, method,
workdir, devices, data, model) is checked; the workdir is claimed; the loop trains; the selected
weights are evaluated; the report is drawn from the files. Nothing is written before the checks.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from sprout_jax import configuration
from sprout_jax import data
from sprout_jax import methods
from sprout_jax import models
from sprout_jax import records
from sprout_jax import report
from sprout_jax import results
from sprout_jax import sharding
from sprout_jax import workdir as workdir_lib
from sprout_jax.data import array_cache
from sprout_jax.errors import UserError
from sprout_jax.evaluation import EVALUATIONS
from sprout_jax.evaluation import accuracy
from sprout_jax.evaluation import options as evaluation_options
from sprout_jax.evaluation import robustness
from sprout_jax.evaluation import subject as subject_lib
from sprout_jax.evaluation.store import Store
from sprout_jax.evaluation.store import code_identity
from sprout_jax.progress import format_seconds
from sprout_jax.report import wording
from sprout_jax.training import checkpoints
from sprout_jax.training import loop


def train(config, workdir):
  """Trains, evaluates and reports; continues whatever is already done in the workdir.

  Returns:
    Whether the run is complete; False after SIGTERM or Ctrl-C (everything is saved then).

  Raises:
    UserError: wrong input, before anything is compiled or written.
    TrainingDiverged: the loss turned NaN or infinite.
  """
  configuration.validate(config)
  models.check_name(config.model.name)
  cache_compilations()
  method = methods.create(config.method.name, configuration.options(config.method))
  penalty = methods.create_penalty(config.penalty.name, configuration.options(config.penalty))
  workdir_lib.check_owner(workdir, config)
  mesh = _mesh(config)
  dataset = _load(config)
  model = _model(config, dataset)
  loop.prepare(
    config, dataset, model, method, penalty, mesh
  )  # shapes only: finds what does not fit
  initial = _initial_variables(config, workdir, model, dataset, mesh)
  workdir_lib.claim(workdir, config)
  names = [config.method.name] + [config.penalty.name] * (penalty is not None)
  names += ["AWP"] * bool(config.awp_gamma)
  _say(
    f"{' + '.join(names)} | {config.model.name} | {dataset.name}: "
    f"{len(dataset.train.labels)} training, {len(dataset.validation.labels)} validation, "
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
    validate=_validation(config, dataset.validation, model, mesh),
    initial_variables=initial,
  )
  if not finished:
    _say("Stopped by a signal; everything is saved. The same command continues.")
    return False
  _evaluate(config, workdir, dataset, model, mesh, config.evaluation.after_training)
  return True


def _validation(config, split, model, mesh):
  """variables -> accuracies on the validation split as `config.validation` says; {} without one."""
  options, batch_size = config.validation, config.evaluation.batch_size
  correct = accuracy.correct_fn(model, mesh)
  spec = robustness.PgdSpec(
    norm="linf",
    num_steps=options.num_steps,
    step_size=options.step_size,
    num_restarts=1,
    loss="cross_entropy",
    seed=config.seed,
  )
  attack = robustness.pgd_fn(model, spec, mesh)

  def validate(variables):
    if not len(split.labels):
      return {}
    clean = accuracy.evaluate(correct, variables, split, batch_size, mesh)
    if not options.epsilon:
      return {"accuracy": float(clean.mean())}
    (robust,) = robustness.pgd_curve(
      attack, variables, split, clean, spec, [options.epsilon], batch_size, mesh
    )
    return {"accuracy": float(clean.mean()), "robust_accuracy": robust["accuracy"]}

  return validate


def _selection(config):
  """What the best checkpoint is best in, in words."""
  options = config.validation
  if not options.epsilon:
    return "clean validation accuracy"
  return (
    f"validation accuracy under PGD-{options.num_steps}, Linf, epsilon {options.epsilon:g}, steps "
    f"of {options.step_size:g}, one start"
  )


def evaluate(config, workdir):
  """Evaluates a trained workdir as `config.evaluation` says; what is there already is not repeated.

  Raises:
    UserError: wrong input, or nothing was trained there.
  """
  workdir_lib.read_config(workdir)  # there must be one
  workdir_lib.check_owner(workdir, config)
  configuration.validate(config)
  cache_compilations()
  mesh = _mesh(config)
  dataset = _load(config)
  _evaluate(config, workdir, dataset, _model(config, dataset), mesh, config.evaluation.evaluations)


def _evaluate(config, workdir, dataset, model, mesh, names):
  """Runs evaluations of the selected checkpoint, as far as they are not there, and reports.

  Raises:
    UserError: at the end, if what the user can mend has kept some from being measured.
  """
  evaluation = config.evaluation
  variables, step = _selected_variables(config, workdir, model, dataset, mesh)
  digest, history = checkpoints.sha256(variables), records.read_metrics(workdir)
  if evaluation.loss == "dlr" and dataset.num_classes < 3:
    raise UserError(
      f"config.evaluation.loss is 'dlr', which needs 3 classes; {dataset.name} has "
      f"{dataset.num_classes}: use margin"
    )
  subject = subject_lib.Subject(
    model=model,
    variables=variables,
    test=dataset.test,
    num_classes=dataset.num_classes,
    class_names=dataset.class_names,
    batch_size=evaluation.batch_size,
    mesh=mesh,
    logits=subject_lib.checked_logits(model, variables, dataset.test, evaluation.batch_size, mesh),
    beta=results.learned_beta(history, step),
    memo=None,
    load=lambda other: _source(other, dataset, mesh),
    load_corrupted=lambda corruption, severity: data.load_test(
      f"{config.dataset.name}_corrupted/{corruption}_{severity}",
      data_dir=config.dataset.data_dir,
      cache_dir=config.dataset.cache_dir,
    ),
  )
  store = Store(workdir, [digest, dataset.fingerprint, code_identity()])
  options = {name: evaluation_options.options(name, evaluation) for name in EVALUATIONS}
  # What is transferred depends on the sources' weights: a source that was trained anew is another.
  options["transfer"]["sources"] = [
    _source_digest(other, dataset, mesh, "transfer" in names)
    for other in evaluation.transfer.sources
  ]
  base = results.base(
    config,
    dataset,
    subject,
    digest,
    step,
    history,
    _selection(config),
    workdir_lib.trained_on(workdir),
  )
  refused = {}
  for number, name in enumerate(names):
    if store.read(name, options[name]):
      _say(f"{name}: is there already")
      continue
    _say(f"{name} ({number + 1} of {len(names)})")
    try:
      found = store.run(
        name,
        options[name],
        lambda memo, name=name: EVALUATIONS[name](
          dataclasses.replace(subject, memo=memo), **options[name]
        ),
      )
    except UserError as error:  # the others can be measured all the same
      if jax.process_count() > 1:  # where not all processes may have met it
        raise
      refused[name] = f"{name} was not measured: {error}"
      _say(refused[name])
      continue
    _say(f"{name}: {format_seconds(found['wall_seconds'])}")
    results.write(workdir, base, store, options, _say)  # so that a kill leaves what is known
  results.write(workdir, base, store, options, _say)
  if jax.process_index() == 0:
    print(report.run(workdir), flush=True)
  if refused:
    raise UserError("; ".join(refused.values()))


def _source_digest(workdir, dataset, mesh, needed):
  """A source as (workdir, SHA-256); "" where it is gone, and none is needed."""
  try:
    return workdir, _source(workdir, dataset, mesh).sha256
  except UserError:
    if needed:
      raise
    return workdir, ""


def _source(workdir, dataset, mesh):
  """The selected weights of another run on the same data, to transfer attacks from."""
  config = workdir_lib.read_config(workdir)
  if config.dataset.name != dataset.name:
    raise UserError(
      f"config.evaluation.transfer.sources: {workdir} was trained on {config.dataset.name}, not on "
      f"{dataset.name}; name runs on the same data"
    )
  model = _model(config, dataset)
  try:
    variables, _ = _selected_variables(config, workdir, model, dataset, mesh)
  except UserError as error:
    raise UserError(
      f"config.evaluation.transfer.sources: {workdir} cannot be loaded; do its classes and "
      f"image size differ? ({error})"
    ) from error
  return subject_lib.Source(
    workdir,
    wording.label({"config": config.to_dict()}),
    checkpoints.sha256(variables),
    model,
    variables,
  )


def show_report(workdirs):
  """Prints one table for several runs and draws their curves in one plot, in the first workdir.

  Raises:
    UserError: a workdir without results.
  """
  print(report.compare(workdirs), flush=True)


def cache_compilations():
  """Keeps compiled programs in the user's cache folder, unless JAX's own settings say otherwise.

  JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it off.
  """
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(array_cache.directory() / "xla"))


def _mesh(config):
  mesh = sharding.make_mesh()
  sharding.check_batch("config.batch_size", config.batch_size, mesh)
  sharding.check_batch("config.evaluation.batch_size", config.evaluation.batch_size, mesh)
  return mesh


def _load(config):
  options = config.dataset
  return data.load(
    options.name,
    data_dir=options.data_dir,
    cache_dir=options.cache_dir,
    train_split=options.train_split,
    test_split=options.test_split,
    validation_fraction=options.validation_fraction,
  )


def _model(config, dataset):
  return models.create(
    config.model.name,
    num_classes=dataset.num_classes,
    image_shape=dataset.image_shape,
    **configuration.options(config.model),
  )


def _selected_variables(config, workdir, model, dataset, mesh):
  """The weights that a workdir's own config selects, as {"params", "batch_stats"}, and their step."""
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *dataset.image_shape)), train=False)
  )
  shapes = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
  abstract = shapes | {"ema": shapes if config.ema_decay else {}}
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.replicated(mesh)),
    abstract,
  )
  parts, step = checkpoints.load_model(workdir, config.evaluation.checkpoint, abstract)
  return parts["ema"] if config.evaluation.use_ema else {
    name: parts[name] for name in ("params", "batch_stats")
  }, step


def _initial_variables(config, workdir, model, dataset, mesh):
  """A function that loads the weights of `config.init_from`; None for a random start.

  A run that has checkpoints of its own no longer needs the one it started from.
  """
  own = (pathlib.Path(workdir) / "checkpoints").glob("*")
  is_gone = not pathlib.Path(config.init_from, "config.json").exists()
  if not config.init_from or (is_gone and any(path.name.isdigit() for path in own)):
    return None
  source = workdir_lib.read_config(config.init_from)
  here, there = (configuration.flatten(c.model) for c in (config, source))
  if here != there:
    raise UserError(
      f"config.init_from {config.init_from} has another model: "
      + "; ".join(
        f"model.{key} is {there[key]!r} there, {here[key]!r} here"
        for key in here
        if here[key] != there[key]
      )
    )

  def load():
    try:
      return _selected_variables(source, config.init_from, model, dataset, mesh)[0]
    except UserError as error:
      raise UserError(
        f"config.init_from {config.init_from} cannot be loaded into this run's model; "
        f"do its classes and image size differ? ({error})"
      ) from error

  return load


def _say(text):
  if jax.process_index() == 0:
    print(text, flush=True)
