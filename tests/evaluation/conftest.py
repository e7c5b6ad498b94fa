"""Fixtures of the tests of evaluations, to measure and compile everything only once."""

import contextlib
import shutil
from collections.abc import Mapping

import jax
import pytest

from sprout_jax.evaluation import table
from sprout_jax.results.store import Store
from tests.evaluation import subjects


@contextlib.contextmanager
def _programs_kept(tmp_path_factory):
  """Keeps compiled programs in a folder of the session: evaluations run here more than once."""
  names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
  before = [getattr(jax.config, name) for name in names]
  values = str(tmp_path_factory.getbasetemp() / "programs"), 0.0
  for name, value in zip(names, values, strict=True):
    jax.config.update(name, value)
  yield
  for name, value in zip(names, before, strict=True):
    jax.config.update(name, value)


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
  with _programs_kept(tmp_path_factory):
    yield


class Measured(Mapping):
  """{evaluation: `Stored`} of the linear subject, each measured when it is first asked for.

  Attributes:
    pieces: {evaluation: the file of its pieces, as it was before the evaluation was finished}.
  """

  def __init__(self, folder, tmp_path_factory):
    self._folder, self._factory = folder, tmp_path_factory
    self._store, self._found, self.pieces = Store(folder, ["the linear subject"], {}), {}, {}

  def __getitem__(self, name):
    if name not in self._found:
      row, chosen = table.EVALUATIONS[name], table.choose(name, subjects.settings())
      subject = subjects.make(find_source=subjects.source)

      def compute(memo):
        found = row.function(subject.start(memo), **chosen)
        for path in (self._folder / "evaluation").glob("*.partial.jsonl"):  # soon it is gone
          self.pieces[name] = shutil.copyfile(path, self._folder / path.name)
        return found

      with _programs_kept(self._factory):
        self._found[name] = self._store.fetch(name, row.version, chosen, compute)
    return self._found[name]

  def __iter__(self):
    return iter(table.EVALUATIONS)

  def __len__(self):
    return len(table.EVALUATIONS)


@pytest.fixture(scope="session")
def results(tmp_path_factory):
  """`Measured`, for all tests together."""
  return Measured(tmp_path_factory.mktemp("measured"), tmp_path_factory)
