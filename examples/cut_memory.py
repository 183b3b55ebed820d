"""Train a network of Hugging Face in less memory."""

import torch
from transformers import BertConfig, BertForSequenceClassification

import layerwise as lw

config = BertConfig(
    vocab_size=1000, hidden_size=128, num_hidden_layers=8, num_attention_heads=4,
    intermediate_size=512, num_labels=2,
)  # fmt: skip
network = BertForSequenceClassification(config)
tokens = torch.randint(1, 1000, (16, 64))
batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
labels = (tokens[:, 0] > 500).long()

print(lw.costs.compare_steps(network, lw.rules.DGL, batch, labels, blocks=8, rounds=3))

rule = lw.rules.DGL(lw.cut(network, blocks=8, example=batch, balance="memory"))
optimizers = [torch.optim.AdamW(rule.parameters_of(k), lr=1e-3) for k in range(len(rule.blocks))]


def step(k: int) -> None:  # a block's gradients and activations are freed before the next one runs
    optimizers[k].step()
    optimizers[k].zero_grad()


for _ in range(10):
    print(f"loss {rule.backward(batch, labels, on_block=step).loss:.3f}")
