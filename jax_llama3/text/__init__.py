"""Text and token ids: tokenizers, chat formats, a completion as it grows."""
