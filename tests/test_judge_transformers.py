"""A model of transformers as a judge: a tiny one, trained here to say yes to white, no to black, maybe to grey."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vap_gym.errors import CheckpointError, VapError
from vap_gym.evaluate.policies_judges import ShownEpisode, VlmJudge
from vap_gym.evaluate.policies_judges_named import named_judge
from vap_gym.evaluate.policies_transformers import TransformersVlm

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}answer{% endif %}"
)
QUESTION = "is {task} solved"


def episode(*greys: int) -> ShownEpisode:
    """An episode of frames of these greys."""
    frames = np.stack([np.full((16, 16, 3), grey, np.uint8) for grey in greys])
    return ShownEpisode(frames=frames, task="it", policy="p", start=0, seed=0)


def asked(processor, grey: int, answer: str):
    """A question about one picture with its answer, as the model sees them."""
    content = [
        {"type": "image", "image": Image.new("RGB", (16, 16), (grey,) * 3)},
        {"type": "text", "text": "is it solved"},
    ]
    told = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    ids = [processor.tokenizer.convert_tokens_to_ids(word) for word in (answer, "</s>")]
    told["input_ids"] = torch.cat([told["input_ids"], torch.tensor([ids])], 1)
    told["attention_mask"] = torch.ones_like(told["input_ids"])
    return {key: told[key] for key in ("input_ids", "attention_mask", "pixel_values")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its processor, as save_pretrained writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<unk>", "<s>", "</s>", "<image>", "answer", "is", "it", "solved", "yes", "no", "maybe"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8, projection_dim=32),
        text_config=LlamaConfig(**sizes, num_hidden_layers=2, num_key_value_heads=2, vocab_size=len(words),
            bos_token_id=1, eos_token_id=2, pad_token_id=2),
        image_token_index=3,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    samples = [asked(processor, grey, word) for grey, word in ((255, "yes"), (0, "no"), (128, "maybe"))]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        for sample in samples:
            labels = sample["input_ids"].clone()
            labels[:, :-2] = -100
            model(**sample, labels=labels).loss.backward()
        optimiser.step()
    out = tmp_path_factory.mktemp("vlm")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def test_a_model_says_what_it_sees_and_its_votes_decide(folder: Path) -> None:
    judge = VlmJudge(TransformersVlm.load(folder), votes=3, pictures=1, question=QUESTION)
    assert judge(episode(0, 255)).verdict == "success"
    found = judge(episode(255, 0))
    assert (found.verdict, found.reason) == ("failure", "0 yes, 3 no, 0 no answer")
    assert judge.settings is not None
    assert judge.settings["ask"]["model"] == str(folder)


def test_votes_are_drawn_from_the_seed_and_leave_the_global_one_alone(folder: Path) -> None:
    grey = [np.full((16, 16, 3), 128, np.uint8)]

    def answers(seed: int) -> list[str]:
        ask = TransformersVlm.load(folder, temperature=30.0, seed=seed)
        return [ask(grey, "is it solved") for _ in range(4)]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = answers(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert answers(0) == first
    assert len(set(first)) > 1
    assert answers(1) != first
    cold = TransformersVlm.load(folder, temperature=0.0)
    assert len({cold(grey, "is it solved") for _ in range(3)}) == 1


def test_a_model_that_says_neither_has_no_vote(folder: Path) -> None:
    found = VlmJudge(TransformersVlm.load(folder, temperature=0.0), votes=2, pictures=1, question=QUESTION)(
        episode(128)
    )
    assert (found.verdict, found.reason) == ("unknown", "0 yes, 0 no, 2 no answer")


def test_models_on_the_command_line_and_those_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    judge = named_judge(f"transformers:{folder},votes=2,pictures=3,timeout_s=9")
    assert isinstance(judge, VlmJudge)
    assert (judge.votes, judge.pictures) == (2, 3)
    with pytest.raises(CheckpointError, match=r"No vision-language model at"):
        TransformersVlm.load(tmp_path)
    found = TransformersVlm.load(folder)
    found.processor.chat_template = None
    with pytest.raises(VapError, match=r"must have a chat template, got a LlavaProcessor"):
        TransformersVlm(found.model, found.processor)
    with pytest.raises(VapError, match=r"temperature must be 0 or more"):
        TransformersVlm.load(folder, temperature=-1.0)
