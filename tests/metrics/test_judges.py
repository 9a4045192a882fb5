"""The two judges never meet: judge B is out of reach for whatever trains or searches."""

from snapfusion.metrics import judge_a, judge_b
from test_layers import SOURCES, imports_of

JUDGE_B = "snapfusion.metrics.judge_b"
# `evaluate` reports; what stands above the stages runs all of them and searches nothing itself.
MAY_REACH_B = (
    "snapfusion.stages.evaluate",
    "snapfusion.compress",
    "snapfusion.plan",
    "snapfusion.recipes",
    "snapfusion.commands",
    "snapfusion.cli",
    "snapfusion.__main__",
)


def reach(module: str) -> set[str]:
    """Every module of the package that a module imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        found = {name for name in imports_of(waiting.pop()) if name in SOURCES} - seen
        seen |= found
        waiting += found
    return seen


def test_only_evaluate_imports_judge_b() -> None:
    importers = {module for module in SOURCES if JUDGE_B in imports_of(module)}
    assert importers
    assert {importer.rpartition(".")[0] for importer in importers} == {"snapfusion.stages.evaluate"}


def test_nothing_that_trains_or_searches_can_reach_judge_b() -> None:
    reaching = [module for module in SOURCES if JUDGE_B in reach(module)]
    assert [module for module in reaching if not module.startswith(MAY_REACH_B)] == []
    assert any(module.startswith("snapfusion.stages.evaluate") for module in reaching)


def test_judge_b_is_named_nowhere_else() -> None:
    """Nor loaded by name: the words stand in no source file but its own and those of `evaluate`."""
    naming = {module for module, path in SOURCES.items() if "judge_b" in path.read_text(encoding="utf-8")}
    inside = ("snapfusion.stages.evaluate", JUDGE_B, "snapfusion.metrics.alignment")
    assert [module for module in naming if not module.startswith(inside)] == []


def test_the_judges_share_neither_pictures_nor_seed_nor_backbone() -> None:
    assert {judge_a.HALF, judge_b.HALF} == {0, 1}
    assert judge_a.SEED != judge_b.SEED
    assert judge_a.load_backbone is not judge_b.load_backbone
