"""Character offsets of tokens that are computed from the lengths of the tokens."""

from __future__ import annotations

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, tokenizer

from finetune_trainer.data.byte_level_text import ByteLevelText
from finetune_trainer.data.control_tokens import CutText
from finetune_trainer.data.text_encoding import TextEncoder

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


@pytest.mark.parametrize("trims_spaces", [False, True])
def test_encode_offsets_equal_those_of_the_tokenizers_library(trims_spaces: bool) -> None:
    from tokenizers import AddedToken
    from tokenizers.processors import ByteLevel

    words = tokenizer()
    words.backend_tokenizer.post_processor = ByteLevel(trim_offsets=trims_spaces)
    words.add_tokens([AddedToken("<|x|>", rstrip=True), AddedToken("    ")])
    texts = [
        *("", " a b", "Hello  there \n\n", "na\u00efve \u65e5\u672c \U0001f600<|im_end|>\n", "e\u0301", "a<|x|>  b"),
        *("<|im_start|>user\nHi    you<|im_end|>", "a\u00a0b", "\u0416\u0416 1"),
    ]
    encoder = TextEncoder(words)
    encoded_texts = encoder.encode([CutText(text) for text in texts])
    expected = words(texts, add_special_tokens=False, return_offsets_mapping=True)
    assert [list(text.ids) for text in encoded_texts] == expected["input_ids"]
    spans = [[(text.get_start(i), text.get_end(i)) for i in range(len(text.ids))] for text in encoded_texts]
    assert spans == expected["offset_mapping"]
    assert sum(isinstance(text, ByteLevelText) for text in encoded_texts) >= 6
