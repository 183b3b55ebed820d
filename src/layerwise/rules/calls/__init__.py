"""Tools for rules that run a block again, or differentiate its layers in another way.

again.py                            a block's further runs in a step, as if it ran once
as_written.py, precision.py         contexts: without compiled code, without autocast
attention.py, forward_mode.py       derivatives that PyTorch's kernels do not have
layer_calls.py, products.py         which linear and convolutional layers a network calls
replaced.py, sent_gradients.py      these layers by other functions, or with other gradients
straight_through.py                 nonlinearities without their derivative
"""
