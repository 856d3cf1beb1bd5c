"""Characters of a text, told one after another by a small GPT; measured in bits per character."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....errors import DataError
from ...config import TrainConfig
from ...data import Pair, folders
from . import HELD_OUT, Suite, register

CONTEXT = 64
HEADS = 4
BLOCKS = 3
TESTED = 10  # the last one in so many characters is tested with
FILE = "input.txt"
ORIGIN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


class GPT(nn.Module):
    """A decoder of pre-norm blocks (Radford et al. 2019): (n, t) characters -> (n, t, symbols).

    width: of the residual stream, and four times of it in a block's MLP.
    """

    def __init__(self, symbols: int, width: int):
        super().__init__()
        self.tokens = nn.Embedding(symbols, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        where = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places(where))))


class Block(nn.Module):
    """Attention over what came before, then an MLP, each added to the stream."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = HEADS * max(1, width // HEADS)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * self.inner)
        self.out = nn.Linear(self.inner, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attended(self.norm1(x)))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attended(self, x: Tensor) -> Tensor:
        heads = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.mix(x).chunk(3, 2)]
        q, k, v = heads
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class TextProblem:
    """Blocks of CONTEXT characters, each character to be told from those before it.

    train, test: the text as numbers below `symbols`. An epoch cuts it at another place.
    """

    suite: Suite
    symbols: int
    train: Tensor = field(repr=False)
    test: Tensor = field(repr=False)

    @property
    def steps_per_epoch(self) -> int:
        # At every cut there are as many blocks: the text ends a block before its end.
        return math.ceil(self._blocks / self.suite.config.batch)

    @property
    def _blocks(self) -> int:
        return len(self.train) // CONTEXT - 1

    @property
    def example(self) -> Tensor:
        return self.test[:CONTEXT][None]

    def model(self, scale: float = 1.0) -> nn.Module:
        return GPT(self.symbols, int(self.suite.scaled(scale)))

    def batches(self, seed: int, epoch: int) -> Iterator[Pair]:
        random = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        first = int(torch.randint(CONTEXT, (1,), generator=random))
        x, y = cut(self.train[first:], self._blocks)
        order = torch.randperm(self._blocks, generator=random)
        for places in order.split(self.suite.config.batch):
            yield x[places], y[places]

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """(loss in nats, bits) per character, over whole blocks."""
        model.eval()
        x, y = cut(self.test, (len(self.test) - 1) // CONTEXT)
        total = 0.0
        for inputs, targets in zip(x.split(256), y.split(256), strict=True):
            out = model(inputs).flatten(0, 1)
            total += float(F.cross_entropy(out, targets.flatten(), reduction="sum"))
        return total / y.numel(), total / y.numel() / math.log(2)

    def held_out(self) -> TextProblem:
        end = len(self.train) - len(self.train) // HELD_OUT
        return replace(self, train=self.train[:end], test=self.train[end:])


def cut(text: Tensor, blocks: int) -> Pair:
    """The first so many blocks, and the characters that follow each of theirs."""
    size = blocks * CONTEXT
    return text[:size].view(blocks, CONTEXT), text[1 : size + 1].view(blocks, CONTEXT)


def text_problem(suite: Suite) -> TextProblem:
    """The text of a suite's data; DataError if it is not on this machine."""
    return text_of(suite, read_text(suite.config.data))


def text_of(suite: Suite, text: str) -> TextProblem:
    """Characters as their places among all that occur, in order."""
    known = {character: place for place, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([known[character] for character in text])
    end = len(numbers) - len(numbers) // TESTED
    return TextProblem(suite, len(known), numbers[:end], numbers[end:])


def read_text(name: str) -> str:
    """The text of a data set, from the folders that images are looked for in."""
    places = [folder / FILE for folder in folders(name)]
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise DataError(
        f"data set {name!r} is not on this machine. Put {ORIGIN} to {' or '.join(map(str, places))}"
    )


register(
    "shakespeare-char-gpt",
    Suite(
        "a GPT of three blocks of width 64 on the characters of Shakespeare",
        TrainConfig(
            data="tinyshakespeare",
            model="char-gpt",
            optimizer="adamw",
            lr=2e-3,
            weight_decay=0.1,
            batch=32,
            epochs=4,
            skip=("tokens", "places"),
        ),
        "{}",
        (64,),
        text_problem,
        measure="bits per character",
        unit="bits",
        factor=1.0,
        higher=False,
        grid=(5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
    ),
)
