"""Nothing that we use tells anybody that it was used."""

import subprocess
import sys

import pytest

SILENT = """
import {module}
import openvino.tools.ovc as converter
assert type(converter.telemetry).__module__ == "openvino.tools.ovc.telemetry_stub", type(converter.telemetry)
assert sys.modules["openvino_telemetry"] is None
"""


@pytest.mark.parametrize("module", ["snapfusion.runtimes.openvino", "snapfusion.generate"])
def test_importing_openvino_reports_nothing(module: str) -> None:
    code = "import sys\n" + SILENT.format(module=module)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
def test_quantising_reports_nothing() -> None:
    code = """
import snapfusion, nncf
from nncf.telemetry.wrapper import NNCFTelemetry, telemetry
assert not isinstance(telemetry, NNCFTelemetry), telemetry
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
