"""Tables as plain text, from result files."""


NORMS = {"linf": "Linf", "l2": "L2"}  # as they are written for a reader


def label(results):
  """What was trained: method (with SPROUT's variant) and what is added, model, data set, seed."""
  config, method = results["config"], results["config"]["method"]
  variant = [str(method[key]) for key in ("concentration", "draw") if key in method]
  added = [config["penalty"]["name"]] * (config["penalty"]["name"] != "none")
  added += [f"AWP {config['awp_gamma']:g}"] * bool(config["awp_gamma"])
  return (" + ".join([" ".join([method["name"], *variant]), *added]) + f", {config['model']['name']}, "
          f"{config['dataset']['name']}, seed {config['seed']}")


def percent(entry):
  """{"accuracy", "interval"} -> "97.3 % [94.8, 98.6]"."""
  low, high = entry["interval"]
  return f"{100 * entry['accuracy']:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def attack_spec(entry):
  """Everything that defines an attack but its radius."""
  if "per_attack" in entry:
    return (f"{title(entry)} {NORMS[entry['norm']]}, the worst of {', '.join(entry['per_attack'])}, seed "
            f"{entry['seed']}")
  return (f"{entry['name'].upper()} {NORMS[entry['norm']]}, {entry['loss']} loss, {entry['steps']} steps of "
          f"{entry['step_size']:g}, {entry['restarts']} random start(s), seed {entry['seed']}")


def title(entry):
  """The attack's name as people write it."""
  name, _, version = entry["name"].partition("-")
  if name != "autoattack":
    return entry["name"].upper()
  # One of its attacks alone is not AutoAttack.
  return f"AutoAttack ({version})" if len(entry["per_attack"]) > 1 else version.upper()


def notes(entry):
  """What a reader of an ensemble's number must know besides."""
  spec = entry.get("spec", {})
  found = [f"{title(entry)}: {note}" for note in spec.get("notes", ())]
  for key, text in (("not_misclassified_again", "were misclassified in the attack but not when seen again"),
                    ("not_finite", "have outputs that are not finite")):
    if spec.get(key):
      found.append(f"{title(entry)} at {entry['epsilon']:g}: {spec[key]} adversarial images {text}")
  return found


def families(attacks):
  """{title: entries of one attack, by rising epsilon}, in the order of the file."""
  found = {}
  for entry in attacks:
    found.setdefault(title(entry), []).append(entry)
  return found


def _peak_memory(training):
  peak = training.get("peak_memory_bytes")  # runs of earlier versions have none
  return f" and {peak / 2**30:.1f} GiB at its peak" if peak else ""


def run(results):
  """The table of one run."""
  config, checkpoint = results["config"], results["checkpoint"]
  clean, attacks = results["clean"], results["attacks"]
  rows = [("clean", percent(clean), str(clean["count"]))]
  rows += [(f"{name}, epsilon {entry['epsilon']:g}", percent(entry), str(entry["count"]))
           for name, entries in families(attacks).items() for entry in entries]
  lines = [
      label(results),
      f"data: {results['dataset']['provenance']}",
      f"weights: {checkpoint['which']} checkpoint (step {checkpoint['step']}"
      f"{checkpoint['which'] == 'best' and ', by ' + checkpoint['selected_by'] or ''}), "
      f"{checkpoint['weights']}; "
      f"training took {results['training']['seconds']:.0f} s{_peak_memory(results['training'])}; evaluated on "
      f"{results['versions']['devices']}, computing in {config['model']['dtype']}",
  ]
  training = results["training"]
  if training["steps"] < training["planned_steps"]:
    lines.append(f"TRAINING IS INCOMPLETE: step {training['steps']} of {training['planned_steps']}")
  lines += [f"attack: {attack_spec(entries[0])}" for entries in families(attacks).values()]
  lines += [f"note: {note}" for entry in attacks for note in notes(entry)]
  lines += ["", *_align([("", "accuracy [95 % interval]", "images"), *rows])]
  if attacks and not any(len(entry.get("per_attack", ())) > 1 for entry in attacks):
    lines += ["", "PGD gives an upper bound on robust accuracy: stronger attacks may lower it."]
  return "\n".join(lines)


def comparison(results):
  """One row per run, one column per attack and radius that all runs have.

  Args:
    results: {label: content of results.json}.
  """
  specs = {(title(entry), f"{attack_spec(entry)}, {entry['count']} images")
           for found in results.values() for entry in found["attacks"]}
  data = {found["dataset"]["fingerprint"] for found in results.values()}
  by_column = [{(title(entry), entry["epsilon"]): entry for entry in found["attacks"]}
               for found in results.values()]
  shared = [column for column in by_column[0] if all(column in other for other in by_column)]
  rows = [("run", "clean", *(f"{name} {epsilon:g}" for name, epsilon in shared))]
  for (label, found), entries in zip(results.items(), by_column):
    rows.append((label, percent(found["clean"]).split("[")[0],
                 *(percent(entries[column]).split("[")[0] for column in shared)))
  lines = _align(rows)
  if len(data) > 1:
    lines += ["", "CAUTION: the runs have different data; the rows do not compare."]
  if len(specs) > len({name for name, _ in specs}):
    lines += ["", "CAUTION: the runs were attacked differently; the columns do not compare."]
  lines += ["", *(f"attack: {spec}" for _, spec in sorted(specs))]
  lines += [f"{label}: {found['clean']['count']} clean, "
            f"{found['attacks'][0]['count'] if found['attacks'] else 0} attacked images; "
            f"{found['dataset']['provenance']}" for label, found in results.items()]
  return "\n".join(lines)


def _align(rows):
  """Pads the columns; the first is flush left, the others right; a rule below the header."""
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  lines = ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                     for column, (cell, width) in enumerate(zip(row, widths))).rstrip()
           for row in rows]
  return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]
