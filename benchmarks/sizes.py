"""The UNets of Stable Diffusion's widths that the literature names: parameters, milliseconds by a table and measured.

    snapfusion profile sd15 --out runs/profile-sd15
    python benchmarks/sizes.py [--table runs/profile-sd15/table.json] [--measure] [--json FILE]

--measure runs each network in OpenVINO, one row, in turns with the whole one: a minute each on two cores. Weights are
random, which changes no time.
"""

import argparse
import math
from pathlib import Path

import torch

from latency_table import measure_architectures
from record import write_record
from snapfusion.model.architecture import Architecture
from snapfusion.model.unet import ElasticUNet
from snapfusion.stages.evolve.baselines import by_hand
from snapfusion.stages.profile.engines import engine
from snapfusion.stages.profile.measure import Stopwatch
from snapfusion.stages.profile.networks import Networks, unet_sketch
from snapfusion.table import load_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="what `snapfusion profile sd15 --out` wrote on this device")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    whole = Architecture.sd15()
    named = {"sd15": whole, "without top attention": Architecture.without_top_attention(), **by_hand(whole.widths)}
    table = load_table(options.table) if options.table else None
    taken = times_of([*named.values()]) if options.measure else [math.nan] * len(named)
    rows = []
    print(f"{'UNet':<24}{'parameters':>14}{'ms by the table':>17}{'ms measured':>13}{'error':>8}")
    for (name, architecture), measured in zip(named.items(), taken, strict=True):
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in ElasticUNet(architecture).parameters())
        priced = table.price(architecture).milliseconds if table is not None else math.nan
        print(f"{name:<24}{parameters:>14,}{priced:>17.1f}{measured:>13.1f}{priced / measured - 1:>8.1%}")
        times = {"seconds": measured / 1000, "priced_seconds": priced / 1000}
        known = {key: None if math.isnan(value) else value for key, value in times.items()}
        rows.append({"name": name, "parameters": parameters, **known})
    write_record(options.json, {"batch": 1, "weights": "random", "table": table and table.device}, rows)


def times_of(architectures: list[Architecture]) -> list[float]:
    """Milliseconds of each."""
    networks = Networks.sd15()
    stopwatch = Stopwatch(engine("openvino"), (1,))
    whole = stopwatch.alone(unet_sketch(networks.unet, networks.length)).timings[1].median
    return [one.median for one in measure_architectures(networks, stopwatch, architectures, whole)]


if __name__ == "__main__":
    main()
