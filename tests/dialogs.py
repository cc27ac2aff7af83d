"""A thousand texts, and dialogs of what a person may type."""

from hypothesis import strategies as st
from texts import SPECIAL_NAMES, random_texts

TEXTS = random_texts(1000 + len(SPECIAL_NAMES))
# What a person may type, with blanks around it and names of special tokens in it.
blanks = st.text(" \n\t\r\u3000", max_size=3)
said = st.one_of(st.text(), st.sampled_from(TEXTS), st.sampled_from(SPECIAL_NAMES))
contents = st.builds(lambda left, text, right: left + text + right, blanks, said, blanks)
roles = st.sampled_from(["user", "assistant", "system", "tool"])
messages = st.fixed_dictionaries({"role": roles, "content": contents})
dialogs = st.lists(messages, min_size=1, max_size=6)
