"""The UNets of Stable Diffusion's widths that the literature names: parameters, milliseconds by a table and measured.

    snapfusion profile sd15 --out runs/profile-sd15
    python benchmarks/sizes.py [--table runs/profile-sd15/table.json] [--measure] [--json FILE]

The same of a checkpoint's own UNet and of what evolved from it: does the table foresee what they take?

    python benchmarks/sizes.py --model models/stickers-base --architecture runs/evolve/20ms/architecture.json
        --table runs/profile/table.json --measure

--measure runs each network in OpenVINO, one row, in turns with the whole one: at Stable Diffusion's size a minute each
on two cores. Weights are random, which changes no time.
"""

import argparse
import math
from pathlib import Path

from latency_table import measure_architectures
from record import write_record
from snapfusion.checkpoint import load_checkpoint
from snapfusion.json_file import read_json
from snapfusion.model.architecture import Architecture
from snapfusion.stages.evolve.baselines import by_hand
from snapfusion.stages.profile.engines import engine
from snapfusion.stages.profile.measure import Stopwatch
from snapfusion.stages.profile.networks import Networks, unet_of, unet_sketch
from snapfusion.table import load_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", help="a checkpoint's folder, or sd15")
    parser.add_argument("--architecture", type=Path, nargs="*", default=[], help="files of more UNets of its widths")
    parser.add_argument("--table", type=Path, help="what `snapfusion profile --out` wrote on this device")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    sd15 = options.model == "sd15"
    networks = Networks.sd15() if sd15 else Networks.of(load_checkpoint(Path(options.model)))
    named = {"sd15" if sd15 else "base": networks.unet.architecture}
    if sd15:
        top = Architecture.without_top_attention()
        named |= {"without top attention": top, **by_hand(networks.unet.architecture.widths)}
    named |= {file.parent.name: Architecture.from_dict(read_json(file)) for file in options.architecture}
    table = load_table(options.table) if options.table else None
    taken = times_of(networks, [*named.values()]) if options.measure else [math.nan] * len(named)
    rows = []
    print(f"{'UNet':<24}{'parameters':>14}{'ms by the table':>17}{'ms measured':>13}{'error':>8}")
    for (name, architecture), measured in zip(named.items(), taken, strict=True):
        parameters = sum(weight.numel() for weight in unet_of(networks.unet, architecture).parameters())
        priced = table.price(architecture).milliseconds if table is not None else math.nan
        print(f"{name:<24}{parameters:>14,}{priced:>17.1f}{measured:>13.1f}{priced / measured - 1:>8.1%}")
        times = {"seconds": measured / 1000, "priced_seconds": priced / 1000}
        known = {key: None if math.isnan(value) else value for key, value in times.items()}
        rows.append({"name": name, "parameters": parameters, **known})
    write_record(options.json, {"batch": 1, "weights": "random", "table": table and table.device}, rows)


def times_of(networks: Networks, architectures: list[Architecture]) -> list[float]:
    """Milliseconds of each."""
    stopwatch = Stopwatch(engine("openvino"), (1,))
    whole = stopwatch.alone(unet_sketch(networks.unet, networks.length)).timings[1].median
    return [one.median for one in measure_architectures(networks, stopwatch, architectures, whole)]


if __name__ == "__main__":
    main()
