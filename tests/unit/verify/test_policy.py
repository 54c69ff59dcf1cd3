"""The policy: what is built in, and how a file changes it."""

import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.verify.policy import PROFILES, Change, default_policy, read_policy


def write(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_built_in_policy_has_all_profiles_and_changes_nothing():
    policy = default_policy()
    assert policy.version == 1
    assert set(policy.profiles) == set(PROFILES)
    assert policy.changes() == ()


def test_losses_may_be_larger_the_fewer_bits_there_are():
    limits = [default_policy().profiles[name].mean_kl for name in PROFILES]
    assert limits == sorted(limits)


def test_quick_asks_for_less_evidence():
    policy = default_policy()
    assert policy.evidence_for("full").positions == policy.evidence_for("mine.jsonl").positions == 2000
    assert policy.evidence_for("quick").positions == 200


def test_a_file_names_only_what_it_changes(tmp_path):
    policy = read_policy(write(tmp_path, "version = 1\n[profiles.lossy-8bit]\nmean_kl = 0.5\n"))
    assert policy.profiles["lossy-8bit"].mean_kl == 0.5
    assert policy.profiles["lossy-8bit"].median_kl == default_policy().profiles["lossy-8bit"].median_kl
    assert policy.changes() == (Change(name="profiles.lossy-8bit.mean_kl", value=0.5, default=1e-2),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 2\n", "policy of another version .*found 2, expected 1"),
        ("[evidence]\npositions = 1\n", "found none, expected 1"),
        ("version = 1\n[profiles.lossy-8bit]\nmean = 1\n", "unknown field `mean`"),
        ("version = 1\n[profiles.exact]\nsame_top1 = 99\n", r"same_top1|<= 1"),
        ("version = 1\n[profiles.mine]\nmedian_kl = 1\n", "missing required field `mean_kl`"),
        ("version = 1\n[evidence]\npositions = -5\n", "positions"),
        ("version = 1\nprofiles = 3\n", "profiles"),
        ("version = \n", "not a policy"),
        ("\ufeff\0", "not a policy"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_policy(path)
    assert str(path) in str(caught.value)
