"""Makes the parts of the pages that follow from the code, as Markdown.

A page has a part between the lines

    <!-- generated: NAME -->
    <!-- end -->

where NAME is a key of `PARTS`. `python benchmarks/pages.py` writes the parts into the pages.
`conf.py` calls `write` before each build, for the changelog only. Nothing here needs Sphinx.
"""

import ast
import inspect
import io
import pathlib
import re
import textwrap
import tokenize
import typing
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import ml_collections

from sprout_jax import attacks
from sprout_jax import methods
from sprout_jax import models
from sprout_jax import results
from sprout_jax.configs import default
from sprout_jax.configs import methods as method_configs
from sprout_jax.evaluation import options as options_lib
from sprout_jax.evaluation.table import EVALUATIONS
from sprout_jax.launcher import configuration
from sprout_jax.results import checks

ROOT = pathlib.Path(__file__).parent.parent


def cell(text: Any) -> str:
  """Formats a text for one cell of a Markdown table."""
  return " ".join(str(text).split()).replace("|", r"\|")


def code(value: Any) -> str:
  """A value in code font."""
  if isinstance(value, float):
    return f"`{value:.6g}`"
  if isinstance(value, (list, tuple)):
    entries = ", ".join(code(entry).strip("`") for entry in value)
    return f"`({entries}{',' * (len(value) == 1)})`"
  return f"`{value!r}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [columns, ["---"] * len(columns), *rows]
  return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def sentence(function: Any) -> str:
  """The first sentence or line of a docstring."""
  return " ".join(inspect.getdoc(function).partition("\n\n")[0].split())


def arguments_help(function: Callable) -> dict[str, str]:
  """{argument: its help} from the section Args of a docstring."""
  section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", inspect.getdoc(function) or "", re.M)
  found = {}
  for entry in re.split(r"^  (?=\S)", section[1] if section else "", flags=re.M):
    names, separator, text = entry.partition(":")
    if separator:
      found |= dict.fromkeys(re.findall(r"\w+", names), " ".join(text.split()))
  return found


def comments(source: str, root: str) -> dict[str, str]:
  """{key: its comment} of the assignments `root.KEY = ...` in a source.

  The comment of a key is beside its value, or above it on separate lines.
  """
  lines = source.splitlines()
  written = {
    token.start[0]: token.string.lstrip("# ")
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }
  found = {}
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign):
      continue
    target = ast.unparse(node.targets[0])
    if not target.startswith(f"{root}."):
      continue
    first = node.lineno
    while first - 1 in written and lines[first - 2].lstrip().startswith("#"):
      first -= 1
    parts = [written[line] for line in range(first, node.end_lineno + 1) if line in written]
    found[target.removeprefix(f"{root}.")] = " ".join(parts)
  return found


def flat(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
  """{dotted key: value} of a config."""
  found = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = value
  return found


def limits(key: str) -> str:
  """The range or the choices of a key of the default config."""
  if key in configuration.CHOICES:
    return ", ".join(f"`{choice}`" for choice in configuration.CHOICES[key])
  if key in configuration.RANGES:
    low, high = configuration.RANGES[key]
    return f"at least {low:g}" if high >= 10**6 else f"{low:g} to {high:g}"
  return ""


def config_keys() -> str:
  """All keys of a config, a table for each section."""
  config = default.get_config()
  own = comments(pathlib.Path(inspect.getfile(default)).read_text(), "config")
  sections: dict[str, list] = {"": []}
  for key, value in flat(config).items():
    section = key.rpartition(".")[0].partition(".")[0]
    if section not in ("method", "penalty", "evaluation"):
      row = f"`{key}`", code(value), own.get(key, ""), limits(key)
      sections.setdefault(section, []).append(row)
  parts = []
  for section, rows in sections.items():
    heading = f"`config.{section}`" if section else "`config`"
    text = own.get(section, "")
    parts.append(f"### {heading}\n\n{text}\n\n{table(KEY_COLUMNS, rows)}")
  return "\n".join(parts)


KEY_COLUMNS = ("key", "default", "meaning", "range")


def evaluation_keys() -> str:
  """The keys of `config.evaluation`, a table for those that are shared and one for the others."""
  source = ROOT / "configs" / "evaluation.py"
  own = comments(source.read_text(), "config")
  values = default.get_config().evaluation
  rows = [
    (f"`evaluation.{key}`", code(values[key]), help_, limits(f"evaluation.{key}"))
    for key, help_ in own.items()
  ]
  return table(KEY_COLUMNS, rows)


def shared_options() -> str:
  """The options that several evaluations share."""
  rows = [
    (f"`{name}`", code(value), options_lib.describe(annotation), ", ".join(readers(name)))
    for name, (annotation, value) in options_lib.SHARED.items()
  ]
  return table(("option", "default", "meaning", "used by"), rows)


def readers(option: str) -> list[str]:
  """The evaluations that read a shared option."""
  return [
    f"`{name}`"
    for name, row in EVALUATIONS.items()
    if option in options_lib.declared(row.function) and option not in options_lib.own(row.function)
  ]


def evaluation_options() -> str:
  """Every evaluation: what it measures, and its own options."""
  parts = []
  for name, row in EVALUATIONS.items():
    declared = options_lib.declared(row.function)
    own = options_lib.own(row.function)
    shared = [f"`{option}`" for option in declared if option not in own]
    parts.append(f"### `{name}`: {row.title}\n\n{sentence(row.function)}\n")
    if shared:
      parts.append(f"It uses these shared options: {', '.join(shared)}.\n")
    rows = [
      (f"`{name}.{option}`", code(value), options_lib.describe(declared[option][0]))
      for option, value in own.items()
    ]
    if rows:
      parts.append(table(("option", "default", "meaning"), rows))
  return "\n".join(parts)


# When a check fails, with the constants of `results.checks`.
FAILS = {
  "gradients": "an input gradient is zero or not finite, for any loss, at the images, at the "
  "start of PGD, or halfway",
  "square": "Square lowers the accuracy by more than {BLACK_BOX_POINTS:g} points after the "
  "attacks with gradients",
  "black_box": "random noise or a transferred attack breaks more than {BLACK_BOX_POINTS:g} % of "
  "the images, and the attacks with gradients left these images robust",
  "order": "FGSM breaks an image that PGD leaves robust, or PGD breaks an image that APGD "
  "leaves robust",
  "monotone": "the accuracy rises with epsilon",
  "reach": "the number of steps times the step size of PGD is below epsilon",
  "large_radius": "the accuracy is above {LARGE_RADIUS_POINTS:g} % at a radius at which every "
  "image can be made grey",
  "effort": "more steps, more restarts or another loss change the accuracy by more than "
  "{EFFORT_POINTS:g} point",
  "converged": "the running best loss changes by more than {moving:g} % of its range in the "
  "last tenth of the steps",
  "gap": "the accuracy under PGD is more than {GAP_POINTS:g} points above that under AutoAttack, "
  "or PGD breaks an image that AutoAttack leaves robust",
  "binarization": "PGD finds fewer than {planted:g} % of the planted adversarial examples",
}


def checks_table() -> str:
  """Every check: its question, the condition for a failure, and the unit of its value."""
  values = vars(checks) | {
    "moving": 100 * checks.MOVING_SHARE,
    "planted": 100 * checks.BINARIZATION_SHARE,
  }
  rows = [
    (f"`{name}`", check.question, FAILS[name].format(**values), check.unit)
    for name, check in checks.CHECKS.items()
  ]
  return table(("check", "question", "fails when", "value"), rows)


def record_columns() -> str:
  """The columns of `results.frame` that are keys of a number."""
  kinds = {str: "string", int: "Int64", float: "Float64"}
  rows = [(f"`{key}`", kinds[kind], meaning) for key, (kind, meaning) in results.KEYS.items()]
  return table(("column", "type", "meaning"), rows)


# Meanings of options that the docstrings of the functions do not describe.
COMMON = {
  "alpha": "weight of the uniform distribution in the label, 0 to 1",
  "batch_norm": "batch norm in the passes of the attack: `train` uses the statistics of the "
  "images in the pass, `eval` the running statistics",
  "epsilon": "perturbation budget in Linf, in pixel units",
  "mixup_alpha": "parameter of mixup's Beta distribution; 0 = no mixup",
  "noise_stddev": "standard deviation of the Gaussian noise, in pixel units",
  "replays": "training steps on each minibatch",
  "step_size": "size of an attack step, in pixel units",
  "beta.momentum": "momentum of the optimizer of beta",
  "beta.weight_decay": "weight decay of beta, added to its gradient",
}


def option_rows(kind: str, function: Callable, values: ml_collections.ConfigDict) -> list:
  """Rows of a table with the options of a method or penalty."""
  source = (ROOT / "configs" / "methods.py").read_text()
  written = comments(source, "method") if values.name == "sprout" else {}
  help_ = arguments_help(function)
  return [
    (f"`{kind}.{key}`", code(value), written.get(key) or help_.get(key) or COMMON[key])
    for key, value in flat(values).items()
    if key != "name"
  ]


def method_options() -> str:
  """The options of every method."""
  return _all_options("method", methods.METHODS, method_configs.METHOD_OPTIONS)


def penalty_options() -> str:
  """The options of every penalty."""
  return _all_options("penalty", methods.PENALTIES, method_configs.PENALTY_OPTIONS)


def _all_options(kind, functions, rows):
  parts = []
  for name, function in functions.items():
    found = option_rows(kind, function, method_configs.build(rows, kind, name))
    if found:
      parts.append(f"**`{kind}={name}`**\n\n{table(('option', 'default', 'meaning'), found)}")
  return "\n".join(parts)


def config_files() -> str:
  """Every file in configs/ that can be given to `--config`, with its docstring."""
  parts = []
  for path in sorted((ROOT / "configs").glob("*.py")):
    tree = ast.parse(path.read_text())
    names = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    takes = (
      [argument.arg for argument in names["get_config"].args.args]
      if names.get("get_config")
      else []
    )
    if takes in (["arguments"], ["folder"]):
      docstring = to_markdown(ast.get_docstring(tree))
      parts.append(f"### `configs/{path.name}`\n\n{docstring}\n")
  return "\n".join(parts)


def to_markdown(docstring: str) -> str:
  """Converts a docstring to Markdown. Commands on their own lines become a block."""
  parts = []
  for paragraph in docstring.split("\n\n"):
    text = textwrap.dedent(paragraph).strip()
    if text.startswith("python launch.py"):
      parts.append(f"```sh\n{text}\n```")
    else:
      parts.append(text)
  return "\n\n".join(parts)


def models_table() -> str:
  """Every model, with the image sizes that it takes."""
  rows = []
  for name, factory in {**models.MODELS, "wrn_DEPTH_WIDTH": models.WideResNet}.items():
    model = factory(10)
    multiple = f", multiples of {model.multiple}" if model.multiple > 1 else ""
    rows.append((f"`{name}`", f"from {model.smallest}x{model.smallest}{multiple}"))
  return table(("model", "image sizes"), rows)


def attack_versions() -> str:
  """The versions of AutoAttack and their attacks."""
  rows = [
    (f"`{name}`", ", ".join(f"`{attack}`" for attack in found), attacks.RESTARTS.get(name, 1))
    for name, found in attacks.VERSIONS.items()
  ]
  return table(("version", "attacks, in their order", "restarts of untargeted attacks"), rows)


def attack_functions() -> str:
  """The attacks, as functions."""
  rows = []
  for name in attacks.__all__:
    found = getattr(attacks, name)
    if inspect.isfunction(found) and name not in ("averaged", "is_wrong", "with_surrogate"):
      rows.append((f"`attacks.{name}`", sentence(found)))
  return table(("function", "attack"), rows)


def changelog() -> str:
  """CHANGELOG.md without its heading. Without this file, the version of the package."""
  path = ROOT / "CHANGELOG.md"
  if not path.exists():
    import sprout_jax

    return f"Version {sprout_jax.__version__}. Nothing was released before.\n"
  return re.sub(r"\A# .*\n", "", path.read_text())


PARTS: dict[str, Callable[[], str]] = {
  function.__name__: function
  for function in typing.cast(
    "list[Callable[[], str]]",
    [
      attack_functions,
      attack_versions,
      checks_table,
      config_files,
      config_keys,
      evaluation_keys,
      evaluation_options,
      method_options,
      models_table,
      penalty_options,
      record_columns,
      shared_options,
    ],
  )
}


def write(folder: pathlib.Path) -> None:
  """Writes the changelog to changelog.md in a folder."""
  folder.mkdir(exist_ok=True)
  (folder / "changelog.md").write_text(changelog())
