"""A learning rule in Lightning, by manual optimisation."""

import lightning
import torch
from torch.utils.data import DataLoader

import digits
import layerwise as lw


class Local(lightning.LightningModule):
    def __init__(self, rule: lw.Rule):
        super().__init__()
        self.rule = rule  # its network and heads are found as modules, and saved
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        report = self.rule.backward(*batch)  # was: self.manual_backward(loss)
        optimizer.step()
        self.log("train_loss", report.loss)

    def test_step(self, batch):
        images, labels = batch
        self.log("test_accuracy", (self.rule(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.rule.parameters(), lr=3e-3)


rule = lw.rules.DGL(lw.cut(digits.network(), blocks=4, example=digits.images[:2]))
options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=5, accelerator="cpu", enable_progress_bar=False, **options)
trainer.fit(Local(rule), DataLoader(digits.train, 64, shuffle=True))
(result,) = trainer.test(Local(rule), DataLoader(digits.test, 64), verbose=False)
print(f"test accuracy {result['test_accuracy']:.3f}")
