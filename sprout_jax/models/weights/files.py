"""Reads files of weights as NumPy arrays by name. No code in a file is executed.

.safetensors has only plain arrays. torch reads .pt, .pth and .ckpt with `weights_only=True`. From
.npz, only plain arrays are read. DeepMind's .npy is a pickle: `_Unpickler` builds dictionaries and
arrays from it, and refuses everything else.
"""

import math
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from collections.abc import Mapping
from typing import IO
from typing import Any

import numpy as np

from sprout_jax.errors import UserError

LARGEST = 8 * 2**30  # bytes, of a file and of the arrays in it; WRN-70-16 with optimizer has 3.2e9
DEEPEST = 8  # levels of nested dictionaries
MOST = 100_000  # arrays; ResNet-152 with optimizer has about 2,000
OLDEST_TORCH = (2, 6)  # earlier versions run code in spite of weights_only=True (CVE-2025-32434)
SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".npy", ".npz")


def read(path: pathlib.Path, entry: str | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads the arrays of a file.

  Args:
    path: a file with one of SUFFIXES.
    entry: the state dict to read if a PyTorch checkpoint has several, such as "state_dict" or
      "models.0"; None reads the only one.

  Returns:
    {name: array} of the arrays, and {name: type} of the other entries.

  Raises:
    UserError: the file is missing, too large or damaged, or has other content than arrays.
  """
  suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
  if not path.exists():
    raise UserError(
      f"there is no file {path}; give the path of a file of weights ({', '.join(SUFFIXES)}). "
      "docs/weights.md lists published weights"
    )
  if not path.is_file():
    raise UserError(f"{path} is not a regular file; give the path of a file of weights")
  if suffix is None:
    raise UserError(f"{path} is of an unknown kind; expected one of: {', '.join(SUFFIXES)}")
  if not 0 < path.stat().st_size <= LARGEST:
    raise UserError(f"{path} has {path.stat().st_size} bytes; expected 1 to {LARGEST}")
  if entry is not None and suffix not in (".pt", ".pth", ".pth.tar", ".ckpt"):
    raise UserError(f"entry is {entry!r}; only PyTorch checkpoints have entries, {path} has none")
  if suffix == ".safetensors":
    return _safetensors(path), {}
  if suffix == ".npz":
    return _npz(path), {}
  if suffix == ".npy":
    return _npy(path), {}
  return _torch(path, entry)


def _damaged(path: pathlib.Path, error: Exception, advice: str = "download it again") -> UserError:
  text = " ".join(str(error).split())[:300]
  return UserError(f"{path} cannot be read ({type(error).__name__}: {text}); {advice}")


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    from safetensors import SafetensorError
    from safetensors import numpy as safetensors_numpy
  except ImportError as error:
    raise UserError(
      f"{path} needs the package safetensors; type: pip install safetensors"
    ) from error
  try:
    return dict(safetensors_numpy.load_file(path))
  except (SafetensorError, OSError, ValueError) as error:
    raise _damaged(path, error) from error
  except (TypeError, AttributeError) as error:
    raise _damaged(
      path, error, "NumPy does not have the number type of an array: convert the array to float32"
    ) from error


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with zipfile.ZipFile(path) as archive:
      _check_members(path, archive)
      arrays = {}
      for member in archive.infolist():
        with archive.open(member) as file:
          dtype, shape = _header(file)
          if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, not plain numbers")
          if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{member.filename} is not as long as its header says")
    with np.load(path, allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
  except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
    raise _damaged(path, error) from error
  except (NotImplementedError, RuntimeError) as error:  # encrypted, or an unknown compression
    raise _damaged(path, error, "save it with numpy.savez") from error
  return arrays


def _check_members(path: pathlib.Path, archive: zipfile.ZipFile) -> None:
  """Refuses archives that unpack to more than LARGEST bytes."""
  members = archive.infolist()
  total = sum(member.file_size for member in members)
  if total > LARGEST or len(members) > MOST:
    raise UserError(
      f"{path} would unpack to {total} bytes in {len(members)} parts; at most {LARGEST} bytes in "
      f"{MOST} parts are read"
    )


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...]]:
  """Reads (dtype, shape) of an array in NumPy's format, and leaves the file at its data."""
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  elif version == (2, 0):
    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
  else:
    raise ValueError(f"version {version} of NumPy's format is unknown; expected (1, 0) or (2, 0)")
  return dtype, shape


def _npy(path: pathlib.Path) -> dict[str, np.ndarray]:
  with path.open("rb") as file:
    try:
      dtype, _ = _header(file)
      if not dtype.hasobject:
        raise ValueError("the file has one array; expected named arrays")
      content = _Unpickler(file).load()
      arrays = {}
      for name, array in _leaves(content, ()):
        if name in arrays:
          raise ValueError(f"the file has {name} twice")
        arrays[name] = array
    except _Refused as error:
      raise UserError(
        f"{path} is a pickle that names {error}, which could run code; expected NumPy arrays in "
        "dictionaries. If you trust its source, load it with the program that wrote it, and save "
        "its arrays with numpy.savez"
      ) from error
    # Any exception is possible here, because a pickle can have any content.
    except Exception as error:
      raise _damaged(path, error, "expected a NumPy file of dictionaries of arrays") from error
  if not arrays:
    raise UserError(f"{path} has no arrays; expected dictionaries of NumPy arrays")
  return arrays


def _leaves(
  value: Any, path: tuple[str, ...], count: list[int] | None = None, depth: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, array) of all arrays in dictionaries and sequences. "/" joins the names."""
  count = [0, 0] if count is None else count
  count[0] += 1
  if count[0] > MOST or depth > DEEPEST:
    raise ValueError(f"more than {MOST} entries or {DEEPEST} levels")
  if isinstance(value, np.ndarray) and value.dtype.hasobject:
    value = value.tolist() if value.ndim else [value.item()]
  if isinstance(value, Mapping):
    for key, entry in value.items():
      if not isinstance(key, str):
        raise ValueError(f"a dictionary has the key {key!r}; expected names")
      yield from _leaves(entry, (*path, key), count, depth + 1)
  elif isinstance(value, list | tuple):  # parameters and state; their names differ
    for entry in value:
      yield from _leaves(entry, path, count, depth + 1)
  elif isinstance(value, np.ndarray):
    count[1] += value.nbytes
    if count[1] > LARGEST:
      raise ValueError(f"the arrays have more than {LARGEST} bytes")
    yield "/".join(path), value
  else:
    raise ValueError(f"{'/'.join(path) or 'it'} is a {type(value).__name__}, not an array")


class _Refused(Exception):
  """A pickle has an object that is not an array or a dictionary."""


def _empty_array(*_: Any) -> np.ndarray:
  """Makes the empty array that a NumPy pickle then fills with its content."""
  return np.ndarray((0,), np.int8)


ALLOWED = {
  ("numpy.core.multiarray", "_reconstruct"): _empty_array,
  ("numpy._core.multiarray", "_reconstruct"): _empty_array,
  ("numpy", "ndarray"): None,  # only an argument of _reconstruct
  ("numpy", "dtype"): np.dtype,
  ("collections", "OrderedDict"): dict,
  ("haiku._src.data_structures", "FlatMapping"): dict,
  ("haiku._src.data_structures", "FlatMap"): dict,
  ("haiku._src.data_structures", "frozendict"): dict,
}


class _Unpickler(pickle.Unpickler):
  """Builds arrays and dictionaries. Every other object is an error that names it.

  Haiku's dictionaries, which networks of 2020 use, become plain dictionaries.
  """

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in ALLOWED:
      raise _Refused(f"{module}.{name}")
    return ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> Any:
    raise _Refused(f"the persistent object {pid!r}")


def _torch(path: pathlib.Path, entry: str | None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f"{path} can only be read with PyTorch; type: pip install torch. Or save its state dict as "
      ".safetensors on a machine with PyTorch"
    ) from error
  version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
  if version < OLDEST_TORCH:
    raise UserError(
      f"torch is {torch.__version__}, which cannot read untrusted files safely; type: "
      "pip install 'torch>=2.6'"
    )
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        _check_members(path, archive)
    content = torch.load(path, map_location="cpu", weights_only=True)
  except UserError:
    raise
  except pickle.UnpicklingError as error:
    found = re.search(r"GLOBAL (\S+)", str(error))
    raise UserError(
      f"{path} has {found[1] if found else 'Python objects'}, which could run code; expected "
      "only tensors. If you trust its source, load it with PyTorch and save its state dict as "
      ".safetensors"
    ) from error
  # The type of the exception depends on the damage.
  except Exception as error:
    raise _damaged(path, error) from error
  state = _state_dict(path, content, entry, torch.Tensor)
  tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
  for name, tensor in tensors.items():
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
      raise UserError(
        f"{path}: {name} is a sparse, quantized or empty tensor; expected a dense one"
      )
  # A view can claim more elements than the file has.
  if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > LARGEST:
    raise UserError(f"{path} has tensors of more than {LARGEST} bytes in total; expected fewer")
  return (
    {
      name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
      for name, tensor in tensors.items()
    },
    {name: type(value).__name__ for name, value in state.items() if name not in tensors},
  )


def _state_dict(
  path: pathlib.Path, content: Any, entry: str | None, tensor_type: type
) -> dict[str, Any]:
  """Returns the state dict of a checkpoint: the one named by `entry`, or the only one."""
  found = dict(_state_dicts(content, (), tensor_type))
  if not found:
    raise UserError(
      f"{path} has no state dict; expected a dictionary of tensors with names ending in 'weight'"
    )
  names = ", ".join(name or "the whole file" for name in found)
  if entry is None and len(found) > 1:
    raise UserError(f"{path} has several state dicts; type entry=NAME, with one of: {names}")
  if entry is not None and entry not in found:
    raise UserError(f"{path} has no state dict {entry!r}; choose one of: {names}")
  return found[entry] if entry is not None else next(iter(found.values()))


def _state_dicts(
  value: Any, path: tuple[str, ...], tensor_type: type
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, dictionary) of dictionaries of tensors with names ending in "weight"."""
  if not isinstance(value, Mapping) or len(path) > DEEPEST:
    return
  if any(
    isinstance(name, str) and name.endswith("weight") and isinstance(entry, tensor_type)
    for name, entry in value.items()
  ):
    yield ".".join(path), {str(name): entry for name, entry in value.items()}
    return
  for name, entry in value.items():
    yield from _state_dicts(entry, (*path, str(name)), tensor_type)
