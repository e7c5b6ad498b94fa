"""checks: each fires on the numbers that it is there for and is silent on others."""

import json

import numpy as np
import pytest

from sprout_jax.results import checks
from sprout_jax.results.checks import Evidence
from sprout_jax.results.checks import Finding
from sprout_jax.results.numbers import Number
from sprout_jax.results.numbers import Numbers
from sprout_jax.results.numbers import accuracy
from sprout_jax.results.store import Stored

COUNT = 1000
PLACE = np.arange(COUNT)
THREAT = dict(norm="linf", epsilon=0.1)
PGD = dict(attack="pgd", steps=10, restarts=1, **THREAT)
APGD = dict(attack="apgd-ce + apgd-dlr", steps=100, restarts=1, **THREAT)
STANDARD = dict(attack="auto_attack", version="standard", seed=0, **THREAT)


def of(evaluation, number):
  object.__setattr__(number, "evaluation", evaluation)
  return number


def left(evaluation, broken, metric="accuracy", indices=PLACE, **keys):
  """A number: all images but these were left right; an integer stands for so many of the first."""
  outcomes = np.ones(COUNT, bool)
  outcomes[np.arange(broken) if isinstance(broken, int) else broken] = False
  return of(evaluation, accuracy(outcomes, indices, metric, **keys))


def faults(zero, nan, place="at the images", loss="margin"):
  keys = dict(loss=loss, place=place, **THREAT)
  shares = {"zero_gradients": zero, "nan_gradients": nan, "infinite_gradients": 0.0}
  return [of("sanity", Number(name, share, keys, count=50)) for name, share in shares.items()]


def evidence(*numbers, best_loss=None):
  options = {"num_steps": 10, "num_restarts": 1}
  stored = Stored(Numbers(), {"best_loss": best_loss}, name="sanity", options=options)
  return Evidence(Numbers(numbers), {"sanity": stored})


def derive(name, found):
  return list(checks.CHECKS[name].derive(found))


def pgd(broken=300, **keys):
  return left("sanity", broken, **PGD | keys)


def planted(share, count=20):
  keys = dict(PGD, seed=0)
  return (
    of("binarization", Number("planted_found", share, keys, count=count)),
    of("binarization", Number("planted_found_by_noise", share and 0.1, keys, count=count)),
  )


def stages(square_breaks):
  parts = {"apgd-ce": 500, "fab-t": 600, "square": 600 + square_breaks}
  chain = [left("auto_attack", broken, stage=name, **STANDARD) for name, broken in parts.items()]
  return [*chain, left("auto_attack", 600 + square_breaks, **STANDARD)]


def curve(*broken):
  return [
    left("pgd", count, **PGD | {"epsilon": 0.01 * number}) for number, count in enumerate(broken)
  ]


def sources(broken_by_source, broken_by_own):
  white = left("transfer", broken_by_own, **PGD)
  return white, left("transfer", broken_by_source, source="a (1234)", **PGD)


RISING, LEVEL = np.linspace(0, 1, 100).tolist(), np.minimum(1, np.linspace(0, 2, 100)).tolist()
LAST = np.arange(COUNT - 3, COUNT)

# Silent on the first; fires on the second with this value, these words, and about this number.
TABLE = {
  "gradients": (
    evidence(*faults(0.0, 0.0)),
    evidence(*faults(0.02, 0.04)),
    0.04,
    "some input gradients at the images are unusable (zero for margin in 2.0%, not a number for "
    "margin in 4.0% of 50 images). Gradient-based attacks may miss adversarial examples.",
    dict(evaluation="pgd", **THREAT),
  ),
  "square": (
    evidence(*stages(2)),
    evidence(*stages(31)),
    3.1,
    "after the white-box attacks, Square lowers the accuracy by 3.1 points (40.0% to 36.9%; 31 of "
    "1000 images). The gradients are probably masked.",
    dict(evaluation="auto_attack", version="standard", seed=0, **THREAT),
  ),
  "black_box": (
    evidence(*sources(np.r_[0:300, LAST[:2]], 300)),
    evidence(*sources(np.r_[0:300, LAST], 300)),
    0.3,
    "the attack on a (1234) breaks images that the white-box attack leaves robust, 0.3 % of all "
    "1000. The gradients are probably masked.",
    dict(evaluation="pgd", **THREAT),
  ),
  "order": (
    evidence(left("sanity", 5, attack="fgsm", **THREAT), pgd(5), left("sanity", 7, **APGD)),
    evidence(left("sanity", 5, attack="fgsm", **THREAT), pgd(9), left("sanity", 7, **APGD)),
    2,
    "PGD breaks 2 of 1000 images that APGD leaves robust. The stronger attack is too weak",
    dict(evaluation="pgd", **THREAT),
  ),
  "monotone": (
    evidence(*curve(100, 100, 900)),
    evidence(*curve(100, 700, 699, 696, 900)),
    0.3,
    "Accuracy rises by 0.30 points when epsilon grows to 0.03. A larger ball contains the smaller",
    dict(evaluation="pgd", norm="linf", epsilon=0.03),
  ),
  "reach": (
    evidence(left("pgd", 300, **PGD, step_size=0.02), left("pgd", 1, **PGD)),
    evidence(*(left("pgd", 300, **PGD, step_size=size) for size in (0.02, 0.005))),
    0.5,
    "At Linf epsilon 0.1: 10 steps of 0.005 move an image by at most 0.05 from its start. Parts of "
    "the ball cannot be reached, and the accuracy may be too high. Take more steps",
    dict(evaluation="pgd", **THREAT),
  ),
  "large_radius": (
    evidence(left("sanity", 990, "accuracy_at_large_radius", **PGD | {"epsilon": 0.5})),
    evidence(left("sanity", 980, "accuracy_at_large_radius", **PGD | {"epsilon": 0.5})),
    2,
    "2.0% of 1000 images are still classified correctly at epsilon 0.5. At this radius every image "
    "can be made grey, so the attack is too weak.",
    dict(evaluation="pgd", norm="linf", epsilon=0.03),
  ),
  "effort": (
    evidence(pgd(500), pgd(510, steps=20), pgd(500, restarts=10)),
    evidence(pgd(500), pgd(505, steps=20), pgd(700, restarts=10)),
    20,
    "with 10 steps and 10 restarts, the accuracy under PGD is 20.0 points lower than with 10 steps "
    "and 1 restart, on 1000 images. The attack is too weak.",
    dict(evaluation="pgd", **THREAT),
  ),
  "converged": (
    evidence(pgd(), best_loss=LEVEL),
    evidence(pgd(), best_loss=RISING),
    10 / 99,
    "the best loss of PGD changes by 10.1% of its range in the last tenth of its 99 steps. PGD "
    "needs more steps.",
    dict(evaluation="pgd", **THREAT),
  ),
  "gap": (
    evidence(left("pgd", 450, **PGD), left("auto_attack", 550, **STANDARD)),
    evidence(left("pgd", 400, **PGD), left("auto_attack", 550, **STANDARD)),
    15,
    "the accuracy under PGD is 15.0 points above that under AutoAttack (60.0% against 45.0%). "
    "Report the accuracy under AutoAttack.",
    dict(evaluation="pgd", **THREAT),
  ),
  "binarization": (
    evidence(*planted(0.95)),
    evidence(*planted(0.9)),
    0.9,
    "PGD finds 90.0% of 20 planted adversarial examples; random noise finds 10.0%. PGD is too weak",
    dict(evaluation="pgd", **THREAT),
  ),
}


def test_every_check_is_here():
  assert TABLE.keys() == checks.CHECKS.keys()
  assert all(row.question.endswith("?") and row.unit for row in checks.CHECKS.values())


@pytest.mark.parametrize("name", TABLE)
def test_each_check_fires_and_is_silent(name):
  sound, unsound, value, text, about = TABLE[name]
  (good,), (bad,) = derive(name, sound), derive(name, unsound)
  assert good.passed and not bad.passed and {good.check, bad.check} == {name}
  assert good.threshold == bad.threshold
  np.testing.assert_allclose(bad.value, value)
  assert text in bad.text
  keys = {key: value for key, value in about.items() if key != "evaluation"}
  assert bad.is_about(of(about["evaluation"], Number("accuracy", 0.5, keys)))
  assert not bad.is_about(of("clean", Number("accuracy", 0.5, {})))
  for finding in (good, bad):
    assert finding.text[0].isupper() or finding.text[0].isdigit()
    assert finding.text.endswith(".") and finding.concerns
    encoded = json.loads(json.dumps(finding.to_json(), allow_nan=False))
    assert Finding.from_json(encoded) == finding


@pytest.mark.parametrize("name", TABLE)
def test_a_check_without_its_numbers_finds_nothing(name):
  """Neither of an empty workdir, nor where only the numbers of other checks were measured."""
  assert derive(name, Evidence(Numbers(), {})) == []
  assert derive(name, evidence(of("noise", Number("accuracy", 0.5, THREAT)))) == []


def test_findings_are_those_of_all_checks():
  numbers = [*stages(31), *curve(100, 50), left("pgd", 100, **PGD)]
  found = checks.findings(evidence(*numbers))
  assert {f.check for f in found} == {"square", "monotone", "gap"}


def test_a_finding_is_not_about_another_radius_or_norm():
  (bad,) = derive("gap", TABLE["gap"][1])
  for other in (dict(THREAT, epsilon=0.2), dict(THREAT, norm="l2")):
    assert not bad.is_about(left("pgd", 0, **PGD | other))


def test_a_finding_at_fault_is_about_its_own_numbers():
  """Zero gradients of one loss say nothing of another loss or place."""
  numbers = [
    *faults(0.5, 0.0),
    *faults(0.0, 0.0, loss="dlr"),
    *faults(0.0, 0.0, "halfway through PGD"),
  ]
  bad, good = derive("gradients", evidence(*numbers))
  assert [n for n in numbers if bad.is_about(n)] == numbers[:1]
  assert good.passed and not any(good.is_about(n) for n in numbers)
  assert "zero for margin in 50.0%" in bad.text and "dlr" not in bad.text


def test_two_images_that_square_breaks_are_no_sign_of_masked_gradients():
  """Of 50 images, one is 2 points, far above the threshold."""
  for broken, words in ((2, "So few images are no sign"), (3, "gradients are probably masked")):
    chain = []
    for name, count in (("apgd-ce", 0), ("square", broken)):
      number = accuracy(np.arange(50) >= count, np.arange(50), stage=name, **STANDARD)
      chain.append(of("auto_attack", number))
    (found,) = derive("square", evidence(*chain))
    assert not found.passed and words in found.text and f"{broken} of 50 images" in found.text


def test_order_of_the_curve_does_not_matter():
  assert derive("monotone", evidence(*curve(100, 500, 900)[::-1]))[0].passed
  assert derive("monotone", evidence(*curve(100))) == []  # one point is no curve


def test_a_loss_that_is_flat_has_converged_and_one_that_is_not_finite_has_not():
  assert derive("converged", evidence(pgd(), best_loss=20 * [0.0]))[0].passed
  (bad,) = derive("converged", evidence(pgd(), best_loss=[*RISING, None]))
  assert not bad.passed and bad.value is None and "not finite" in bad.text
  assert derive("converged", evidence(pgd(), best_loss=RISING[:9])) == []  # too few to say


def test_a_test_that_could_not_be_built_is_a_finding():
  (found,) = derive("binarization", evidence(*planted(None, 0)))
  assert not found.passed and found.value is None and "could not be built" in found.text


def test_autoattack_and_pgd_are_compared_where_they_ran_alike():
  """At the same radius, in the same norm, on the same images; one of its attacks alone is none."""
  weak, strong = left("pgd", 400, **PGD), left("auto_attack", 550, **STANDARD)
  others = [
    left("auto_attack", 550, **STANDARD | {"epsilon": 0.2}),
    left("auto_attack", 550, **STANDARD | {"norm": "l2"}),
    left("auto_attack", 550, indices=PLACE + 1, **STANDARD),
    left("auto_attack", 550, **STANDARD | {"version": "square"}),
    left("auto_attack", 550, stage="apgd-ce", **STANDARD),
  ]
  assert derive("gap", evidence(weak, *others)) == []
  (found,) = derive("gap", evidence(weak, *others, strong))
  text = "At Linf epsilon 0.1: the accuracy under PGD is 15.0 points above that under AutoAttack"
  assert found.text.startswith(text)
  plus = left("auto_attack", 560, **STANDARD | {"version": "plus"})
  assert len(derive("gap", evidence(weak, strong, plus))) == 2


def test_square_that_ran_first_or_alone_has_nothing_before_it():
  first = [left("auto_attack", 100, stage=name, **STANDARD) for name in ("square", "fab-t")]
  assert derive("square", evidence(*first)) == []
  alone = left("auto_attack", 100, **STANDARD | {"version": "square"})
  assert derive("square", evidence(alone)) == []


def test_square_is_compared_with_its_own_chain():
  """Another radius has a chain of its own."""
  near = stages(0)
  far = [left("auto_attack", 900, **dict(number.keys) | {"epsilon": 0.2}) for number in near]
  both = derive("square", evidence(*near, *far))
  assert [f.passed for f in both] == [True, True] and [f.value for f in both] == [0, 0]


def test_noise_is_compared_with_pgd_and_apgd_together():
  """An image that PGD or APGD breaks does not count as left robust."""
  noise = left("sanity", LAST, attack="noise", draws=100, **THREAT)
  seen = derive("black_box", evidence(pgd(LAST[:1]), left("sanity", LAST[1:], **APGD), noise))
  assert [f.passed for f in seen] == [True] and seen[0].value == 0
  (missed,) = derive("black_box", evidence(pgd(0), left("sanity", 0, **APGD), noise))
  assert not missed.passed and "random noise breaks images" in missed.text
  assert "leaves robust, 0.3 % of all 1000" in missed.text


def test_of_several_sources_the_worst_counts():
  white, weak = sources(0, 0)
  strong = left("transfer", 100, source="b (5678)", **PGD)
  (found,) = derive("black_box", evidence(white, weak, strong))
  assert "b (5678) breaks images" in found.text and "10.0 % of all 1000" in found.text
  assert derive("black_box", evidence(white)) == []  # PGD on the model itself is no transfer


def test_accuracy_that_rises_with_effort_is_a_finding_as_well():
  (found,) = derive("effort", evidence(pgd(500), pgd(400, steps=20)))
  assert not found.passed and "is 10.0 points higher than with" in found.text
  np.testing.assert_allclose(found.value, 10)


def test_pgd_that_breaks_what_autoattack_leaves_is_a_finding_about_autoattack():
  """One image is enough, and an accuracy far below is no distance that passes."""
  strong = left("auto_attack", 550, **STANDARD)
  for broken, missed in ((np.r_[0:549, LAST[:1]], 1), (700, 150)):
    (found,) = derive("gap", evidence(left("pgd", broken, **PGD), strong))
    assert not found.passed and found.value == missed / 10 and found.threshold == 0
    assert f"PGD breaks {missed} of 1000 images that AutoAttack leaves robust" in found.text
    assert found.is_about(strong) and not found.is_about(left("pgd", 0, **PGD))
  far = derive("gap", evidence(left("pgd", np.r_[0:300, LAST[:1]], **PGD), strong))
  assert [f.passed for f in far] == [False, False] and far[1].is_about(left("pgd", 0, **PGD))
  assert derive("gap", evidence(left("pgd", 549, **PGD), strong))[0].passed


def test_stronger_attacks_of_the_evaluation_of_strength_count():
  """Those on the images that both attacked, under the same threat model."""
  reported = left("pgd", 300, **PGD, loss="margin")
  keys = {**PGD, "loss": "cross_entropy"}
  near, far = left("strength", 310, **keys), left("strength", 311, **keys | {"steps": 200})
  (sound,) = derive("effort", evidence(reported, near))
  (weak,) = derive("effort", evidence(reported, near, far))
  assert sound.passed and not weak.passed and weak.value == pytest.approx(1.1)
  assert (
    "PGD on the cross-entropy loss with 200 steps and 1 restart is 1.1 points lower" in weak.text
  )
  assert weak.is_about(reported) and not weak.is_about(near)
  other = left("strength", 900, **keys | {"epsilon": 0.2})
  few = of("strength", accuracy(np.zeros(300, bool), np.arange(300), **keys))
  assert [f.passed for f in derive("effort", evidence(reported, other))] == []
  assert [f.passed for f in derive("effort", evidence(reported, few))] == [True]
  easier = left("strength", 100, **keys)
  assert "20.0 points higher than" in derive("effort", evidence(reported, easier))[0].text


def test_the_evaluation_of_noise_counts_for_pgd_and_autoattack():
  noise = left("noise", LAST, attack="noise", draws=100, **THREAT)
  at_twice = dict(THREAT, epsilon=0.2)
  far = left("noise", 0, attack="noise", draws=100, **at_twice)
  pgd_number, strong = left("pgd", 0, **PGD), left("auto_attack", LAST, **STANDARD)
  other = left("pgd", 0, **PGD | at_twice)
  single = left("auto_attack", 0, **STANDARD | {"version": "apgd-ce"})
  found = derive("black_box", evidence(noise, far, pgd_number, other, strong, single))
  assert [f.passed for f in found] == [False, True]
  assert "random noise breaks images that PGD leaves robust, 0.3 % of all 1000" in found[0].text
  assert found[0].is_about(pgd_number) and not found[0].is_about(other)
  assert "AutoAttack leaves robust, 0.0 %" in found[1].text and found[1].is_about(strong)


def test_square_before_other_white_box_attacks_fails_no_check():
  """In the version "plus", apgd-t and fab-t come after it."""
  plus = STANDARD | {"version": "plus"}
  make = lambda broken, *names: [left("auto_attack", broken, stage=name, **plus) for name in names]
  white = make(500, "apgd-ce", "apgd-dlr", "fab")
  assert derive("square", evidence(*white, *make(505, "square", "apgd-t", "fab-t"))) == []
  (sound,) = derive("square", evidence(*white, *make(502, "square"), *make(600, "apgd-t")))
  assert sound.passed
  (alone,) = derive("square", evidence(*white, *make(505, "square")))
  assert not alone.passed
