"""Tables as plain text, from result files."""

from sprout_jax.report import findings
from sprout_jax.report import measures
from sprout_jax.report.wording import attack_spec
from sprout_jax.report.wording import families
from sprout_jax.report.wording import has_auto_attack
from sprout_jax.report.wording import label
from sprout_jax.report.wording import notes
from sprout_jax.report.wording import percent
from sprout_jax.report.wording import title


def _peak_memory(training):
  peak = training.get("peak_memory_bytes")  # runs of earlier versions have none
  return f" and {peak / 2**30:.1f} GiB at its peak" if peak else ""


def weights(results):
  """Which weights were evaluated, in words."""
  checkpoint = results["checkpoint"]
  return (
    f"{checkpoint['which']} checkpoint (step {checkpoint['step']}"
    f"{(checkpoint['which'] == 'best' and ', by ' + checkpoint['selected_by']) or ''}), "
    f"{checkpoint['weights']}"
  )


def incomplete(results):
  """Says so if the training was not finished; "" if it was."""
  training = results["training"]
  if training["steps"] >= training["planned_steps"]:
    return ""
  return f"TRAINING IS INCOMPLETE: step {training['steps']} of {training['planned_steps']}"


def run(results):
  """The table of one run."""
  attacks = results["attacks"]
  lines = [
    label(results),
    f"data: {results['dataset']['provenance']}",
    f"weights: {weights(results)}; "
    f"training took {results['training']['seconds']:.0f} s{_peak_memory(results['training'])}; evaluated on "
    f"{results['versions']['devices']}, computing in {results['config']['model']['dtype']}",
    *filter(None, [incomplete(results)]),
  ]
  lines += [f"attack: {attack_spec(entries[0])}" for entries in families(attacks).values()]
  lines += [f"note: {note}" for entry in attacks for note in notes(entry)]
  lines += ["", *_numbers(results), "", checked(results)]
  if attacks and not has_auto_attack(attacks):
    lines += ["PGD gives an upper bound on robust accuracy: stronger attacks may lower it."]
  return "\n".join(lines)


def checked(results):
  """How many checks passed, in words."""
  checks = results["checks"]
  if not checks:
    return "No checks were made of these numbers."
  return f"{len(checks) - len(findings.failed(results))} of {len(checks)} checks passed."


def _numbers(results):
  """The numbers, each with the failed checks that concern it on the lines below."""
  rows = [
    (f"{title(entry)}, epsilon {entry['epsilon']:g}", measure)
    for entry, measure in zip(
      results["attacks"], [m for m in measures.attacks(results) if m.detail]
    )
  ]
  rows = [("clean", *measures.clean(results)), *rows] + [
    (m.row, m) for m in measures.compact(results)
  ]
  below, after, numbers = {}, [], [measure for _, measure in rows]
  for finding in findings.failed(results):
    places = findings.beside(finding, numbers)
    (below.setdefault(id(places[-1]), []) if places else after).append(f"  ! {finding['text']}")
  header, rule, *lines = _align(
    [("", "accuracy [95 % interval]", "images")]
    + [
      (name, f"{m.text:>7} {m.detail}".rstrip(), "" if m.count is None else str(m.count))
      for name, m in rows
    ]
  )
  return [
    header,
    rule,
    *(line for text, (_, m) in zip(lines, rows) for line in (text, *below.get(id(m), []))),
    *after,
  ]


def cautions(results):
  """What forbids to compare the runs, a sentence each.

  Args:
    results: contents of results.json files.
  """
  specs = _specs(results)
  found = []
  if len({one["dataset"]["fingerprint"] for one in results}) > 1:
    found.append("CAUTION: the runs have different data; the rows do not compare.")
  if len(specs) > len({name for name, _ in specs}):
    found.append("CAUTION: the runs were attacked differently; the columns do not compare.")
  return found


def _specs(results):
  return {
    (title(entry), f"{attack_spec(entry)}, {entry['count']} images")
    for one in results
    for entry in one["attacks"]
  }


def comparison(results):
  """One row per run, one column per attack and radius that all runs have.

  Args:
    results: {label: content of results.json}.
  """
  by_column = [
    {(title(entry), entry["epsilon"]): entry for entry in found["attacks"]}
    for found in results.values()
  ]
  shared = [column for column in by_column[0] if all(column in other for other in by_column)]
  rows = [("run", "clean", *(f"{name} {epsilon:g}" for name, epsilon in shared))]
  for (name, found), entries in zip(results.items(), by_column):
    rows.append(
      (
        name,
        percent(found["clean"]).split("[")[0],
        *(percent(entries[column]).split("[")[0] for column in shared),
      )
    )
  lines = _align(rows)
  for caution in cautions(results.values()):
    lines += ["", caution]
  lines += ["", *(f"attack: {spec}" for _, spec in sorted(_specs(results.values())))]
  lines += [
    f"{name}: {found['clean']['count']} clean, "
    f"{found['attacks'][0]['count'] if found['attacks'] else 0} attacked images; "
    f"{found['dataset']['provenance']}"
    for name, found in results.items()
  ]
  lines += [
    f"{name}: {finding['text']}"
    for name, found in results.items()
    for finding in findings.failed(found)
  ]
  return "\n".join(lines)


def _align(rows):
  """Pads the columns; the first is flush left, the others right; a rule below the header."""
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  lines = [
    "  ".join(
      cell.ljust(width) if column == 0 else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(row, widths))
    ).rstrip()
    for row in rows
  ]
  return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]
