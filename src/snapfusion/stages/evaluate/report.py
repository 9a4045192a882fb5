"""What report.json says: the models, their figures and costs, and which pictures are shown. Nothing that takes time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snapfusion.bundle import Part
from snapfusion.diffusion.guidance import guided_steps
from snapfusion.stages.evaluate.cost import Cost, macs_of_picture
from snapfusion.stages.evaluate.evaluation import Evaluation
from snapfusion.stages.evaluate.exam import Request
from snapfusion.stages.evaluate.pairs import BlindPair

HELD_OUT = ("cells", "concepts")


@dataclass(frozen=True)
class Entry:
    """One model of a report."""

    label: str
    folder: str
    """Of its evaluation, below the report's."""
    evaluation: Evaluation
    costs: Mapping[Part, Cost]

    def to_json(self) -> dict[str, Any]:
        """All of it, and the sums that people ask for."""
        steps, stop = self.evaluation.steps, self.evaluation.guidance_stop
        guided = guided_steps(steps, stop, self.evaluation.guidance)
        return {
            "label": self.label,
            "folder": self.folder,
            "pictures": pictures_of(self.folder, self.evaluation.guidance),
            "evaluation": asdict(self.evaluation),
            "costs": {part: asdict(cost) for part, cost in self.costs.items()},
            "parameters": sum(cost.parameters for cost in self.costs.values()),
            "bytes": sum(cost.bytes for cost in self.costs.values()),
            "macs_of_picture": macs_of_picture(self.costs, steps, guided) if self.costs else 0,
        }


def report_of(entries: Sequence[Entry], shown: Sequence[Request], pairs: Sequence[BlindPair]) -> dict[str, Any]:
    """The report; the first entry is the base. `shown` are the requests of the grid."""
    return {
        "models": [entry.to_json() for entry in entries],
        "grid": [asdict(request) for request in shown],
        "pairs": [asdict(pair) for pair in pairs],
    }


def shown_requests(requests: Mapping[str, Any]) -> list[Request]:
    """Of the requests by protocol, those that are shown: of a held-out protocol if there is one, else of the first."""
    name = next((name for name in HELD_OUT if name in requests), next(iter(requests)))
    return [Request(**request) for request in requests[name]]


def pictures_of(folder: str, guidance: float) -> str:
    """Where the pictures of an evaluation are, below the report's folder."""
    return (Path(folder) / "pictures" / f"guidance-{guidance:g}").as_posix()
