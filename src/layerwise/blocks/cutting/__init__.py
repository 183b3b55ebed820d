"""How `cut` divides a network, step by step; nothing here runs in training.

recording.py   runs the network once and notes every call of its modules
data_flow.py, flops.py   what a recording follows and counts
graph.py       the autograd graph of that run: which tensors are alive when
trial.py       runs the network cut at all candidates, to see whether anything else crosses
points.py      the cut points, and which of them begin a block
division.py    what belongs to which block; makes the chain
"""
