"""Running an attack over many images with batches that stay full.

A batch is a fixed number of slots on the devices. Each slot holds one example with its own state
and step number. After every call of `chunk` steps, what is broken or finished leaves, and its slot
takes the next run (restart, target) of the same example or the next example. When nothing waits any
more, the rest moves into a smaller batch, of few sizes, so that few programs are compiled.

What happens to an example depends on its own key, image and label only: the outcome is the same for
any batch size, order and number of devices. A run that was killed repeats what was in the slots.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from sprout_jax.attacks.attack import Batch
from sprout_jax.attacks.attack import example_keys
from sprout_jax.attacks.attack import select

SHRINK = 4  # ratio of one batch size to the next smaller one
SMALLEST = 8  # slots per device of the smallest batch, unless the largest is smaller


class Slots(NamedTuple):
  """What lives on the devices.

  Attributes:
    batch: what the attack is given.
    state: the attack's state.
    step: int [slots], steps done in this run.
  """

  batch: Batch
  state: dict
  step: jax.Array


class Outcome(NamedTuple):
  """An example that has left: its position, whether it is broken, its adversarial image or None."""

  index: int
  broken: bool
  image: np.ndarray | None


def sizes(batch_size, devices):
  """The batch sizes in use, falling: multiples of the number of devices."""
  found = [batch_size]
  while found[-1] // SHRINK >= SMALLEST * devices and found[-1] // SHRINK % devices == 0:
    found.append(found[-1] // SHRINK)
  return found


def attack_examples(attack, predict, key, examples, waiting, epsilon, batch_size, mesh, chunk):
  """Yields after every call: a list of `Outcome`s, the runs that the slots are in (a list), and how
  much of their work the examples in the slots have behind them, in examples.

  Args:
    attack: an `Attack`.
    predict: a `jax.tree_util.Partial` from `inspection.on_devices`, images -> logits, or of images
      and keys, as the attack wants it.
    key: PRNG key of the attack.
    examples: host arrays (images, labels, indices that make the keys) of all examples.
    waiting: positions of the examples to attack.
    epsilon: radius in pixel units.
    batch_size: number of slots, a multiple of the number of devices.
    mesh: mesh with one axis, "examples".
    chunk: steps between two looks.
  """
  programs = _programs(attack, mesh, chunk, str(jax.random.key_impl(key)))
  split, replicated = shardings(mesh)
  given = predict, *put((np.asarray(jax.random.key_data(key)), np.float32(epsilon)), replicated)
  waiting = list(reversed(waiting))
  all_sizes = sizes(batch_size, mesh.size)
  size = _fitting(all_sizes, len(waiting))
  index, number = np.full(size, -1), np.zeros(size, np.int32)  # -1: an empty slot
  fresh, slots = np.ones(size, bool), None
  while True:
    for slot in np.flatnonzero(index < 0)[: len(waiting)]:
      index[slot], number[slot], fresh[slot] = waiting.pop(), 0, True
    if not waiting and _fitting(all_sizes, (index >= 0).sum()) < size:
      size = _fitting(all_sizes, (index >= 0).sum())
      order = np.argsort(index < 0, kind="stable")[:size]
      slots = slots and programs.take(slots, order)
      index, number, fresh = index[order], number[order], fresh[order]
    if not (index >= 0).any():
      return
    if fresh.any():
      rows = np.maximum(index, 0)
      images, labels, indices = (array[rows] for array in examples)
      new = put((images, labels, indices.astype(np.uint32), number, fresh), split)
      slots = programs.refill(slots, *given, *new) if slots else programs.begin(*given, *new)
      fresh[:] = False
    slots = programs.advance(slots, predict, put(index >= 0, split))
    broken, step = map(np.asarray, programs.look(slots))
    is_over = step >= attack.num_steps
    leaving = (index >= 0) & (broken | is_over & (number + 1 >= attack.num_runs))
    next_run = (index >= 0) & is_over & ~leaving
    number[next_run] += 1
    fresh[next_run] = True
    adversarial = np.asarray(programs.fetch(slots)) if (leaving & broken).any() else None
    outcomes = [
      Outcome(int(index[slot]), bool(broken[slot]), adversarial[slot] if broken[slot] else None)
      for slot in np.flatnonzero(leaving)
    ]
    index[leaving] = -1
    kept = index >= 0
    behind = (number + np.where(is_over, 0, step) / attack.num_steps)[kept] / attack.num_runs
    yield outcomes, number[kept].tolist(), float(behind.sum())


class _Programs(NamedTuple):
  begin: Callable
  refill: Callable
  advance: Callable
  take: Callable
  look: Callable
  fetch: Callable


@functools.lru_cache(maxsize=64)
def _programs(attack, mesh, chunk, key_impl):
  """The compiled programs of an attack; jax.jit specialises them to models and batch sizes.

  Key, radius and weights are arguments, so that the next call of the same attack on the same model
  compiles nothing.
  """
  split, replicated = shardings(mesh)

  def begin(predict, key, epsilon, images, labels, indices, run, fresh):
    del fresh
    keys = example_keys(jax.random.wrap_key_data(key, impl=key_impl), indices)
    batch = Batch(images, labels, keys, run, epsilon)
    return Slots(batch, attack.start(predict, batch), jnp.zeros_like(run))

  def refill(slots, *args):
    new, fresh = begin(*args), args[-1]
    batch = Batch(*select(fresh, tuple(new.batch[:4]), tuple(slots.batch[:4])), slots.batch.epsilon)
    return Slots(batch, *select(fresh, (new.state, new.step), (slots.state, slots.step)))

  def advance(slots, predict, occupied):
    def is_active(slots):
      return occupied & ~slots.state["broken"] & (slots.step < attack.num_steps)

    def body(carry):
      done, slots = carry
      active = is_active(slots)
      state = select(
        active, attack.step(predict, slots.batch, slots.state, slots.step), slots.state
      )
      return done + 1, Slots(slots.batch, state, slots.step + active.astype(slots.step.dtype))

    return jax.lax.while_loop(
      lambda carry: (carry[0] < chunk) & jnp.any(is_active(carry[1])), body, (0, slots)
    )[1]

  def take(slots, order):
    return jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, slots)

  def compiled(fn, **options):
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


def shardings(mesh):
  """Where the examples of a batch live, and where everything else does."""
  return NamedSharding(mesh, PartitionSpec("examples")), NamedSharding(mesh, PartitionSpec())


def _fitting(all_sizes, count):
  """The smallest of the sizes that holds `count`, or the largest."""
  return min((size for size in all_sizes if size >= count), default=all_sizes[0])


def put(tree, sharding):
  """Host arrays on the devices. A copy: a CPU device would share memory that changes here."""
  return jax.tree.map(
    lambda leaf: jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: np.array(leaf[index])
    ),
    tree,
  )
