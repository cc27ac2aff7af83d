"""Write tests/golden/sentencepiece_tokens.json: llama.cpp's ids under SentencePiece's vocabularies.

    python -m venv VENV
    VENV/bin/pip install -e ".[convert,test]" llama-cpp-python    # compiles llama.cpp
    PYTHONPATH=tests VENV/bin/python docs/make_sentencepiece_golden.py

The vocabularies are small ones that tests/piece_files.py trains. They are stored beside the ids, so
another version of the trainer does not change the expected ids; llama.cpp reads each from a GGUF
file that holds nothing else.
"""

import json
import tempfile
from pathlib import Path

import gguf
import llama_cpp
from make_tokenizer_golden import quoted
from piece_files import KINDS as KINDS_OF_PIECES
from piece_files import gguf_fields, pieces_of
from texts import random_texts

from convert.formats.sentencepiece_file import PieceFile

TARGET = Path(__file__).parent.parent / "tests" / "golden" / "sentencepiece_tokens.json"
KINDS = ("llama", "mistral", "symbols", "no space before")
COUNT = 340  # some of them are names of special tokens
SYMBOLS = KINDS_OF_PIECES["symbols"]["user_defined_symbols"]
AROUND = ("", " ", "a", "Jax", "\n")


def write_vocabulary(path: Path, file: PieceFile) -> None:
    """A GGUF file of the vocabulary alone; llama.cpp asks for the architecture, too."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in gguf_fields(file).items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, list(value) if isinstance(value, list) else value.tolist())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def ids_of(file: PieceFile, texts: list[str]) -> list[list[int]]:
    """llama.cpp's ids of each text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocabulary(path, file)
        model = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
        return [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def main() -> None:
    files = {kind: pieces_of(kind) for kind in KINDS}
    texts = random_texts(COUNT)
    texts += [a + symbol + b for symbol in SYMBOLS for a in AROUND for b in AROUND]
    ids = [ids_of(file, texts) for file in files.values()]
    head = {
        "tokenizer": f"llama-cpp-python {llama_cpp.__version__}",
        "options": "add_bos=False, special=False",
    }
    kinds = [
        f'"{kind}": {{"prefix": {compact(file.prefix)}, "pieces": [\n'
        + ",\n".join(f"[{quoted(text)},{score:.9g},{sort}]" for text, score, sort in file.pieces)
        + "\n]}"
        for kind, file in files.items()
    ]
    rows = [
        f"[{quoted(text)},{compact(found)}]"
        for text, found in zip(texts, zip(*ids, strict=True), strict=True)
    ]
    body = json.dumps(head, indent=0)[:-2] + ',\n"vocabularies": {\n' + ",\n".join(kinds)
    TARGET.write_text(body + '\n},\n"texts": [\n' + ",\n".join(rows) + "\n]\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
