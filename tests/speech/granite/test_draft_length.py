"""How long a slice of a draft is, by load and by what became of the slices before."""

from speech.granite.draft_length import AcceptanceCount, DraftLengthPolicy


def warmed(pace: DraftLengthPolicy, accepted: int, rejected: bool) -> AcceptanceCount:
    """A request whose slices have ended like this, twenty times, in an engine that saw nothing else."""
    own = AcceptanceCount()
    for _ in range(20):
        pace.observe(own, accepted, rejected)
    return own


def test_without_a_price_every_slice_is_the_longest() -> None:
    pace = DraftLengthPolicy(32, None)
    assert pace.size(warmed(pace, 0, True), running=1000) == 32


def test_good_drafts_are_long_while_few_requests_run_and_shorter_with_many() -> None:
    pace = DraftLengthPolicy(32, 64.0)
    good = warmed(pace, 31, True)
    sizes = [pace.size(good, running) for running in (1, 4, 16, 64, 256)]
    assert sizes[:3] == [32, 32, 32]
    assert sizes == sorted(sizes, reverse=True)
    assert 4 <= sizes[-1] < 32


def test_bad_drafts_end_under_load_before_they_end_alone() -> None:
    pace = DraftLengthPolicy(32, 64.0)
    bad = warmed(pace, 1, True)  # one in two is right
    assert pace.size(bad, running=1) > 3
    assert pace.size(bad, running=256) == 0


def test_drafts_that_are_never_right_end_soon_and_begin_again_when_they_are() -> None:
    pace = DraftLengthPolicy(32, 64.0)
    own = AcceptanceCount()
    while pace.size(own, running=16):
        pace.observe(own, 0, True)
    assert own.rejected < 50
    for _ in range(1000):  # the model's own tokens are compared with the draft all the same
        pace.observe(AcceptanceCount(), 0, True)
    assert pace.size(AcceptanceCount(), running=16) == 0
    for _ in range(1000):
        pace.observe(AcceptanceCount(), 1, False)
    assert pace.size(AcceptanceCount(), running=16) == 32


def test_what_was_seen_is_not_forgotten_while_nothing_is_drafted() -> None:
    pace = DraftLengthPolicy(32, 64.0)
    warmed(pace, 31, True)
    before = pace.size(AcceptanceCount(), running=64)
    for _ in range(100_000):  # more than a float could be halved away in
        pace.observe(AcceptanceCount(), 0, False)
    assert pace.size(AcceptanceCount(), running=64) == before


def test_a_request_is_judged_by_its_own_drafts_more_than_by_the_others() -> None:
    pace = DraftLengthPolicy(32, 64.0)
    good = warmed(pace, 31, True)
    warmed(pace, 0, True)
    assert pace.size(good, running=8) > pace.size(AcceptanceCount(), running=8)
