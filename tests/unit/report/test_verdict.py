import pytest
from report_lab import write_facts, write_ppo

from rayrlhf.report.data import read_run
from rayrlhf.report.verdict import judge, start_spread


def verdict_of(tmp_path, path, **options):
    write_ppo(tmp_path, path, **options)
    return judge(read_run(tmp_path))


def test_gold_that_rises_with_the_score(tmp_path):
    verdict = verdict_of(tmp_path, [(0, -0.4, 0.42, 0.0), (10, 0.8, 0.70, 3.0), (20, 1.5, 0.81, 9.1)])
    assert verdict.tone == "good"
    assert "gold from 0.42 to 0.81, the score from −0.40 to 1.50 at KL 9.1." in verdict.sentence
    assert "the score gained" in verdict.sentence


@pytest.mark.parametrize("samples", [True, False])
def test_gold_that_peaks_and_falls_while_the_score_rises(tmp_path, samples):
    path = [(0, -0.4, 0.42, 0.0), (10, 1.5, 0.81, 12.0), (20, 3.0, 0.55, 30.0)]
    verdict = verdict_of(tmp_path, path, samples=samples)
    assert (verdict.tone, verdict.headline) == ("bad", "Over-optimisation")
    assert "gold peaked at 0.81 (step 10 at KL 12.0) and ended at 0.55 at KL 30.0" in verdict.sentence
    assert "while the score kept rising, from 1.50 to 3.00" in verdict.sentence


def test_an_exported_policy_from_before_the_fall_is_what_the_verdict_is_of(tmp_path):
    write_facts(tmp_path, exported_step=10, gold_confirmed=0.79)
    path = [(0, -0.4, 0.42, 0.0), (10, 1.5, 0.81, 12.0), (20, 3.0, 0.55, 30.0)]
    verdict = verdict_of(tmp_path, path)
    assert (verdict.tone, verdict.headline) == ("good", "The guard kept the policy of update 10")
    assert "gold from 0.42 to 0.81 at KL 12.0" in verdict.sentence
    assert "by update 20 gold was 0.55 at KL 30.0, a fall beyond noise" in verdict.sentence
    assert "the score went from 1.50 to 3.00" in verdict.sentence


def test_an_exported_policy_that_is_the_first_is_no_success(tmp_path):
    write_facts(tmp_path, exported_step=0)
    verdict = verdict_of(tmp_path, [(0, 0.0, 0.60, 0.0), (10, 1.0, 0.50, 5.0), (20, 2.0, 0.30, 9.0)])
    assert (verdict.tone, verdict.headline) == ("bad", "No policy was better than the first")


def test_gold_that_falls_from_the_start(tmp_path):
    verdict = verdict_of(tmp_path, [(0, 0.0, 0.60, 0.0), (10, 1.0, 0.50, 5.0), (20, 2.0, 0.30, 9.0)])
    assert verdict.headline == "Over-optimisation"
    assert (
        "gold fell from 0.60 before the first update to 0.30 at KL 9.0, while the score kept rising, from 0.00 to 2.00"
        in verdict.sentence
    )


def test_score_and_gold_that_fall_together(tmp_path):
    verdict = verdict_of(tmp_path, [(0, 0.0, 0.40, 0.0), (10, 2.0, 0.80, 5.0), (20, -1.0, 0.20, 40.0)])
    assert (verdict.tone, verdict.headline) == ("bad", "The policy got worse")


def test_score_that_rises_alone(tmp_path):
    verdict = verdict_of(tmp_path, [(0, 0.0, 0.40, 0.0), (20, 2.0, 0.40, 5.0)])
    assert (verdict.tone, verdict.headline) == ("bad", "The score rose without gold")


def test_a_last_dip_within_noise_is_no_over_optimisation(tmp_path):
    def jitter(step, gold):
        return (step, step / 10, gold, step / 4)

    write_ppo(tmp_path, [jitter(0, 0.40), jitter(10, 0.80), jitter(20, 0.79)])
    record = read_run(tmp_path)
    for sample in list(record.evaluations[-1].golds)[::2]:
        record.evaluations[-1].golds[sample] += 0.3  # answers that differ widely: the mean's last digit says little
    assert judge(record).tone == "good"


def test_nothing_that_moves(tmp_path):
    assert verdict_of(tmp_path, [(0, 1.0, 0.4, 0.0), (20, 1.0, 0.4, 0.1)]).headline == "No change beyond noise"


def test_without_gold_no_claim_about_it(tmp_path):
    verdict = verdict_of(tmp_path, [(0, 0.0, None, 0.0), (20, 2.0, None, 5.0)])
    assert verdict.tone == "neutral"
    assert "from 0.00 to 2.00 at KL 5.0" in verdict.sentence
    assert "no gold reward" in verdict.sentence


def test_one_evaluation_is_no_verdict(tmp_path):
    assert verdict_of(tmp_path, [(0, 0.0, 0.4, 0.0)]) is None


def test_spread_of_the_sft_answers(tmp_path):
    write_ppo(tmp_path, [(0, 0.0, 0.4, 0.0), (2, 1.0, 0.5, 1.0)])
    record = read_run(tmp_path)
    golds = list(record.evaluations[0].golds.values())
    mean = sum(golds) / len(golds)
    deviation = (sum((gold - mean) ** 2 for gold in golds) / (len(golds) - 1)) ** 0.5
    assert start_spread(record, "gold") == pytest.approx((mean, deviation))
