"""The command line of the converter: python -m convert ..."""

import argparse
import sys
from pathlib import Path
from typing import Any, TextIO

from jax_llama3.checkpoint.folder import check_output
from jax_llama3.checkpoint.manifest import read_manifest
from jax_llama3.checkpoint.receipt import read_receipt
from jax_llama3.checkpoint.verification import verify
from jax_llama3.cli.errors import OneLineParser, run_command
from jax_llama3.runtime.picture import check_picture
from jax_llama3.text.tokenizer import LLAMA3

from .export import to_hf, to_meta
from .fetch.hub import Snapshot, download, is_hub_name
from .fetch.models import fetch, located
from .inspection import inspect
from .merge import merge
from .to_gguf import DTYPES as GGUF_DTYPES
from .to_gguf import to_gguf
from .to_jax import DTYPES, QUANTIZATIONS, to_jax


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="jax-llama3-convert", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("fetch", help="download and convert a model")
    command.add_argument("name", metavar="NAME", help="smollm2-135m-instruct, or owner/name")
    command.add_argument("folder", metavar="DST", nargs="?", type=Path)
    _add_output_options(command)
    _add_chat_format(command)
    command.set_defaults(run=_fetch)

    command = commands.add_parser("to-jax", help="convert a checkpoint")
    command.add_argument(
        "source",
        metavar="SRC",
        help="a folder, one .gguf file, or owner/name[@revision] on the hub",
    )
    command.add_argument("folder", metavar="DST", type=Path)
    _add_output_options(command)
    _add_rope_factor(command)
    _add_chat_format(command)
    command.set_defaults(run=_to_jax)

    _add_exports(commands)

    command = commands.add_parser("inspect", help="show what a checkpoint is; reads headers only")
    command.add_argument("source", metavar="SRC", type=Path)
    _add_rope_factor(command)
    command.set_defaults(run=_inspect)

    command = commands.add_parser(
        "compare", help="run the reference implementation beside ours; name where they diverge"
    )
    command.add_argument(
        "source",
        metavar="SRC",
        help="what was converted: a folder, a .gguf file, or a model's name",
    )
    command.add_argument("folder", metavar="DIR", type=Path, help="the converted model")
    command.add_argument("--text", help="default: one of several scripts, and code")
    command.add_argument("--plot", metavar="FILE", type=Path, help="a picture of the table")
    _add_rope_factor(command)
    command.set_defaults(run=_compare)

    command = commands.add_parser("check", help="verify every byte against the manifest")
    command.add_argument(
        "folder", metavar="DIR", type=Path, help="a converted model, or a file that to-gguf wrote"
    )
    command.set_defaults(run=_check)
    return parser


def _add_exports(commands: Any) -> None:
    """The commands that begin with a converted model."""
    command = commands.add_parser("to-hf", help="write a converted model for transformers")
    _add_export_options(command)
    command.set_defaults(run=_to_hf)

    command = commands.add_parser("to-meta", help="write a converted model for Meta's own code")
    _add_export_options(command)
    command.add_argument("--shards", type=int, default=1, metavar="N", help="default: 1")
    command.set_defaults(run=_to_meta)

    command = commands.add_parser("to-gguf", help="write a converted model for llama.cpp")
    command.add_argument("source", metavar="DIR", type=Path, help="a converted model")
    command.add_argument("file", metavar="FILE", type=Path)
    command.add_argument(
        "--dtype", choices=GGUF_DTYPES, help="of the matrices; default: as they are stored"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace a file that to-gguf wrote"
    )
    command.set_defaults(run=_to_gguf)

    command = commands.add_parser("merge", help="merge a PEFT LoRA adapter into a converted model")
    command.add_argument("source", metavar="DIR", type=Path, help="a converted model")
    command.add_argument("adapter", metavar="ADAPTER", type=Path, help="the adapter's folder")
    command.add_argument("folder", metavar="DST", type=Path)
    command.add_argument(
        "--scale", type=float, default=1.0, metavar="S", help="of what the adapter adds; default: 1"
    )
    command.add_argument("--overwrite", action="store_true", help="replace a converted model")
    command.set_defaults(run=_merge)


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: keep, the source's; of a quantised GGUF file float32, of other quantised "
        "weights bfloat16",
    )
    command.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="store matrices as int8; --dtype is then that of the norms and the activations",
    )
    command.add_argument("--overwrite", action="store_true", help="replace a converted model")


def _add_export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="DIR", type=Path, help="a converted model")
    command.add_argument("folder", metavar="DST", type=Path)
    command.add_argument("--overwrite", action="store_true", help="replace a converted model")


def _add_rope_factor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rope-factor",
        type=float,
        metavar="F",
        help="RoPE scaling of a folder of Meta's, which does not say it; 1: none; default: inferred",
    )


def _add_chat_format(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--chat-format",
        choices=(LLAMA3,),
        help="of an Instruct model without a chat template; default: prompts are raw text",
    )


def _fetch(options: argparse.Namespace) -> None:
    folder = fetch(
        options.name,
        options.folder,
        dtype=options.dtype,
        quantize=options.quantize,
        chat_format=options.chat_format,
        overwrite=options.overwrite,
        on_note=_note,
    )
    _say(folder)


def _to_jax(options: argparse.Namespace) -> None:
    source = Snapshot(Path(options.source))
    if is_hub_name(options.source):
        check_output(options.folder, overwrite=options.overwrite)
        source = download(options.source)
    to_jax(
        source.path,
        options.folder,
        dtype=options.dtype or "keep",
        quantize=options.quantize,
        overwrite=options.overwrite,
        rope_factor=options.rope_factor,
        chat_format=options.chat_format,
        origin=source.origin,
        notes=source.notes,
        on_note=_note,
    )
    _say(options.folder)


def _to_hf(options: argparse.Namespace) -> None:
    to_hf(options.source, options.folder, overwrite=options.overwrite)
    _say(options.folder)


def _to_meta(options: argparse.Namespace) -> None:
    to_meta(options.source, options.folder, shards=options.shards, overwrite=options.overwrite)
    _say(options.folder)


def _to_gguf(options: argparse.Namespace) -> None:
    to_gguf(options.source, options.file, dtype=options.dtype, overwrite=options.overwrite)
    _say_notes(read_receipt(options.file)["decisions"])
    _say(options.file)


def _merge(options: argparse.Namespace) -> None:
    merge(
        options.source,
        options.adapter,
        options.folder,
        scale=options.scale,
        overwrite=options.overwrite,
    )
    _say_notes(read_manifest(options.folder)["decisions"])
    _say(options.folder)


def _say_notes(decisions: list[str]) -> None:
    """Print those decisions that a user should hear of."""
    for decision in decisions:
        if decision.startswith("note: "):
            _note(decision)


def _inspect(options: argparse.Namespace) -> None:
    print(inspect(options.source, options.rope_factor))


def _compare(options: argparse.Namespace) -> None:
    # Loaded for this command alone: with it come JAX's compiler and a model's worth of memory.
    from .compare import PICTURES, compare, plot, report

    if options.plot is not None:
        check_picture(options.plot, PICTURES)
    with located(options.source) as path:
        comparison = compare(
            path, options.folder, text=options.text, rope_factor=options.rope_factor
        )
    print(report(comparison))
    if options.plot is not None:
        plot(comparison, options.plot)
    if comparison.first is not None:
        raise ValueError(
            f"{options.folder} differs from {options.source} first in {comparison.first}; "
            "convert it again"
        )


def _check(options: argparse.Namespace) -> None:
    manifest = verify(options.folder)
    print(f"{options.folder}: {len(manifest['tensors'])} tensors, every byte as written")


def _say(folder: Path) -> None:
    """Print the path of the result."""
    print(_shown(str(folder), sys.stdout))


def _note(line: str) -> None:
    """Print what the converter decided for itself, as one line on stderr."""
    print(_shown(" ".join(line.split()), sys.stderr), file=sys.stderr)


def _shown(text: str, stream: TextIO) -> str:
    """The text with "?" for characters that the terminal cannot show."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


if __name__ == "__main__":
    sys.exit(main())
