"""A bundle is drawn by the best runtime that is installed, and what is missing is named with what installs it."""

import pytest

from snapfusion.runtimes import choice
from snapfusion.runtimes.choice import choose, load


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(choice, "is_installed", lambda runtime: runtime in names)


def test_the_best_that_is_installed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(["torch", "onnx", "openvino"]) == "openvino"
    installed(monkeypatch, "onnx", "torch")
    monkeypatch.setattr(choice, "_finds_gpu", lambda: False)
    assert choose(["torch", "onnx", "openvino"]) == "onnx"
    assert choose(["torch", "onnx"], "torch") == "torch"
    monkeypatch.setattr(choice, "_finds_gpu", lambda: True)
    assert choose(["torch", "onnx", "openvino"]) == "torch"
    assert choose(["torch", "onnx"], "onnx") == "onnx"


def test_a_missing_one_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "torch")
    message = r'onnx needs onnxruntime, which is not installed; in a clone: pip install "\.\[onnx\]"'
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose(["onnx"])
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose(["onnx", "torch"], "onnx")
    with pytest.raises(ValueError, match=r'^openvino needs .* pip install "\." or onnx needs '):
        choose(["onnx", "openvino"])


def test_one_for_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "coreml")
    monkeypatch.setattr(choice.sys, "platform", "linux")
    with pytest.raises(ValueError, match=r"^coreml draws on darwin alone, and this is linux$"):
        choose(["coreml"])
    monkeypatch.setattr(choice.sys, "platform", "darwin")
    assert choose(["coreml"]) == "coreml"


def test_one_that_the_bundle_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got runtime 'torch', expected openvino or onnx, .* export CHECKPOINT"):
        choose(["onnx", "openvino"], "torch")
    with pytest.raises(
        ValueError, match="got runtime 'abacus', expected one of openvino, onnx, coreml, executorch, torch"
    ):
        choose(["openvino"], "abacus")


@pytest.mark.parametrize("runtime", ["openvino", "onnx", "torch"])
def test_a_runtime_has_a_module_that_opens(runtime: choice.Runtime) -> None:
    module = load(runtime)
    assert callable(module.open)
    assert module.precision() in ("bf16", "f32")
