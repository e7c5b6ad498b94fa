"""How runs, attacks and accuracies are written for a reader."""

NORMS = {"linf": "Linf", "l2": "L2"}
NOT_MEASURED = "not measured"


def label(results):
  """What was trained: method (with SPROUT's variant) and what is added, model, data set, seed."""
  config, method = results["config"], results["config"]["method"]
  variant = [str(method[key]) for key in ("concentration", "draw") if key in method]
  added = [config["penalty"]["name"]] * (config["penalty"]["name"] != "none")
  added += [f"AWP {config['awp_gamma']:g}"] * bool(config["awp_gamma"])
  return (
    " + ".join([" ".join([method["name"], *variant]), *added]) + f", {config['model']['name']}, "
    f"{config['dataset']['name']}, seed {config['seed']}"
  )


def letters(number, first="A"):
  """0, 1, ..., 25, 26, ... -> "A", "B", ..., "Z", "AA", ..."""
  text = ""
  while number >= 0:
    number, place = divmod(number, 26)
    text, number = chr(ord(first) + place) + text, number - 1
  return text


def share(value):
  """0.973 -> "97.3 %"; None, of what could not be computed, is a dash."""
  return "–" if value is None else f"{100 * value:.1f} %"


def interval(entry):
  """{"interval"} -> "[94.8, 98.6]"."""
  low, high = entry["interval"]
  return f"[{100 * low:.1f}, {100 * high:.1f}]"


def percent(entry):
  """{"accuracy", "interval"} -> " 97.3 % [94.8, 98.6]"."""
  return f"{share(entry['accuracy']):>7} {interval(entry)}"


def title(entry):
  """The attack's name as people write it."""
  name, _, version = entry["name"].removeprefix("transfer-").partition("-")
  if name != "autoattack":
    return entry["name"].removeprefix("transfer-").upper()
  # One of its attacks alone is not AutoAttack.
  return f"AutoAttack ({version})" if len(entry["per_attack"]) > 1 else version.upper()


def attack_spec(entry):
  """Everything that defines an attack but its radius."""
  if "per_attack" in entry:
    return (
      f"{title(entry)} {NORMS[entry['norm']]}, the worst of {', '.join(entry['per_attack'])}, seed "
      f"{entry['seed']}"
    )
  if "draws" in entry:
    return (
      f"random noise {NORMS[entry['norm']]}, the worst of {entry['draws']} draws per image, seed "
      f"{entry['seed']}"
    )
  return (
    f"{title(entry)} {NORMS[entry['norm']]}, {entry['loss']} loss, {entry['steps']} steps of "
    f"{entry['step_size']:g}, {entry['restarts']} random start(s), seed {entry['seed']}"
  )


def pgd_options(found):
  """The PGD that "pgd" stands for in an evaluation's rows; "" where it does not say."""
  options = found.get("options", {})
  if "num_steps" not in options:
    return ""
  return (
    f"pgd: {options['num_steps']} steps of {options['step_size']:g}, {options['num_restarts']} start(s), "
    f"{options['loss']} loss, seed {options['seed']}, "
  )


def trained_on(results):
  """The devices of the training; in earlier files, those of the evaluation, which one command did."""
  return results["training"].get("devices", results["versions"]["devices"])


def notes(entry):
  """What a reader of an ensemble's number must know besides."""
  spec = entry.get("spec", {})
  found = [f"{title(entry)}: {note}" for note in spec.get("notes", ())]
  for key, text in (
    ("not_misclassified_again", "were misclassified in the attack but not when seen again"),
    ("not_finite", "have outputs that are not finite"),
  ):
    if spec.get(key):
      found.append(f"{title(entry)} at {entry['epsilon']:g}: {spec[key]} adversarial images {text}")
  return found


def families(attacks):
  """{title: entries of one attack, by rising epsilon}, in the order of the file."""
  found = {}
  for entry in attacks:
    found.setdefault(title(entry), []).append(entry)
  return found


def is_ensemble(entry):
  """Whether an entry is AutoAttack's, or that of an attack that is run like it."""
  return "per_attack" in entry


def has_auto_attack(attacks):
  return any(len(entry["per_attack"]) > 1 for entry in attacks if is_ensemble(entry))
