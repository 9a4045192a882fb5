"""On a Mac: how far a Core ML bundle is from torch, how long its parts take and how much memory it takes.

    pip install "snapfusion[compress,coreml]"
    snapfusion export CHECKPOINT --out bundle --runtime coreml        # here, or on Linux and copied
    python benchmarks/coreml_mac.py bundle CHECKPOINT [--runs 20] [--json FILE]

Same measure as `snapfusion export` takes of engines that run where it runs: PSNR of every part on the inputs of drawn
pictures, PSNR of the pictures; then milliseconds of each part in the rows that guidance has, medians after one call
that does not count. `--runtime openvino` does the same with other bundles on other systems.
"""

import argparse
import platform
import resource
import time
from pathlib import Path
from statistics import median

from record import write_record
from snapfusion.bundle import Networks, read_bundle
from snapfusion.checkpoint import load_checkpoint
from snapfusion.generate import open_networks
from snapfusion.runtimes.choice import PARTS
from snapfusion.runtimes.torch import Network
from snapfusion.settings import settings_for
from snapfusion.stages.export.config import PROMPTS
from snapfusion.stages.export.footprint import blank_inputs
from snapfusion.stages.export.modules import modules
from snapfusion.stages.export.parity import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runtime", default="coreml")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    bundle = read_bundle(options.bundle, options.runtime)
    guided = bundle.manifest.defaults.guidance != 1
    start = time.perf_counter()
    networks = open_networks(bundle)
    opened = time.perf_counter() - start
    milliseconds = {}
    for part in PARTS:
        inputs = blank_inputs(bundle, part, 2 if guided and part != "vae_decoder" else 1)
        times = []
        for _ in range(options.runs + 1):
            start = time.perf_counter()
            getattr(networks, part)(**inputs)
            times.append(1000 * (time.perf_counter() - start))
        milliseconds[part] = median(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)

    right = Networks(**{part: Network(net) for part, net in modules(load_checkpoint(options.checkpoint)).items()})
    pictures = [one for prompt in PROMPTS[: options.prompts] for one in settings_for(bundle, prompt, seed=0)]
    parity = measure(bundle, networks, right, pictures)
    for part in PARTS:
        print(f"{part:14}{milliseconds[part]:9.2f} ms{parity[part]['psnr_db']:8.1f} dB")
    print(
        f"pictures {parity['pictures']['median_psnr_db']:.1f} dB; opened in {opened:.2f} s; {peak / 1e6:.0f} MB at most"
    )
    protocol = {"system": platform.platform(), "bundle": bundle.hash, "runs": options.runs}
    rows = [{"name": part, "seconds": milliseconds[part] / 1000, **parity[part]} for part in PARTS]
    write_record(options.json, protocol, rows, opened_s=opened, peak_bytes=peak, pictures=parity["pictures"])


if __name__ == "__main__":
    main()
