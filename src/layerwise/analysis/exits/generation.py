"""Text that a causal language model writes, with early exits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.arguments import at_least, checks_arguments, shortened
from layerwise.errors import InputError
from layerwise.inputs import describe, scores

# Windows of tokens, (B, T) int64 -> scores of the next token at every position, (B, T, C); as a
# tensor, or as the `logits` of an object of `transformers`.
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Generated:
    """A text that was generated.

    Attributes:
        tokens: the prompt and what follows it, (T + count,) int64.
        forwards: how often the model ran.
        drafted: how many tokens the draft proposed.
        accepted: how many of these the model would have written, too.
    """

    tokens: Tensor
    forwards: int
    drafted: int = 0
    accepted: int = 0


@checks_arguments
@torch.no_grad()
def generate(
    model: Model,
    prompt: Tensor,
    count: int,
    context: int,
    draft: Model | None = None,
    ahead: int = 4,
) -> Generated:
    """Continue a text greedily: the next token is always the most probable one.

    The models are causal networks, in eval mode:

        generate(rule, prompt, 100, context)                  the full network; so does its model
        generate(Exit(rule, 1), prompt, 100, context)         the network that ends at an exit
        generate(EarlyExit(rule, 0.9, temperatures, position=-1), prompt, 100, context)
                                                              every token leaves where it is sure
        generate(rule, prompt, 100, context, draft=Exit(rule, 1))
                                                              verified: the full network's text

    With `draft`, an early exit writes up to `ahead` tokens, and one forward of the full network
    over all of them tells which it would have written itself. These are kept, and the network's own
    next token follows. The text is that of the full network, unless two of its scores are equal up
    to rounding, because a forward over more tokens may round differently. (Self-speculative
    decoding: Zhang et al. 2024, arXiv:2309.08168; with the exits of one network: LayerSkip,
    Elhoushi et al. 2024, arXiv:2404.16710.)

    Deviation: there is no cache of keys and values. Every forward computes all tokens of its
    window, so a token that left early has keys in all layers that a later token reads, as in the
    full network, and nothing has to be copied or filled in. It also means that a draft's layers are
    computed again by the forward that verifies it.

    If the text is longer than the context, the window begins at a later token: whenever it is full
    it loses its first half, so that most forwards of a text begin at the same token.

    Args:
        model: windows (B, T) -> scores (B, T, C), T at most `context`.
        prompt: the text so far, (T,), of an integer type, T at least 1.
        count: how many tokens to write.
        context: the largest number of tokens that the model reads.
        draft: a cheaper model of the same kind, which proposes tokens.
        ahead: the largest number of tokens that it proposes at once, at least 1.

    Raises:
        InputError: a prompt that is no text; numbers that are too small; scores that are not those
            of tokens.
    """
    if not isinstance(prompt, Tensor):
        raise InputError(
            f"generate(prompt={shortened(prompt)}): give the numbers of one text's tokens, a "
            "tensor (T,) of an integer type"
        )
    if prompt.dim() != 1 or not len(prompt) or prompt.is_floating_point():
        raise InputError(
            f"generate(prompt): got {tuple(prompt.shape)} of {prompt.dtype}; give the numbers of "
            "one text's tokens, (T,), at least one"
        )
    at_least(0, "generate", count=count)
    at_least(1, "generate", context=context, ahead=ahead)
    tokens = torch.cat([prompt.long(), prompt.new_zeros(count, dtype=torch.long)])
    n, forwards, drafted, accepted = len(prompt), 0, 0, 0
    while n < len(tokens):
        start = window_start(n, context)
        # All drafted tokens, and the one that follows them, are read in windows with this start.
        most = 0 if draft is None else min(ahead, len(tokens) - n - 1)
        while most and window_start(n + most, context) != start:
            most -= 1
        for i in range(n, n + most):
            assert draft is not None
            tokens[i] = _scores(draft, tokens[start:i])[-1].argmax()
        own = _scores(model, tokens[start : n + most])[n - start - 1 :].argmax(-1)  # (most + 1,)
        forwards += 1
        same = int((own[:-1] == tokens[n : n + most]).int().cumprod(0).sum())
        drafted, accepted = drafted + most, accepted + same
        tokens[n + same] = own[same]
        n += same + 1
    return Generated(tokens, forwards, drafted, accepted)


def window_start(length: int, context: int) -> int:
    """Where the window begins that predicts the token after `length` tokens."""
    if length <= context:
        return 0
    half = max(1, context // 2)
    return -(-(length - context) // half) * half


def _scores(model: Model, window: Tensor) -> Tensor:
    """The scores of the next token at every position of one window, (T, C)."""
    output = model(window[None])
    try:
        found = scores(output, None)
    except InputError as error:
        raise InputError(
            f"generate: the model gave {describe(output)}; give a rule, or a function that gives "
            "the scores (1, T, C), such as lambda window: model(window)[0]"
        ) from error
    if found.dim() != 3 or found.shape[:2] != (1, len(window)):
        raise InputError(
            f"generate: the model gave scores {tuple(found.shape)} for one window of {len(window)} "
            "tokens; give one that scores the next token at every position, (1, T, C)"
        )
    return found[0]
