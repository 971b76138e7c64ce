"""Write an SDXL of the real architecture with seeded random fp16 weights, unless it is there already."""

from __future__ import annotations

import argparse
from pathlib import Path

from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import SdxlSize, ensure_sdxl

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made in diffusers layout; full-size: 6.5 GB")
    parser.add_argument("--small", action="store_true", help="the widths of the built-in demo model, 10 MB")
    parser.add_argument("--healthy", action="store_true", help="with a VAE that does not overflow in fp16")
    parser.add_argument("--trained-like", action="store_true", help="with the weight statistics of a trained model")
    arguments = parser.parse_args()
    size = DEMO_SIZE if arguments.small else SdxlSize()
    print(ensure_sdxl(arguments.folder, size, healthy=arguments.healthy, trained_like=arguments.trained_like))
