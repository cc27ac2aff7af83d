"""The command line: python -m jax_llama3 generate|score|bench|info."""

import argparse
from pathlib import Path

from ..checkpoint.manifest import read_manifest
from ..runtime.memory import keep_freed_memory
from .benchmark import add_bench
from .default_model import model_folder
from .errors import OneLineParser, run_command
from .generation import add_generate
from .info import describe
from .scoring import add_score


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    keep_freed_memory()
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="jax-llama3", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_generate(commands.add_parser("generate", help="continue prompts"))
    add_score(commands.add_parser("score", help="log-probabilities of texts"))
    command = commands.add_parser("bench", help="prefill and decode against the machine's limits")
    add_bench(command)
    command = commands.add_parser("info", help="what a converted model is and needs")
    command.add_argument("folder", metavar="DIR", nargs="?", type=Path)
    command.set_defaults(run=_info)
    return parser


def _info(options: argparse.Namespace) -> None:
    folder = model_folder(options.folder)
    print(describe(folder, read_manifest(folder)))
