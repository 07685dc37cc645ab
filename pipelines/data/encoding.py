"""Prompts and completions as token ids, as a model is trained and sampled on them.

Text is tokenized as prompt and completion each by itself, messages by the tokenizer's chat template
(which says where the assistant's turn begins). Every completion ends in EOS: it is whole, and the
models learn where to stop.
"""

from typing import Any

import jinja2

from pipelines.data.pairs import Text

PAD = "<|pad|>"


class Encoder:
    """Token ids of somebody's texts.

    Args:
        tokenizer: of the model that is trained.

    Raises:
        ValueError: the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token: where a completion ends is not known")
        self.tokenizer, self.eos = tokenizer, int(tokenizer.eos_token_id)
        self.appends = tokenizer("a")["input_ids"][-1] == self.eos
        self.known: dict[Text, list[int]] = {}

    def prompt(self, prompt: Text) -> list[int]:
        """Ids of a prompt, with the tokens that the tokenizer puts before a text (BOS).

        Raises:
            ValueError: messages, and the tokenizer has no chat template.
        """
        if prompt not in self.known:
            self.known[prompt] = self._prompt(prompt)
        return self.known[prompt]

    def _prompt(self, prompt: Text) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt, split_special_tokens=True)["input_ids"]
            return ids[:-1] if self.appends else ids
        return self._written(self._text(prompt, add_generation_prompt=True))

    def completion(self, prompt: Text, completion: Text) -> list[int]:
        """Ids of a completion of that prompt, EOS at the end.

        Raises:
            ValueError: messages, and the tokenizer has no chat template, or one that refuses them
                or writes the prompt in another way when a completion follows.
        """
        if isinstance(completion, str):
            return [*self._plain(completion), self.eos]
        assert not isinstance(prompt, str)
        before, whole = (
            self._text(prompt, add_generation_prompt=True),
            self._text(prompt + completion),
        )
        if not whole.startswith(before):
            raise ValueError(
                "the chat template writes the prompt in another way where an answer follows it"
            )
        # By itself, as a policy writes it: no token reaches across the border to the prompt.
        ids = self._written(whole[len(before) :])
        if self.eos in ids:  # templates end a turn with EOS and, some, a line end
            last = len(ids) - 1 - ids[::-1].index(self.eos)
            if not self.tokenizer.decode(ids[last + 1 :]).strip():
                return ids[: last + 1]
        return [*ids, self.eos]

    def both(self, prompt: Text, completion: Text) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of a completion of it."""
        return self.prompt(prompt), self.completion(prompt, completion)

    def text(self, ids: list[int]) -> str:
        """What people read of some ids."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _plain(self, text: str) -> list[int]:
        """Ids of somebody's text; what is written like a special token in it is text as well."""
        given = {"add_special_tokens": False, "split_special_tokens": True}
        return self.tokenizer(text, **given)["input_ids"]

    def _written(self, text: str) -> list[int]:
        """Ids of what a chat template wrote, whose special tokens are meant."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _text(self, messages: Any, **options: Any) -> str:
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the pairs are messages, and the tokenizer has no chat template: write them as text"
            )
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from None


def with_padding(tokenizer: Any) -> Any:
    """`tokenizer` with a padding token that no text has, and padding on the left.

    The reward model reads its score at the last token that is no padding, so EOS cannot be it.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    return tokenizer
