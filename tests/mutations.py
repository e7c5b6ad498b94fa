"""Deliberate faults of one line each, and whether the tests notice them.

    python tests/mutations.py                 # all; about 20 minutes on 2 cores
    python tests/mutations.py attacks losses  # those of files whose path contains a word
    python tests/mutations.py --check         # only that each fault still fits the code

Each fault is made in a copy of the repository. Then the tests of that room run until the first
failure. A fault that no test notices is a missing test. The last column of `FAULTS` names the tests
that should notice; the whole suite is not run.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
  """One changed line.

  Attributes:
    path: the file, below sprout_jax/.
    before: text that occurs once in it.
    after: what stands there instead.
    tests: arguments of pytest, relative to tests/.
  """

  path: str
  before: str
  after: str
  tests: str


FAULTS = (
  # Vicinities and losses.
  Fault(
    "vicinity.py",
    "weight * values + (1 - weight)",
    "weight * values + (0.99 - weight)",
    "test_vicinity.py",
  ),
  Fault(
    "vicinity.py",
    "label_weight * labels + beta_weight",
    "label_weight * labels + label_weight",
    "test_vicinity.py",
  ),
  Fault(
    "vicinity.py",
    "jax.random.loggamma(key, jnp.where(positive, concentration, 1))",
    "jax.random.loggamma(key, jnp.where(positive, concentration + 1, 1))",
    "test_vicinity.py",
  ),
  Fault(
    "vicinity.py",
    "jnp.where(positive, logits, -jnp.inf)",
    "jnp.where(positive, logits, 0.0)",
    "test_vicinity.py",
  ),
  Fault(
    "losses.py",
    "jax.nn.logsumexp(others - true[:, None]",
    "jax.nn.logsumexp(others - 1.01 * true[:, None]",
    "test_losses.py",
  ),
  Fault(
    "losses.py",
    "ranked[:, -1] - ranked[:, -3] + 1e-12",
    "ranked[:, -1] - ranked[:, -2] + 1e-12",
    "test_losses.py",
  ),
  Fault(
    "losses.py",
    "(ranked[:, -3] + ranked[:, -4]) / 2",
    "(ranked[:, -2] + ranked[:, -4]) / 2",
    "test_losses.py",
  ),
  Fault(
    "losses.py",
    "if squared else _l2(difference)",
    "if not squared else _l2(difference)",
    "test_losses.py",
  ),
  # Methods and the training step.
  Fault(
    "training/step.py",
    "optax.tree.scale(-1, grads)",
    "optax.tree.scale(1, grads)",
    "training/test_step.py methods/test_sprout.py",
  ),
  Fault("training/step.py", "state.step + 1)  #", "state.step + 0)  #", "training/test_step.py"),
  Fault(
    "training/step.py", "(1 - recipe.ema_decay) *", "recipe.ema_decay *", "training/test_step.py"
  ),
  Fault(
    "training/step.py",
    "return w + size * g if w.ndim > 1 else w",
    "return w - size * g if w.ndim > 1 else w",
    "methods/test_closed_forms.py",
  ),
  Fault(
    "training/step.py",
    'values, metrics["penalty"] = values + penalty',
    'values, metrics["penalty"] = values + 0 * penalty',
    "training/test_step.py methods",
  ),
  # Attacks.
  Fault(
    "attacks/projected_gradient.py",
    "better = (here.wrong & ~best.wrong) |",
    "better =",
    "attacks/test_pgd.py",
  ),
  Fault(
    "attacks/projected_gradient.py",
    "norms.project(points + step, self.images",
    "norms.project(points - step, self.images",
    "attacks/test_pgd.py",
  ),
  Fault(
    "attacks/projected_gradient.py",
    "jax.random.fold_in(self.key, run)",
    "jax.random.fold_in(self.key, 0 * run)",
    "attacks/test_pgd.py",
  ),
  Fault(
    "attacks/auto_pgd.py",
    "MOMENTUM = 0.75",
    "MOMENTUM = 0.7",
    "attacks/test_constants.py attacks/test_auto_attack.py attacks/test_reference.py",
  ),
  Fault(
    "attacks/auto_pgd.py",
    "raised.astype(x.dtype) <= RAISED_SHARE",
    "raised.astype(x.dtype) < RAISED_SHARE",
    "attacks",
  ),
  Fault(
    "attacks/auto_pgd.py",
    "max(int(0.03 * num_steps), 1)",
    "max(int(0.04 * num_steps), 1)",
    "attacks/test_constants.py attacks/test_auto_attack.py",
  ),
  Fault(
    "attacks/fast_boundary.py",
    "OVERSHOOT = 1.05",
    "OVERSHOOT = 0.95",
    "attacks/test_auto_attack.py",
  ),
  Fault(
    "attacks/squares.py",
    'better = (value > state["margin"]) | wrong',
    'better = (value < state["margin"]) | wrong',
    "attacks/test_auto_attack.py",
  ),
  Fault(
    "attacks/squares.py",
    "FIRST_SHARE / 2 **",
    "FIRST_SHARE / 3 **",
    "attacks/test_constants.py attacks/test_auto_attack.py",
  ),
  Fault(
    "attacks/ensemble.py",
    "TARGETS = 9",
    "TARGETS = 8",
    "attacks/test_constants.py attacks/test_auto_attack.py",
  ),
  Fault(
    "attacks/ensemble.py",
    'SAMPLES = {"rand": 20}',
    'SAMPLES = {"rand": 2}',
    "attacks/test_constants.py attacks/test_auto_attack.py",
  ),
  # Results.
  Fault("results/comparison.py", "p1 - p2,", "p2 - p1,", "results/test_comparison.py"),
  Fault(
    "results/comparison.py",
    "max(together - n / 2, 0.0)",
    "max(together + n / 2, 0.0)",
    "results/test_comparison.py",
  ),
  Fault(
    "results/files.py", "if seal != digest(value):", "if seal is None:", "results/test_files.py"
  ),
  Fault(
    "results/files.py",
    "os.replace(temporary, path)",
    "path.write_bytes(temporary.read_bytes())",
    "results/test_files.py",
  ),
  Fault(
    "results/numbers.py",
    "in_order = indices == list(range(len(indices)))",
    "in_order = sorted(indices) == list(range(len(indices)))",
    "results/test_numbers.py",
  ),
  Fault("results/store.py", "if piece not in self._pieces:", "if True:", "results/test_store.py"),
  Fault(
    "results/checks.py",
    "points = 100 * (before - after)\n    passed = points <=",
    "points = 100 * (before - after)\n    passed = points >=",
    "results/test_checks.py",
  ),
  Fault(
    "results/checks.py", "share <= MOVING_SHARE", "share >= MOVING_SHARE", "results/test_checks.py"
  ),
  Fault("results/table.py", '"low": low,', '"low": high,', "results/test_table.py"),
  # Evaluation.
  Fault("evaluation/subject.py", "[:kept], found", "[:size], found", "evaluation/test_subject.py"),
  Fault(
    "evaluation/subject.py",
    "rows = np.arange(start, start + size)",
    "rows = np.arange(start + 1, start + size + 1)",
    "evaluation/test_subject.py",
  ),
  Fault(
    "evaluation/subject.py", "/ np.float32(255)", "/ np.float32(256)", "evaluation/test_subject.py"
  ),
  Fault("evaluation/randomness.py", "RandomState(0)", "RandomState(1)", "evaluation"),
  Fault(
    "evaluation/smoothing.py",
    "fold_in(root_key(smoothing.seed), purpose)",
    "fold_in(root_key(smoothing.seed), 0 * purpose)",
    "evaluation/test_smoothing.py evaluation/test_golden.py",
  ),
  Fault(
    "evaluation/smoothing.py",
    "sure = bound > 0.5",
    "sure = bound > 0.4",
    "evaluation/test_smoothing.py",
  ),
  Fault(
    "evaluation/smoothing.py",
    "(numbers < n)[None]",
    "(numbers <= n)[None]",
    "evaluation/test_smoothing.py",
  ),
  Fault(
    "evaluation/calibration.py", 'side="left"', 'side="right"', "evaluation/test_calibration.py"
  ),
  Fault(
    "evaluation/threat.py",
    "jnp.maximum(adversarial - 1, -adversarial)",
    "jnp.maximum(adversarial - 2, -adversarial)",
    "evaluation/test_threat.py",
  ),
  # Training around the step, data, report, launcher.
  Fault(
    "training/checkpoints.py",
    'if sha256(part) != record["arrays"][name]:',
    "if False:",
    "training/test_checkpoints.py",
  ),
  Fault(
    "training/checkpoints.py",
    "*steps[-self._keep :]",
    "*steps[-1:]",
    "training/test_checkpoints.py",
  ),
  Fault(
    "training/checkpoints.py",
    'step = _best(accuracies) if which == "best" else max(records)',
    "step = max(records)",
    "training/test_checkpoints.py",
  ),
  Fault(
    "training/loop.py",
    "return done == last_step or done %",
    "return done %",
    "training/test_loop.py",
  ),
  Fault(
    "training/agreement.py", "texts = gather(text)", "texts = [text]", "training/test_several.py"
  ),
  Fault(
    "data/order.py",
    "order = np.random.RandomState([seed, epoch])",
    "order = np.random.RandomState([seed, 0])",
    "data/test_order.py",
  ),
  Fault(
    "data/order.py",
    "order = order[: per_epoch * batch_size]",
    "order = np.sort(order[: per_epoch * batch_size])",
    "data/test_order.py",
  ),
  Fault(
    "data/augmentation.py", "0, 2 * padding + 1)", "0, 2 * padding)", "data/test_augmentation.py"
  ),
  Fault(
    "data/augmentation.py",
    "images[:, :, ::-1, :]",
    "images[:, ::-1, :, :]",
    "data/test_augmentation.py",
  ),
  Fault("data/array_cache.py", 'if digests != entry["digests"]:', "if False:", "data"),
  Fault(
    "report/headline.py",
    "elif not compared.differs:",
    "elif compared.differs:",
    "report",
  ),
  Fault("report/headline.py", "statistics.stdev(one)", "statistics.pstdev(one)", "report"),
  # Published weights on the command line, and constants of other codes.
  Fault(
    "launcher/published.py",
    "if key in typed or config.model[name] != usual[name]:",
    "if key:",
    "launcher/test_published.py",
  ),
  Fault("launcher/published.py", "if classes != num_classes:", "if not classes:", "launcher"),
  Fault(
    "launcher/published.py",
    '(record["sha256"], record["entry"]) != (file_sha256, file.entry)',
    'record["entry"] != file.entry',
    "launcher/test_published.py",
  ),
  Fault("launcher/modes.py", '"training": None,', '"training": {"seconds": 0.0},', "launcher"),
  Fault(
    "launcher/modes.py",
    "different = published.differences(found, config.model)",
    "different = []",
    "launcher/test_published.py",
  ),
  Fault(
    "launcher/trained.py",
    "variables = replicate(weights.variables)",
    "variables = replicate({**weights.variables, 'batch_stats': {}})",
    "launcher/test_published.py",
  ),
  Fault(
    "models/weights/__init__.py",
    "tuple(float(str(value)) for value in part)",
    "tuple(float(value) for value in part)",
    "launcher/test_published.py",
  ),
  Fault(
    "methods/adversarial.py",
    "jax.nn.softmax(logits) + 1e-8",
    "jax.nn.softmax(logits) + 1e-12",
    "methods/test_closed_forms.py",
  ),
  Fault(
    "report/headline.py",
    "best = max(sound, key=statistics.fmean, default=[])",
    "best = min(sound, key=statistics.fmean, default=[])",
    "report",
  ),
  # Refusals, hooks, bundles, and what comes after AutoAttack.
  Fault(
    "attacks/inputs.py",
    "np.abs(logits.sum(-1) - 1).max() < 0.01",
    "np.abs(logits.sum(-1) - 1).max() < 1e-9",
    "attacks/test_inputs.py",
  ),
  Fault(
    "attacks/inputs.py",
    "return jnp.where(is_larger, jnp.nextafter(rounded, images), rounded)",
    "return rounded",
    "attacks/test_inputs.py",
  ),
  Fault(
    "attacks/hooks.py",
    "jax.vjp(lambda images: surrogate(images, *keys), images)",
    "jax.vjp(lambda images: predict(images, *keys), images)",
    "attacks/test_hooks.py",
  ),
  Fault("attacks/hooks.py", "return total / self.draws", "return total", "attacks/test_hooks.py"),
  Fault(
    "attacks/extended.py",
    "return -jnp.sum(one * logits, -1) / (slope + 1e-12)",
    "return -jnp.sum(one * logits, -1)",
    "attacks/test_extended.py",
  ),
  Fault(
    "attacks/extended.py",
    'np.argsort(-margin, axis=1, kind="stable")',
    'np.argsort(margin, axis=1, kind="stable")',
    "attacks/test_extended.py",
  ),
  Fault(
    "attacks/ensemble.py",
    "state.robust[:] &= after.robust",
    "state.robust[:] |= after.robust",
    "attacks/test_extended.py",
  ),
  Fault(
    "attacks/schedule.py",
    "one.limit * self._steps + one.steps",
    "one.steps",
    "attacks/test_schedule.py",
  ),
  Fault(
    "evaluation/estimate.py",
    "math.log(self._alpha / (m + 1))",
    "math.log(self._alpha)",
    "evaluation/test_beyond.py",
  ),
  Fault("evaluation/union.py", "robust.copy()", "robust", "evaluation/test_beyond.py"),
  Fault(
    "evaluation/probabilistic.py",
    "scipy.stats.beta.ppf(1 - alpha, wrong + 1,",
    "scipy.stats.beta.ppf(1 - alpha / 2, wrong + 1,",
    "evaluation/test_beyond.py",
  ),
  Fault(
    "evaluation/auto_attack.py",
    "np.add.at(confusion, (labels, result.predicted), 1)",
    "np.add.at(confusion, (result.predicted, labels), 1)",
    "evaluation/test_beyond.py",
  ),
  Fault(
    "evaluation/redraws.py",
    "float(shares.std(ddof=1))",
    "float(shares.std())",
    "evaluation/test_redraws.py",
  ),
  Fault(
    "evaluation/replay.py",
    "if right > allowed:",
    "if right > allowed + 1:",
    "evaluation/test_replay.py",
  ),
  Fault(
    "results/bundle.py",
    "allowed = epsilon + TOLERANCE * max(1.0, epsilon)",
    "allowed = 1.01 * epsilon",
    "results/test_bundle.py",
  ),
  Fault(
    "results/bundle.py",
    "np.inf if np.isnan(distance) else distance",
    "distance",
    "results/test_bundle.py",
  ),
  Fault(
    "results/bundle.py",
    'if counts != bundle.about["counts"]:',
    "if not counts:",
    "results/test_bundle.py",
  ),
  Fault(
    "report/classes.py",
    "answers[label] = 0",
    "answers[label] = answers[label]",
    "report/test_classes.py",
  ),
)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("words", nargs="*", help="parts of the paths whose faults are made")
  parser.add_argument("--check", action="store_true", help="only look whether each fault fits")
  args = parser.parse_args()
  chosen = [f for f in FAULTS if not args.words or any(word in f.path for word in args.words)]
  for fault in chosen:
    count = (ROOT / "sprout_jax" / fault.path).read_text().count(fault.before)
    if count != 1:
      sys.exit(f"{fault.path} has {fault.before!r} {count} times; expected once: mend FAULTS")
  if args.check:
    print(f"{len(chosen)} faults fit the code")
    return
  missed = []
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / "sprout_jax"
    ignored = shutil.ignore_patterns(".git", "runs", ".venv*", "*_cache", "results", "_build")
    shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
    shutil.copytree(ROOT / "sprout_jax" / "results", copy / "sprout_jax" / "results")
    shutil.copytree(ROOT / "tests" / "results", copy / "tests" / "results")
    if (ROOT.parent / "shared").is_dir():
      os.symlink(ROOT.parent / "shared", pathlib.Path(folder) / "shared")
    for number, fault in enumerate(chosen, 1):
      start, path = time.monotonic(), copy / "sprout_jax" / fault.path
      original = path.read_text()
      path.write_text(original.replace(fault.before, fault.after))
      tests = [f"tests/{name}" for name in fault.tests.split()]
      command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
      done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
      path.write_text(original)
      is_caught = done.returncode == 1  # others: no tests, or pytest itself failed
      failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
      what = failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ""
      if not is_caught:
        missed.append(fault)
        what = f"pytest ended with {done.returncode}"
      print(
        f"{number}/{len(chosen)} {'caught' if is_caught else 'MISSED'} {fault.path}: "
        f"{fault.before!r} -> {fault.after!r} [{what}] {time.monotonic() - start:.0f} s",
        flush=True,
      )
  print(f"{len(chosen) - len(missed)} of {len(chosen)} faults were caught")
  sys.exit(bool(missed))


if __name__ == "__main__":
  main()
