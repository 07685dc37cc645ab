"""Prompts and completions as token ids, as a model is trained and sampled on them.

Text is tokenized as prompt and completion each by itself, messages by the tokenizer's chat template
(which says where the assistant's turn begins). Every completion ends in EOS: it is whole, and the
models learn where to stop.
"""

from typing import Any

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
            ids = self.tokenizer(prompt)["input_ids"]
            return ids[:-1] if self.appends else ids
        return self._template(prompt, add_generation_prompt=True)

    def completion(self, prompt: Text, completion: Text) -> list[int]:
        """Ids of a completion of that prompt, EOS at the end.

        Raises:
            ValueError: messages, and the tokenizer has no chat template, or one that writes the
                prompt in another way when a completion follows.
        """
        if isinstance(completion, str):
            return [*self._plain(completion), self.eos]
        assert not isinstance(prompt, str)
        before, whole = self.prompt(prompt), self._template(prompt + completion)
        if whole[: len(before)] != before:
            raise ValueError(
                "the chat template writes a prompt in another way where an answer follows it"
            )
        ids = whole[len(before) :]
        if self.eos in ids:  # templates end a turn with EOS and, some, a line end
            last = len(ids) - 1 - ids[::-1].index(self.eos)
            if not self.tokenizer.decode(ids[last + 1 :]).strip():
                return ids[: last + 1]
        return [*ids, self.eos]

    def lengths(self, prompt: Text, completion: Text) -> tuple[int, int]:
        """Tokens of a prompt and of a completion, EOS included."""
        return len(self.prompt(prompt)), len(self.completion(prompt, completion))

    def text(self, ids: list[int]) -> str:
        """What people read of some ids."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _template(self, messages: Any, **options: Any) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the pairs are messages, and the tokenizer has no chat template: write them as text"
            )
        turns = [{"role": role, "content": content} for role, content in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        return self._plain(text)


def with_padding(tokenizer: Any) -> Any:
    """`tokenizer` with a padding token that no text has, and padding on the left.

    The reward model reads its score at the last token that is no padding, so EOS cannot be it.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    return tokenizer
