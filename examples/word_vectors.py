"""Train word vectors and update only the rows of each batch, with each value of `catch_up`.

Skip-gram with negative sampling learns the words of Python's standard library. A batch reads a few
thousand rows of two tables, one of words and one of contexts, and `fa.update_rows` updates only
those. The script compares the three values of `catch_up` after the same steps from the same start,
prints the nearest neighbors of some words, and draws `word_vectors.png`.
"""

import argparse
import functools
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from interrupts import answer_interrupts
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from train_digits import number, schedule

import functional_adam as fa

EVERY = 100  # steps between two points of a curve; one compiled program runs them
PAIRS, NEGATIVES, WINDOW, LEAST = 512, 5, 4, 5  # LEAST: fewest uses of a word
HELD_OUT_PAIRS = 4096
COLOURS = {"lazy": "tab:red", "moments": "gold", "dense": "tab:blue"}
SHOWN = ("read", "true", "int", "open", "error", "first", "class", "thread", "byte", "minute")


class Text(NamedTuple):
    """Words by falling frequency, their counts, and (word, context) pairs of two texts."""

    words: list[str]
    counts: np.ndarray
    train: np.ndarray
    held_out: np.ndarray


class Result(NamedTuple):
    """Held-out losses from step 0 on, the final table of words, and rows that took a step."""

    losses: list[float]
    table: np.ndarray
    seen: int


def load(seed: int) -> Text:
    """Words of the standard library's modules: every eighth file is held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [path.read_text("utf-8", "ignore").lower() for path in sorted(folder.glob("*.py"))]
    if len(files) < 100:
        sys.exit(f"Too little to learn: {folder} holds {len(files)} .py files, of a whole Python.")
    texts = [re.findall(r"[a-z]{2,}", text) for text in files]
    tally = Counter(word for text in texts for word in text)
    words = [word for word, count in tally.most_common() if count >= LEAST]
    index, counts = {word: i for i, word in enumerate(words)}, np.array([tally[x] for x in words])
    # As in word2vec, the most frequent words are thinned out.
    keep = np.minimum(1, np.sqrt(1e-3 / (counts / counts.sum())))
    rng = np.random.default_rng(seed)
    pairs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for n, text in enumerate(texts):
        numbers = np.array([index[word] for word in text if word in index], np.int32)
        numbers = numbers[rng.random(len(numbers)) < keep[numbers]]
        for distance in range(1, WINDOW + 1):
            near = np.stack([numbers[:-distance], numbers[distance:]], axis=1)
            pairs[n % 8 == 0].extend((near, near[:, ::-1]))
    train, held_out = map(np.concatenate, pairs)
    return Text(words, counts, train, rng.permutation(held_out)[:HELD_OUT_PAIRS])


def loss_of(vectors, contexts):
    """The mean over pairs of -log sigmoid(w . c), plus -log sigmoid(-w . c) for random words c.

    `contexts` of shape (pairs, 1 + NEGATIVES, width) has the true context first.
    """
    scores = jnp.einsum("pw,pcw->pc", vectors, contexts)
    signs = jnp.where(jnp.arange(scores.shape[1]) == 0, 1.0, -1.0)
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * scores), axis=1))


def optimizer(catch_up: str, args) -> dict[str, Any]:
    """The arguments of `update_rows` and `flush_rows`."""
    rate = schedule(args.learning_rate, args.steps)
    return dict(learning_rate=rate, b2=0.99, catch_up=catch_up, moments=args.moments)


def train_steps(how, tables, states, batches):
    """A step for each batch, which updates only the rows that it reads."""

    def step(carry, batch):
        tables, states = carry
        read = [table[rows] for table, rows in zip(tables, batch, strict=True)]
        # A sum over pairs: with a mean, the gradient of each pair would be as small as eps.
        grads = jax.grad(lambda read: PAIRS * loss_of(*read))(read)
        new = [
            fa.update_rows(g, rows, state, table, **how)
            for g, rows, state, table in zip(grads, batch, states, tables, strict=True)
        ]
        return ([table for table, _ in new], [state for _, state in new]), None

    return jax.lax.scan(step, (tables, states), batches)[0]


def flushed(how, tables, states):
    """The tables brought up to date, as an evaluation needs them."""
    if how["catch_up"] == "lazy":
        return tables
    pairs = zip(states, tables, strict=True)
    return [fa.flush_rows(state, table, **how)[0] for state, table in pairs]


def batches_of(text: Text, args):
    """(words, contexts) for `EVERY` steps at a time; each true context precedes random ones."""
    rng = np.random.default_rng(args.seed)
    # Random words by their frequency to the power of 3/4, as in word2vec.
    ends = np.cumsum(text.counts**0.75)
    for _ in range(args.steps // EVERY):
        pairs = text.train[rng.integers(len(text.train), size=(EVERY, PAIRS))]
        drawn = np.searchsorted(ends, ends[-1] * rng.random((EVERY, PAIRS, NEGATIVES)))
        contexts = np.concatenate([pairs[..., 1:], drawn], axis=2, dtype=np.int32)
        yield jnp.asarray(pairs[..., 0]), jnp.asarray(contexts)


def fit(catch_up: str, text: Text, args, advance) -> Result:
    """Train in one way, and take the held-out loss at the start and after every `EVERY` steps."""
    how = optimizer(catch_up, args)
    shape = len(text.words), args.width
    start = jax.random.normal(jax.random.key(args.seed), shape) / args.width
    tables = [start, jnp.zeros(shape)]
    states = [fa.init_rows(table, moments=args.moments) for table in tables]
    train = jax.jit(functools.partial(train_steps, how), donate_argnums=(0, 1))
    drawn = np.random.default_rng(1).choice(
        len(text.words), (len(text.held_out), NEGATIVES), p=text.counts / text.counts.sum()
    )
    contexts = np.concatenate([text.held_out[:, 1:], drawn], axis=1)

    @jax.jit
    def held_out_loss(tables, states):
        words, others = flushed(how, tables, states)
        return loss_of(words[text.held_out[:, 0]], others[contexts])

    losses = [float(held_out_loss(tables, states))]
    for batches in batches_of(text, args):
        tables, states = train(tables, states, batches)
        losses.append(float(held_out_loss(tables, states)))
        advance(EVERY)
    seen = int(jnp.sum(states[0].extra["last"] > 0))
    return Result(losses, np.asarray(flushed(how, tables, states)[0]), seen)


def neighbours(text: Text, table: np.ndarray, word: str, count: int = 4) -> list[str]:
    """The nearest of the 4,000 most frequent words, by cosine similarity."""
    unit = table[:4000] / np.linalg.norm(table[:4000], axis=1, keepdims=True)
    nearest = np.argsort(-unit @ unit[text.words.index(word)])
    return [text.words[i] for i in nearest[1 : 1 + count]]


def shown(text: Text) -> list[str]:
    """The words of `SHOWN` that are among the 4,000 most frequent."""
    return [word for word in SHOWN if word in text.words[:4000]]


def draw(path: Path, text: Text, results: dict[str, Result]) -> None:
    """Draw losses, and words with their neighbors in a plane."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")  # draws with Agg: no display needed
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for name, (losses, _, _) in results.items():
        steps = EVERY * np.arange(1, len(losses))
        label = f"{losses[-1]:.3f}  {name}"
        left.plot(steps, losses[1:], label=label, color=COLOURS[name], marker=".")
    left.set(title="Held-out loss", xlabel="step", ylabel="nats a pair")
    left.legend(title="at the end")
    left.grid(alpha=0.3)
    name, result = list(results.items())[-1]
    groups = [[word, *neighbours(text, result.table, word)] for word in shown(text)]
    unit = result.table / np.linalg.norm(result.table, axis=1, keepdims=True)
    chosen = np.concatenate([[text.words.index(word) for word in group] for group in groups])
    centred = unit[chosen] - unit[chosen].mean(axis=0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    for n, group in enumerate(groups):
        colour, places = f"C{n}", plane[n * 5 : n * 5 + 5]
        for place, word in zip(places, group, strict=True):
            right.plot(*np.stack([places[0], place]).T, color=colour, alpha=0.3, linewidth=1)
            weight = "bold" if word == group[0] else "normal"
            right.annotate(word, place, color=colour, fontsize=9, weight=weight, ha="center")
    right.set(
        title=f"Words and their four nearest, {name}: two principal axes", xticks=[], yticks=[]
    )
    figure.savefig(path, format="png", dpi=110)


def tables_of(text: Text, results: dict[str, Result]) -> list[Table]:
    """A table of losses, and one of neighbors by way of catching up."""
    first, second = Table("catch_up"), Table("word")
    for column in ("first loss", "last loss", "rows that took a step"):
        first.add_column(column, justify="right")
    for name, (losses, _, seen) in results.items():
        ends = f"{losses[0]:.4f}", f"{losses[-1]:.4f}"
        first.add_row(name, *ends, f"{seen:,} of {len(text.words):,}")
        second.add_column(name)
    for word in shown(text):
        near = [" ".join(neighbours(text, result.table, word)) for result in results.values()]
        second.add_row(word, *near)
    return [first, second]


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, default, **options) -> None:
        shown = "all" if default is COLOURS else default
        parser.add_argument(name, help=f"{help} (default: {shown})", default=default, **options)

    add("--steps", f"of each run, a multiple of {EVERY}", 4000, type=number(int, EVERY))
    add("--width", "of a vector", 64, type=number(int, 1))
    add("--learning-rate", "the peak", 0.01, type=number(float, 0))
    add("--moments", "how they are stored", "full", choices=["full", "bfloat16", "int8"])
    add("--seed", "of vectors and data order", 0, type=number(int, 0, 2**32 - 1))
    add("--ways", "values of catch_up", COLOURS, nargs="+", choices=COLOURS, metavar="WAY")
    add("--output", "the picture to write", Path("word_vectors.png"), type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.steps % EVERY:
        parser.error(f"argument --steps: must be a multiple of {EVERY}, not {args.steps}")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> None:
    """Train in every way, report and draw."""
    args = parse_args()
    answer_interrupts()
    text = load(args.seed)
    console, results = Console(), {}
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name in dict.fromkeys(args.ways):
            task = progress.add_task(name, total=args.steps)
            advance = functools.partial(progress.advance, task)
            results[name] = fit(name, text, args, advance)
    for table in tables_of(text, results):
        console.print(table)
    draw(args.output, text, results)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
