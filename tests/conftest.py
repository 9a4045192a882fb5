"""Checkpoints of the real classes, under a megabyte each. What builds them is imported late: few tests need torch."""

import gc
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch, which would take every core for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look through it again and again would be a tenth of all the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_again() -> Iterator[None]:
    """A command that a test ran shows what is logged, on the terminal that the test had: not so for the next one."""
    ours = logging.getLogger("snapfusion")
    before = ours.handlers, ours.propagate, ours.level
    yield
    ours.handlers, ours.propagate, ours.level = before


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: the sticker base in small (BERT, v-prediction with zero terminal SNR). Do not write to it."""
    import tiny_models

    return _save(tiny_models.sticker_checkpoint, tmp_path_factory.mktemp("tiny_checkpoint"))


@pytest.fixture(scope="session")
def few_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: `tiny_checkpoint` with a quarter of its UNet's blocks, for what takes time by the block: converting."""
    import tiny_models

    return _save(tiny_models.few_blocks_checkpoint, tmp_path_factory.mktemp("few_blocks"))


@pytest.fixture(scope="session")
def tiny_sd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: Stable Diffusion v1 in small (CLIP, eps-prediction). Do not write to it."""
    import tiny_models

    return _save(tiny_models.stable_diffusion_checkpoint, tmp_path_factory.mktemp("tiny_sd_checkpoint"))


def _save(build: Callable[[], Any], folder: Path) -> Path:
    import tiny_models
    from snapfusion.checkpoint import save_checkpoint

    save_checkpoint(tiny_models.seeded(build), folder)
    return folder


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change fields of a JSON file; None removes one."""

    def edit(file: Path, **fields: Any) -> None:
        value = {**json.loads(file.read_text()), **fields}
        file.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))

    return edit


@pytest.fixture(scope="session")
def tiny_bundle(few_blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: the bundle of `few_blocks`, drawing 3 steps with guidance 2. Do not write to it."""
    from snapfusion.stages.export import stage

    config = stage.Config(name="tiny", steps=3, guidance=2.0, prompts=("a red fox", "a blue whale, flat"))
    return stage.run(config, few_blocks, tmp_path_factory.mktemp("tiny_bundle") / "bundle").bundle
