"""Export the trained network and one of its exits, by torch.export and to ONNX."""

import torch
from onnx.reference import ReferenceEvaluator
from torch.utils.data import DataLoader

import digits
import layerwise as lw
from layerwise.analysis.exits import Exit

network = digits.network()
rule = lw.rules.DGL(lw.cut(network, blocks=4, example=digits.images[:2]))
optimizer = torch.optim.Adam(rule.parameters(), lr=3e-3)
for _ in range(4):
    for images, labels in DataLoader(digits.train, 64, shuffle=True):
        optimizer.zero_grad()
        rule.backward(images, labels)
        optimizer.step()

images, labels = digits.test[:]
small = Exit(rule, 1)  # blocks 0 and 1, and that block's head; it takes any number of arguments
batch = {0: torch.export.Dim("batch", min=2)}
for name, model, shapes in (("network", network, (batch,)), ("exit-1", small, ((batch,),))):
    exported = torch.export.export(model.eval(), (images[:4],), dynamic_shapes=shapes)
    torch.export.save(exported, f"{name}.pt2")
    torch.onnx.export(exported, f=f"{name}.onnx", verbose=False)
    graph = ReferenceEvaluator(f"{name}.onnx")
    (scores,) = graph.run(None, {graph.input_names[0]: images.numpy()})
    assert torch.allclose(torch.tensor(scores), model(images), atol=1e-4)
    print(f"{name}: test accuracy {(scores.argmax(1) == labels.numpy()).mean():.3f}")
