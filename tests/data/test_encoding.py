"""Texts and messages as token ids: where a prompt ends, where a completion does."""

import copy

import pytest

from pipelines.data.encoding import PAD, Encoder, with_padding

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chatty(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT
    return tokenizer


def test_text_is_prompt_and_completion_each_by_itself_with_eos_at_the_end(tokenizer):
    encoder = Encoder(tokenizer)
    prompt = encoder.prompt("a fine")
    assert prompt == tokenizer("a fine")["input_ids"]
    completion = encoder.completion("a fine", " film")
    assert completion == [*tokenizer(" film")["input_ids"], tokenizer.eos_token_id]
    assert encoder.both("a fine", " film") == (prompt, completion)
    assert encoder.text(completion) == " film"


def test_what_a_tokenizer_puts_around_a_text(tokenizer):
    """BOS belongs before the prompt; EOS after it would end the text before the answer."""

    class Wrapping:
        eos_token_id, chat_template = tokenizer.eos_token_id, None

        def __call__(self, text, add_special_tokens=True, split_special_tokens=False):
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [7, *ids, self.eos_token_id] if add_special_tokens else ids}

    encoder = Encoder(Wrapping())
    plain = tokenizer("a fine")["input_ids"]
    assert encoder.prompt("a fine") == [7, *plain]
    assert encoder.completion("x", "a fine") == [*plain, tokenizer.eos_token_id]


def test_messages_go_through_the_chat_template(chatty):
    encoder = Encoder(chatty)
    prompt, answer = (("user", "a fine"),), (("assistant", "film"),)
    assert chatty.decode(encoder.prompt(prompt)) == "[user]a fine[assistant]"
    ids = encoder.completion(prompt, answer)
    # The template's line end behind EOS is nothing that a policy writes: it has stopped.
    assert chatty.decode(ids) == f"film{chatty.eos_token}" and ids.count(chatty.eos_token_id) == 1


def test_a_template_without_eos_gets_it(chatty):
    chatty.chat_template = CHAT.replace("{{ eos_token }}\n", "")
    ids = Encoder(chatty).completion((("user", "a"),), (("assistant", "film"),))
    assert ids[-1] == chatty.eos_token_id and chatty.decode(ids[:-1]) == "film"


def test_a_template_that_cannot_part_prompt_and_answer_is_refused(chatty):
    chatty.chat_template = "{{ messages | length }}" + CHAT  # it counts the turns first
    with pytest.raises(ValueError, match="writes the prompt in another way"):
        Encoder(chatty).completion((("user", "a"),), (("assistant", "film"),))


def test_messages_without_a_template_and_a_tokenizer_without_eos(tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        Encoder(tokenizer).prompt((("user", "a"),))
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        Encoder(bare)


def test_padding_is_no_token_of_a_text(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = bare.eos_token
    bare.padding_side = "right"
    padded = with_padding(bare)
    assert padded.pad_token == PAD and padded.pad_token_id != padded.eos_token_id
    assert padded.padding_side == "left"
    own = with_padding(copy.deepcopy(tokenizer))
    assert own.pad_token_id == tokenizer.pad_token_id and len(own) == len(tokenizer)


def test_a_line_end_of_the_answer_does_not_merge_with_the_templates(chatty):
    role, line = "[{{ m.role }}]", "{{ '\\n' }}"
    chatty.chat_template = CHAT.replace("[assistant]", "[assistant]" + line).replace(
        role, role + "{% if m.role == 'assistant' %}" + line + "{% endif %}"
    )
    encoder = Encoder(chatty)
    ids = encoder.completion((("user", "a"),), (("assistant", "\n\nfilm"),))
    assert chatty.decode(ids[:-1]) == "\n\nfilm"


def test_a_template_that_refuses_says_so(chatty):
    chatty.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="refuses the messages: no system role"):
        Encoder(chatty).prompt((("system", "a"),))


def test_what_is_written_like_a_special_token_is_text(tokenizer):
    encoder = Encoder(tokenizer)
    end = tokenizer.eos_token
    ids = encoder.completion("a", f" film{end} here")
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in encoder.prompt(f"a {end} film")
