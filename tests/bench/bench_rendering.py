"""Time to render a conversation and to find its answers, by number of turns: `python -m tests.bench.bench_rendering`.

The chat templates are those of TRL, with and without markers around the answers. Each time is the best of five.
"""

from __future__ import annotations

import time

from tests.support.trainer.tiny_model import chat
from tests.support.trainer.tool_conversations import build_tokenizer, build_tool_chat, read_template

from finetune_trainer.data.loss_masking import LossMasker
from finetune_trainer.data.row_types import Chat

_TEMPLATES = ("qwen3", "qwen3_training", "llama3_1", "gptoss")
_TURNS = (2, 40, 100)
_RUNS = 5


def main() -> None:
    """Print one line of the table for each template."""
    print("| Template | Turns |", " | ".join(map(str, _TURNS)), "| 96 with tool calls |")
    for name in _TEMPLATES:
        masker = LossMasker(build_tokenizer(read_template(name)))
        tool_chat = build_tool_chat()
        rows = [*map(_build_chat, _TURNS), Chat(tool_chat.messages * 12, tool_chat.tools)]
        print(f"| {name} | ms |", " | ".join(f"{_measure(masker, row):.2f}" for row in rows), "|")


def _build_chat(turns: int) -> Chat:
    texts = [f"Turn {number} of a conversation about several things of daily life." for number in range(turns)]
    return Chat(chat(*texts)["messages"])


def _measure(masker: LossMasker, row: Chat) -> float:
    """Return the milliseconds of a rendering."""
    masker.render(row)
    seconds = []
    for _ in range(_RUNS):
        start = time.process_time()
        masker.render(row)
        seconds.append(time.process_time() - start)
    return 1000 * min(seconds)


if __name__ == "__main__":
    main()
