"""Algorithm 1 on made-up tables and made-up alignments, whose answers are worked out by hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.random_architectures import architectures
from snapfusion.metrics.estimate import Estimate
from snapfusion.model.architecture import Architecture
from snapfusion.stages.evolve.scores import Score
from snapfusion.stages.evolve.search import (
    Action,
    Limits,
    Scored,
    check_budgets,
    copies,
    meet,
    removals,
    smallest,
    worthless_copies,
)

WHOLE = Architecture.sd15((8, 8, 16, 16))
DOWN, MID, UP = "down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0"
LIMITS = Limits(cuts=2, copy_rounds=1, copies=1)


def scored(drops: Mapping[str, float], savings: Mapping[str, float], architecture: Architecture = WHOLE) -> Scored:
    names = [block.name for block in architecture.blocks() if block.name in drops]
    estimates = {name: Estimate(drops[name], drops[name], drops[name]) for name in names}
    return Scored(architecture, tuple(Score(name, estimates[name], savings[name]) for name in names))


def cost_of(milliseconds: Mapping[str, float], rest: float = 10.0):
    """10 ms for what always stays, plus each block's own by the name of its original."""
    return lambda architecture: rest + sum(milliseconds.get(block.original, 0.0) for block in architecture.blocks())


def test_the_least_valuable_blocks_go_until_the_target_is_met() -> None:
    drops = {DOWN: 0.01, MID: 0.09, UP: 0.2}
    milliseconds = {DOWN: 10.0, MID: 3.0, UP: 4.0}  # values 0.001, 0.03, 0.05; all blocks: 27 ms
    cost = cost_of(milliseconds)
    assert removals(scored(drops, milliseconds), cost, 27) == ()
    assert removals(scored(drops, milliseconds), cost, 17) == (DOWN,)
    assert removals(scored(drops, milliseconds), cost, 16.9) == (DOWN, MID)
    assert removals(scored(drops, milliseconds), cost, 10) == (DOWN, MID, UP)
    with pytest.raises(ValueError, match=r"got a target of 9\.9, expected at least 10"):
        removals(scored(drops, milliseconds), cost, 9.9)


def test_a_block_that_need_not_go_after_all_stays() -> None:
    drops = {DOWN: 0.01, MID: 0.3, UP: -0.01}
    milliseconds = {DOWN: 1.0, MID: 10.0, UP: 0.1}  # values 0.01, 0.03, -0.1
    # DOWN goes before MID, which alone would do; UP harms, and stays away although it saves nearly nothing.
    assert set(removals(scored(drops, milliseconds), cost_of(milliseconds), 11.0)) == {MID, UP}


def test_a_block_that_saves_nothing_is_not_dropped() -> None:
    free = scored({DOWN: 0.0, MID: 0.5}, {DOWN: 0.0, MID: 2.0})
    assert free.scores[0].value == math.inf
    assert removals(free, cost_of({MID: 2.0}), 10) == (MID,)


def test_the_most_valuable_blocks_that_fit_are_copied() -> None:
    drops = {DOWN: 0.5, MID: 0.2, UP: -0.1}
    milliseconds = {DOWN: 10.0, MID: 5.0, UP: 0.1}  # values 0.05, 0.04, -1; all blocks: 25.1 ms
    here, cost = scored(drops, milliseconds), cost_of(milliseconds)
    assert copies(here, cost, 25.2, 3, frozenset()) == ()  # only UP would fit, and it harms
    assert copies(here, cost, 31.0, 3, frozenset()) == (MID,)
    assert copies(here, cost, 36.0, 3, frozenset()) == (DOWN,)
    assert copies(here, cost, 41.0, 3, frozenset()) == (DOWN, MID)
    assert copies(here, cost, 41.0, 1, frozenset()) == (DOWN,)
    assert copies(here, cost, 41.0, 3, frozenset({DOWN})) == (MID,)


@dataclass
class World:
    """A made-up device and a made-up judge: every block has its milliseconds, every further copy its alignment."""

    milliseconds: Mapping[str, float]
    gains: Mapping[str, tuple[float, ...]]
    """What a block adds to alignment, then its first copy, ..."""
    actions: list[Action] = field(default_factory=list)
    at: Architecture = WHOLE

    def cost(self, architecture: Architecture) -> float:
        return cost_of(self.milliseconds)(architecture)

    def alignment(self, architecture: Architecture) -> float:
        counts: dict[str, int] = {}
        for block in architecture.blocks():
            counts[block.original] = counts.get(block.original, 0) + 1
        return sum(sum(gains[: counts.get(name, 0)]) for name, gains in self.gains.items())

    def perform(self, action: Action) -> Scored:
        self.actions.append(action)
        self.at = action.applied(self.at)
        names = [block.name for block in self.at.blocks() if block.original in self.gains]
        drops = {name: self.alignment(self.at) - self.alignment(self.at.without(name)) for name in names}
        savings = {name: self.cost(self.at) - self.cost(self.at.without(name)) for name in names}
        return scored(drops, savings, self.at)


def test_adding_wins_where_the_table_says_so() -> None:
    """DOWN is dear and does little; UP is cheap, and a second one does as much as the first."""
    world = World({DOWN: 16.0, UP: 2.0, MID: 2.0}, {DOWN: (0.01,), UP: (0.3, 0.3), MID: (0.1, 0.0)})
    end = meet(16.0, world.perform(Action("start")), world.cost, LIMITS, world.perform)
    assert world.actions == [Action("start"), Action("remove", (DOWN,)), Action("copy", (UP,))]
    assert end.architecture == WHOLE.without(DOWN).with_copies(UP)
    # No other choice of these blocks, once or twice each, is within 16 ms and better, the whole network neither.
    choices = [
        without.with_copies(*copied)
        for without in (WHOLE.without(*gone) for n in range(4) for gone in combinations((DOWN, UP, MID), n))
        for n in range(4)
        for copied in combinations([block.name for block in without.blocks() if block.name in (DOWN, UP, MID)], n)
    ]
    assert max(map(world.alignment, (a for a in choices if world.cost(a) <= 16))) == world.alignment(end.architecture)
    assert world.alignment(WHOLE) < world.alignment(end.architecture)


def test_the_last_cut_makes_room_for_copies() -> None:
    """22 ms to 18: without DOWN there is no room left; without MID too there is, and UP is worth it."""
    milliseconds, gains = {DOWN: 4.0, MID: 4.0, UP: 4.0}, {DOWN: (0.01,), MID: (0.02,), UP: (0.3, 0.3)}
    tight, roomy = World(milliseconds, gains), World(milliseconds, gains)
    for world, room in ((tight, 0.0), (roomy, 0.2)):
        limits = Limits(cuts=1, copy_rounds=1, copies=1, room=room)
        meet(18.0, world.perform(Action("start")), world.cost, limits, world.perform)
    assert tight.at == WHOLE.without(DOWN)
    assert roomy.at == WHOLE.without(DOWN, MID).with_copies(UP)
    assert roomy.alignment(roomy.at) > tight.alignment(tight.at)


def test_more_room_than_can_be_made_is_no_error() -> None:
    world = World({DOWN: 4.0}, {DOWN: (0.1,)})
    limits = Limits(cuts=1, copy_rounds=1, copies=1, room=0.9)
    end = meet(13.0, world.perform(Action("start")), world.cost, limits, world.perform)
    assert end.architecture == WHOLE.without(DOWN)


def test_a_copy_without_which_pictures_are_no_worse_is_withdrawn() -> None:
    world = World({DOWN: 16.0, UP: 2.0}, {DOWN: (0.01,), UP: (0.3, -0.05)})
    end = meet(17.0, world.perform(Action("start")), world.cost, LIMITS, world.perform)
    assert [action.kind for action in world.actions] == ["start", "remove", "copy", "withdraw"]
    assert end.architecture == WHOLE.without(DOWN)


def test_a_budget_is_approached_in_cuts_with_new_scores_in_between() -> None:
    """Two blocks that do the same thing: without either nothing is lost, without both everything."""
    gains = {DOWN: (0.1,), MID: (0.1,), UP: (0.15,)}

    class Rivals(World):
        def alignment(self, architecture: Architecture) -> float:
            there = {block.name for block in architecture.blocks()}
            return 0.3 * bool({DOWN, MID} & there) + 0.15 * (UP in there)

    once = Rivals({DOWN: 4.0, MID: 4.0, UP: 4.0}, gains)
    meet(14.0, once.perform(Action("start")), once.cost, Limits(cuts=1, copy_rounds=0), once.perform)
    twice = Rivals({DOWN: 4.0, MID: 4.0, UP: 4.0}, gains)
    meet(14.0, twice.perform(Action("start")), twice.cost, Limits(cuts=2, copy_rounds=0), twice.perform)
    assert (len(once.actions), once.alignment(once.at)) == (2, pytest.approx(0.15))
    assert (len(twice.actions), twice.alignment(twice.at)) == (3, pytest.approx(0.3))


def test_a_copy_takes_the_name_of_the_block_behind_which_it_stands() -> None:
    before = Scored(WHOLE, ())
    after = scored({f"{UP}.copies.0": -0.01, UP: -0.02}, {f"{UP}.copies.0": 1.0, UP: 1.0}, WHOLE.with_copies(UP))
    assert worthless_copies(before, after) == (f"{UP}.copies.0",)


@pytest.mark.parametrize(("low", "stays"), [(-0.001, False), (0.001, True)])
def test_a_copy_stays_only_if_its_gain_is_beyond_its_spread(low: float, stays: bool) -> None:
    name = f"{UP}.copies.0"
    after = Scored(WHOLE.with_copies(UP), (Score(name, Estimate(0.01, low, 0.02), 1.0),))
    assert worthless_copies(Scored(WHOLE, ()), after) == (() if stays else (name,))


def test_impossible_budgets_are_refused_with_the_smallest_that_is_possible() -> None:
    cost = cost_of({DOWN: 16.0, UP: 2.0, MID: 2.0})
    assert check_budgets(WHOLE, cost, (12.0, 20.0), "ms") == (20.0, 12.0)
    with pytest.raises(ValueError, match=r"got a budget of 9\.5 ms, expected at least 10"):
        check_budgets(WHOLE, cost, (20.0, 9.5), "ms")
    with pytest.raises(ValueError, match=r"got a budget of 30 ms, expected less than the 30 of the whole UNet"):
        check_budgets(WHOLE, cost, (30.0,), "ms")
    with pytest.raises(ValueError, match="each once"):
        check_budgets(WHOLE, cost, (12.0, 12.0), "ms")
    with pytest.raises(ValueError, match="one or more"):
        check_budgets(WHOLE, cost, (), "ms")


@settings(max_examples=30, deadline=None)
@given(architectures(), st.data())
def test_any_budget_above_the_smallest_is_met(architecture: Architecture, data: st.DataObject) -> None:
    blocks = {block.original for block in architecture.blocks()}
    milliseconds = {name: data.draw(st.floats(0.1, 9), label=name) for name in sorted(blocks)}
    cost = cost_of(milliseconds)
    budget = data.draw(st.floats(cost(smallest(architecture)), cost(architecture)))

    def perform(action: Action) -> Scored:
        nonlocal architecture
        architecture = action.applied(architecture)
        removable = [block for block in architecture.blocks() if block.removable]
        drops = {block.name: data.draw(st.floats(-0.1, 0.9)) for block in removable}
        return scored(drops, {block.name: milliseconds[block.original] for block in removable}, architecture)

    end = meet(budget, perform(Action("start")), cost, Limits(cuts=2), perform)
    assert cost(end.architecture) <= budget
