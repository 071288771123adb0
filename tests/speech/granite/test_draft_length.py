"""The length of a slice by load and by the acceptance of earlier slices."""

from speech.granite.draft_length import AcceptanceCount, DraftLengthPolicy


def observed(policy: DraftLengthPolicy, accepted: int, rejected: bool) -> AcceptanceCount:
    """The count of a request after twenty slices with this outcome, which the policy has observed."""
    count = AcceptanceCount()
    for _ in range(20):
        policy.observe(count, accepted, rejected)
    return count


def test_without_a_step_cost_every_slice_is_the_longest() -> None:
    policy = DraftLengthPolicy(32, None)
    assert policy.size(observed(policy, 0, True), running=1000) == 32


def test_good_drafts_are_long_while_few_requests_run_and_shorter_with_many() -> None:
    policy = DraftLengthPolicy(32, 64.0)
    good = observed(policy, 31, True)
    sizes = [policy.size(good, running) for running in (1, 4, 16, 64, 256)]
    assert sizes[:3] == [32, 32, 32]
    assert sizes == sorted(sizes, reverse=True)
    assert 4 <= sizes[-1] < 32


def test_bad_drafts_stop_under_load_before_they_stop_for_a_single_request() -> None:
    policy = DraftLengthPolicy(32, 64.0)
    bad = observed(policy, 1, True)  # one in two is right
    assert policy.size(bad, running=1) > 3
    assert policy.size(bad, running=256) == 0


def test_drafts_that_are_never_accepted_stop_soon_and_resume_when_they_would_be() -> None:
    policy = DraftLengthPolicy(32, 64.0)
    count = AcceptanceCount()
    while policy.size(count, running=16):
        policy.observe(count, 0, True)
    assert count.rejected < 50
    for _ in range(1000):  # the draft is compared with the output all the same
        policy.observe(AcceptanceCount(), 0, True)
    assert policy.size(AcceptanceCount(), running=16) == 0
    for _ in range(1000):
        policy.observe(AcceptanceCount(), 1, False)
    assert policy.size(AcceptanceCount(), running=16) == 32


def test_counts_do_not_decay_while_nothing_is_verified() -> None:
    policy = DraftLengthPolicy(32, 64.0)
    observed(policy, 31, True)
    before = policy.size(AcceptanceCount(), running=64)
    for _ in range(100_000):  # more than a float could be halved away in
        policy.observe(AcceptanceCount(), 0, False)
    assert policy.size(AcceptanceCount(), running=64) == before


def test_a_requests_own_acceptance_outweighs_that_of_others() -> None:
    policy = DraftLengthPolicy(32, 64.0)
    good = observed(policy, 31, True)
    observed(policy, 0, True)
    assert policy.size(good, running=8) > policy.size(AcceptanceCount(), running=8)
