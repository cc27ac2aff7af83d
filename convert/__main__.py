"""The command line of the converter: python -m convert ..."""

import argparse
import sys
from pathlib import Path

from jax_llama3.checkpoint import verify
from jax_llama3.command import OneLineParser, run_command

from .fetch import fetch
from .to_jax import DTYPES, to_jax


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="jax-llama3-convert", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("fetch", help="download and convert a model")
    command.add_argument("name", metavar="NAME", help="smollm2-135m-instruct")
    command.add_argument("folder", metavar="DST", nargs="?", type=Path)
    _add_output_options(command)
    command.set_defaults(run=_fetch)

    command = commands.add_parser("to-jax", help="convert a checkpoint")
    command.add_argument("source", metavar="SRC", type=Path, help="a folder or one .gguf file")
    command.add_argument("folder", metavar="DST", type=Path)
    _add_output_options(command)
    command.set_defaults(run=_to_jax)

    command = commands.add_parser("check", help="verify every byte against the manifest")
    command.add_argument("folder", metavar="DIR", type=Path)
    command.set_defaults(run=_check)
    return parser


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: keep, the source's; float32 if quantised",
    )
    command.add_argument("--overwrite", action="store_true", help="replace a converted model")


def _fetch(options: argparse.Namespace) -> None:
    folder = fetch(options.name, options.folder, dtype=options.dtype, overwrite=options.overwrite)
    print(folder)


def _to_jax(options: argparse.Namespace) -> None:
    dtype = options.dtype or "keep"
    to_jax(options.source, options.folder, dtype=dtype, overwrite=options.overwrite)
    print(options.folder)


def _check(options: argparse.Namespace) -> None:
    manifest = verify(options.folder)
    print(f"{options.folder}: {len(manifest['tensors'])} tensors, every byte as written")


if __name__ == "__main__":
    sys.exit(main())
