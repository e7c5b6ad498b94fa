"""One attack over many images, in batches that stay full.

A batch is a fixed number of slots on the devices. Each slot holds one example with its own state
and step number. After every call of `chunk` steps, broken and finished examples leave. Their slots
take the next run (restart or target) of the same example, or the next example. When no example
waits, the rest moves into a smaller batch. There are few sizes of batches, so that few programs are
compiled.

An example's outcome depends on its own key, image and label only. It is the same for any batch
size, order and number of devices. After an interruption the examples in the slots start again.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from sprout_jax.attacks.attack import Attack
from sprout_jax.attacks.attack import Batch
from sprout_jax.attacks.attack import State
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import select

SHRINK = 4  # ratio of one batch size to the next smaller one
# Smallest number of slots per device. On a GPU or TPU, 8 images take as long as 64, and each size
# costs a compilation.
SMALLEST_ON_CPU, SMALLEST = 8, 64


class Slots(NamedTuple):
  """The examples on the devices.

  Attributes:
    batch: the examples, one per slot.
    state: the attack's state.
    step: int [slots], steps done in this run.
  """

  batch: Batch
  state: State
  step: jax.Array


class Outcome(NamedTuple):
  """Outcome of the attack on one example.

  Attributes:
    position: position of the example among all examples.
    broken: True where it is misclassified.
    steps: steps of all its runs.
    image: adversarial image [height, width, channels]; None where it is not broken.
  """

  position: int
  broken: bool
  steps: int
  image: np.ndarray | None


class Call(NamedTuple):
  """Result of a compiled call.

  Attributes:
    outcomes: outcomes of the examples that are finished.
    runs: the run of each occupied slot, from 0.
    behind: finished work on the examples still in slots; 1 is a whole example.
    size: number of slots in the call.
    steps: steps that the call made; 0 where all its examples broke, and it ended early.
    left: int [occupied slots], steps that each example still has, over all its runs.
  """

  outcomes: list[Outcome]
  runs: list[int]
  behind: float
  size: int
  steps: int
  left: np.ndarray


def sizes(batch_size: int, mesh: Mesh) -> list[int]:
  """Batch sizes in use, from large to small: multiples of the number of devices."""
  devices = mesh.size
  is_cpu = mesh.devices.flat[0].platform == "cpu"
  smallest = (SMALLEST_ON_CPU if is_cpu else SMALLEST) * devices
  found = [batch_size]
  while found[-1] // SHRINK >= smallest and found[-1] // SHRINK % devices == 0:
    found.append(found[-1] // SHRINK)
  return found


def attack_examples(
  attack: Attack,
  predict: jax.tree_util.Partial,
  key: jax.Array,
  examples: tuple[np.ndarray, np.ndarray, np.ndarray],
  waiting: Sequence[int] | np.ndarray,
  epsilon: float,
  batch_size: int,
  mesh: Mesh,
  chunk: int,
  given: np.ndarray | None = None,
) -> Iterator[Call]:
  """Attacks the waiting examples; yields a `Call` after each compiled call.

  Args:
    attack: the attack.
    predict: images -> logits, or a function of images and keys, as the attack needs it; from
      `inspection.on_devices`.
    key: PRNG key of the attack.
    examples: host arrays (images, labels, indices that determine the keys) of all examples.
    waiting: positions of the examples to attack.
    epsilon: radius in pixel units.
    batch_size: number of slots, a multiple of the number of devices.
    mesh: mesh with the one axis "examples".
    chunk: number of steps of one compiled call.
    given: host array [waiting, runs, ...] of `Batch.given`, in the order of `waiting`; None where
      the attack needs none.

  Yields:
    A `Call` after every compiled call.
  """
  programs = _programs(attack, mesh, chunk, str(jax.random.key_impl(key)))
  split, replicated = shardings(mesh)
  fixed = predict, *put((np.asarray(jax.random.key_data(key)), np.float32(epsilon)), replicated)
  queue = list(reversed(waiting))
  places = np.zeros(len(examples[0]), int)  # of the examples among those that wait
  places[np.asarray(waiting, int)] = np.arange(len(waiting))
  all_sizes = sizes(batch_size, mesh)
  size = fitting(all_sizes, len(queue))
  index, number = np.full(size, -1), np.zeros(size, np.int32)  # -1: an empty slot
  fresh = np.ones(size, bool)
  slots: Slots | None = None
  while True:
    for slot in np.flatnonzero(index < 0)[: len(queue)]:
      index[slot], number[slot], fresh[slot] = queue.pop(), 0, True
    if not queue and fitting(all_sizes, (index >= 0).sum()) < size:
      size = fitting(all_sizes, (index >= 0).sum())
      order = np.argsort(index < 0, kind="stable")[:size]
      slots = slots and programs.take(slots, order)
      index, number, fresh = index[order], number[order], fresh[order]
    if not (index >= 0).any():
      return
    if fresh.any():
      rows = np.maximum(index, 0)
      images, labels, indices = (array[rows] for array in examples)
      own = () if given is None else (given[places[rows], np.minimum(number, given.shape[1] - 1)],)
      new = put((images, labels, indices.astype(np.uint32), number, fresh, *own), split)
      slots = programs.refill(slots, *fixed, *new) if slots else programs.begin(*fixed, *new)
      fresh[:] = False
    occupied = index >= 0
    slots = programs.advance(slots, predict, put(occupied, split))
    broken, step = map(np.asarray, programs.look(slots))
    is_over = step >= attack.num_steps
    leaving = (index >= 0) & (broken | is_over & (number + 1 >= attack.num_runs))
    next_run = (index >= 0) & is_over & ~leaving
    number[next_run] += 1
    fresh[next_run] = True
    found = np.asarray(programs.fetch(slots)) if (leaving & broken).any() else np.empty(size)
    outcomes = [
      Outcome(
        int(index[slot]),
        bool(broken[slot]),
        int(number[slot] * attack.num_steps + step[slot]),
        found[slot] if broken[slot] else None,
      )
      for slot in np.flatnonzero(leaving)
    ]
    index[leaving] = -1
    kept = index >= 0
    done = (number * attack.num_steps + np.where(is_over, 0, step))[kept]
    whole = attack.num_runs * attack.num_steps
    made = 0 if broken[occupied].all() else chunk
    yield Call(outcomes, number[kept].tolist(), float(done.sum() / whole), size, made, whole - done)


class _Programs(NamedTuple):
  """Compiled programs of an attack.

  Attributes:
    begin: fills all slots.
    refill: fills the slots that are marked as fresh.
    advance: makes up to `chunk` steps.
    take: moves chosen slots into a smaller batch.
    look: returns which slots are broken, and their step numbers.
    fetch: returns the adversarial images.
  """

  begin: Callable[..., Slots]
  refill: Callable[..., Slots]
  advance: Callable[..., Slots]
  take: Callable[[Slots, np.ndarray], Slots]
  look: Callable[[Slots], tuple[jax.Array, jax.Array]]
  fetch: Callable[[Slots], jax.Array]


@functools.lru_cache(maxsize=64)
def _programs(attack: Attack, mesh: Mesh, chunk: int, key_impl: str) -> _Programs:
  """The compiled programs of an attack; `jax.jit` specialises them to models and batch sizes.

  Key, radius and weights are arguments, so that the next call of the same attack on the same model
  compiles nothing.
  """
  split, replicated = shardings(mesh)

  def begin(
    predict: jax.tree_util.Partial,
    key: jax.Array,
    epsilon: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    run: jax.Array,
    fresh: jax.Array,
    given: jax.Array | None = None,
  ) -> Slots:
    del fresh
    keys = example_keys(jax.random.wrap_key_data(key, impl=key_impl), indices)
    batch = Batch(images, labels, keys, run, epsilon, given)
    return Slots(batch, attack.start(predict, batch), jnp.zeros_like(run))

  def refill(slots: Slots, *args: Any) -> Slots:
    new, fresh = begin(*args), args[7]
    apart = {"epsilon": slots.batch.epsilon}  # a scalar
    old, other = (batch._asdict() | {"epsilon": None} for batch in (slots.batch, new.batch))
    batch = Batch(**select(fresh, other, old) | apart)
    return Slots(batch, *select(fresh, (new.state, new.step), (slots.state, slots.step)))

  def advance(slots: Slots, predict: jax.tree_util.Partial, occupied: jax.Array) -> Slots:
    def is_active(slots: Slots) -> jax.Array:
      return occupied & ~slots.state["broken"] & (slots.step < attack.num_steps)

    def body(carry: tuple[Any, Slots]) -> tuple[Any, Slots]:
      done, slots = carry
      active = is_active(slots)
      state = select(
        active, attack.step(predict, slots.batch, slots.state, slots.step), slots.state
      )
      return done + 1, Slots(slots.batch, state, slots.step + active.astype(slots.step.dtype))

    return jax.lax.while_loop(
      lambda carry: (carry[0] < chunk) & jnp.any(is_active(carry[1])), body, (0, slots)
    )[1]

  def take(slots: Slots, order: jax.Array) -> Slots:
    return jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, slots)

  def compiled(fn: Callable[..., Slots], **options: Any) -> Callable[..., Slots]:
    """`jax.jit` with the examples split over the devices."""
    return jax.jit(
      lambda *args: jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, split if leaf.ndim else replicated),
        fn(*args),
      ),
      **options,
    )

  return _Programs(
    compiled(begin),
    compiled(refill, donate_argnums=0),
    compiled(advance, donate_argnums=0),
    compiled(take),
    jax.jit(lambda slots: (slots.state["broken"], slots.step), out_shardings=replicated),
    jax.jit(lambda slots: slots.state["adversarial"], out_shardings=replicated),
  )


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
  """Shardings of the examples of a batch (split) and of everything else (replicated)."""
  return NamedSharding(mesh, PartitionSpec("examples")), NamedSharding(mesh, PartitionSpec())


def fitting(all_sizes: Sequence[int], count: float) -> int:
  """The smallest size that holds `count` examples, or the largest size."""
  return min((size for size in all_sizes if size >= count), default=all_sizes[0])


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Copies host arrays to the devices; a CPU device would otherwise share memory that changes."""
  return jax.tree.map(
    lambda leaf: jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: np.array(leaf[index])
    ),
    tree,
  )
