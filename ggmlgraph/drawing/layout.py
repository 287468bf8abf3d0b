"""Where the boxes of a diagram stand and how the arrows run: layers from top to bottom, by the longest way from above.

The steps are those of Sugiyama, Tagawa & Toda (1981): layers, points on long arrows, an order in each layer by
barycentres, then places. A block is laid out first and is then a box of that size. Lengths are pixels. Used by the
writers of pictures.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ggmlgraph.drawing.amounts import brief
from ggmlgraph.drawing.diagram import Box, Diagram

CHARACTER, LINE = 6.7, 15.0  # of the text in boxes
PADDING, MARGIN = 10.0, 16.0  # inside a box, and around the boxes of a block
ACROSS, DOWN = 18.0, 26.0  # between boxes
HEADER = 44.0  # of a block's frame: its title and amounts
MOST_CHARACTERS = 44  # of a line; longer ones are cut, and whole in the tooltip
SWEEPS = 12
THREAD = 8.0  # width that a long arrow takes in the layers it passes


@dataclass(frozen=True)
class Placed:
    """A box, by its upper left corner."""

    path: tuple[int, ...]  # its number in its diagram, behind those of the blocks it is in
    box: Box
    x: float
    y: float
    width: float
    height: float
    inside: Layout | None


@dataclass(frozen=True)
class Wire:
    """An arrow as the points it passes, from the bottom of a box to the top of another."""

    points: tuple[tuple[float, float], ...]
    label: str


@dataclass(frozen=True)
class Layout:
    """A diagram with places, its own upper left corner at 0, 0."""

    boxes: tuple[Placed, ...]
    wires: tuple[Wire, ...]
    width: float
    height: float


def layout(diagram: Diagram, closed: Collection[tuple[int, ...]] = (), path: tuple[int, ...] = ()) -> Layout:
    """closed: repeated blocks that are boxes like others, by their numbers and those of the blocks that they are in.

    The rest show what is inside. path: of the block that the diagram is the inside of.
    """
    insides = [
        layout(box.inside, closed, (*path, i)) if box.inside and box.is_block and (*path, i) not in closed else None
        for i, box in enumerate(diagram.boxes)
    ]
    sizes = [_size(box, inside) for box, inside in zip(diagram.boxes, insides, strict=True)]
    pairs = [(arrow.source, arrow.target) for arrow in diagram.arrows]
    layers, chains = _threaded(_ranks(len(sizes), pairs), pairs)
    sizes += [(THREAD, 0.0)] * (sum(map(len, layers)) - len(sizes))
    links = [link for chain in chains for link in pairwise(chain)]
    _order(layers, links)
    xs = _across(layers, links, [width for width, _ in sizes])
    ys, bands = _down(layers, [height for _, height in sizes])
    left = min((x - width / 2 for x, (width, _) in zip(xs, sizes, strict=True)), default=0.0) - MARGIN
    xs = [x - left for x in xs]
    boxes = tuple(
        Placed((*path, i), box, xs[i] - sizes[i][0] / 2, ys[i], *sizes[i], insides[i])
        for i, box in enumerate(diagram.boxes)
    )
    wires = tuple(
        Wire(_points(chain, boxes, xs, bands, chains), arrow.label)
        for arrow, chain in zip(diagram.arrows, chains, strict=True)
    )
    width = max((x + w / 2 for x, (w, _) in zip(xs, sizes, strict=True)), default=0.0) + MARGIN
    height = max((box.y + box.height for box in boxes), default=0.0) + MARGIN
    return Layout(boxes, wires, width, height)


def shown(text: str) -> str:
    """A line as a box has room for."""
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def _size(box: Box, inside: Layout | None) -> tuple[float, float]:
    if inside is not None:
        return max(inside.width, 300.0), inside.height + HEADER
    texts = (box.heading, *box.lines, brief(box.amounts))
    width = max(len(shown(text)) for text in texts) * CHARACTER + 2 * PADDING
    return max(width, 60.0), sum(map(bool, texts)) * LINE + PADDING


# ---------------------------------------------------------------- layers


def _ranks(n: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each box; one that takes nothing stands right above what takes it. Arrows go to later boxes."""
    ranks = [0] * n
    for source, target in sorted(pairs, key=lambda pair: pair[1]):
        ranks[target] = max(ranks[target], ranks[source] + 1)
    targets = {target for _, target in pairs}
    for box in set(range(n)) - targets:
        following = [ranks[target] for source, target in pairs if source == box]
        ranks[box] = min(following, default=1) - 1
    return ranks


def _threaded(ranks: list[int], pairs: Sequence[tuple[int, int]]) -> tuple[list[list[int]], list[list[int]]]:
    """The boxes of each layer, and for each arrow what it passes: a point in every layer between, numbered on."""
    layers: list[list[int]] = [[] for _ in range(max(ranks, default=0) + 1)]
    for box, rank in enumerate(ranks):
        layers[rank].append(box)
    chains, n = [], len(ranks)
    for source, target in pairs:
        between = range(ranks[source] + 1, ranks[target])
        points = list(range(n, n + len(between)))
        n += len(points)
        for rank, point in zip(between, points, strict=True):
            layers[rank].append(point)
        chains.append([source, *points, target])
    return layers, chains


def _neighbours(links: Sequence[tuple[int, int]]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for source, target in links:
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    return above, below


def _order(layers: list[list[int]], links: Sequence[tuple[int, int]]) -> None:
    """Sort each layer by where its neighbours stand, downwards and upwards in turn."""
    above, below = _neighbours(links)
    place = {box: float(i) for layer in layers for i, box in enumerate(layer)}

    for sweep in range(SWEEPS):
        neighbours = below if sweep % 2 else above
        for layer in reversed(layers) if sweep % 2 else layers:
            centres = {box: _mean([place[other] for other in neighbours.get(box, [box])]) for box in layer}
            layer.sort(key=centres.__getitem__)
            place |= {box: float(i) for i, box in enumerate(layer)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------- places


def _across(layers: list[list[int]], links: Sequence[tuple[int, int]], widths: Sequence[float]) -> list[float]:
    """The middle of each box: as near to its neighbours' as those beside it allow."""
    above, below = _neighbours(links)
    xs = [0.0] * len(widths)
    for layer in layers:
        for box, x in zip(layer, _apart(layer, [0.0] * len(layer), widths), strict=True):
            xs[box] = x
    for sweep in range(SWEEPS):
        neighbours = below if sweep % 2 else above
        for layer in reversed(layers) if sweep % 2 else layers:
            wanted = [_mean([xs[other] for other in neighbours.get(box, [box])]) for box in layer]
            for box, x in zip(layer, _apart(layer, wanted, widths), strict=True):
                xs[box] = x
    return xs


def _apart(layer: Sequence[int], wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Places in the order of the layer, none on another, whose squared distance from those wanted is least.

    What is to stand left of the place it has to be right of forms a group with that, which stands where all of it
    together wants to (pool adjacent violators).
    """
    offsets, total = [], 0.0
    for i, box in enumerate(layer):
        total += (widths[layer[i - 1]] + widths[box]) / 2 + ACROSS if i else 0.0
        offsets.append(total)
    groups: list[tuple[float, int]] = []  # sum of what is wanted, less the offset; how many
    for x, offset in zip(wanted, offsets, strict=True):
        groups.append((x - offset, 1))
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] >= groups[-1][0] / groups[-1][1]:
            (a, n), (b, m) = groups.pop(-2), groups.pop()
            groups.append((a + b, n + m))
    bases = [total / n for total, n in groups for _ in range(n)]
    return [base + offset for base, offset in zip(bases, offsets, strict=True)]


def _down(layers: list[list[int]], heights: Sequence[float]) -> tuple[list[float], dict[int, tuple[float, float]]]:
    """The top of each box, in the middle of its layer, and where the layers begin and end that points stand in."""
    ys = [0.0] * len(heights)
    bands: dict[int, tuple[float, float]] = {}
    top = MARGIN
    for layer in layers:
        height = max((heights[box] for box in layer), default=0.0)
        for box in layer:
            ys[box] = top + (height - heights[box]) / 2
            bands[box] = (top, top + height)
        top += height + DOWN
    return ys, bands


def _points(
    chain: Sequence[int],
    boxes: Sequence[Placed],
    xs: Sequence[float],
    bands: dict[int, tuple[float, float]],
    chains: Sequence[list[int]],
) -> tuple[tuple[float, float], ...]:
    """Down through the layers between, each straight; into the target beside the others that arrive there."""
    source, target = boxes[chain[0]], boxes[chain[-1]]
    arriving = sorted((other[-2] for other in chains if other[-1] == chain[-1]), key=lambda point: xs[point])
    at = target.x + target.width / (len(arriving) + 1) * (arriving.index(chain[-2]) + 1)
    between = ((xs[point], y) for point in chain[1:-1] for y in bands[point])
    return ((xs[chain[0]], source.y + source.height), *between, (at, target.y))
