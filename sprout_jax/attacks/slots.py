"""One attack over many images, in slots that stay full.

The slots lie on the devices. Each slot holds one run of an example with its own state and step
number. After every call, broken and finished examples leave. Their slots take the next run (restart
or target) of the same example, or the next example; see `schedule`.

The slots are divided into pieces. A compiled call takes one piece after the other, and only as many
as are in use. A step on a CPU costs about as much per image for 16 images as for 128, so pieces are
small there. So few slots are empty, and one program serves any number of survivors. A GPU or TPU
needs many images at once. There all slots are one piece, and when no example waits, the rest moves
into fewer slots. They have few sizes, because each size is a program to compile.

An example's outcome depends on its own key, image and label only. It is the same for any batch
size, order and number of devices. After an interruption the examples in the slots start again.
"""

import functools
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import cast

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
from sprout_jax.attacks.schedule import Ended
from sprout_jax.attacks.schedule import Schedule

SHRINK = 4  # ratio of one number of slots to the next smaller one, on GPUs and TPUs
SMALLEST = 64  # slots per device there: 8 images take as long
# Slots of a piece on a CPU. Attacks without gradients need fewer images at once.
WIDTH, WIDTH_FORWARD = 16, 8


class Slots(NamedTuple):
  """The examples on the devices.

  Attributes:
    batch: the examples, arrays [pieces, slots of a piece, ...].
    state: the attack's state, likewise.
    step: int, likewise: steps done in this run.
  """

  batch: Batch
  state: State
  step: jax.Array


class Call(NamedTuple):
  """Result of a compiled call.

  Attributes:
    ended: the examples that are finished.
    runs: the first run that is not over, from 0, of each example in work.
    behind: finished work on the examples in work; 1 is a whole example.
    size: number of slots in the call.
    width: number of slots of a piece, which tells compiled programs apart.
    steps: steps that the call made; 0 where all its examples broke, and it ended early.
    left: int [examples in work], steps that each still has, over all its runs.
    longest: the most steps that a run in a slot still has.
  """

  ended: list[Ended]
  runs: list[int]
  behind: float
  size: int
  width: int
  steps: int
  left: np.ndarray
  longest: int


def sizes(attack: Attack, batch_size: int, mesh: Mesh) -> list[int]:
  """Numbers of slots in use, from large to small: multiples of the number of devices."""
  devices = mesh.size
  if _is_cpu(mesh):
    width = WIDTH if attack.passes > 1 else WIDTH_FORWARD
    width = min(batch_size, -(-width // devices) * devices)
    return [width * count for count in range(batch_size // width, 0, -1)]
  found = [batch_size]
  while found[-1] // SHRINK >= SMALLEST * devices and found[-1] // SHRINK % devices == 0:
    found.append(found[-1] // SHRINK)
  return found


def _is_cpu(mesh: Mesh) -> bool:
  return bool(mesh.devices.flat[0].platform == "cpu")


def chunk(num_steps: int) -> int:
  """Steps of a call: about 10, or a hundredth of many.

  A run that ends in the middle of a call leaves its slot idle until the call is over. So the calls
  of a run should make hardly more steps than the run has.

  >>> [chunk(steps) for steps in (100, 101, 5001)]
  [10, 6, 61]
  """
  scale = -(-num_steps // 1000)
  return min(
    range(6 * scale, 12 * scale + 1),
    key=lambda steps: (-num_steps % steps, abs(steps - 10 * scale)),
  )


def attack_examples(
  attack: Attack,
  predict: jax.tree_util.Partial,
  key: jax.Array,
  examples: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
  waiting: Sequence[int] | np.ndarray,
  epsilon: float,
  batch_size: int,
  mesh: Mesh,
  given: np.ndarray | None = None,
) -> Iterator[Call]:
  """Attacks the waiting examples; yields a `Call` after each compiled call.

  Args:
    attack: the attack.
    predict: images -> logits, or a function of images and keys, as the attack needs it; from
      `inspection.on_devices`.
    key: PRNG key of the attack.
    examples: host arrays (images, labels, indices that determine the keys, clean logits) of all
      examples.
    waiting: positions of the examples to attack.
    epsilon: radius in pixel units.
    batch_size: largest number of slots, a multiple of the number of devices.
    mesh: mesh with the one axis "examples".
    given: host array [waiting, runs, ...] of `Batch.given`, in the order of `waiting`; None where
      the attack needs none.

  Yields:
    A `Call` after every compiled call.
  """
  programs = _programs(attack, mesh, str(jax.random.key_impl(key)))
  split, replicated = _of_pieces(mesh), shardings(mesh)[1]
  fixed = put((np.asarray(jax.random.key_data(key)), np.float32(epsilon)), replicated)
  places = np.zeros(len(examples[0]), int)  # of the examples among those that wait
  places[np.asarray(waiting, int)] = np.arange(len(waiting))
  all_sizes = sizes(attack, batch_size, mesh)
  is_cut = not _is_cpu(mesh)  # all slots are one piece
  size = fitting(all_sizes, len(waiting))
  width = size if is_cut else all_sizes[-1]
  schedule = Schedule(waiting, size if is_cut else all_sizes[0], attack.num_runs, attack.num_steps)
  in_pieces = lambda tree: put(
    jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), tree), split
  )
  step = np.zeros(len(schedule.run), np.int32)
  slots: Slots | None = None
  while True:
    schedule.begin_examples(size)
    if not schedule.waits and fitting(all_sizes, schedule.occupied.sum()) < size:
      size = fitting(all_sizes, schedule.occupied.sum())
      order = np.argsort(~schedule.occupied, kind="stable")
      if is_cut:
        order, width = order[:size], size
      slots = slots and programs.take(slots, order.reshape(-1, width))
      schedule.keep(order)
      step = step[order]
    schedule.begin_later_runs(size)
    if not schedule.occupied.any():
      return
    if schedule.fresh.any():
      rows = np.maximum(schedule.example, 0)
      images, labels, indices, logits = (array[rows] for array in examples)
      new = in_pieces(
        {
          "images": images,
          "labels": labels,
          "indices": indices.astype(np.uint32),
          "run": schedule.run,
          "fresh": schedule.fresh,
        }
        | ({"logits": logits} if attack.targeted else {})
        | ({} if given is None else {"given": given[places[rows], schedule.run]})
      )
      slots = programs.refill(slots, *fixed, new) if slots else programs.begin(*fixed, new)
      step[schedule.fresh] = 0
      schedule.fresh[:] = False
    occupied, before = schedule.occupied, step
    slots = programs.advance(slots, predict, in_pieces(occupied), np.int32(size // width))
    broken, step = (np.array(leaf).reshape(-1) for leaf in programs.look(slots))
    images = np.empty(0)
    if (occupied & broken).any():
      images = np.asarray(programs.fetch(slots)).reshape(-1, *examples[0].shape[1:])
    made = int((step - before)[occupied & ~broken].max(initial=0))
    ended = schedule.end_runs(broken, step, images)
    left, whole = schedule.left(step), attack.num_runs * attack.num_steps
    behind = float((whole - left).sum() / whole)
    longest = schedule.longest(step)
    yield Call(ended, schedule.runs(), behind, size, width, made, left, longest)


class _Programs(NamedTuple):
  """Compiled programs of an attack.

  Attributes:
    begin: fills all slots.
    refill: fills the slots that are marked as fresh.
    advance: makes the steps of a call in the first pieces.
    take: moves chosen slots to other places, or into fewer slots.
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
def _programs(attack: Attack, mesh: Mesh, key_impl: str) -> _Programs:
  """The compiled programs of an attack; `jax.jit` specialises them to models and batch sizes.

  Of these, only `advance` asks the model. Key, radius and weights are arguments, so that the next
  call of the same attack on the same model compiles nothing.
  """

  def begin(key: jax.Array, epsilon: jax.Array, new: dict[str, jax.Array]) -> Slots:
    def piece(new: dict[str, jax.Array]) -> tuple[dict[str, Any], State, jax.Array]:
      keys = example_keys(jax.random.wrap_key_data(key, impl=key_impl), new["indices"])
      batch = Batch(
        new["images"],
        new["labels"],
        keys,
        new["run"],
        epsilon,
        new.get("logits"),
        new.get("given"),
      )
      state = attack.start(batch)
      # Steps do not read these. Without them, attacks with the same step have the same program.
      batch = batch._replace(logits=None, given=None)
      return _without_radius(batch), state, jnp.zeros_like(batch.run)

    fields, state, step = jax.lax.map(piece, new)
    return Slots(Batch(**fields, epsilon=epsilon), state, step)

  def refill(slots: Slots, key: jax.Array, epsilon: jax.Array, new: dict[str, jax.Array]) -> Slots:
    begun = begin(key, epsilon, new)
    fields, state, step = select(
      new["fresh"],
      (_without_radius(begun.batch), begun.state, begun.step),
      (_without_radius(slots.batch), slots.state, slots.step),
    )
    return Slots(Batch(**fields, epsilon=epsilon), state, step)

  return _Programs(
    _split_over(mesh, begin),
    _split_over(mesh, refill, donate_argnums=0),
    *_steps(cast(Hashable, attack.step), attack.num_steps, mesh),
  )


@functools.lru_cache(maxsize=64)
def _steps(step_of: Any, num_steps: int, mesh: Mesh) -> tuple[Callable[..., Any], ...]:
  """All `_Programs` but the first two, for all attacks that have this step."""
  most, replicated = chunk(num_steps), shardings(mesh)[1]

  def advance(
    slots: Slots, predict: jax.tree_util.Partial, occupied: jax.Array, count: jax.Array
  ) -> Slots:
    def piece(place: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
      at = lambda tree: jax.tree.map(lambda leaf: leaf[place], tree)
      batch = Batch(**at(_without_radius(slots.batch)), epsilon=slots.batch.epsilon)
      is_active = lambda state, step: at(occupied) & ~state["broken"] & (step < num_steps)

      def body(carry: tuple[Any, State, jax.Array]) -> tuple[Any, State, jax.Array]:
        done, state, step = carry
        active = is_active(state, step)
        state = select(active, step_of(predict, batch, state, step), state)
        return done + 1, state, step + active.astype(step.dtype)

      found = jax.lax.while_loop(
        lambda carry: (carry[0] < most) & jnp.any(is_active(*carry[1:])), body, (0, *at(carry))
      )
      return jax.tree.map(lambda leaf, new: leaf.at[place].set(new), carry, found[1:])

    state, step = jax.lax.fori_loop(0, count, piece, (slots.state, slots.step))
    return Slots(slots.batch, state, step)

  def take(slots: Slots, order: jax.Array) -> Slots:
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    return jax.tree.map(lambda leaf: flat(leaf)[order] if leaf.ndim else leaf, slots)

  return (
    _split_over(mesh, advance, donate_argnums=0),
    _split_over(mesh, take),
    jax.jit(lambda slots: (slots.state["broken"], slots.step), out_shardings=replicated),
    jax.jit(lambda slots: slots.state["adversarial"], out_shardings=replicated),
  )


def _split_over(mesh: Mesh, fn: Callable[..., Slots], **options: Any) -> Callable[..., Slots]:
  """`jax.jit` with the examples split over the devices."""
  split, replicated = _of_pieces(mesh), shardings(mesh)[1]
  return jax.jit(
    lambda *args: jax.tree.map(
      lambda leaf: jax.lax.with_sharding_constraint(leaf, split if leaf.ndim else replicated),
      fn(*args),
    ),
    **options,
  )


def _without_radius(batch: Batch) -> dict[str, Any]:
  """The fields of a batch that are [slots, ...]."""
  fields = batch._asdict()
  del fields["epsilon"]
  return fields


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
  """Shardings of the examples of a batch (split) and of everything else (replicated)."""
  return NamedSharding(mesh, PartitionSpec("examples")), NamedSharding(mesh, PartitionSpec())


def _of_pieces(mesh: Mesh) -> NamedSharding:
  """Sharding of arrays [pieces, slots of a piece, ...]."""
  return NamedSharding(mesh, PartitionSpec(None, "examples"))


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
