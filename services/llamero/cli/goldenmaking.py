"""`python -m llamero.cli.goldenmaking`: golden prompts of an adapter folder, in a process of its own, so that the command stays light.

Prints the file's name, or nothing where base and adapter can't be told apart; ends with 2 and a sentence where they can't be loaded.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from llamero.evaluation.golden import make_golden, write_golden
from llamero.model.errors import ModelError
from llamero.spec.names import golden_name

REFUSED = 2


def main() -> int:
    """Make them."""
    parser = argparse.ArgumentParser(prog="python -m llamero.cli.goldenmaking")
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("target", type=Path, help="The folder that the file is written to.")
    parser.add_argument("--quantization", choices=["nf4"])
    told = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    try:
        told.target.mkdir(parents=True, exist_ok=True)
        digest = write_golden(make_golden(told.base, told.adapter, quantization=told.quantization), told.target)
    except (ModelError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    sys.stdout.write(f"{golden_name(digest)}\n" if digest else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
