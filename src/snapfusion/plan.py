"""What a recipe will take before it is begun: operations, hours, memory and disk of every stage.

Hours are counted operations over the device's measured speed in matrix multiplications, times a utilisation that is
stated: no more exact than that share is known. Large UNets reach about 0.4 of an A100, small ones 0.2 of a CPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapfusion.compress import Recipe
from snapfusion.costs import HALF, Costs
from snapfusion.stages.distill_decoder import stage as distill_decoder
from snapfusion.stages.distill_steps import to_velocity
from snapfusion.stages.distill_steps.plan import Plan, direct
from snapfusion.stages.evaluate import stage as evaluate
from snapfusion.stages.evaluate.protocol import PROTOCOLS
from snapfusion.stages.evolve import stage as evolve
from snapfusion.stages.export import shift
from snapfusion.stages.export import stage as export

FORWARD, STEP = 1, 3  # forward passes; a backward pass takes two
GUIDED = 2  # rows of a guided prediction
LOADED, TRAINED = 4, 20  # bytes a weight; trained ones have a gradient, two moments and an average beside them
PICTURE = 200_000  # bytes of a drawn picture, at most
HELD_OUT = 0.06  # share of a sticker set


@dataclass(frozen=True)
class Row:
    """What a stage takes."""

    stage: str
    operations: float
    memory: float
    """Bytes, the framework apart."""
    disk: float
    """Bytes, while it runs."""

    def hours(self, speed: float) -> float:
        """At so many operations a second."""
        return self.operations / speed / 3600


def rows_of(recipe: Recipe, costs: Costs, pictures: int) -> list[Row]:
    """The stages of a recipe, for a checkpoint of such costs and a set of so many pictures; `profile` takes minutes."""
    return list(_rows(recipe, costs, pictures))


def _rows(recipe: Recipe, costs: Costs, pictures: int) -> Iterator[Row]:
    if recipe.velocity is not None:
        yield _velocity(recipe.velocity, costs, pictures)
    if recipe.evolve is not None:
        yield _evolve(recipe.evolve, costs, pictures)
    if recipe.distill_steps is not None:
        yield _distill_steps(direct(recipe.distill_steps), costs, pictures)
    if recipe.distill_decoder is not None:
        yield _distill_decoder(recipe.distill_decoder, costs)
    steps = recipe.export.steps or (export.STEPS if recipe.distill_steps is None else recipe.distill_steps.steps)
    yield _export(recipe.export, steps, costs)
    if recipe.evaluate is not None:
        yield _evaluate(recipe.evaluate, steps, costs, pictures)


def _velocity(config: to_velocity.VelocityConfig, costs: Costs, pictures: int) -> Row:
    """Every picture through the student and its former self; some are drawn before and after."""
    unet = config.images * (STEP + FORWARD) + 2 * config.pictures * config.picture_steps * GUIDED
    cached = _encoded(costs, pictures)
    memory = _unet_training(costs, config.batch / config.accumulate, config.gradient_checkpointing)
    memory += _latents(costs, pictures)
    disk = _checkpoint(costs) + TRAINED * costs.unet.parameters + _cache(costs, pictures)
    return Row("velocity", unet * costs.unet.operations + cached, memory, disk)


def _evolve(config: evolve.Config, costs: Costs, pictures: int) -> Row:
    """Robust training and its rounds, every block scored after each, fine-tuning for each budget."""
    budgets = max(1, len(config.budget_ms) + len(config.budget_mb))
    rounds = budgets * (config.cuts + config.copy_rounds)
    trained = (config.robust_images + rounds * config.round_images) * (STEP + (FORWARD if config.distil else 0))
    tuned = budgets * config.finetune_images * (STEP + FORWARD)
    looks = (costs.blocks + 1) * (rounds + 1)
    drawn = config.prompts if config.score in ("drawing", "trajectory") else 0
    scored = looks * (drawn * config.steps * GUIDED if drawn else config.latents)
    decoded = looks * drawn if config.score == "drawing" else 0
    operations = (trained + tuned + scored) * costs.unet.operations + decoded * costs.decoder.operations
    memory = _unet_training(costs, config.batch / config.accumulate, config.gradient_checkpointing)
    memory += _latents(costs, pictures)
    disk = (budgets + 1) * _checkpoint(costs) + TRAINED * costs.unet.parameters + _cache(costs, pictures)
    return Row("evolve", operations + _encoded(costs, pictures), memory, disk)


def _distill_steps(legs: Plan, costs: Costs, pictures: int) -> Row:
    """For every picture two steps of the teacher and one of the student, all guided in a share p of the batches."""
    rows = sum(leg.config.images * (2 * FORWARD + STEP) * (1 + leg.config.p * (GUIDED - 1)) for leg in legs)
    last = legs[-1].config
    memory = _unet_training(costs, GUIDED * last.batch / last.accumulate, last.gradient_checkpointing)
    memory += _latents(costs, pictures)
    disk = len(legs) * _checkpoint(costs) + TRAINED * costs.unet.parameters + _cache(costs, pictures)
    return Row("distill_steps", rows * costs.unet.operations + _encoded(costs, pictures), memory, disk)


def _distill_decoder(config: distill_decoder.Config, costs: Costs) -> Row:
    """Latents by the base, their pictures by the whole decoder, then a quarter of it trained."""
    latents = config.latents + config.held_out
    drawn = latents * (config.steps * GUIDED * costs.unet.operations + costs.decoder.operations)
    trained = config.images * STEP / 4 * costs.decoder.operations
    memory = LOADED * costs.parameters + TRAINED * costs.decoder.parameters / 4
    memory += config.batch / config.accumulate / 2 * costs.decoder.activations
    disk = _checkpoint(costs) + latents * (costs.latent + costs.picture) * HALF
    return Row("distill_decoder", drawn + trained, memory, disk)


def _export(config: export.Config, steps: int, costs: Costs) -> Row:
    """Pictures by torch and by the bundle; before that, where a shift is searched for, latents with each."""
    drawn = 2 * len(config.prompts) * _picture(costs, steps)
    if config.timestep_shift == "search":
        calls = shift.MANY_STEPS + steps * len(shift.SHIFTS)
        drawn += len(config.prompts) * calls * GUIDED * costs.unet.operations
    return Row("export", drawn, 3 * LOADED * costs.parameters, _checkpoint(costs))


def _evaluate(config: evaluate.Config, bundle_steps: int, costs: Costs, pictures: int) -> Row:
    """Pictures of the base and of the bundle, taken for as large; the networks that judge are left out."""
    held_out = round(HELD_OUT * pictures)
    asked = sum(PROTOCOLS[name].pictures or held_out for name in config.protocols if name in PROTOCOLS)
    tried = 0 if config.guidance is not None else len(config.guidances) * config.guidance_pictures
    drawn = asked + tried + len(config.curve) * config.curve_pictures
    steps = (config.steps or 50, config.steps or bundle_steps)
    operations = drawn * sum(_picture(costs, count) for count in steps)
    return Row("evaluate", operations, 2 * LOADED * costs.parameters, 2 * drawn * PICTURE)


def _picture(costs: Costs, steps: int) -> float:
    """Operations of a picture, all of its steps guided."""
    return steps * GUIDED * costs.unet.operations + costs.decoder.operations


def _encoded(costs: Costs, pictures: int) -> float:
    """Operations to make the cache: every picture and its mirror image."""
    return 2 * pictures * costs.decoder.operations


def _latents(costs: Costs, pictures: int) -> float:
    """Bytes of latents, mirrored ones too, which stay where the UNet trains."""
    return 2 * pictures * costs.latent * HALF


def _cache(costs: Costs, pictures: int) -> float:
    """Bytes of those, and of a sentence each, which a GPU is given batch by batch."""
    return _latents(costs, pictures) + pictures * costs.embedding * HALF


def _checkpoint(costs: Costs) -> float:
    return HALF * costs.parameters


def _unet_training(costs: Costs, rows: float, checkpointed: bool) -> float:
    """Bytes of a step: weights and what belongs to them, a teacher, and the activations of the rows of one part."""
    activations = costs.checkpointed if checkpointed else costs.unet.activations
    return (TRAINED + LOADED) * costs.unet.parameters + rows * activations


def describe(rows: Sequence[Row], speed: float, utilisation: float) -> str:
    """The plan as aligned text."""
    lines = [f"{'stage':<16}{'PFLOP':>12}{'hours':>10}{'memory GB':>12}{'disk GB':>10}"]
    for row in rows:
        figures = f"{row.operations / 1e15:>12.3g}{row.hours(speed * utilisation):>10.3g}"
        lines.append(f"{row.stage:<16}{figures}{row.memory / 1e9:>12.3g}{row.disk / 1e9:>10.3g}")
    operations, hours = sum(row.operations for row in rows), sum(row.hours(speed * utilisation) for row in rows)
    memory, disk = max(row.memory for row in rows), sum(row.disk for row in rows)
    lines.append(f"{'all':<16}{operations / 1e15:>12.3g}{hours:>10.3g}{memory / 1e9:>12.3g}{disk / 1e9:>10.3g}")
    return "\n".join([*lines, f"at {utilisation:.0%} of {speed / 1e12:.3g} TFLOP/s"])
