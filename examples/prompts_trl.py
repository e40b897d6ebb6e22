"""TRL's GRPOTrainer on the prompts that GRESO proposes: two added lines, `Prompts` and `PromptPruner`.

    python examples/prompts_trl.py [--steps 150] [--resume]

A Llama of one layer with random weights learns the larger of two digits. Characters are tokens: nothing is downloaded.
"""

import argparse
import warnings
from typing import Any

import datasets
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from dataprune.integrations.trl import PromptPruner
from dataprune.prompts import Prompts, greso

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--resume", action="store_true", help="from the newest checkpoint")
options = parser.parse_args()
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # of trl 1.16

transformers.set_seed(0)
symbols = {symbol: number for number, symbol in enumerate([".", "?", *"0123456789,="])}
characters = Tokenizer(models.WordLevel(symbols, unk_token="?"))
characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=characters, eos_token=".", pad_token=".", unk_token="?", padding_side="left"
)
config = transformers.LlamaConfig(vocab_size=len(symbols), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=4, max_position_embeddings=16, bos_token_id=None, eos_token_id=0, pad_token_id=0)  # fmt: skip
train_set = datasets.Dataset.from_list([{"prompt": f"{a},{b}=", "a": a, "b": b} for a in range(10) for b in range(10)])


def right(completions: list[str], a: list[int], b: list[int], **_: Any) -> list[float | None]:
    return [float(text[:1] == str(max(x, y))) for text, x, y in zip(completions, a, b)]


arguments = GRPOConfig(
    "runs/prompts_trl", max_steps=options.steps, per_device_train_batch_size=64, num_generations=8, learning_rate=1e-3,
    max_completion_length=1, per_device_eval_batch_size=100, num_generations_eval=1, save_steps=20, logging_steps=10,
    report_to=[], dataloader_pin_memory=False, bf16=False, activation_checkpointing=False,
)  # fmt: skip
trainer = GRPOTrainer(
    transformers.LlamaForCausalLM(config), right, arguments, train_dataset=train_set, eval_dataset=train_set,
    processing_class=tokenizer,
)  # fmt: skip
prompts = Prompts(len(train_set), greso())  # 1
PromptPruner(prompts).attach(trainer)  # 2
before = trainer.evaluate()["eval_reward"]
trainer.train(resume_from_checkpoint=options.resume or None)

numbers = prompts.stats()
# of all prompts: the logged reward is that of the proposed ones, which are those not solved yet
print(f"reward {before:.2f} -> {trainer.evaluate()['eval_reward']:.2f} in {trainer.state.global_step} steps and "
      f"{numbers['rollouts']} rollouts, {numbers['no_variance']:.0%} of the groups without variance")  # fmt: skip
