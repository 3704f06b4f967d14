"""Runs in the Python of llama-cpp-python: answers prompts with GGUF files.

Reads a request from stdin, as JSON, and writes for each prompt the token IDs of its text, those of the greedy answer,
the text of the answer and the logits after the prompt.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from llama_cpp import Llama


def main() -> None:
    request = json.load(sys.stdin)
    llama = Llama(
        request["model"], lora_path=request["adapter"], n_ctx=512, n_threads=2, logits_all=True, verbose=False
    )
    json.dump([answer(llama, prompt, request["length"]) for prompt in request["prompts"]], sys.stdout)


def answer(llama: Llama, prompt: dict[str, Any], length: int) -> dict[str, Any]:
    ids = prompt["ids"]
    llama.reset()
    llama.eval(ids)
    logits = [float(value) for value in llama.scores[len(ids) - 1]]
    tokens: list[int] = []
    for _ in range(length):
        token = int(llama.scores[llama.n_tokens - 1].argmax())
        if token in prompt["ends"]:
            break
        tokens.append(token)
        llama.eval([token])
    has_vocabulary = prompt["text"] is not None
    return {
        "prompt": llama.tokenize(prompt["text"].encode(), add_bos=False, special=True) if has_vocabulary else None,
        "answer": tokens,
        "logits": logits,
    }


if __name__ == "__main__":
    main()
