"""Log-probs by Transformers alone: python plain_logprobs.py CHECKPOINT COMPLETIONS LOGPROBS

Knows nothing of this project: any environment with torch, transformers and pandas can run it.
Prints the largest difference from the stored log-probs (nats a completion).
"""

import sys

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

checkpoint, completions, logprobs = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
rows = pd.read_parquet(completions)
stored = pd.read_parquet(logprobs).set_index(["prompt_id", "sample"])["ref_logp"]
worst = 0.0
for row in rows.head(64).to_dict("records"):
    prompt, completion = list(row["prompt_ids"]), list(row["completion_ids"])
    text = row["completion"]
    assert tokenizer.decode(completion, skip_special_tokens=True) == text
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    found = logits.double().log_softmax(-1)[range(len(completion)), completion].sum()
    worst = max(worst, abs(float(found) - stored[row["prompt_id"], row["sample"]]))
assert "pipelines" not in sys.modules
print(worst)
