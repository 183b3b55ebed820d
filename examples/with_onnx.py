"""Export the trained network, one of its exits, and a network that decides where to leave."""

import torch
from onnx.reference import ReferenceEvaluator
from torch.utils.data import DataLoader

import digits
import layerwise as lw
from layerwise.analysis.exits import EarlyExit, Exit

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

decides = EarlyExit(rule, 0.9).eval()  # a graph for one image
torch.onnx.export(torch.export.export(decides, (images[:1],)), f="early-exit.onnx", verbose=False)
graph = ReferenceEvaluator("early-exit.onnx")
for image in images[:20].split(1):
    (scores,) = graph.run(None, {graph.input_names[0]: image.numpy()})
    assert torch.allclose(torch.tensor(scores), decides(image), atol=1e-4)
print(f"early exit: images leave after blocks {decides.decide(images[:20])[1].tolist()}")
