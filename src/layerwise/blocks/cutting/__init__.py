"""How `cut` divides a network, step by step. Nothing here runs in training.

recording.py   runs the network once and notes every call of its modules
data_flow.py   finds the tensors that depend on the inputs, while a run is recorded
flops.py       counts floating-point operations, while a run is recorded
graph.py       the autograd graph of a run: which tensors are alive at which moment
trial.py       runs the network cut at all candidates, to see whether anything else crosses
points.py      the cut points, and which of them begin a block
division.py    finds the modules and parameters of each block, and makes the chain
"""
