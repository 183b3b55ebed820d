"""A learning rule in the Trainer of Hugging Face, on texts of two topics."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import layerwise as lw


class LocalTrainer(Trainer):
    def __init__(self, rule: lw.Rule, *arguments, **options):
        super().__init__(rule.blocks.model, *arguments, **options)
        self.rule = rule

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.rule.train()
        batch = self._prepare_inputs(inputs)
        labels = batch.pop("labels")
        share = self.args.gradient_accumulation_steps
        with self.compute_loss_context_manager():  # mixed precision
            return self.rule.backward(batch, labels, scale=lambda loss: loss / share).loss / share


torch.manual_seed(0)
topics = torch.arange(1024) % 2  # a topic's words are 0 to 9, or 5 to 14
tokens = torch.randint(10, (1024, 12)) + 5 * topics[:, None]
data = [{"input_ids": row, "labels": topic} for row, topic in zip(tokens, topics, strict=True)]
config = BertConfig(vocab_size=15, hidden_size=32, num_hidden_layers=4, num_attention_heads=4)
network = BertForSequenceClassification(config)
rule = lw.rules.DGL(lw.cut(network, blocks=4, example={"input_ids": tokens[:2]}))
optimizer = torch.optim.AdamW(rule.parameters(), lr=1e-3)  # heads included
arguments = TrainingArguments(
    "experiments/trainer", num_train_epochs=2, per_device_train_batch_size=32, use_cpu=True,
    report_to=[], save_strategy="no", disable_tqdm=True,
)  # fmt: skip
trainer = LocalTrainer(rule, arguments, train_dataset=data[:768], optimizers=(optimizer, None))
trainer.train()
found = trainer.predict(data[768:])
print(f"test accuracy {(found.predictions.argmax(1) == found.label_ids).mean():.3f}")
