"""What the tests of evaluations share: every evaluation measured once; programs compiled once."""

import contextlib
import shutil
from typing import NamedTuple

import jax
import pytest

from sprout_jax.evaluation import table
from sprout_jax.results.store import Store
from tests.evaluation import subjects


class Measured(NamedTuple):
  """Every evaluation of the linear subject.

  Attributes:
    stored: {evaluation: `Stored`}.
    pieces: {evaluation: the file of its pieces, as it was before the evaluation was finished}.
  """

  stored: dict
  pieces: dict


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


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
  """`Measured`, for all tests together."""
  folder = tmp_path_factory.mktemp("measured")
  settings = subjects.settings()
  subject = subjects.make(find_source=subjects.source)
  store, found = Store(folder, ["the linear subject"], {}), Measured({}, {})

  def keeping(name, chosen, memo):
    measurement = table.EVALUATIONS[name].function(subject.start(memo), **chosen)
    for path in (folder / "evaluation").glob("*.partial.jsonl"):  # gone when all is stored
      found.pieces[name] = shutil.copyfile(path, folder / path.name)
    return measurement

  with _programs_kept(tmp_path_factory):
    for name, row in table.EVALUATIONS.items():
      chosen = table.choose(name, settings)
      found.stored[name] = store.run(
        name,
        row.version,
        chosen,
        lambda memo, name=name, chosen=chosen: keeping(name, chosen, memo),
      )
  return found


@pytest.fixture(scope="session")
def results(measured):
  """{evaluation: `Stored`} of the linear subject."""
  return measured.stored
