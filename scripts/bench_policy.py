"""What leaving weights in 16 bits is worth: the UNet's output error with a part of the policy and without it.

The UNet has half of SDXL's widths, one transformer layer a block, and random weights with the statistics of trained ones.
Its weights are rounded in PyTorch as each precision stores them, and it computes in float32: nothing but storing shows.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from bench_result import Result, table
from diffusers import UNet2DConditionModel
from rich.table import Table

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.families.sdxl import KEPT
from vaefix.convert.synthetic import ensure_sdxl
from vaefix.validate.inputs import PictureSize, sample_inputs
from vaefix.validate.metrics import compare
from vaefix.validate.reference import narrow_weights

SIZE = replace(DEMO_SIZE, unet_channels=(160, 320, 640), unet_heads=(5, 10, 20), unet_depth=(1, 1, 1))
PIXELS = 256
SEEDS = (0, 1)
PRECISIONS = ("int8", "fp8_e4m3", "fp8_e5m2", "int4")
PARTS = {
    "conv_in, conv_out": r"^conv_in|^conv_out",
    "time_embedding, add_embedding": r"time_embedding|add_embedding",
    "time_emb_proj": r"time_emb_proj",
    "conv_shortcut": r"conv_shortcut",
}
ALL, NONE = "the policy", "nothing"


@dataclass(frozen=True)
class Row:
    """kept: what stays in 16 bits, in words.  share: of all weights.  psnr_db: of the predicted noise, the least over seeds."""

    precision: str
    kept: str
    share: float
    relative: float
    psnr_db: float


def add_arguments(_: argparse.ArgumentParser) -> None:
    """It has no options."""


def result(arguments: argparse.Namespace) -> Result:
    """Every precision, with nothing kept, with each part alone, and with all of them."""
    folder = ensure_sdxl(arguments.work / "sdxl-policy", SIZE, trained_like=True)
    rows = list(measured(folder))
    return Result(rows, [shown(rows)], [])


def measured(folder: Path) -> Iterator[Row]:
    """Of the UNet of this model."""
    model = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    feeds = [sample_inputs(Checkpoint.open(folder), "unet", seed, PictureSize(PIXELS, PIXELS)) for seed in SEEDS]
    expected = [_run(model, feed) for feed in feeds]
    for precision in PRECISIONS:
        for kept, pattern in {NONE: None, **PARTS, ALL: KEPT["unet"]}.items():
            narrowed = copy.deepcopy(model)
            narrow_weights(narrowed, precision, pattern)
            differences = [compare(wanted, _run(narrowed, feed)) for wanted, feed in zip(expected, feeds, strict=True)]
            if any(difference.nonfinite_actual for difference in differences):
                raise SystemExit(f"{precision}, {kept}: not every output is finite")
            worst = max(differences, key=lambda difference: difference.relative)
            yield Row(precision, kept, _share(model, pattern), worst.relative, worst.psnr_db)
            print(f"{precision}, {kept}: {worst.psnr_db:.1f} dB", file=sys.stderr)


def _run(model: UNet2DConditionModel, feed: dict[str, np.ndarray]) -> np.ndarray:
    given = {name: torch.from_numpy(value) for name, value in feed.items()}
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
    with torch.inference_mode():
        output: np.ndarray = model(**given, added_cond_kwargs=added).sample.numpy()
    return output


def _share(model: UNet2DConditionModel, pattern: str | None) -> float:
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    kept = sum(size for name, size in sizes.items() if pattern is not None and re.search(pattern, name))
    return kept / sum(sizes.values())


def shown(rows: Sequence[Row]) -> Table:
    """Error by precision and part."""
    lines = [
        (f"{row.precision}, {row.kept}", f"{100 * row.share:.2f}", f"{row.relative:.2e}", f"{row.psnr_db:.2f}") for row in rows
    ]
    return table("what stays in 16 bits", ("", "% of weights", "relative", "PSNR dB"), lines)
